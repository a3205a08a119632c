//! The agent with stand-in tools: order, refusals, aborts, bounds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::event::{AbortReason, ErrorKind};
use super::payload::{self, HistoryQuery};
use super::providers::{
    NO_MODEL, Provider, ProviderError, ProviderFuture, Say, Step, StepInput, TurnItem,
};
use super::stand_in::MemoryTranscript;
use super::tools::{
    CallOrigin, ExecCall, ExecOutcome, Node, ToolFuture, ToolRefusal, Updates, WhichCall,
    WhichOutcome,
};
use super::transcript::{
    Body, Entry, Page, Session, Stored, ToolCall, ToolResult, TranscriptError,
};
use super::*;
use crate::base::limits;
use crate::nodes::{Category, Dispatched};

/// What the stand-in does with its next command.
enum Act {
    Answer(ExecOutcome),
    Refuse(ToolRefusal),
    /// Prints, then waits for ever.
    Hang(&'static str),
    Stream(Vec<&'static str>, ExecOutcome),
    Panic,
}

#[derive(Default)]
struct StandIn {
    nodes: Vec<Node>,
    acts: Mutex<VecDeque<Act>>,
    calls: Mutex<Vec<ExecCall>>,
    which_calls: Mutex<Vec<WhichCall>>,
    started: tokio::sync::Notify,
    cancelled: AtomicUsize,
}

/// Counts a call that was dropped before it ended.
struct CountsDrop<'a>(&'a AtomicUsize, bool);

impl Drop for CountsDrop<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Tools for StandIn {
    fn nodes<'a>(&'a self, requester: &'a Requester) -> ToolFuture<'a, Vec<Node>> {
        let seen = requester
            .inner::<&str>()
            .is_some_and(|who| *who != "nobody");
        Box::pin(async move {
            if seen {
                Ok(self.nodes.clone())
            } else {
                Err(ToolRefusal::new("FORBIDDEN", "you may not see nodes")
                    .with_remedy("Ask for operator.read."))
            }
        })
    }

    fn exec<'a>(
        &'a self,
        _: &'a Requester,
        call: ExecCall,
        updates: Updates,
    ) -> ToolFuture<'a, ExecOutcome> {
        self.calls.lock().unwrap().push(call);
        let act = self.acts.lock().unwrap().pop_front();
        Box::pin(async move {
            let mut guard = CountsDrop(&self.cancelled, false);
            self.started.notify_one();
            let result = match act.expect("an act is planned") {
                Act::Answer(outcome) => Ok(outcome),
                Act::Refuse(refusal) => Err(refusal),
                Act::Hang(printed) => {
                    updates.output(printed);
                    std::future::pending().await
                }
                Act::Stream(chunks, outcome) => {
                    for chunk in chunks {
                        updates.output(chunk);
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    Ok(outcome)
                }
                Act::Panic => panic!("planned"),
            };
            guard.1 = true;
            result
        })
    }

    fn which<'a>(&'a self, _: &'a Requester, call: WhichCall) -> ToolFuture<'a, WhichOutcome> {
        let found = call.bins.iter().map(|bin| {
            (
                bin.clone(),
                (bin == "git").then(|| "/usr/bin/git".to_owned()),
            )
        });
        let outcome = WhichOutcome {
            node_id: call.node.clone().unwrap_or_default(),
            node_name: "builder".to_owned(),
            found: found.collect(),
            total_ms: 3,
        };
        self.which_calls.lock().unwrap().push(call);
        Box::pin(async move { Ok(outcome) })
    }
}

fn node(name: &str, digit: &str) -> Node {
    Node {
        node_id: digit.repeat(64),
        display_name: name.to_owned(),
        platform: Some("linux".to_owned()),
        online: true,
        callable: true,
        permitted: true,
        reason: None,
    }
}

fn linux() -> ExecOutcome {
    ExecOutcome {
        node_id: "a".repeat(64),
        node_name: "builder".to_owned(),
        exit_code: Some(0),
        stdout: "Linux\n".to_owned(),
        queue_ms: 1,
        execution_ms: 2,
        total_ms: 4,
        ..ExecOutcome::default()
    }
}

static CLOCK: AtomicU64 = AtomicU64::new(1_795_226_367_404);

fn now_ms() -> u64 {
    CLOCK.fetch_add(1, Ordering::SeqCst)
}

struct House {
    agent: Agent,
    tools: Arc<StandIn>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl House {
    fn with(tools: StandIn, change: impl FnOnce(&mut Settings)) -> Self {
        let tools = Arc::new(tools);
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let seen = Arc::clone(&events);
        let mut settings = Settings {
            tools: Arc::clone(&tools) as Arc<dyn Tools>,
            transcript: Arc::new(MemoryTranscript::default()),
            sink: Arc::new(move |event| seen.lock().unwrap().push(event)),
            model: None,
            turn_timeout: Duration::from_secs(600),
            exec_timeout: Duration::from_secs(300),
            exec_node: None,
            now_ms,
        };
        change(&mut settings);
        Self {
            agent: Agent::new(settings),
            tools,
            events,
        }
    }

    fn new(acts: impl IntoIterator<Item = Act>) -> Self {
        let acts = Mutex::new(acts.into_iter().collect());
        Self::with(
            StandIn {
                nodes: vec![node("builder", "a")],
                acts,
                ..StandIn::default()
            },
            |_| {},
        )
    }

    fn send(&self, message: &str, key: &str) -> Accepted {
        self.agent.send(request(message, key)).unwrap()
    }

    /// Sends and waits for the end.
    async fn ask(&self, message: &str, key: &str) -> Outcome {
        self.send(message, key).finish.wait().await.unwrap()
    }

    /// A run's events by name.
    fn names(&self, run_id: &str) -> Vec<&'static str> {
        let events = self.events.lock().unwrap();
        let own: Vec<&Event> = events
            .iter()
            .filter(|event| event.run.run_id == run_id)
            .collect();
        for (position, event) in own.iter().enumerate() {
            assert_eq!(event.seq, position as u64 + 1, "the count has no gap");
            let is_end = matches!(
                event.kind,
                EventKind::Final { .. } | EventKind::Error { .. } | EventKind::Aborted { .. }
            );
            assert_eq!(is_end, position + 1 == own.len(), "one end, at the end");
        }
        own.iter().map(|event| name(&event.kind)).collect()
    }

    fn transcript(&self) -> Vec<Body> {
        let page = self
            .agent
            .transcript()
            .page(&SessionKey::main(), 100, 0)
            .unwrap();
        page.entries
            .into_iter()
            .map(|stored| stored.entry.body)
            .collect()
    }
}

fn request(message: &str, key: &str) -> TurnRequest {
    TurnRequest {
        session_key: SessionKey::main(),
        message: message.to_owned(),
        idempotency_key: key.to_owned(),
        requester: Requester::new("operator"),
        typed: true,
        commands: true,
        entrance: Entrance::Chat,
        timeout: None,
    }
}

fn name(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::Started => "started",
        EventKind::Model { .. } => "model",
        EventKind::TextDelta { .. } => "delta",
        EventKind::ToolStarted(_) => "tool",
        EventKind::ToolOutput { .. } => "output",
        EventKind::ToolFinished(_) => "result",
        EventKind::Final { .. } => "final",
        EventKind::Error { .. } => "error",
        EventKind::Aborted { .. } => "aborted",
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_from_message_to_output() {
    let house = House::new([Act::Answer(linux())]);
    let accepted = house.send("/run uname -a", "r1");
    assert_eq!(
        (accepted.run_id.as_str(), accepted.message_seq),
        ("r1", Some(1))
    );
    let outcome = accepted.finish.wait().await.unwrap();
    assert_eq!(outcome.status, Status::Ok);
    assert_eq!(outcome.tools_used, ["exec"]);
    assert!(
        outcome
            .text
            .contains("exit code 0 (queue 1 ms, execution 2 ms, total 4 ms)\n```\nLinux\n```")
    );
    assert_eq!(
        house.names("r1"),
        ["started", "model", "tool", "result", "delta", "final"]
    );

    let call = house.tools.calls.lock().unwrap().pop().unwrap();
    assert_eq!(call.command, "uname -a");
    assert_eq!(call.node, Some("a".repeat(64)));
    assert_eq!(call.context.origin, CallOrigin::Typed);
    assert_eq!(call.context.run_id, "r1");
    assert_eq!(call.timeout, Duration::from_secs(300));

    let transcript = house.transcript();
    assert!(matches!(&transcript[0], Body::User { text, .. } if text == "/run uname -a"));
    assert!(matches!(&transcript[1], Body::ToolCall(call) if call.name == "exec"));
    assert!(
        matches!(&transcript[2], Body::ToolResult(result) if !result.is_error && result.details["exitCode"] == 0)
    );
    assert!(matches!(&transcript[3], Body::Assistant { text, .. } if *text == outcome.text));
    assert_eq!(transcript.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn each_command_answers() {
    let house = House::new([]);
    let answers = [
        ("hello there", NO_MODEL),
        ("/help", "/run [node] <command>"),
        ("/nodes", "builder (aaaaaaaaaaaa): ready"),
        ("/which git cc", "git: /usr/bin/git\ncc: not found"),
        ("/reboot", "I do not know the command /reboot. Type /help"),
        ("/run", "Say what to run"),
        ("/which", "Say which program"),
        ("/which /bin/sh", "no program's name"),
        ("/run @nobody ls", "no node is called nobody"),
    ];
    for (position, (message, expected)) in answers.into_iter().enumerate() {
        let outcome = house.ask(message, &format!("k{position}")).await;
        assert_eq!(outcome.status, Status::Ok, "{message}");
        assert!(
            outcome.text.contains(expected),
            "{message}: {}",
            outcome.text
        );
    }
    assert!(
        house.tools.calls.lock().unwrap().is_empty(),
        "nothing was run"
    );
    assert_eq!(house.tools.which_calls.lock().unwrap().len(), 1);
    assert!(
        NO_MODEL.contains("agents.defaults.model.primary") && NO_MODEL.contains("models.providers")
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_is_said_with_its_code_and_remedy() {
    let refusal = ToolRefusal::new("APPROVAL_REQUIRED", "this command needs approval")
        .with_remedy("Approve it with operator.approvals.");
    let house = House::new([Act::Refuse(refusal)]);
    let outcome = house.ask("/run rm -rf /", "r").await;
    assert_eq!(
        outcome.text,
        "Refused, not sent (APPROVAL_REQUIRED): this command needs approval\nApprove it with operator.approvals."
    );
    assert_eq!(outcome.tools_used, [""; 0]);
    assert!(matches!(
        &house.transcript()[2],
        Body::ToolResult(ToolResult { is_error: true, .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn several_nodes_are_asked_about_and_names_are_honoured() {
    let nodes = vec![node("builder", "a"), node("mac", "b")];
    let tools = StandIn {
        nodes,
        acts: Mutex::new(VecDeque::from([Act::Answer(linux())])),
        ..StandIn::default()
    };
    let house = House::with(tools, |_| {});
    let outcome = house.ask("/run uname", "1").await;
    assert!(
        outcome
            .text
            .contains("several nodes could run this: builder, mac"),
        "{}",
        outcome.text
    );
    house.ask("/run mac uname -a", "2").await;
    let call = house.tools.calls.lock().unwrap().pop().unwrap();
    assert_eq!(call.node, Some("b".repeat(64)));
    assert_eq!(call.command, "uname -a");
}

#[tokio::test(start_paused = true)]
async fn a_bound_node_takes_what_names_none_and_nothing_goes_elsewhere() {
    let house = |bound: &str, mac: Node| {
        let tools = StandIn {
            nodes: vec![node("builder", "a"), mac],
            acts: Mutex::new(VecDeque::from([Act::Answer(linux()), Act::Answer(linux())])),
            ..StandIn::default()
        };
        House::with(tools, |settings| {
            settings.exec_node = Some(bound.to_owned());
        })
    };
    let offline = Node {
        online: false,
        ..node("mac", "b")
    };
    // Offline too it is the one that is asked: the refusal is the tool's.
    for (bound, mac) in [("mac", node("mac", "b")), ("bbbbbbbb", offline)] {
        let house = house(bound, mac);
        house.ask("/run uname", "1").await;
        house.ask("/which git", "2").await;
        let called = house.tools.calls.lock().unwrap().pop().unwrap();
        assert_eq!(called.node, Some("b".repeat(64)));
        let called = house.tools.which_calls.lock().unwrap().pop().unwrap();
        assert_eq!(called.node, Some("b".repeat(64)));
        house.ask("/run @builder uname", "3").await;
        let called = house.tools.calls.lock().unwrap().pop().unwrap();
        assert_eq!(called.node, Some("a".repeat(64)));
    }
    let house = house("gone", node("mac", "b"));
    let said = house.ask("/run uname", "1").await.text;
    assert!(said.contains("no node is called gone"), "{said}");
    assert!(said.contains("tools.exec.node"), "{said}");
    assert!(house.tools.calls.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_may_not_see_nodes_runs_nothing() {
    let house = House::new([]);
    let mut unseen = request("/run builder ls", "r");
    unseen.requester = Requester::new("nobody");
    let outcome = house
        .agent
        .send(unseen)
        .unwrap()
        .finish
        .wait()
        .await
        .unwrap();
    assert!(
        outcome.text.starts_with("Refused, not sent (FORBIDDEN)"),
        "{}",
        outcome.text
    );
    assert!(house.tools.calls.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_result_says_whether_it_was_sent() {
    for (dispatched, words) in [
        (Dispatched::No, "Refused, not sent (TIMEOUT): late"),
        (Dispatched::Yes, "Failed, it was sent (TIMEOUT): late"),
        (
            Dispatched::Unknown,
            "Unknown, it may have run; find out before you repeat it (TIMEOUT): late",
        ),
    ] {
        let refusal = ToolRefusal::new("TIMEOUT", "late").told(dispatched, Category::Timeout);
        let house = House::new([Act::Refuse(refusal), Act::Answer(linux())]);
        let outcome = house.ask("/run true", "r").await;
        assert_eq!(outcome.text, words);
        let refused = outcome.refused.unwrap();
        assert_eq!(refused["dispatched"], dispatched.as_str());
        assert_eq!(refused["category"], "timeout");
        let Body::ToolResult(ToolResult { details, .. }) = &house.transcript()[2] else {
            panic!("no result");
        };
        assert_eq!(*details, refused);
        assert_eq!(house.ask("/run true", "s").await.refused, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_relayed_command_is_not_a_typed_one() {
    let house = House::new([Act::Answer(linux())]);
    let relayed = TurnRequest {
        typed: false,
        ..request("/run ls", "r")
    };
    house
        .agent
        .send(relayed)
        .unwrap()
        .finish
        .wait()
        .await
        .unwrap();
    assert_eq!(
        house.tools.calls.lock().unwrap()[0].context.origin,
        CallOrigin::Derived
    );
}

#[tokio::test(start_paused = true)]
async fn a_command_may_be_suppressed() {
    let house = House::new([]);
    let text = TurnRequest {
        commands: false,
        ..request("/run ls", "r")
    };
    let outcome = house.agent.send(text).unwrap().finish.wait().await.unwrap();
    assert_eq!(outcome.text, NO_MODEL);
}

#[tokio::test(start_paused = true)]
async fn output_streams_while_the_command_runs() {
    let house = House::new([Act::Stream(vec!["one\n", "\u{1b}two\n"], linux())]);
    house.ask("/run slow", "r").await;
    assert_eq!(
        house.names("r"),
        [
            "started", "model", "tool", "output", "output", "result", "delta", "final"
        ]
    );
    let events = house.events.lock().unwrap();
    assert!(
        matches!(&events[4].kind, EventKind::ToolOutput { output, .. } if output == "one\n␛two\n")
    );
}

#[tokio::test(start_paused = true)]
async fn one_turn_at_a_time_in_the_order_of_arrival() {
    let house = House::new((0..3).map(|_| Act::Stream(vec!["."], linux())));
    let finishes: Vec<Finish> = ["r1", "r2", "r3"]
        .iter()
        .map(|key| house.send("/run x", key).finish)
        .collect();
    for finish in finishes {
        assert_eq!(finish.wait().await.unwrap().status, Status::Ok);
    }
    let order: Vec<String> = {
        let events = house.events.lock().unwrap();
        events
            .iter()
            .map(|event| event.run.run_id.clone())
            .collect()
    };
    assert!(order.is_sorted(), "no two runs are mixed: {order:?}");
    let seqs = house
        .agent
        .transcript()
        .page(&SessionKey::main(), 100, 0)
        .unwrap();
    assert_eq!(seqs.total, 12);
}

#[tokio::test(start_paused = true)]
async fn sessions_do_not_wait_for_each_other() {
    let house = House::new([Act::Hang(""), Act::Answer(linux())]);
    house.send("/run hang", "r1");
    house.tools.started.notified().await;
    let other = TurnRequest {
        session_key: SessionKey::parse("lab").unwrap(),
        ..request("/run x", "r1")
    };
    let accepted = house.agent.send(other).unwrap();
    assert_eq!(
        accepted.state,
        RunState::Started,
        "a key belongs to its session"
    );
    assert_eq!(accepted.finish.wait().await.unwrap().status, Status::Ok);
}

#[tokio::test(start_paused = true)]
async fn an_abort_cancels_the_call_and_closes_it() {
    let house = House::new([Act::Hang("partly\n")]);
    let accepted = house.send("/run sleep 1000", "r");
    house.tools.started.notified().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        house.agent.in_flight(&SessionKey::main()).unwrap().run_id,
        "r"
    );
    assert_eq!(
        house.agent.abort(&SessionKey::main(), Some("other")),
        [""; 0]
    );
    assert_eq!(house.agent.abort(&SessionKey::main(), Some("r")), ["r"]);
    assert_eq!(
        house.agent.abort(&SessionKey::main(), Some("r")),
        [""; 0],
        "once"
    );
    let outcome = accepted.finish.wait().await.unwrap();
    assert_eq!(outcome.status, Status::Aborted);
    assert_eq!(house.tools.cancelled.load(Ordering::SeqCst), 1);
    assert_eq!(
        house.names("r"),
        ["started", "model", "tool", "output", "result", "aborted"]
    );
    assert!(matches!(
        &house.transcript()[2],
        Body::ToolResult(result) if result.is_error && result.text.contains("may have run")
    ));
    assert!(
        matches!(&house.transcript()[3], Body::Note { text } if text.contains("stopped on request"))
    );
    assert_eq!(house.agent.in_flight(&SessionKey::main()), None);
    assert_eq!(
        house.agent.abort(&SessionKey::main(), None),
        [""; 0],
        "nothing is left"
    );
}

#[tokio::test(start_paused = true)]
async fn an_abort_takes_those_that_wait_and_only_those_that_are_meant() {
    let house = House::new([Act::Hang(""), Act::Answer(linux())]);
    let finishes: Vec<Finish> = ["r1", "r2", "r3"]
        .iter()
        .map(|key| house.send("/run x", key).finish)
        .collect();
    house.tools.started.notified().await;
    assert_eq!(house.agent.abort(&SessionKey::main(), Some("r2")), ["r2"]);
    assert_eq!(house.agent.abort(&SessionKey::main(), Some("r1")), ["r1"]);
    let mut statuses = Vec::new();
    for finish in finishes {
        statuses.push(finish.wait().await.unwrap().status);
    }
    assert_eq!(statuses, [Status::Aborted, Status::Aborted, Status::Ok]);
    assert_eq!(house.names("r2"), ["started", "aborted"]);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_takes_too_long_ends_in_an_error() {
    let house = House::new([Act::Hang(""), Act::Answer(linux())]);
    let short = TurnRequest {
        timeout: Some(Duration::from_secs(5)),
        ..request("/run hang", "r")
    };
    let outcome = house
        .agent
        .send(short)
        .unwrap()
        .finish
        .wait()
        .await
        .unwrap();
    assert_eq!(outcome.status, Status::TimedOut);
    assert!(outcome.error.unwrap().contains("longer than 5 s"));
    assert_eq!(
        house.names("r"),
        ["started", "model", "tool", "result", "error"]
    );
    assert!(house.tools.calls.lock().unwrap()[0].timeout < Duration::from_secs(5));
    assert_eq!(house.tools.cancelled.load(Ordering::SeqCst), 1);
    assert_eq!(
        house.ask("/run x", "r2").await.status,
        Status::Ok,
        "the session goes on"
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_its_turn_and_not_the_session() {
    let house = House::new([Act::Panic, Act::Answer(linux())]);
    let outcome = house.ask("/run x", "r1").await;
    assert_eq!(outcome.status, Status::Error);
    {
        let events = house.events.lock().unwrap();
        let last = &events.last().unwrap().kind;
        assert!(matches!(
            last,
            EventKind::Error {
                kind: ErrorKind::Unknown,
                ..
            }
        ));
    }
    assert_eq!(house.ask("/run x", "r2").await.status, Status::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_key_runs_its_message_once() {
    let house = House::new([Act::Stream(vec!["."], linux())]);
    let first = house.send("/run x", "r");
    let again = house.send("/run x", "r");
    assert_eq!(again.state, RunState::InFlight);
    let outcome = first.finish.wait().await.unwrap();
    assert_eq!(again.finish.wait().await.unwrap(), outcome);
    assert_eq!(house.send("/run x", "r").state, RunState::Finished(outcome));
    assert_eq!(
        house.agent.send(request("/run y", "r")).unwrap_err(),
        SendRefusal::KeyReused
    );
    assert_eq!(house.tools.calls.lock().unwrap().len(), 1);
    assert!(house.agent.find("r", None).is_some() && house.agent.find("s", None).is_none());
    let lab = SessionKey::parse("lab").unwrap();
    assert!(house.agent.find("r", Some(&lab)).is_none());
}

#[tokio::test(start_paused = true)]
async fn each_message_refusal() {
    let house = House::new([Act::Hang("")]);
    let refused = |message: &str, key: &str| house.agent.send(request(message, key)).unwrap_err();
    assert_eq!(refused("  \n", "r"), SendRefusal::EmptyMessage);
    let got = limits::CHAT_MESSAGE_BYTES_MAX + 1;
    assert_eq!(
        refused(&"x".repeat(got), "r"),
        SendRefusal::MessageTooLong {
            got,
            limit: limits::CHAT_MESSAGE_BYTES_MAX
        }
    );
    for key in ["", "  ", "a\nb", &"k".repeat(limits::RUN_ID_BYTES_MAX + 1)] {
        assert_eq!(
            refused("x", key),
            SendRefusal::RunId {
                limit: limits::RUN_ID_BYTES_MAX
            }
        );
    }
    house.send("/run hang", "running");
    house.tools.started.notified().await;
    for n in 0..limits::SESSION_QUEUE_MAX {
        house.send("/help", &format!("waiting-{n}"));
    }
    let full = refused("/help", "late");
    assert_eq!(
        full,
        SendRefusal::QueueFull {
            waiting: limits::SESSION_QUEUE_MAX,
            limit: limits::SESSION_QUEUE_MAX
        }
    );
    assert!(full.is_retryable() && full.code() == "UNAVAILABLE");
    let total = house
        .agent
        .transcript()
        .page(&SessionKey::main(), 1, 0)
        .unwrap()
        .total;
    assert_eq!(
        total,
        limits::SESSION_QUEUE_MAX as u64 + 2,
        "what was refused was not written"
    );
    assert_eq!(
        house.agent.abort(&SessionKey::main(), None).len(),
        limits::SESSION_QUEUE_MAX + 1
    );
}

#[tokio::test(start_paused = true)]
async fn too_many_sessions_are_refused() {
    let house = House::new((0..limits::ACTIVE_SESSIONS_MAX).map(|_| Act::Hang("")));
    for n in 0..=limits::ACTIVE_SESSIONS_MAX {
        let session_key = SessionKey::parse(&format!("s{n}")).unwrap();
        let sent = house.agent.send(TurnRequest {
            session_key,
            ..request("/run x", "r")
        });
        assert_eq!(sent.is_ok(), n < limits::ACTIVE_SESSIONS_MAX);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopping_agent_ends_its_runs_and_takes_no_more() {
    let house = House::new([Act::Hang("")]);
    let accepted = house.send("/run x", "r");
    house.tools.started.notified().await;
    house.agent.shut_down();
    assert_eq!(
        accepted.finish.wait().await.unwrap().status,
        Status::Aborted
    );
    assert_eq!(
        house.agent.send(request("/help", "s")).unwrap_err(),
        SendRefusal::Stopping
    );
    let events = house.events.lock().unwrap();
    let last = &events.last().unwrap().kind;
    assert!(matches!(
        last,
        EventKind::Aborted {
            reason: AbortReason::Stopping,
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn old_runs_are_forgotten() {
    let house = House::new([]);
    for n in 0..=limits::FINISHED_RUNS_MAX {
        house.ask("/help", &format!("r{n}")).await;
    }
    // The last outcome is announced just before it is remembered.
    tokio::task::yield_now().await;
    assert!(house.agent.find("r0", None).is_none());
    assert!(house.agent.find("r1", None).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_message_of_an_earlier_process_is_not_run_again() {
    let kept: Arc<dyn Transcript> = Arc::new(MemoryTranscript::default());
    let start = |acts: Vec<Act>| {
        let acts = Mutex::new(acts.into());
        let tools = StandIn {
            nodes: vec![node("builder", "a")],
            acts,
            ..StandIn::default()
        };
        House::with(tools, |settings| settings.transcript = Arc::clone(&kept))
    };
    let before = start(vec![Act::Hang("")]);
    before.send("/run reboot", "r");
    before.tools.started.notified().await;
    // SIGKILL: nothing is told to anyone, and the next process knows only the transcript.
    let after = start(vec![]);
    let refusal = after.agent.send(request("/run reboot", "r")).unwrap_err();
    assert_eq!(
        (refusal.code(), refusal.clone()),
        ("INVALID_REQUEST", SendRefusal::AcceptedBefore)
    );
    assert!(after.tools.calls.lock().unwrap().is_empty());
}

/// A transcript that fails after a number of entries.
struct Failing(MemoryTranscript, AtomicUsize);

impl Transcript for Failing {
    fn session(&self, key: &SessionKey) -> Result<Option<Session>, TranscriptError> {
        self.0.session(key)
    }

    fn open(&self, key: &SessionKey, now_ms: u64) -> Result<Session, TranscriptError> {
        self.0.open(key, now_ms)
    }

    fn has_message(
        &self,
        key: &SessionKey,
        idempotency_key: &str,
    ) -> Result<bool, TranscriptError> {
        self.0.has_message(key, idempotency_key)
    }

    fn append(&self, key: &SessionKey, entry: &Entry) -> Result<Stored, TranscriptError> {
        let left = self.1.load(Ordering::SeqCst);
        if left == 0 {
            return Err(TranscriptError {
                detail: "disk full".to_owned(),
            });
        }
        self.1.store(left - 1, Ordering::SeqCst);
        self.0.append(key, entry)
    }

    fn page(&self, key: &SessionKey, limit: usize, offset: usize) -> Result<Page, TranscriptError> {
        self.0.page(key, limit, offset)
    }

    fn sessions(&self, limit: usize) -> Result<Vec<Session>, TranscriptError> {
        self.0.sessions(limit)
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_recorded_is_not_done() {
    let tools = || StandIn {
        nodes: vec![node("builder", "a")],
        ..StandIn::default()
    };
    let failing = |entries| {
        Arc::new(Failing(
            MemoryTranscript::default(),
            AtomicUsize::new(entries),
        ))
    };
    let house = House::with(tools(), |settings| settings.transcript = failing(0));
    assert_eq!(
        house.agent.send(request("/run x", "r")).unwrap_err(),
        SendRefusal::NotRecorded
    );

    // The message is written, the call is not: so it is not made.
    let house = House::with(tools(), |settings| settings.transcript = failing(1));
    let outcome = house.ask("/run x", "r").await;
    assert_eq!(outcome.status, Status::Error);
    assert!(house.tools.calls.lock().unwrap().is_empty());
    assert_eq!(house.names("r"), ["started", "model", "error"]);
    assert!(
        !outcome.error.unwrap().contains("disk full"),
        "the detail is for the log"
    );
}

/// A model that follows a script of steps.
struct Scripted {
    steps: Mutex<VecDeque<(&'static str, Vec<ToolCall>)>>,
    saw_history: AtomicUsize,
    fails: AtomicBool,
}

impl Scripted {
    fn new(steps: impl IntoIterator<Item = (&'static str, Vec<ToolCall>)>) -> Arc<Self> {
        Arc::new(Self {
            steps: Mutex::new(steps.into_iter().collect()),
            saw_history: AtomicUsize::new(0),
            fails: AtomicBool::new(false),
        })
    }
}

impl Provider for Scripted {
    fn names(&self) -> (&str, &str) {
        ("fake", "fake-1")
    }

    fn history_entries_max(&self) -> usize {
        50
    }

    fn step<'a>(&'a self, input: StepInput<'a>, say: Say) -> ProviderFuture<'a> {
        Box::pin(async move {
            self.saw_history
                .store(input.history.len(), Ordering::SeqCst);
            if let Some(TurnItem::Result(ToolResult { is_error, .. })) = input.turn.last() {
                assert!(!input.turn.is_empty() || *is_error);
            }
            if self.fails.load(Ordering::SeqCst) {
                return Err(ProviderError {
                    public: "the model is away".to_owned(),
                });
            }
            let step = self.steps.lock().unwrap().pop_front();
            let (words, tool_calls) =
                step.unwrap_or_else(|| ("", vec![tool_call("again", "nodes", json!({}))]));
            for word in words.split_inclusive(' ') {
                say.text(word).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(Step { tool_calls })
        })
    }
}

fn tool_call(id: &str, name: &str, arguments: serde_json::Value) -> ToolCall {
    ToolCall {
        tool_call_id: id.to_owned(),
        name: name.to_owned(),
        arguments,
    }
}

fn with_model(model: &Arc<Scripted>, acts: Vec<Act>) -> House {
    let tools = StandIn {
        nodes: vec![node("builder", "a")],
        acts: Mutex::new(acts.into()),
        ..StandIn::default()
    };
    let model: Arc<dyn Provider> = Arc::clone(model) as Arc<dyn Provider>;
    House::with(tools, |settings| settings.model = Some(model))
}

#[tokio::test(start_paused = true)]
async fn a_model_answers_words_and_its_calls_are_never_typed() {
    let exec = tool_call(
        "c1",
        "exec",
        json!({"command": "ls", "node": "builder", "cwd": "/tmp", "timeoutMs": 5}),
    );
    let model = Scripted::new([("Let me look.", vec![exec]), ("Two files.", vec![])]);
    let house = with_model(&model, vec![Act::Answer(linux())]);
    let outcome = house.ask("what is there?", "r").await;
    assert_eq!(outcome.text, "Let me look.\n\nTwo files.");
    {
        let call = &house.tools.calls.lock().unwrap()[0];
        assert_eq!(call.context.origin, CallOrigin::Derived);
        assert_eq!(
            (call.cwd.as_deref(), call.timeout),
            (Some("/tmp"), Duration::from_millis(5))
        );
    }
    {
        let events = house.events.lock().unwrap();
        let mut shown = String::new();
        for event in events.iter() {
            if let EventKind::TextDelta { delta, text } = &event.kind {
                shown.push_str(delta);
                assert_eq!(&shown, text, "deltas add up");
            }
        }
        assert_eq!(shown, outcome.text);
    }

    // A command still goes to the built-in agent, and the model sees what went before.
    house.ask("/help", "r2").await;
    model.steps.lock().unwrap().push_back(("ok", vec![]));
    house.ask("thanks", "r3").await;
    assert_eq!(model.saw_history.load(Ordering::SeqCst), 6);
}

#[tokio::test(start_paused = true)]
async fn a_model_cannot_do_what_it_likes() {
    let wrong = vec![
        tool_call("1", "shell", json!({})),
        tool_call("2", "exec", json!({"command": "ls", "approved": true})),
        tool_call("3", "exec", json!("ls")),
        tool_call("4", "which", json!({"bins": ["/bin/sh; ls"]})),
        tool_call("5", "exec", json!({"command": "ls", "node": "nobody"})),
    ];
    let model = Scripted::new([("", wrong), ("Sorry.", vec![])]);
    let house = with_model(&model, vec![]);
    let outcome = house.ask("do it", "r").await;
    assert_eq!((outcome.status, outcome.tools_used.len()), (Status::Ok, 0));
    assert!(
        house.tools.calls.lock().unwrap().is_empty()
            && house.tools.which_calls.lock().unwrap().is_empty()
    );

    let many =
        (0..=limits::STEP_TOOL_CALLS_MAX).map(|n| tool_call(&n.to_string(), "nodes", json!({})));
    let house = with_model(&Scripted::new([("", many.collect())]), vec![]);
    assert!(
        house
            .ask("x", "r")
            .await
            .error
            .unwrap()
            .contains("tool calls at once")
    );

    let house = with_model(&Scripted::new([]), vec![]);
    assert!(
        house
            .ask("x", "r")
            .await
            .error
            .unwrap()
            .contains("32 rounds"),
        "a loop ends"
    );

    let endless: &'static str =
        Box::leak("x".repeat(limits::TURN_TEXT_BYTES_MAX + 1).into_boxed_str());
    let house = with_model(&Scripted::new([(endless, vec![])]), vec![]);
    assert!(
        house
            .ask("x", "r")
            .await
            .error
            .unwrap()
            .contains("grew past")
    );

    let model = Scripted::new([]);
    model.fails.store(true, Ordering::SeqCst);
    let house = with_model(&model, vec![]);
    assert_eq!(
        house.ask("x", "r").await.error.as_deref(),
        Some("the model is away")
    );
}

#[tokio::test(start_paused = true)]
async fn history_shows_what_happened_and_creates_nothing() {
    let house = House::new([Act::Answer(linux()), Act::Hang("")]);
    let key = SessionKey::parse("lab").unwrap();
    let empty = payload::read_history(&house.agent, &key, HistoryQuery::default()).unwrap();
    assert_eq!((empty.session.clone(), empty.total), (None, 0));
    assert_eq!(
        serde_json::to_value(payload::startup(&empty)).unwrap()["sessionKey"],
        "agent:main:lab"
    );
    assert!(house.agent.transcript().sessions(9).unwrap().is_empty());

    house.ask("/run uname", "r1").await;
    house.send("/run hang", "r2");
    house.tools.started.notified().await;
    house.tools.started.notified().await;
    let main = SessionKey::main();
    let read = payload::read_history(
        &house.agent,
        &main,
        HistoryQuery {
            limit: Some(5),
            ..HistoryQuery::default()
        },
    );
    let read = read.unwrap();
    assert!(read.has_more && read.total == 6 && read.next_offset == 5);
    let shown = serde_json::to_value(payload::startup(&read)).unwrap();
    let roles: Vec<&str> = shown["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(
        roles,
        ["assistant", "toolResult", "assistant", "user", "assistant"]
    );
    assert_eq!(
        shown["messages"][0]["content"][0]["arguments"]["command"],
        "uname"
    );
    assert_eq!(shown["inFlightRun"]["runId"], "r2");
    assert_eq!(shown["sessionInfo"]["hasActiveRun"], true);
    assert_eq!(shown["metadata"]["commands"][1]["textAliases"][0], "/run");
    // The recorded answer's keys, less the cursor and the defaults of a model.
    for key in [
        "sessionKey",
        "sessionId",
        "messages",
        "pendingInputs",
        "hasMore",
        "totalMessages",
        "sessionInfo",
    ] {
        assert!(!shown[key].is_null(), "{key}");
    }

    let small = HistoryQuery {
        bytes_max: Some(1),
        ..HistoryQuery::default()
    };
    let read = payload::read_history(&house.agent, &main, small).unwrap();
    assert_eq!(read.entries.len(), 1, "the newest always stays");
    let sessions = payload::sessions_list(&house.agent, None, 7).unwrap();
    assert_eq!(
        (sessions.count, sessions.sessions[0].is_main),
        (1, Some(true))
    );
}

#[tokio::test(start_paused = true)]
async fn answers_to_send_and_agent_are_the_recorded_ones() {
    let house = House::new([Act::Answer(linux())]);
    let accepted = house.send("/run x", "r");
    let value = |payload| serde_json::to_value(payload).unwrap();
    assert_eq!(
        value(payload::send(&accepted)),
        json!({"runId": "r", "status": "started", "messageSeq": 1})
    );
    let first =
        serde_json::to_value(payload::agent_accepted(&accepted, &SessionKey::main())).unwrap();
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["acceptedAt", "agentId", "runId", "sessionKey", "status"]
    );
    let outcome = accepted.finish.wait().await.unwrap();
    assert_eq!(
        value(payload::send(&house.send("/run x", "r"))),
        json!({"runId": "r", "status": "ok"})
    );
    let second = serde_json::to_value(payload::agent_finished("r", &outcome)).unwrap();
    assert_eq!(
        (&second["status"], &second["summary"]),
        (&json!("ok"), &json!("completed"))
    );
    assert_eq!(second["result"]["payloads"][0]["text"], json!(outcome.text));
    let aborted = serde_json::to_value(payload::abort(vec![])).unwrap();
    assert_eq!(aborted, json!({"ok": true, "aborted": false, "runIds": []}));
    assert_eq!(payload::agent_waited("r", None).status, "timeout");
}
