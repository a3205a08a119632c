//! Which commands carry a shell text or a script inside.
//!
//! In: argv. Out: the inner text of a plain `sh -c TEXT`, or the name of an interpreter. Attacker controls: argv.
//! Bounds: none beyond argv's own. Errors: none; a wrapper that is not recognised has no inner text, and whoever needs
//! one asks (decision 25: longer chains are refused, not resolved).

const SHELLS: &[&str] = &["ash", "bash", "dash", "fish", "ksh", "sh", "zsh"];
const INTERPRETERS: &[&str] = &[
    "awk", "bun", "deno", "gawk", "lua", "node", "nodejs", "perl", "php", "pypy", "python",
    "Rscript", "ruby", "tclsh",
];

pub(super) fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// The text in `sh -c TEXT` and `sh -lc TEXT`, when nothing else is in argv.
pub fn inline_text(argv: &[String]) -> Option<&str> {
    let [program, flag, text] = argv else {
        return None;
    };
    let inline = SHELLS.contains(&base_name(program)) && matches!(flag.as_str(), "-c" | "-lc");
    inline.then_some(text.as_str())
}

/// Whether the program runs a file named among its arguments (`python3.12 a.py`, `sh a.sh`).
pub fn runs_files(program: &str) -> bool {
    let name = base_name(program);
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'));
    SHELLS.contains(&plain) || INTERPRETERS.contains(&plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn only_the_plain_wrapper_has_an_inner_text() {
        assert_eq!(inline_text(&argv("/bin/sh|-lc|echo hi")), Some("echo hi"));
        assert_eq!(inline_text(&argv("bash|-c|x")), Some("x"));
        for other in [
            "sh|-c",
            "sh|-x|-c|y",
            "sh|-c|x|y",
            "env|-c|x",
            "sh|-e|x",
            "busybox|sh|-c|x",
        ] {
            assert_eq!(inline_text(&argv(other)), None, "{other}");
        }
    }

    #[test]
    fn versions_do_not_hide_an_interpreter() {
        for name in [
            "python3",
            "/usr/bin/python3.12",
            "perl5.36",
            "node-22",
            "sh",
        ] {
            assert!(runs_files(name), "{name}");
        }
        assert!(!runs_files("/usr/bin/echo"));
    }
}
