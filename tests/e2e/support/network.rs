//! A network of its own for a test that listens beyond loopback.

use std::env;
use std::process::Command;

/// Tells the test that it runs inside.
const INSIDE: &str = "PORTCULLIS_E2E_OWN_NETWORK";

/// Runs `body` of the test with this full name in a network namespace whose loopback device has these addresses too.
///
/// A process changes its own namespace by system calls that are not safe to wrap, so the test starts itself again
/// inside. Where namespaces cannot be made it says so and passes.
pub(crate) fn in_own_network(test: &str, addresses: &[&str], body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let up = ["-rn", "ip", "link", "set", "lo", "up"];
    let possible = Command::new("unshare").args(up).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("{test}: skipped, no network namespace can be made here");
        return;
    }
    let add: String = addresses
        .iter()
        .map(|address| format!("ip addr add {address} dev lo && "))
        .collect();
    let script = format!("ip link set lo up && {add} exec \"$0\" --exact {test} --nocapture");
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", &script])
        .arg(env::current_exe().unwrap())
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{wrong}"
    );
}
