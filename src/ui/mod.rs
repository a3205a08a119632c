//! The chat page that is served at `/`: three files in the binary, without a build step, a framework or a request to
//! anyone else.
//!
//! In: a request's path. Out: the file's type and bytes, and the headers that go with every one of them.
//! Attacker controls: the path, which is compared and never used as a file's name. Bounds: the files are constants.
//! Errors: none; what is not here is `None`. Without the feature `ui` nothing is here.

pub mod headers;

pub use headers::headers;

/// One file of the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asset {
    pub content_type: &'static str,
    pub bytes: &'static [u8],
}

/// The file of a path, the query already taken off. The answer to any other path is 404.
#[cfg(feature = "ui")]
pub fn asset(path: &str) -> Option<Asset> {
    let (content_type, bytes): (_, &'static [u8]) = match path {
        "/" | "/index.html" => (
            "text/html; charset=utf-8",
            include_bytes!("assets/index.html"),
        ),
        "/app.js" => (
            "text/javascript; charset=utf-8",
            include_bytes!("assets/app.js"),
        ),
        "/style.css" => (
            "text/css; charset=utf-8",
            include_bytes!("assets/style.css"),
        ),
        _ => return None,
    };
    Some(Asset {
        content_type,
        bytes,
    })
}

/// The minimal build serves no page.
#[cfg(not(feature = "ui"))]
pub fn asset(_path: &str) -> Option<Asset> {
    None
}

#[cfg(test)]
#[cfg(feature = "ui")]
mod tests {
    use super::*;

    const PATHS: [&str; 3] = ["/", "/app.js", "/style.css"];

    fn text(path: &str) -> &'static str {
        std::str::from_utf8(asset(path).unwrap().bytes).unwrap()
    }

    #[test]
    fn only_these_paths_are_served() {
        assert_eq!(asset("/index.html"), asset("/"));
        for path in [
            "",
            "/app.js/",
            "//app.js",
            "/../Cargo.toml",
            "/%2e%2e/app.js",
            "/APP.JS",
            "app.js",
            "/assets/app.js",
        ] {
            assert_eq!(asset(path), None, "{path}");
        }
    }

    #[test]
    fn the_page_is_small() {
        let total: usize = PATHS
            .iter()
            .map(|path| asset(path).unwrap().bytes.len())
            .sum();
        assert!(total < 25 * 1024, "{total} bytes");
    }

    #[test]
    fn nothing_is_asked_of_anyone_else() {
        for path in PATHS {
            let text = text(path);
            for scheme in [
                "http://", "https://", "ws://", "wss://", "url(", "@import", "import(", "//cdn",
            ] {
                assert!(!text.contains(scheme), "{path} has {scheme}");
            }
        }
        // What the markup refers to is served from here.
        for attribute in ["src=\"", "href=\""] {
            for behind in text("/").split(attribute).skip(1) {
                let reference = behind.split('"').next().unwrap();
                assert!(
                    asset(reference).is_some() || reference == "data:,",
                    "{reference}"
                );
            }
        }
    }

    #[test]
    fn the_policy_has_nothing_to_forgive() {
        let page = text("/");
        assert_eq!(page.matches("<script").count(), 1);
        assert!(
            page.contains("src=\"/app.js\"></script>"),
            "no inline script"
        );
        for inline in [
            "<style",
            "style=",
            "onclick",
            "onload",
            "onerror",
            "onsubmit",
            "javascript:",
        ] {
            assert!(!page.contains(inline), "{inline}");
        }
    }

    #[test]
    fn text_from_the_gateway_stays_text() {
        let script = text("/app.js");
        for sink in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "DOMParser",
            "srcdoc",
            ".style",
            "setAttribute",
        ] {
            assert!(!script.contains(sink), "{sink}");
        }
    }

    #[test]
    fn secrets_leave_no_trace_in_the_browser() {
        let script = text("/app.js");
        for place in [
            "localStorage",
            "sessionStorage",
            "document.cookie",
            "location.search",
            "console.",
        ] {
            assert!(!script.contains(place), "{place}");
        }
        assert!(script.contains("history.replaceState(null, \"\", location.pathname)"));
        assert!(
            script.contains("{ name: \"Ed25519\" }, false,"),
            "the private key cannot be exported"
        );
    }

    #[test]
    fn no_path_of_a_machine_is_in_the_page() {
        for path in PATHS {
            for place in ["/work", "/home", "/tmp", "/root"] {
                assert!(!text(path).contains(place), "{path} {place}");
            }
        }
    }
}
