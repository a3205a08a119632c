//! Sign-in links that nobody opened.

use serde_json::json;

use crate::support::{Connect, Device, Gateway, Peer};

#[test]
fn b2_an_unknown_link_admits_nobody() {
    let gateway = Gateway::start();
    let origin = format!("http://127.0.0.1:{}", gateway.port());
    let code = "A".repeat(43);
    let page = Connect::as_client("openclaw-control-ui", "ui")
        .with("auth", json!({"bootstrapToken": code}));
    let node = Connect::node().with("auth", json!({"bootstrapToken": code}));
    for (connect, headers) in [(page, &[("origin", origin.as_str())][..]), (node, &[])] {
        let mut peer = Peer::open_with(&gateway, headers).unwrap();
        let error = peer.connect_as(&connect, &Device::new()).unwrap_err();
        assert_eq!(error.detail(), "AUTH_BOOTSTRAP_TOKEN_INVALID");
        assert_eq!(peer.closed().0, 1008);
    }
    let list = gateway.cli_json(&["devices", "list"]);
    assert_eq!(list, json!({"pending": [], "paired": []}));
}
