//! Ends and beginnings: what was acknowledged is still there, and nobody shares a state or a port unknowingly.

use crate::support::{Gateway, free_port};

#[test]
fn a_second_gateway_on_one_state_is_refused_and_told_who_holds_it() {
    let gateway = Gateway::start();
    let ended = gateway.second(free_port());
    assert_eq!(ended.code, Some(75), "{ended:?}");
    let holder = format!("process {}", gateway.pid());
    assert!(ended.stderr.contains(&holder), "{ended:?}");
}
