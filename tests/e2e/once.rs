//! One idempotency key, one execution, and what is known of it afterwards (row N12).

use serde_json::{Value, json};

use crate::nodes::Node;
use crate::support::{ADMIN, Connect, Device, Gateway, Peer};

const WHICH: [&str; 1] = ["system.which"];

fn said(answer: Result<Value, crate::support::WireError>) -> (String, String) {
    let error = answer.unwrap_err();
    let details = &error.0["details"];
    (
        details["nodeError"]["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        details["dispatched"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    )
}

fn words(code: &str, dispatched: &str) -> (String, String) {
    (code.to_owned(), dispatched.to_owned())
}

#[test]
fn n12_one_key_runs_once_and_every_caller_gets_the_one_result() {
    let mut gateway = Gateway::start();
    let (mut operator, mut second) = (Peer::operator(&gateway), Peer::operator(&gateway));
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let params = json!({"bins": ["sh"]});
    let first = node.ask_once(&mut operator, "k", &params);
    let request = node.taken();
    // Concurrently, over the same connection and over another.
    let same = node.ask_once(&mut operator, "k", &params);
    let other = node.ask_once(&mut second, "k", &params);
    for peer in [&mut operator, &mut second] {
        peer.call("health", &json!({})).unwrap();
    }
    node.heard_nothing();
    node.report(&request, "{\"ran\":1}");
    let mut answer = operator.answer(&first).unwrap();
    assert_eq!(answer["payload"], json!({"ran": 1}));
    assert_eq!(answer["dispatched"], "yes");
    assert_eq!(operator.answer(&same).unwrap(), answer);
    assert_eq!(second.answer(&other).unwrap(), answer);
    // What is on record took no time now.
    answer.as_object_mut().unwrap().remove("timing");
    // After a reconnect, and after the Gateway's sudden end; the node need not even be there.
    operator.leave();
    let mut operator = Peer::operator(&gateway);
    let again = node.ask_once(&mut operator, "k", &params);
    assert_eq!(operator.answer(&again).unwrap(), answer);
    node.heard_nothing();
    gateway.kill();
    gateway.restart();
    let mut operator = Peer::operator(&gateway);
    let again = node.ask_once(&mut operator, "k", &params);
    assert_eq!(operator.answer(&again).unwrap(), answer);
    // The same key for something else.
    for changed in [json!({"bins": ["bash"]}), json!({})] {
        let id = node.ask_once(&mut operator, "k", &changed);
        let error = operator.answer(&id).unwrap_err();
        assert_eq!(error.code(), "INVALID_REQUEST");
        assert_eq!(
            error.message(),
            "idempotencyKey was already used with other parameters"
        );
        assert_eq!(error.0["details"]["dispatched"], "no");
    }
    // Another caller's keys are its own.
    node.peer = node.again(&gateway);
    let connect = Connect::cli().scopes(ADMIN);
    let (mut device, _) = Peer::admitted(&gateway, &connect, &Device::new());
    let id = node.ask_once(&mut device, "k", &params);
    let request = node.taken();
    node.report(&request, "{\"ran\":2}");
    assert_eq!(device.answer(&id).unwrap()["payload"], json!({"ran": 2}));
}

#[test]
fn n12_what_a_crash_left_open_is_unknown_until_the_node_delivers_it() {
    let mut gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let params = json!({"bins": ["sh"]});
    node.ask_once(&mut operator, "k", &params);
    let request = node.taken();
    gateway.kill();
    gateway.restart();
    let mut operator = Peer::operator(&gateway);
    node.peer = node.again(&gateway);
    let id = node.ask_once(&mut operator, "k", &params);
    assert_eq!(said(operator.answer(&id)), words("INTERRUPTED", "unknown"));
    node.heard_nothing();
    // Only the node that was asked can say what became of it.
    let mut stranger = Node::approved(&gateway, &mut operator, &WHICH);
    stranger.report(&request, "{\"forged\":true}");
    let id = node.ask_once(&mut operator, "k", &params);
    assert_eq!(said(operator.answer(&id)), words("INTERRUPTED", "unknown"));
    assert_eq!(
        node.report(&request, "{\"ran\":1}"),
        json!({"ok": true, "ignored": true})
    );
    for _ in 0..2 {
        let id = node.ask_once(&mut operator, "k", &params);
        let answer = operator.answer(&id).unwrap();
        assert_eq!(answer["payload"], json!({"ran": 1}));
        assert_eq!(answer["late"], true);
        // It counts once.
        node.report(&request, "{\"ran\":2}");
    }
    node.heard_nothing();
    assert!(gateway.audit().contains("\"late\":true"));
}

#[test]
fn n12_a_late_result_replaces_a_failure_that_nobody_knew_better() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let params = json!({});
    let id = node.ask_once(&mut operator, "k", &params);
    let request = node.taken();
    let newer = node.again(&gateway);
    node.peer = newer;
    assert_eq!(said(operator.answer(&id)), words("DISCONNECTED", "unknown"));
    let id = node.ask_once(&mut operator, "k", &params);
    assert_eq!(said(operator.answer(&id)), words("DISCONNECTED", "unknown"));
    node.report(&request, "{\"ran\":1}");
    let id = node.ask_once(&mut operator, "k", &params);
    let answer = operator.answer(&id).unwrap();
    assert_eq!(
        (&answer["payload"], &answer["late"]),
        (&json!({"ran": 1}), &json!(true))
    );
    node.heard_nothing();
}

#[test]
fn n12_a_late_result_counts_after_a_restart_too() {
    let mut gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let params = json!({});
    let mut asked = Vec::new();
    for key in ["lost", "failed"] {
        let id = node.ask_once(&mut operator, key, &params);
        asked.push((id, node.taken()));
    }
    let [(lost, lost_request), (failed, failed_request)] = asked.try_into().unwrap();
    let error = json!({"code": "E_BINS", "message": "no"});
    let result =
        json!({"id": failed_request["id"], "nodeId": node.id(), "ok": false, "error": error});
    node.peer.call("node.invoke.result", &result).unwrap();
    let said_by_node = said(operator.answer(&failed));
    node.peer = node.again(&gateway);
    assert_eq!(
        said(operator.answer(&lost)),
        words("DISCONNECTED", "unknown")
    );
    gateway.kill();
    gateway.restart();
    let mut operator = Peer::operator(&gateway);
    node.peer = node.again(&gateway);
    let id = node.ask_once(&mut operator, "lost", &params);
    assert_eq!(said(operator.answer(&id)), words("DISCONNECTED", "unknown"));
    for request in [&lost_request, &failed_request] {
        let ignored = json!({"ok": true, "ignored": true});
        assert_eq!(node.report(request, "{\"ran\":1}"), ignored);
    }
    let id = node.ask_once(&mut operator, "lost", &params);
    let answer = operator.answer(&id).unwrap();
    assert_eq!(
        (&answer["payload"], &answer["late"]),
        (&json!({"ran": 1}), &json!(true))
    );
    // What a node has said once, it does not take back.
    let id = node.ask_once(&mut operator, "failed", &params);
    assert_eq!(said(operator.answer(&id)), said_by_node);
    node.heard_nothing();
}

#[test]
fn n12_what_was_not_sent_leaves_its_key_free() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let params = json!({});
    std::mem::replace(&mut node.peer, Peer::operator(&gateway)).leave();
    let described = json!({"nodeId": node.id()});
    while operator.call("node.describe", &described).unwrap()["connected"] == true {
        std::thread::yield_now();
    }
    let id = node.ask_once(&mut operator, "k", &params);
    let error = operator.answer(&id).unwrap_err();
    assert_eq!(error.message(), "node not connected");
    node.peer = node.again(&gateway);
    let id = node.ask_once(&mut operator, "k", &params);
    let request = node.taken();
    node.report(&request, "{\"ran\":1}");
    assert_eq!(operator.answer(&id).unwrap()["payload"], json!({"ran": 1}));
}

#[test]
fn n12_an_outcome_too_large_to_keep_is_not_run_again_either() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let id = node.ask_once(&mut operator, "k", &json!({}));
    let request = node.taken();
    let large = json!({"text": "x".repeat(300 * 1024)}).to_string();
    node.report(&request, &large);
    assert!(operator.answer(&id).unwrap()["payloadJSON"] == large.as_str());
    let id = node.ask_once(&mut operator, "k", &json!({}));
    assert_eq!(said(operator.answer(&id)), words("OUTCOME_NOT_KEPT", "yes"));
    node.heard_nothing();
    for key in ["", &"k".repeat(257)] {
        let id = node.ask_once(&mut operator, key, &json!({}));
        assert_eq!(operator.answer(&id).unwrap_err().code(), "INVALID_REQUEST");
    }
}

#[test]
fn a_command_ends_with_the_last_caller_that_waits_for_it() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let params = json!({});
    let (mut first, mut second) = (Peer::operator(&gateway), Peer::operator(&gateway));
    node.ask_once(&mut first, "k", &params);
    let request = node.taken();
    node.ask_once(&mut second, "k", &params);
    second.call("health", &json!({})).unwrap();
    first.leave();
    node.heard_nothing();
    assert!(
        !node.peer.has_heard("node.invoke.cancel"),
        "one still waits"
    );
    second.leave();
    assert_eq!(
        node.peer.event("node.invoke.cancel"),
        json!({"invokeId": request["id"], "nodeId": node.id()})
    );
    let id = node.ask_once(&mut operator, "k", &params);
    assert_eq!(said(operator.answer(&id)), words("CANCELLED", "yes"));
    assert!(gateway.audit().contains("\"kind\":\"dispatch.cancelled\""));
}

#[test]
fn a_gateway_that_stops_tells_its_callers_what_it_does_not_know() {
    let mut gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let id = node.ask_once(&mut operator, "k", &json!({}));
    let request = node.taken();
    assert!(gateway.terminate().success());
    assert_eq!(said(operator.answer(&id)), words("INTERRUPTED", "unknown"));
    gateway.restart();
    node.peer = node.again(&gateway);
    node.report(&request, "{\"ran\":1}");
    let mut operator = Peer::operator(&gateway);
    let id = node.ask_once(&mut operator, "k", &json!({}));
    assert_eq!(operator.answer(&id).unwrap()["payload"], json!({"ran": 1}));
}

#[test]
fn a_caller_that_gave_up_keeps_no_command_alive() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let mut first = Peer::operator(&gateway);
    node.ask_once(&mut first, "k", &json!({}));
    let request = node.taken();
    let joined = json!({
        "nodeId": node.id(), "command": "system.which", "params": {}, "idempotencyKey": "k", "timeoutMs": 20,
    });
    let error = operator.call("node.invoke", &joined);
    assert_eq!(said(error), words("TIMEOUT", "yes"));
    first.leave();
    let cancelled = node.peer.event("node.invoke.cancel");
    assert_eq!(cancelled["invokeId"], request["id"]);
    // Not at the deadline of the first.
    let id = node.ask_once(&mut operator, "k", &json!({}));
    assert_eq!(said(operator.answer(&id)), words("CANCELLED", "yes"));
}

#[test]
fn only_so_many_wait_under_one_key() {
    let gateway = Gateway::start();
    let mut operator = Peer::operator(&gateway);
    let mut node = Node::approved(&gateway, &mut operator, &WHICH);
    let ids: Vec<String> = (0..65)
        .map(|_| node.ask_once(&mut operator, "k", &json!({})))
        .collect();
    let mut busy = operator.frame(|frame| frame["ok"] == false);
    assert_eq!(busy["error"]["details"]["dispatched"], "no");
    assert_eq!(
        busy["error"]["message"],
        "too many invocations under way (64)"
    );
    let request = node.taken();
    node.report(&request, "{}");
    let busy = busy["id"].take();
    for id in ids.iter().filter(|id| busy != **id) {
        operator.answer(id).unwrap();
    }
}
