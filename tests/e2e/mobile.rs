//! A phone's commands are relayed like any other: declared, approved and permitted, whatever their size.
//!
//! The phone here is a stand-in: a scripted peer that declares what mobile nodes declare.

use serde_json::{Value, json};

use crate::support::{Connect, Device, Gateway, Peer, Setup};

const DECLARED: [&str; 9] = [
    "camera.list",
    "camera.snap",
    "camera.clip",
    "screen.record",
    "location.get",
    "device.info",
    "device.status",
    "sms.send",
    "system.notify",
];
const DANGEROUS: [&str; 4] = ["camera.snap", "camera.clip", "screen.record", "sms.send"];

struct Phone {
    device: Device,
    peer: Peer,
}

impl Phone {
    fn approved(gateway: &Gateway, operator: &mut Peer) -> Self {
        let connect = Connect::node()
            .with_client("platform", json!("ios"))
            .with_client("deviceFamily", json!("iPhone"))
            .with("caps", json!(["camera", "location", "screen"]))
            .with("commands", json!(DECLARED));
        let device = Device::new();
        let (peer, _) = Peer::admitted(gateway, &connect, &device);
        let entry = operator
            .call("node.describe", &json!({"nodeId": device.id}))
            .unwrap();
        let request = json!({"requestId": entry["pendingRequestId"]});
        operator.call("node.pair.approve", &request).unwrap();
        Self { device, peer }
    }

    fn ask(&self, operator: &mut Peer, command: &str) -> String {
        let key = Device::new().id;
        operator.request(
            "node.invoke",
            &json!({"nodeId": self.device.id, "command": command, "params": {"quality": 1}, "idempotencyKey": key}),
        )
    }

    /// Serves one request with this payload and returns what the operator was answered.
    fn serves(&mut self, operator: &mut Peer, command: &str, payload: &str) -> Value {
        let call = self.ask(operator, command);
        let asked = self.peer.event("node.invoke.request");
        assert_eq!(
            (&asked["command"], &asked["paramsJSON"]),
            (&json!(command), &json!("{\"quality\":1}"))
        );
        let result = json!({"id": asked["id"], "nodeId": self.device.id, "ok": true, "payloadJSON": payload});
        self.peer.call("node.invoke.result", &result).unwrap();
        operator.answer(&call).unwrap()
    }
}

#[test]
fn n8_a_phones_dangerous_commands_are_opt_in_and_deny_wins() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut phone = Phone::approved(&gateway, &mut operator);
    for command in DANGEROUS {
        let call = phone.ask(&mut operator, command);
        let error = operator.answer(&call).unwrap_err();
        assert!(
            error.message().contains("gateway.nodes.commands.allow"),
            "{error:?}"
        );
    }
    phone.serves(&mut operator, "device.info", "{\"model\":\"x\"}");

    let gateway = Setup::default()
        .config("{gateway: {nodes: {commands: {allow: ['camera.snap', 'sms.send'], deny: ['sms.send']}}}}")
        .start();
    let mut operator = Peer::operator(&gateway);
    let mut phone = Phone::approved(&gateway, &mut operator);
    let call = phone.ask(&mut operator, "sms.send");
    let error = operator.answer(&call).unwrap_err();
    assert!(
        error
            .message()
            .contains("denied by gateway.nodes.commands.deny"),
        "{error:?}"
    );
    phone.serves(&mut operator, "camera.snap", "{\"base64\":\"AAAA\"}");
    assert!(!phone.peer.has_heard("node.invoke.request"));
}

#[test]
fn a_phone_is_answered_about_its_queue_and_its_presence() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut phone = Phone::approved(&gateway, &mut operator);
    let id = phone.device.id.clone();
    let pulled = phone.peer.call("node.pending.pull", &json!({})).unwrap();
    assert_eq!(pulled, json!({"nodeId": id, "actions": []}));
    let ids = json!({"ids": [" a ", "a", "b"]});
    let acked = phone.peer.call("node.pending.ack", &ids).unwrap();
    assert_eq!(
        acked,
        json!({"nodeId": id, "ackedIds": ["a", "b"], "remainingCount": 0})
    );
    let drained = phone.peer.call("node.pending.drain", &json!({})).unwrap();
    assert_eq!(
        drained,
        json!({"nodeId": id, "revision": 0, "items": [], "hasMore": false})
    );
    for (trigger, reason) in [("silent_push", "silent_push"), ("\u{1b}[2J", "background")] {
        let payload = json!({"trigger": trigger}).to_string();
        let alive = json!({"event": "node.presence.alive", "payloadJSON": payload});
        assert_eq!(
            phone.peer.call("node.event", &alive).unwrap()["handled"],
            true
        );
        let entry = operator
            .call("node.describe", &json!({"nodeId": id}))
            .unwrap();
        assert_eq!(entry["lastSeenReason"], reason);
    }
    let odd = json!({"event": "node.presence.alive", "payloadJSON": "[1"});
    assert!(phone.peer.call("node.event", &odd).is_err());
}

#[test]
fn n10_an_address_in_a_nodes_answer_is_relayed_and_never_fetched() {
    let bait = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    bait.set_nonblocking(true).unwrap();
    let url = format!("http://{}/snap.jpg", bait.local_addr().unwrap());
    let gateway = Setup::default()
        .config("{gateway: {nodes: {commands: {allow: ['camera.snap']}}}}")
        .start();
    let mut operator = Peer::operator(&gateway);
    let mut phone = Phone::approved(&gateway, &mut operator);
    let answer = json!({"url": url, "mediaUrl": url, "path": "/etc/hostname"});
    let served = phone.serves(&mut operator, "camera.snap", &answer.to_string());
    assert_eq!(served["payload"], answer);
    assert_eq!(
        bait.accept().unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
}

#[test]
fn a_payload_of_20_mib_comes_through_unchanged() {
    let gateway = Setup::default()
        .config("{gateway: {nodes: {commands: {allow: ['camera.clip']}}}}")
        .start();
    let mut operator = Peer::operator(&gateway);
    let mut phone = Phone::approved(&gateway, &mut operator);
    let video = "0123456789abcdef".repeat(20 * 1024 * 1024 / 16);
    let payload = format!("{{\"format\":\"mp4\",\"base64\":\"{video}\"}}");
    let answer = phone.serves(&mut operator, "camera.clip", &payload);
    assert!(answer["payload"]["base64"] == video.as_str());
    // What comes next is served as ever.
    phone.serves(&mut operator, "device.status", "{}");
}
