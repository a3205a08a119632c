//! The documents say what is there.
//!
//! Links lead somewhere, paths exist, the tests that are named as holding a promise are tests, every invariant has a
//! row, every setting that is served is described, and every sample config starts or is refused as it says.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use portcullis::config::{Env, ServerFlags, Settings};

/// The groups of invariants and how many rows each has.
const ROWS: &[(&str, usize)] = &[
    ("A", 10),
    ("O", 4),
    ("U", 4),
    ("T", 7),
    ("P", 8),
    ("R", 8),
    ("W", 8),
    ("S", 8),
    ("B", 3),
    ("K", 4),
    ("N", 12),
    ("X", 13),
    ("H", 8),
    ("D", 5),
    ("C", 4),
    ("E", 2),
    ("F", 1),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// README, SECURITY and all of `docs/`.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md"), root().join("SECURITY.md")];
    for entry in fs::read_dir(root().join("docs")).expect("docs is readable") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|ext| ext == "md") {
            found.push(path);
        }
    }
    found
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("directory is readable") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

/// The name that a line defines a function by.
fn function(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let name = line.strip_prefix("fn ")?;
    let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    Some(&name[..end])
}

/// Every function of `src` and `tests` that carries a test attribute and is not ignored.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("file is text");
        let mut marked = false;
        for line in text.lines() {
            let start = line.trim_start();
            if start.starts_with("#[test]") || start.starts_with("#[tokio::test") {
                marked = true;
            } else if start.starts_with("#[ignore") {
                marked = false;
            } else if let Some(name) = function(line) {
                if marked {
                    names.insert(name.to_owned());
                }
                marked = false;
            }
        }
    }
    names
}

/// What stands between back-ticks, outside of fenced blocks.
fn code_spans(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut spans = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    spans
}

/// Whether a span is spelled like the name of a test and like nothing else in the documents.
fn names_a_test(span: &str) -> bool {
    span.matches('_').count() >= 2
        && span
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn named_tests_exist() {
    let tests = tests();
    assert!(tests.len() > 300, "found only {} tests", tests.len());
    let mut missing = Vec::new();
    for document in ["SECURITY.md", "docs/ADVISORIES.md", "docs/THREAT-MODEL.md"] {
        let text = read(document);
        let named: Vec<&str> = code_spans(&text)
            .into_iter()
            .filter(|span| names_a_test(span))
            .collect();
        assert!(named.len() > 10, "{document} names {} tests", named.len());
        missing.extend(
            named
                .into_iter()
                .filter(|name| !tests.contains(*name))
                .map(|name| format!("{document} names {name}")),
        );
    }
    assert!(missing.is_empty(), "no such test:\n{}", missing.join("\n"));
}

#[test]
fn every_invariant_has_one_row_and_each_row_an_answer() {
    let text = read("docs/ADVISORIES.md");
    for (group, count) in ROWS {
        for number in 1..=*count {
            let start = format!("| {group}{number} | ");
            let rows: Vec<&str> = text
                .lines()
                .filter(|line| line.starts_with(&start))
                .collect();
            let [row] = rows.as_slice() else {
                panic!("{group}{number} has {} rows", rows.len());
            };
            let answered = code_spans(row).into_iter().any(names_a_test)
                || row.contains("not served yet: ")
                || row.contains("feature left out: ");
            assert!(answered, "{row}");
        }
    }
}

#[test]
fn links_and_paths_lead_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("document is text");
        let here = document.parent().expect("has a folder");
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !here.join(file).exists() {
                broken.push(format!("{}: link to {target}", document.display()));
            }
        }
        for span in code_spans(&text) {
            let is_path = ["src/", "tests/", "fuzz/", "benches/", "examples/", "docs/"]
                .iter()
                .any(|start| span.starts_with(start));
            if is_path && !span.contains([' ', '*', '<', '{']) && !root().join(span).exists() {
                broken.push(format!("{}: {span}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "not there:\n{}", broken.join("\n"));
}

#[test]
fn the_map_names_every_module() {
    let map = read("docs/ARCHITECTURE.md");
    for entry in fs::read_dir(root().join("src")).expect("src is readable") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            let name = path.file_name().expect("has a name").to_string_lossy();
            let heading = format!("- **`{name}`**");
            assert!(map.contains(&heading), "no entry for {name}");
        }
    }
}

/// `Hub::enter`, `http::accept`, `Step::Need`: what stands behind the last colons is something in `src`.
#[test]
fn what_the_map_names_in_the_code_is_there() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let code: String = files.iter().map(read).collect();
    let map = read("docs/ARCHITECTURE.md");
    let mut missing = Vec::new();
    for span in code_spans(&map) {
        let Some((_, name)) = span.rsplit_once("::").filter(|(_, name)| !name.is_empty()) else {
            continue;
        };
        let is = |before: &str| {
            let words = format!("{before}{name}");
            let mut behind = code.split(&words).skip(1);
            behind.any(|text| !text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        };
        if !["fn ", "mod ", "struct ", "trait ", "    "]
            .into_iter()
            .any(is)
        {
            missing.push(span);
        }
    }
    assert!(missing.is_empty(), "not in src: {missing:?}");
}

#[test]
fn every_served_setting_is_described() {
    let schema = read("src/config/schema.rs");
    let config = read("docs/CONFIG.md");
    let mut settings = 0;
    for line in schema.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("(\"")
            && let Some(setting) = rest.strip_suffix("\", Served),")
        {
            settings += 1;
            assert!(
                config.contains(&format!("`{setting}`")),
                "{setting} is served and not described"
            );
        }
    }
    assert!(settings > 30, "found only {settings} settings");
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let reasons = read("docs/DEPENDENCIES.md");
    let mut listed = false;
    let mut crates = 0;
    for line in manifest.lines() {
        if line.starts_with('[') {
            listed = line.ends_with("dependencies]");
        } else if listed && let Some((name, _)) = line.split_once(" = ") {
            crates += 1;
            assert!(
                code_spans(&reasons).contains(&name),
                "{name} stands in Cargo.toml and has no reason"
            );
        }
    }
    assert!(crates > 10, "found only {crates} crates");
}

/// The fenced blocks that open with these words.
fn samples<'a>(text: &'a str, opening: &str) -> Vec<&'a str> {
    text.split(&format!("```{opening}\n"))
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .collect()
}

/// Reads a sample as `gateway run` would, and asks whether a Gateway may start with it.
fn start(sample: &str) -> Result<(), String> {
    let home = tempfile::tempdir().expect("temporary directory");
    let dir = home.path().join(".openclaw");
    fs::create_dir(&dir).expect("directory");
    let file = dir.join("openclaw.json");
    fs::write(&file, sample).expect("file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("mode");
    let env = Env::given([("HOME", home.path().to_string_lossy().into_owned())]);
    let settings = Settings::load(&env, None).map_err(|error| error.to_string())?;
    let warnings: Vec<&str> = settings
        .warnings
        .iter()
        .map(|warning| warning.setting.as_str())
        .collect();
    assert!(warnings.is_empty(), "{warnings:?} in:\n{sample}");
    settings
        .server(&ServerFlags::default())
        .map(|_| ())
        .map_err(|error| error.to_string())
}

#[test]
fn samples_start_or_are_refused_as_they_say() {
    let text = read("docs/CONFIG.md");
    let readme = read("README.md");
    let accepted = samples(&text, "json5");
    let refused = samples(&text, "json5 refused");
    assert!(accepted.len() >= 2 && refused.len() >= 2);
    // README's sample has its secret in the environment.
    for sample in samples(&readme, "json5") {
        let secret = sample.replace(
            "mode: \"password\"",
            "mode: \"password\", password: \"$SECRET\"",
        );
        assert_eq!(start(&secret), Ok(()), "{sample}");
    }
    for sample in accepted {
        assert_eq!(start(sample), Ok(()), "{sample}");
    }
    for sample in refused {
        // The first line is a comment with the sentence that the program says.
        let sentence = sample.lines().next().unwrap_or_default();
        let sentence = sentence.trim_start_matches("// ");
        assert_eq!(start(sample), Err(sentence.to_owned()), "{sample}");
    }
}
