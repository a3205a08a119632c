//! Modules import only what stands below them.
//!
//! Cargo cannot see these edges inside one crate, so this test reads every `crate::` path of `src`. The table is
//! the one in `docs/ARCHITECTURE.md`; what stands in `src` for tests may reach further and is skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const BASE: &[&str] = &["base"];
const WIRE: &[&str] = &["base", "rpc", "ws"];
/// Policy in its order: each may import those before it.
const POLICY: &[&str] = &["ingress", "auth", "pairing", "exec", "nodes"];
const SERVICES: &[&str] = &["machine", "audit", "store", "net"];
const PEERS: &[&str] = &["client", "agent"];

fn allowed() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut table = BTreeMap::new();
    table.insert("base", Vec::new());
    for wire in ["rpc", "ws"] {
        table.insert(wire, BASE.to_vec());
    }
    for (at, policy) in POLICY.iter().enumerate() {
        table.insert(policy, [WIRE, &POLICY[..at]].concat());
    }
    let below_services = [WIRE, POLICY].concat();
    for service in SERVICES {
        table.insert(
            service,
            [&below_services[..], &["machine", "audit"]].concat(),
        );
    }
    let below_peers = [&below_services[..], SERVICES].concat();
    for peer in PEERS {
        table.insert(peer, below_peers.clone());
    }
    table.insert("hub", below_peers.clone());
    let below_fronts = [&below_peers[..], PEERS, &["hub"]].concat();
    table.insert("ui", below_fronts.clone());
    table.insert("control", below_fronts.clone());
    table.insert("session", [&below_fronts[..], &["control"]].concat());
    table.insert(
        "http",
        [&below_fronts[..], &["control", "session", "ui"]].concat(),
    );
    table.insert(
        "config",
        [&below_fronts[..], &["control", "session", "http", "ui"]].concat(),
    );
    table.insert(
        "node_host",
        [&below_peers[..], &["client", "config"]].concat(),
    );
    table.insert(
        "cli",
        [
            &below_fronts[..],
            &["control", "session", "http", "ui", "config", "node_host"],
        ]
        .concat(),
    );
    table
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn a3_no_secret_is_compared_by_its_bytes() {
    let mut files = Vec::new();
    rust_files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    let mut wrong = Vec::new();
    for path in files.iter().filter(|path| !path.ends_with("tests.rs")) {
        let text = fs::read_to_string(path).expect("file is text");
        for (number, line) in production(&text) {
            let exposed = line.contains(".expose()") || line.contains(".expose_str()");
            if exposed && (line.contains("==") || line.contains("!=")) {
                wrong.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "use auth::secret_eq: {wrong:?}");
}

/// The lines of a file with their numbers, without comments and whatever is there for tests alone.
fn production(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_tests = false;
    let mut until: Option<String> = None;
    let lines = text.lines().enumerate().filter(move |(_, line)| {
        let trimmed = line.trim_start();
        if let Some(end) = &until {
            if line == end {
                until = None;
            }
            return false;
        }
        if trimmed.starts_with("#[cfg(test)]") {
            is_tests = true;
            return false;
        }
        if is_tests && !trimmed.starts_with("#[") {
            is_tests = false;
            if line.ends_with('{') {
                until = Some(format!("{}}}", &line[..line.len() - trimmed.len()]));
            }
            return false;
        }
        !trimmed.starts_with("//")
    });
    lines.map(|(number, line)| (number + 1, line))
}

/// The first segment of every `crate::…` path in a file, but for its tests.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in production(text) {
        for part in line.split("crate::").skip(1) {
            if let Some(group) = part.strip_prefix('{') {
                for name in group.split(',') {
                    found.push((number, first_segment(name.trim())));
                }
            } else {
                found.push((number, first_segment(part)));
            }
        }
    }
    found
}

fn first_segment(path: &str) -> String {
    path.chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect()
}

#[test]
fn modules_import_only_what_stands_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table = allowed();
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 20, "found only {} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let relative = path.strip_prefix(&src).expect("below src");
        let module = relative
            .iter()
            .next()
            .expect("has a name")
            .to_string_lossy()
            .into_owned();
        if module.ends_with(".rs") || relative.file_name().is_some_and(|name| name == "tests.rs") {
            continue;
        }
        let may = table
            .get(module.as_str())
            .unwrap_or_else(|| panic!("src/{module} is in no layer"));
        let text = fs::read_to_string(&path).expect("file is text");
        for (line, import) in imports(&text) {
            if !import.is_empty() && import != module && !may.contains(&import.as_str()) {
                wrong.push(format!(
                    "src/{}:{line} imports {import}",
                    relative.display()
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "against the layers:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn lower_layers_stay_free_of_effects() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let forbidden = [
        "std::fs",
        "std::net::Tcp",
        "std::env",
        "tokio::",
        "hyper",
        "tracing::",
        "getrandom",
        "SystemTime",
        "Instant::now",
    ];
    let mut wrong = Vec::new();
    for module in [
        "base", "ws", "rpc", "ingress", "auth", "pairing", "exec", "nodes",
    ] {
        let mut files = Vec::new();
        rust_files(&src.join(module), &mut files);
        for path in files.iter().filter(|path| !path.ends_with("tests.rs")) {
            let text = fs::read_to_string(path).expect("file is text");
            for (number, line) in production(&text) {
                for word in forbidden {
                    if line.contains(word) {
                        wrong.push(format!("{}:{number} uses {word}", path.display()));
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "effects in a pure layer:\n{}",
        wrong.join("\n")
    );
}
