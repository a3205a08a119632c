//! A whole Gateway without listeners, and callers at its door.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::time::Sleep;

use super::door::{Entry, TurnedAway};
use super::{Door, Rules};
use crate::audit::{Actor, Digest};
use crate::auth::admission::AdmissionRefusal;
use crate::auth::device::{PublicKey, Signed, sign};
use crate::auth::rate_limit::{Class, LimitKey, LimiterSettings};
use crate::auth::scope::{Role, ScopeSet};
use crate::base::{ConnId, DeviceId, Secret, limits};
use crate::cli::serve::{GatewaySettings, Parts};
use crate::exec::{env::Overrides, plan::Prepared};
use crate::hub::{
    Asked, Audience, Caller, Fault, Hub, NodeDeclaration, Outbox, SessionFacts, Taken, Withdrawal,
    once,
};
use crate::ingress::{self, Attributed, Client, ListenerClass, Peer};
use crate::machine;
use crate::net::WsIo;
use crate::nodes::Refused;
use crate::rpc::types::connect::ConnectParams;
use crate::ws::{self, Event};

const NONCE: &str = "0e3b1c1e-8a53-4f0c-9a5e-222222222222";
const SECRET: &str = "the gateway's own secret";
/// Longer than nothing, and less than anybody is slowed down.
const MOMENT: Duration = Duration::from_millis(1);

struct House {
    parts: Parts,
    key: Ed25519KeyPair,
    _home: TempDir,
}

fn house(local_operator_scopes: &[&str]) -> House {
    let home = TempDir::new().unwrap();
    let secret = Secret::new(SECRET);
    let mut settings = GatewaySettings::on_loopback(home.path().join("own"), 0, &secret).unwrap();
    settings.admission.local_operator_scopes = ScopeSet::from_wire(local_operator_scopes);
    House {
        parts: Parts::open(settings).unwrap(),
        key: Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap(),
        _home: home,
    }
}

impl House {
    fn hub(&self) -> &Arc<Hub> {
        &self.parts.hub
    }

    fn door(&self) -> &Arc<Door> {
        &self.parts.front.door
    }

    fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.key.public_key().as_ref().try_into().unwrap())
    }

    fn device(&self) -> DeviceId {
        self.public_key().device_id()
    }

    /// One invoke under a key.
    fn invoke(&self) -> once::Request {
        once::Request {
            node: self.device(),
            command: "system.which".to_owned(),
            params_sha256: Digest::of(b""),
            key: "k".to_owned(),
            timeout_ms: 1000,
        }
    }

    /// Strangers guess until newcomers are slowed down.
    fn guesses(&self) {
        for guess in 0..limits::GLOBAL_FAILURES_SLOW * 2 {
            let client = Client::Ip(std::net::Ipv4Addr::from(0x0a00_0000 + guess).into());
            let (key, class) = (LimitKey::from(client), Class::SharedSecret);
            let _ = self
                .door()
                .limiter()
                .failure(Instant::now(), &key, class, false);
            self.door().limiter().answered(&key, class);
        }
    }

    /// What a program of this host sends that has the shared secret, or this device token.
    fn connect(&self, scopes: &[&str], token: Option<&Secret>) -> ConnectParams {
        let connect = self.connect_as(Role::Operator, scopes, token, NONCE);
        serde_json::from_str(&connect.to_string()).unwrap()
    }

    fn connect_as(
        &self,
        role: Role,
        scopes: &[&str],
        token: Option<&Secret>,
        nonce: &str,
    ) -> Value {
        let (id, public_key) = (self.device(), self.public_key().to_wire());
        let token = token.and_then(Secret::expose_str).map(str::to_owned);
        let asked: Vec<String> = scopes.iter().map(|&scope| scope.to_owned()).collect();
        let signed_at_ms = machine::now_ms();
        let (client_id, mode) = match role {
            Role::Operator => ("cli", "cli"),
            Role::Node => ("node-host", "node"),
        };
        let signed = Signed {
            device_id: id.as_str(),
            client_id,
            client_mode: mode,
            role,
            scopes: &asked,
            signed_at_ms,
            token: token.as_deref().unwrap_or_default(),
            nonce,
            platform: Some("linux"),
            device_family: None,
        };
        let auth = match &token {
            Some(token) => json!({"deviceToken": token}),
            None => json!({"password": SECRET}),
        };
        json!({
            "minProtocol": 4, "maxProtocol": 4, "role": role.as_str(), "scopes": scopes, "auth": auth,
            "client": {"id": client_id, "version": "1", "platform": "linux", "mode": mode},
            "device": {
                "id": id.as_str(), "publicKey": public_key, "nonce": nonce,
                "signature": sign(&self.key, &signed.v3()), "signedAt": signed_at_ms,
            },
        })
    }

    fn attributed(&self) -> Attributed {
        self.attributed_by(&[("Host", b"127.0.0.1:18789")])
    }

    fn attributed_by(&self, headers: &[(&str, &[u8])]) -> Attributed {
        let request = ingress::Request {
            listener: ListenerClass::Main,
            peer: Peer::Tcp("127.0.0.1:50000".parse::<SocketAddr>().unwrap()),
            local: "127.0.0.1:18789".parse().ok(),
            tls: false,
            headers,
            own_addresses: Some(&[]),
        };
        ingress::attribute(&request, &self.door().rules().ingress).unwrap()
    }

    async fn admit(&self, connect: ConnectParams) -> Result<Entry, Box<TurnedAway>> {
        let since = self.door().rules().since;
        self.door()
            .admit(self.hub(), self.attributed(), since, connect, NONCE)
            .await
    }

    /// The same, while something happens as the caller is made to wait.
    async fn admit_while(
        &self,
        connect: ConnectParams,
        happens: impl FnOnce(),
    ) -> Result<Entry, AdmissionRefusal> {
        let meanwhile = async {
            tokio::time::sleep(MOMENT).await;
            happens();
        };
        let (admission, ()) = tokio::join!(self.admit(connect), meanwhile);
        admission.map_err(|away| away.refusal)
    }

    /// An operator of this device, with a session.
    async fn operator(&self, scopes: &[&str]) -> Caller {
        let entry = self.admit(self.connect(scopes, None)).await;
        self.session(&entry.ok().unwrap()).ok().unwrap()
    }

    fn session(&self, entry: &Entry) -> Result<Caller, Fault> {
        let facts = SessionFacts {
            client: entry.admitted.client().clone(),
            address: None,
            path: "loopback".to_owned(),
            public: false,
            node: NodeDeclaration::default(),
            standing: entry.standing,
        };
        let conn = ConnId::from_random(machine::random());
        let actor = Actor::System { rule: "test" };
        let outbox = Outbox::default();
        self.hub()
            .open_session(&conn, &entry.admitted, actor, facts, &outbox)
    }
}

impl House {
    /// A node's end of a session over a pipe that holds this many bytes.
    async fn node(&self, pipe_bytes: usize) -> WsIo<DuplexStream> {
        self.node_behind(pipe_bytes, |pipe| pipe).await
    }

    async fn node_behind<S>(
        &self,
        pipe_bytes: usize,
        wrap: impl FnOnce(DuplexStream) -> S,
    ) -> WsIo<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (ours, theirs) = duplex(pipe_bytes);
        let io = WsIo::server(ours, Bytes::new(), ws::Limits::new(1 << 20));
        let front = &self.parts.front;
        let (door, control) = (Arc::clone(&front.door), Arc::clone(&front.control));
        let place = front.preauth.enter(None).unwrap();
        let since = door.rules().since;
        let session = super::run(io, self.attributed(), since, door, control, place);
        tokio::spawn(session);
        let mut node = WsIo::client(wrap(theirs), Bytes::new(), ws::Limits::new(1 << 20));
        let challenge = frame(&mut node).await;
        let nonce = challenge["payload"]["nonce"].as_str().unwrap();
        let params = self.connect_as(Role::Node, &[], None, nonce);
        let connect = json!({"type": "req", "id": "1", "method": "connect", "params": params});
        node.queue_text(connect.to_string().as_bytes());
        node.flush().await.unwrap();
        assert_eq!(frame(&mut node).await["ok"], true);
        node
    }

    /// Whether the node is shown as connected, and why it last was not.
    fn shown(&self) -> (bool, Option<String>) {
        let listed = serde_json::to_value(self.hub().node_list()).unwrap();
        let report = self.hub().node_report(None).nodes.pop().unwrap();
        let connected = listed[0]["connected"] == true;
        assert_eq!(report.online, connected);
        (connected, report.last_close.map(|close| close.reason))
    }
}

async fn frame<S: AsyncRead + AsyncWrite + Unpin>(peer: &mut WsIo<S>) -> Value {
    loop {
        match peer.receive().await.unwrap() {
            Event::Text(text) => return serde_json::from_str(&text).unwrap(),
            Event::Ping(_) | Event::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A socket that stays open, and behind which nobody reads or answers any more.
#[tokio::test(start_paused = true)]
async fn a_half_open_socket_is_gone_within_two_ticks_and_says_why() {
    // With nothing to write but pings, and with more than fits into the pipe.
    for broadcast_bytes in [0, 400 * 1024] {
        let it = house(&["operator.admin"]);
        let mut node = it.node(64 * 1024).await;
        // One that answers pings stays, however long it has nothing to say.
        let still_there =
            async { while !matches!(node.receive().await, Ok(Event::Close { .. })) {} };
        let stays = limits::TICK_INTERVAL * 10 + Duration::from_secs(7);
        let _ = tokio::time::timeout(stays, still_there).await;
        assert_eq!(it.shown(), (true, None));
        if broadcast_bytes > 0 {
            let text = "x".repeat(broadcast_bytes);
            it.hub().broadcast(Audience::Everyone, "tick", &text);
        }
        tokio::time::sleep(limits::TICK_INTERVAL * 2 + MOMENT * 5).await;
        let gone = (false, Some("no sign of life".to_owned()));
        assert_eq!(it.shown(), gone, "{broadcast_bytes}");
        assert_eq!(it.hub().session_counts(), (0, 0));
        drop(node);
    }
}

/// A pipe out of which so much is read, and then nothing for so long.
struct Slow {
    pipe: DuplexStream,
    bytes: usize,
    pause: Duration,
    rest: Pin<Box<Sleep>>,
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.rest.as_mut().poll(cx));
        let mut part = buf.take(self.bytes);
        ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        if read == self.bytes {
            let until = tokio::time::Instant::now() + self.pause;
            self.rest.as_mut().reset(until);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

/// A large frame over a slow line takes longer than a silent peer has, and so do two.
#[tokio::test(start_paused = true)]
async fn w7_a_slow_reader_stays_while_it_reads() {
    for (pause_s, stays) in [(2, true), (7, false)] {
        let it = house(&["operator.admin"]);
        let slow = |pipe| Slow {
            pipe,
            bytes: 16 * 1024,
            pause: Duration::from_secs(pause_s),
            rest: Box::pin(tokio::time::sleep(MOMENT)),
        };
        let mut node = it.node_behind(64 * 1024, slow).await;
        let large = "x".repeat(1_000_000);
        it.hub().broadcast(Audience::Everyone, "tick", &large);
        let again = async {
            // When most of the first is read, and long before an answer to a ping behind it.
            tokio::time::sleep(Duration::from_secs(95)).await;
            it.hub().broadcast(Audience::Everyone, "tick", &large);
        };
        let reading = async {
            let mut whole = 0;
            while whole < 2 {
                match node.receive().await {
                    Ok(Event::Text(text)) => whole += usize::from(text.len() > large.len()),
                    Ok(Event::Close { .. }) | Err(_) => return false,
                    Ok(_) => {}
                }
            }
            true
        };
        assert_eq!(tokio::join!(reading, again).0, stays);
        assert_eq!(it.shown().0, stays);
    }
}

#[tokio::test(start_paused = true)]
async fn k1_what_is_withdrawn_while_a_caller_waits_leaves_no_trace() {
    for what in [Withdrawal::Secret, Withdrawal::Rules, Withdrawal::Ingress] {
        let it = house(&["operator.read"]);
        it.guesses();
        let connect = it.connect(&["operator.read"], None);
        let refused = it.admit_while(connect, || {
            let number = it.hub().next_standing();
            it.hub().withdraw(what, number);
        });
        assert_eq!(
            refused.await.err(),
            Some(AdmissionRefusal::Starting),
            "{what:?}"
        );
        assert!(it.hub().device(&it.device()).is_none(), "{what:?}");
    }
    // Nobody is held up for good.
    let it = house(&["operator.read"]);
    it.guesses();
    let entry = it.admit_while(it.connect(&["operator.read"], None), || {});
    let entry = entry.await.ok().unwrap();
    assert!(entry.newly_paired && entry.issued.is_some());
    it.session(&entry).ok().unwrap();
}

#[tokio::test(start_paused = true)]
async fn r8_a_guess_beside_a_right_device_token_waits_as_every_other() {
    let it = house(&["operator.read"]);
    let first = it.admit(it.connect(&["operator.read"], None)).await;
    let token = first.ok().unwrap().issued.unwrap().token;
    let began = tokio::time::Instant::now();
    let guess = async |scope: &str| {
        let mut guess = it.connect_as(Role::Operator, &[scope], Some(&token), NONCE);
        guess["auth"]["password"] = json!("wrong");
        let connect = serde_json::from_str(&guess.to_string()).unwrap();
        it.admit(connect).await.map_err(|away| away.late)
    };
    for _ in 0..limits::LATE_ANSWERS_PER_CLIENT_MAX {
        guess("operator.read").await.ok().unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "its token was right");
    // From here on no guess is compared, and the device comes in as before.
    let secret = it.admit(it.connect(&["operator.read"], None)).await;
    let refusal = secret.err().unwrap().refusal;
    assert!(matches!(refusal, AdmissionRefusal::RateLimited { .. }));
    assert_eq!(guess("operator.admin").await.err(), Some(Duration::ZERO));
    guess("operator.read").await.ok().unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let late = guess("operator.admin").await.err();
    assert_eq!(late, Some(Duration::from_secs(5)), "refused, and late");
    it.admit(it.connect(&["operator.read"], None))
        .await
        .ok()
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn r6_a_guess_is_counted_once_however_long_its_sender_waits() {
    let it = house(&["operator.read"]);
    it.guesses();
    let (all, by) = (ScopeSet::all(), Actor::System { rule: "test" });
    let link = it.hub().open_sign_in_link(all, all, by).ok().unwrap();
    let mut connect = it.connect_as(Role::Operator, &[], Some(&link), NONCE);
    connect["auth"] = json!({"bootstrapToken": link.expose_str(), "password": "wrong"});
    let page = it.attributed_by(&[
        ("Host", b"127.0.0.1:18789"),
        ("Origin", b"http://127.0.0.1:18789"),
    ]);
    let (key, since) = (LimitKey::from(page.client()), it.door().rules().since);
    let connect = serde_json::from_str(&connect.to_string()).unwrap();
    let began = tokio::time::Instant::now();
    let entry = it.door().admit(it.hub(), page, since, connect, NONCE).await;
    assert!(entry.is_ok() && !began.elapsed().is_zero());
    let now = Instant::now();
    let late = it
        .door()
        .limiter()
        .failure(now, &key, Class::SharedSecret, false);
    assert_eq!(late.as_millis(), 500, "the second of its series");
}

#[tokio::test(start_paused = true)]
async fn k1_what_a_device_held_before_it_was_removed_does_not_come_back() {
    let it = house(&["operator.pairing"]);
    let first = it.admit(it.connect(&["operator.pairing"], None));
    let owner = it.session(&first.await.ok().unwrap()).ok().unwrap();
    // From now on a program of this host gets less, and asks for more than its device has.
    let rules = it.door().rules();
    let mut admission = rules.admission.clone();
    admission.local_operator_scopes = ScopeSet::from_wire(&["operator.talk.secrets"]);
    let rules = Rules {
        admission,
        ingress: rules.ingress.clone(),
        secret: Arc::clone(&rules.secret),
        since: rules.since,
    };
    it.door().set_rules(rules, LimiterSettings::default());
    it.guesses();
    let connect = it.connect(&["operator.talk.secrets"], None);
    let admission = it.admit_while(connect, || {
        let id = it.device();
        it.hub().remove_device(&owner, id.as_str()).ok().unwrap();
    });
    admission.await.ok().unwrap();
    let device = it.hub().device(&it.device()).unwrap();
    assert_eq!(device.scopes.to_wire(), ["operator.talk.secrets"]);
}

#[tokio::test]
async fn k1_a_token_that_was_rotated_since_opens_no_session() {
    let it = house(&["operator.admin", "operator.pairing"]);
    let scopes = ["operator.admin", "operator.pairing"];
    let first = it.admit(it.connect(&scopes, None)).await.ok().unwrap();
    let owner = it.session(&first).ok().unwrap();
    let token = first.issued.unwrap().token;
    let entry = it.admit(it.connect(&scopes, Some(&token))).await.ok();
    let entry = entry.unwrap();
    it.session(&entry).ok().unwrap();
    let id = it.device();
    let rotated = it
        .hub()
        .rotate_token(&owner, id.as_str(), Role::Operator, None);
    let rotated = rotated.ok().unwrap().token.unwrap();
    assert!(matches!(it.session(&entry), Err(Fault::Withdrawn)));
    let entry = it.admit(it.connect(&scopes, Some(&rotated))).await.ok();
    let entry = entry.unwrap();
    it.session(&entry).ok().unwrap();
    it.hub()
        .revoke_token(&owner, id.as_str(), Role::Operator)
        .ok()
        .unwrap();
    assert!(matches!(it.session(&entry), Err(Fault::Withdrawn)));
}

#[tokio::test]
async fn d2_a_rotated_token_is_withheld_where_no_secret_would_be_taken() {
    let it = house(&["operator.pairing"]);
    let mut owner = it.operator(&["operator.pairing"]).await;
    let id = it.device();
    assert!(owner.private);
    for private in [true, false] {
        owner.private = private;
        let rotated = it
            .hub()
            .rotate_token(&owner, id.as_str(), Role::Operator, None);
        assert_eq!(rotated.ok().unwrap().token.is_some(), private);
    }
}

#[tokio::test]
async fn k1_what_a_device_waits_for_ends_with_its_right() {
    let scopes = ["operator.admin"];
    for what in ["removed", "revoked", "rotated", "node removed"] {
        let mut it = house(&scopes);
        let _node = it.node(1 << 20).await;
        let node = it.device();
        it.key = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
        let owner = it.operator(&scopes).await;
        it.key = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
        let (caller, other) = (it.operator(&scopes).await, it.operator(&scopes).await);
        let (hub, device) = (it.hub(), it.device());
        let (id, role) = (device.as_str(), Role::Operator);
        let asked = |id| asked(&node, id, None);
        hub.request_approval(&caller, asked("waits")).unwrap();
        hub.request_approval(&other, asked("allowed")).unwrap();
        hub.resolve_approval(&caller, "allowed", "allow-once")
            .unwrap();
        assert_eq!(hub.approval_list().len(), 1);
        let done = match what {
            "removed" => hub.remove_device(&owner, id).is_ok(),
            "revoked" => hub.revoke_token(&owner, id, role).is_ok(),
            "rotated" => hub.rotate_token(&owner, id, role, None).is_ok(),
            _ => hub.remove_device(&owner, node.as_str()).is_ok(),
        };
        assert!(done, "{what}");
        assert!(hub.approval_list().is_empty(), "{what}");
        for id in ["waits", "allowed"] {
            assert_eq!(
                hub.decision(id).await.unwrap().reason,
                "run-aborted",
                "{what}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_for_a_connection_that_has_gone() {
    let it = house(&["operator.admin"]);
    let entry = it.admit(it.connect(&["operator.admin"], None)).await;
    let caller = it.session(&entry.ok().unwrap()).unwrap();
    it.hub().close_session(&caller, "gone");
    let request = it.invoke();
    let refused = it.hub().enter(&caller, request).err();
    assert_eq!(refused, Some(Refused::Cancelled { sent: false }));
    assert_eq!(it.hub().unanswered(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_given_up_before_it_began_leaves_its_key_free() {
    let it = house(&["operator.admin"]);
    let caller = it.operator(&["operator.admin"]).await;
    let request = it.invoke();
    let first = it.hub().enter(&caller, request.clone()).ok().unwrap();
    let mut second = it.hub().enter(&caller, request.clone()).ok().unwrap();
    drop(first);
    assert_eq!(it.hub().unanswered(), 1);
    let joined = second.told(|| panic!("it was begun")).await;
    let refused = joined.answer.as_ref().unwrap_err();
    assert_eq!(*refused, Refused::Cancelled { sent: false });
    let mut third = it.hub().enter(&caller, request).ok().unwrap();
    let refused = third.told(|| Err(Refused::BadParams)).await;
    assert_eq!(refused.answer.as_ref().unwrap_err(), &Refused::BadParams);
    drop((second, third));
    assert_eq!(it.hub().unanswered(), 0);
}

#[tokio::test(start_paused = true)]
async fn x9_a_clock_that_is_set_neither_ends_nor_prolongs_an_approval() {
    const HOUR_MS: i64 = 3_600_000;
    for step_ms in [HOUR_MS, -HOUR_MS] {
        let mut it = house(&["operator.admin"]);
        let _node = it.node(1 << 20).await;
        let node = it.device();
        it.key = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
        let caller = it.operator(&["operator.admin"]).await;
        let _other = it.operator(&["operator.admin"]).await;
        let asked = asked(&node, "it", Some(60_000));
        let hub = it.hub();
        hub.request_approval(&caller, asked).unwrap();
        machine::CLOCK_STEP_MS.set(step_ms);
        tokio::time::sleep(Duration::from_secs(50)).await;
        let listed = hub.approval_list();
        // Whoever is asked sees how much is left by the clock as it is set now.
        let shown = listed[0]["expiresAtMs"].as_u64().unwrap();
        let left_ms = shown.saturating_sub(machine::now_ms());
        assert!((5000..15_000).contains(&left_ms), "{step_ms}: {left_ms}");
        assert_eq!(hub.decision("it").await.unwrap().reason, "timeout");
        assert!(hub.resolve_approval(&caller, "it", "allow-once").is_err());
        machine::CLOCK_STEP_MS.set(0);
    }
}

#[tokio::test]
async fn x9_a_request_whose_device_has_left_ends_with_its_time() {
    let scopes = ["operator.admin"];
    let mut it = house(&scopes);
    let _node = it.node(1 << 20).await;
    let node = it.device();
    it.key = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    let asking = it.operator(&scopes).await;
    it.key = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    let other = it.operator(&scopes).await;
    it.hub()
        .request_approval(&asking, asked(&node, "waits", Some(20)))
        .unwrap();
    it.hub().close_session(&asking, "gone");
    let reader = other.outbox.reader();
    let heard = async {
        loop {
            let Taken::Frames(frames) = reader.take().await else {
                panic!("the session was closed")
            };
            let is_end = |frame: &String| {
                frame.contains("exec.approval.resolved") && frame.contains("\"timeout\"")
            };
            if frames.iter().any(is_end) {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), heard)
        .await
        .unwrap();
}

fn asked(node: &DeviceId, id: &str, timeout_ms: Option<u64>) -> Asked {
    let plan = r#"{"plan": {"argv": ["/bin/ls"], "cwd": "/", "commandText": "/bin/ls"}}"#;
    Asked {
        id: Some(id.to_owned()),
        node: node.clone(),
        prepared: Prepared::parse(plan).unwrap(),
        env: Overrides::new(),
        timeout_ms,
    }
}
