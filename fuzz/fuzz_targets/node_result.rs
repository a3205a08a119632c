//! Results and progress from nodes, in any order and with any claim, against the table of invocations: only the session
//! that was asked settles one, once; what ended is late once and for its own node; nobody settles another node's. Progress
//! counts from 0, each piece once, from the session that was asked and before the end.
//!
//! The input is lines. `ask N C ID` puts an invocation to node N over connection C; `end ID` is its deadline; `gone C` the
//! end of a connection; `from N C {…}` a request frame as a node's connection sends it.
#![no_main]

use std::collections::{HashMap, HashSet};

use libfuzzer_sys::fuzz_target;
use portcullis::base::{ConnId, DeviceId};
use portcullis::nodes::{Invokes, Keyed, Pending, Progressed, Settled};
use portcullis::rpc::types::node::{NodeInvokeProgressParams, NodeInvokeResultParams};
use portcullis::rpc::{self, Frame};

fn node(number: u8) -> DeviceId {
    DeviceId::from_digest([number % 4; 32])
}

fn conn(number: u8) -> ConnId {
    ConnId::from_random([number % 4; 16])
}

#[derive(Default)]
struct Model {
    pending: HashMap<String, (DeviceId, ConnId)>,
    /// How many pieces of progress were taken.
    told: HashMap<String, u64>,
    ended: HashMap<String, DeviceId>,
    asked: HashSet<String>,
}

fn report(
    invokes: &mut Invokes<()>,
    model: &mut Model,
    sender: &DeviceId,
    over: &ConnId,
    text: &str,
) {
    let Ok(Frame::Request(request)) = rpc::decode(text) else {
        return;
    };
    let Some(params) = request.params else { return };
    if let Ok(progress) = serde_json::from_str::<NodeInvokeProgressParams>(params.get()) {
        let asked = model.pending.get(&progress.invoke_id);
        let owned = asked.is_some_and(|(_, conn)| conn == over);
        let told = model.told.entry(progress.invoke_id.clone()).or_default();
        match invokes.progress(&progress.invoke_id, over, progress.seq) {
            Progressed::Next(()) => {
                assert!(owned);
                assert_eq!(progress.seq, *told);
                *told += 1;
            }
            Progressed::OutOfOrder { expected } => {
                assert!(owned && progress.seq != expected);
                assert_eq!(expected, *told);
            }
            Progressed::Ignored => assert!(!owned),
        }
        return;
    }
    let Ok(result) = serde_json::from_str::<NodeInvokeResultParams>(params.get()) else {
        return;
    };
    let before = invokes.pending().count();
    match invokes.settle(&result.id, &result.node_id, sender, over) {
        Settled::Done(pending) => {
            let asked = model.pending.remove(&pending.id);
            assert_eq!(asked, Some((sender.clone(), over.clone())));
            assert_eq!(
                (&result.id, result.node_id.as_str()),
                (&pending.id, sender.as_str())
            );
            assert_eq!(invokes.pending().count(), before - 1);
            return;
        }
        Settled::Late(ended) => {
            assert_eq!(ended.id, result.id);
            assert_eq!(model.ended.remove(&ended.id).as_ref(), Some(sender));
            assert_eq!(ended.keyed.map(|keyed| keyed.key), Some(ended.id));
        }
        Settled::NodeMismatch => {
            let others = model
                .pending
                .get(&result.id)
                .is_some_and(|(node, _)| node != sender);
            assert!(others || result.node_id != sender.as_str());
        }
        Settled::Ignored => {
            let own = (sender.clone(), over.clone());
            assert_ne!(model.pending.get(&result.id), Some(&own));
        }
    }
    assert_eq!(invokes.pending().count(), before);
}

fuzz_target!(|text: &str| {
    let mut invokes = Invokes::default();
    let mut model = Model::default();
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(0_u8);
    for line in text.lines().take(64) {
        let mut words = line.splitn(4, ' ');
        match words.next() {
            Some("ask") => {
                let (node, conn) = (node(number(words.next())), conn(number(words.next())));
                let id = words.next().unwrap_or_default().to_owned();
                // Ids are random: none comes twice.
                if id.is_empty() || !model.asked.insert(id.clone()) {
                    continue;
                }
                model
                    .pending
                    .insert(id.clone(), (node.clone(), conn.clone()));
                invokes.begin(Pending {
                    keyed: Some(Keyed {
                        caller: "operator".to_owned(),
                        node: node.as_str().to_owned(),
                        key: id.clone(),
                    }),
                    id,
                    node,
                    conn,
                    command: "system.run".to_owned(),
                    next_seq: 0,
                    waiter: (),
                });
            }
            Some("end") => {
                let id = words.next().unwrap_or_default();
                let ended = invokes.abandon(id);
                let asked = model.pending.remove(id);
                assert_eq!(ended.is_some(), asked.is_some());
                model
                    .ended
                    .extend(asked.map(|(node, _)| (id.to_owned(), node)));
            }
            Some("gone") => {
                let conn = conn(number(words.next()));
                for ended in invokes.disconnected(&conn) {
                    let (node, asked) = model.pending.remove(&ended.id).expect("it was asked");
                    assert_eq!(asked, conn);
                    model.ended.insert(ended.id, node);
                }
                assert!(model.pending.values().all(|(_, asked)| *asked != conn));
            }
            Some("from") => {
                let (node, conn) = (node(number(words.next())), conn(number(words.next())));
                report(
                    &mut invokes,
                    &mut model,
                    &node,
                    &conn,
                    words.next().unwrap_or_default(),
                );
            }
            _ => {}
        }
        assert_eq!(invokes.pending().count(), model.pending.len());
    }
});
