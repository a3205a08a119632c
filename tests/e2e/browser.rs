//! Browser control: only by name, only for administrators, and over no public path (decision 24).

use serde_json::{Value, json};

use crate::support::{
    ADMIN, Connect, Device, Gateway, PASSWORD, Peer, Setup, WireError, free_port,
};

const BROWSER: &str = "browser.proxy";
/// What Funnel adds for a stranger.
const FUNNEL: [(&str, &str); 4] = [
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "gw.tail1234.ts.net"),
    ("tailscale-funnel-request", "?1"),
];

struct Host {
    gateway: Gateway,
    /// Where Funnel forwards to.
    funnel_port: u16,
}

impl Host {
    fn start(nodes: &str) -> Self {
        let funnel_port = free_port();
        let config = format!(
            "{{gateway: {{auth: {{mode: 'password', password: '{PASSWORD}'}}, nodes: {{{nodes}}}, \
             tailscale: {{mode: 'funnel', servePort: {funnel_port}, socket: '/nowhere.sock'}}}}}}"
        );
        Self {
            gateway: Setup::default().config(&config).start(),
            funnel_port,
        }
    }

    /// Connects over Funnel; the operator at home lets the device in.
    fn over_funnel(&self, connect: &Connect, device: &Device, home: &mut Peer) -> Peer {
        let open = || Peer::open_at(self.funnel_port, &FUNNEL).unwrap();
        let mut peer = open();
        if let Err(error) = peer.connect_as(connect, device) {
            assert_eq!(error.detail(), "PAIRING_REQUIRED", "{error:?}");
            let id = json!({"requestId": error.0["details"]["requestId"]});
            home.call("device.pair.approve", &id).unwrap();
            peer = open();
            peer.connect_as(connect, device).unwrap();
        }
        peer
    }
}

fn node() -> Connect {
    Connect::node().with("commands", json!([BROWSER, "system.which"]))
}

fn approve(home: &mut Peer, node: &Device) {
    let about = json!({"nodeId": node.id});
    let entry = home.call("node.describe", &about).unwrap();
    let decision = json!({"requestId": entry["pendingRequestId"]});
    home.call("node.pair.approve", &decision).unwrap();
}

/// The node never answers: what reaches it is dispatched and times out.
fn invoke(operator: &mut Peer, node: &Device, command: &str, key: &str) -> WireError {
    let invoke = json!({
        "nodeId": node.id, "command": command, "params": {"path": "/json/version"}, "timeoutMs": 20,
        "idempotencyKey": key,
    });
    operator.call("node.invoke", &invoke).unwrap_err()
}

fn explain(operator: &mut Peer, node: &Device, command: &str) -> Value {
    let about = json!({"nodeId": node.id, "command": command});
    operator.call("portcullis.nodes.explain", &about).unwrap()
}

fn sent(error: &WireError) -> &str {
    error.0["details"]["dispatched"].as_str().unwrap()
}

/// The refusal that dispatch and explanation give alike, with its layer.
fn refused(operator: &mut Peer, node: &Device, layer: &str, path: &str) {
    let found = explain(operator, node, BROWSER);
    let error = invoke(operator, node, BROWSER, "refused");
    assert_eq!((error.detail(), sent(&error)), ("PUBLIC_PATH", "no"));
    assert!(error.message().ends_with(path), "{error:?}");
    assert_eq!(found["verdict"], "deny", "{found}");
    assert_eq!(found["refusal"], error.message(), "{found}");
    let change = "set gateway.tailscale.mode to serve and connect over the tailnet";
    assert_eq!(found["change"], change, "{found}");
    let layers = found["layers"].as_array().unwrap();
    let denied: Vec<_> = layers.iter().filter(|it| it["verdict"] == "deny").collect();
    assert_eq!((denied.len(), &denied[0]["layer"]), (1, &json!(layer)));
}

#[test]
fn n8_browser_control_is_refused_over_funnel_on_either_side() {
    let host = Host::start("commands: {allow: ['browser.proxy']}");
    let mut home = Peer::operator(&host.gateway);
    let device = Device::new();
    let at_home = Peer::admitted(&host.gateway, &node(), &device);
    approve(&mut home, &device);
    assert_eq!(explain(&mut home, &device, BROWSER)["verdict"], "allow");
    assert_eq!(sent(&invoke(&mut home, &device, BROWSER, "1")), "yes");

    // The caller's way leads over Funnel, its device's earlier one did not: what that one got is not told either.
    let away = Device::new();
    let cli = Connect::cli();
    let mut near = Peer::admitted(&host.gateway, &cli, &away).0;
    assert_eq!(sent(&invoke(&mut near, &device, BROWSER, "k")), "yes");
    let mut far = host.over_funnel(&cli.scopes(ADMIN), &away, &mut home);
    assert_eq!(
        invoke(&mut far, &device, BROWSER, "k").detail(),
        "PUBLIC_PATH"
    );
    refused(
        &mut far,
        &device,
        "caller's path",
        "the caller's is \"funnel\"",
    );
    assert_eq!(sent(&invoke(&mut far, &device, "system.which", "2")), "yes");
    assert_eq!(
        explain(&mut far, &device, "system.which")["verdict"],
        "allow"
    );

    // The node's way does.
    drop(at_home);
    let _node = host.over_funnel(&node(), &device, &mut home);
    refused(&mut home, &device, "path", "the node's is \"funnel\"");
    let error = invoke(&mut home, &device, "system.which", "3");
    assert_eq!(sent(&error), "yes", "{error:?}");
    assert!(host.gateway.audit().contains("\"public_path\""));
}

#[test]
fn n8_browser_control_is_opt_in_and_for_administrators() {
    let gateway = Setup::default().config("{}").start();
    let mut home = Peer::operator(&gateway);
    let device = Device::new();
    let _node = Peer::admitted(&gateway, &node(), &device);
    approve(&mut home, &device);
    let error = invoke(&mut home, &device, BROWSER, "1");
    assert!(
        error.message().contains("gateway.nodes.commands.allow"),
        "{error:?}"
    );
    assert_eq!(sent(&error), "no");
    let found = explain(&mut home, &device, BROWSER);
    assert_eq!(found["refusal"], error.message());
    assert!(
        found["change"].as_str().unwrap().contains("browser.proxy"),
        "{found}"
    );

    let writer = Connect::cli().scopes(&["operator.read", "operator.write"]);
    let mut writer = Peer::admitted(&gateway, &writer, &Device::new()).0;
    let error = invoke(&mut writer, &device, BROWSER, "2");
    assert!(error.message().contains("operator.admin"), "{error:?}");
}
