use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;
use crate::auth::device::sign;
use crate::auth::rate_limit::{Limit, Limiter, LimiterSettings};
use crate::auth::secret_eq::ConfiguredSecret;
use crate::auth::whois::{Whois, WhoisRefusal};
use crate::base::Refusal as _;
use crate::ingress::{self, Cidr, Peer, ProxyUserSettings, Request};

const NONCE: &str = "0e3b1c1e-8a53-4f0c-9a5e-222222222222";
const NOW_MS: u64 = 1_795_225_965_368;
const TOKEN: &str = "gateway-token";
const OWN_PAGE: (&str, &str) = ("Origin", "http://127.0.0.1:18789");

/// Everything around one `connect`: settings, what the server knows, and how the socket came in.
struct World {
    settings: Settings,
    ingress: ingress::Settings,
    listener: ListenerClass,
    peer: Peer,
    headers: Vec<(&'static str, &'static str)>,
    secret: SharedSecret,
    devices: BTreeMap<DeviceId, KnownDevice>,
    turned_away: Vec<DeviceId>,
    link: Option<(TokenDigest, SignInLink)>,
    whois: Whois,
    limiter: Limiter,
    now: Instant,
    /// The names of the facts that the last `connect` asked for.
    asked: Vec<&'static str>,
    /// The wrong secrets of the last attempt.
    failed: Failed,
}

fn tcp(address: &str) -> Peer {
    Peer::Tcp((address.parse::<IpAddr>().unwrap(), 50_000).into())
}

fn ready(secret: &str) -> SharedSecret {
    SharedSecret::Ready(Arc::new(
        ConfiguredSecret::new(&Secret::new(secret)).unwrap(),
    ))
}

/// A Gateway in token mode, and a program on the same host.
fn world() -> World {
    World {
        settings: Settings {
            mode: Mode::Token,
            allow_tailscale: false,
            local_operator_scopes: ScopeSet::all(),
            auto_approve_local: true,
            auto_approve_cidrs: Vec::new(),
            control_ui_build: None,
        },
        ingress: ingress::Settings::default(),
        listener: ListenerClass::Main,
        peer: tcp("127.0.0.1"),
        headers: vec![("Host", "127.0.0.1:18789")],
        secret: ready(TOKEN),
        devices: BTreeMap::new(),
        turned_away: vec![],
        link: None,
        whois: Whois::Failed,
        limiter: Limiter::new(LimiterSettings::default()),
        now: Instant::now(),
        asked: vec![],
        failed: vec![],
    }
}

/// The same Gateway, and a caller from elsewhere, over a connection that may carry secrets.
fn remote() -> World {
    let mut it = world();
    it.peer = tcp("198.51.100.7");
    it.ingress.allow_plaintext_from = vec![Cidr::parse("198.51.100.0/24").unwrap()];
    it
}

fn serve() -> World {
    let mut it = world();
    it.listener = ListenerClass::Serve;
    it.settings.allow_tailscale = true;
    it.headers.extend([
        ("X-Forwarded-For", "100.64.0.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "gw.example.ts.net"),
        ("Tailscale-User-Login", "alice@example.com"),
    ]);
    it.whois = Whois::Found {
        login: "alice@example.com".into(),
    };
    it
}

impl World {
    fn with(mut self, header: (&'static str, &'static str)) -> Self {
        self.headers.push(header);
        self
    }

    fn attributed(&self) -> Attributed {
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        let request = Request {
            listener: self.listener,
            peer: self.peer,
            local: "127.0.0.1:18789".parse().ok(),
            tls: false,
            headers: &headers,
            own_addresses: Some(&[]),
        };
        ingress::attribute(&request, &self.ingress).unwrap()
    }

    fn connect(&mut self, params: &Value) -> Verdict {
        self.connect_challenged(params, NONCE)
    }

    fn connect_challenged(&mut self, params: &Value, nonce: &str) -> Verdict {
        let params: ConnectParams = serde_json::from_str(&params.to_string()).unwrap();
        let mut it = Admission::new(
            self.settings.clone(),
            self.attributed(),
            params,
            nonce,
            NOW_MS,
        );
        self.asked.clear();
        loop {
            match it.step() {
                Step::Done(verdict, failed) => {
                    self.failed = failed;
                    return *verdict;
                }
                Step::Need(fact) => {
                    let (name, answer) = self.look_up(&fact);
                    assert!(self.asked.len() < 10, "asks for ever: {:?}", self.asked);
                    self.asked.push(name);
                    it.answer(answer);
                }
            }
        }
    }

    fn look_up(&mut self, fact: &Fact) -> (&'static str, Answer) {
        match fact {
            Fact::Limit { key, class, exempt } => (
                "limit",
                Answer::Limit(self.limiter.check(self.now, key, *class, *exempt)),
            ),
            Fact::SharedSecret => ("secret", Answer::SharedSecret(self.secret.clone())),
            Fact::Device(id) => ("device", Answer::Device(self.devices.get(id).cloned())),
            Fact::TurnedAway(id) => (
                "turned away",
                Answer::TurnedAway(self.turned_away.contains(id)),
            ),
            Fact::SignInLink(digest) => {
                let link = self.link.as_ref();
                let link = link.filter(|(known, _)| known.as_bytes() == digest.as_bytes());
                (
                    "link",
                    Answer::SignInLink(link.map(|(_, link)| link.clone())),
                )
            }
            Fact::Whois(_) => ("whois", Answer::Whois(self.whois.clone())),
            Fact::TokenHolder(digest) => {
                let held = self.devices.iter().find_map(|(id, known)| {
                    let grant = known.grants.iter().find(|grant| {
                        let token = grant.token.as_ref();
                        token.is_some_and(|token| token.as_bytes() == digest.as_bytes())
                    })?;
                    Some(TokenHolder {
                        device: id.clone(),
                        role: grant.role,
                        scopes: grant.scopes.meet(grant.token_scopes),
                    })
                });
                ("holder", Answer::TokenHolder(held))
            }
        }
    }

    /// One HTTP request with this `Authorization` header.
    fn request(&mut self, authorization: Option<&str>) -> Result<AdmittedRequest, Refused> {
        let presented = authorization.and_then(|value| bearer(value.as_bytes()));
        let mut it = BearerAdmission::new(self.settings.clone(), self.attributed(), presented);
        self.asked.clear();
        loop {
            match it.step() {
                Step::Done(verdict, failed) => {
                    self.failed = failed;
                    return *verdict;
                }
                Step::Need(fact) => {
                    let (name, answer) = self.look_up(&fact);
                    assert!(self.asked.len() < 10, "asks for ever: {:?}", self.asked);
                    self.asked.push(name);
                    it.answer(answer);
                }
            }
        }
    }

    fn request_code(&mut self, authorization: Option<&str>) -> &'static str {
        let refused = self.request(authorization).unwrap_err().refusal;
        refused.detail_code().unwrap_or_else(|| refused.log_field())
    }

    fn admitted(&mut self, params: &Value) -> Admitted {
        match self.connect(params) {
            Verdict::Admit(admitted) => admitted,
            Verdict::Pend(pend) => panic!("pends: {pend:?}"),
            Verdict::Refuse(refused) => panic!("refused: {refused:?}"),
        }
    }

    fn pends(&mut self, params: &Value) -> Pend {
        match self.connect(params) {
            Verdict::Pend(pend) => pend,
            Verdict::Admit(admitted) => panic!("admitted: {admitted:?}"),
            Verdict::Refuse(refused) => panic!("refused: {refused:?}"),
        }
    }

    fn refused(&mut self, params: &Value) -> Refused {
        match self.connect(params) {
            Verdict::Refuse(refused) => refused,
            Verdict::Admit(admitted) => panic!("admitted: {admitted:?}"),
            Verdict::Pend(pend) => panic!("pends: {pend:?}"),
        }
    }

    /// As the door counts it, and answers late.
    fn count(&mut self) -> Duration {
        let count = |(key, class): (LimitKey, Class)| {
            let late = self.limiter.failure(self.now, &key, class, false);
            self.limiter.answered(&key, class);
            late
        };
        std::mem::take(&mut self.failed)
            .into_iter()
            .map(count)
            .max()
            .unwrap()
    }

    fn code(&mut self, params: &Value) -> &'static str {
        let refused = self.refused(params).refusal;
        refused.detail_code().unwrap_or_else(|| refused.log_field())
    }

    /// What an approval would have stored.
    fn pair(&mut self, key: &Key, role: Role, scopes: &[&str], token: Option<&str>) {
        let grant = Grant {
            role,
            scopes: ScopeSet::from_wire(scopes),
            token: token.map(|token| TokenDigest::of(token.as_bytes())),
            token_scopes: ScopeSet::from_wire(scopes),
        };
        let known = self
            .devices
            .entry(key.public().device_id())
            .or_insert(KnownDevice {
                public_key: key.public(),
                platform: "linux".into(),
                device_family: "linux".into(),
                grants: vec![],
            });
        known.grants.push(grant);
    }
}

struct Key(Ed25519KeyPair);

fn key(seed: u8) -> Key {
    Key(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap())
}

impl Key {
    fn public(&self) -> PublicKey {
        PublicKey::from_bytes(self.0.public_key().as_ref().try_into().unwrap())
    }

    /// Adds the device object, signed as the official clients sign it.
    fn sign(&self, mut params: Value) -> Value {
        let scopes: Vec<String> =
            serde_json::from_value(params["scopes"].clone()).unwrap_or_default();
        let auth = &params["auth"];
        let token = ["token", "deviceToken", "bootstrapToken"]
            .iter()
            .find_map(|name| auth[*name].as_str())
            .unwrap_or_default();
        let text = |name: &str| params["client"][name].as_str().unwrap_or_default();
        let signed = Signed {
            device_id: self.public().device_id().as_str(),
            client_id: text("id"),
            client_mode: text("mode"),
            role: Role::from_wire(params["role"].as_str().unwrap_or("operator")).unwrap(),
            scopes: &scopes,
            signed_at_ms: NOW_MS,
            token,
            nonce: NONCE,
            platform: params["client"]["platform"].as_str(),
            device_family: params["client"]["deviceFamily"].as_str(),
        }
        .v3();
        params["device"] = json!({
            "id": self.public().device_id().as_str(),
            "publicKey": self.public().to_wire(),
            "signature": sign(&self.0, &signed),
            "signedAt": NOW_MS,
            "nonce": NONCE,
        });
        params
    }
}

fn cli(scopes: &[&str], auth: Value) -> Value {
    let mut params = json!({
        "minProtocol": 4, "maxProtocol": 4, "caps": [], "role": "operator", "scopes": scopes,
        "client": {"id": "cli", "version": "1", "platform": "linux", "deviceFamily": "Linux", "mode": "cli"},
    });
    if !auth.is_null() {
        params["auth"] = auth;
    }
    params
}

fn node(auth: Value) -> Value {
    let mut params = cli(&[], auth);
    params["role"] = "node".into();
    params["client"]["id"] = "node-host".into();
    params["client"]["mode"] = "node".into();
    params
}

fn good() -> Value {
    json!({"token": TOKEN})
}

fn bad() -> Value {
    json!({"token": "wrong"})
}

// The recorded answers.

#[expect(clippy::needless_pass_by_value, reason = "called with json! literals")]
fn recorded(refusal: &AdmissionRefusal, code: &str, message: &str, details: Value) {
    let error = serde_json::to_value(refusal.error().unwrap()).unwrap();
    assert_eq!(error["code"], code);
    assert_eq!(error["message"], message);
    assert_eq!(
        error.get("details").cloned().unwrap_or(Value::Null),
        details
    );
}

#[test]
fn refusals_are_those_recorded_from_the_reference() {
    let mismatch = "unauthorized: gateway token mismatch (use this gateway's gateway.auth.token or pair the device)";
    let it = world().refused(&cli(&["operator.read"], bad()));
    recorded(
        &it.refusal,
        "INVALID_REQUEST",
        mismatch,
        json!({
            "code": "AUTH_TOKEN_MISMATCH", "authReason": "token_mismatch", "canRetryWithDeviceToken": false,
            "recommendedNextStep": "update_auth_credentials",
        }),
    );
    let it = world().refused(&key(1).sign(cli(&["operator.read"], bad())));
    recorded(
        &it.refusal,
        "INVALID_REQUEST",
        mismatch,
        json!({
            "code": "AUTH_TOKEN_MISMATCH", "authReason": "token_mismatch", "canRetryWithDeviceToken": true,
            "recommendedNextStep": "retry_with_device_token",
        }),
    );
    let it = world().refused(&key(1).sign(cli(&[], Value::Null)));
    recorded(
        &it.refusal,
        "INVALID_REQUEST",
        "unauthorized: gateway token missing (use this gateway's gateway.auth.token or pair the device)",
        json!({
            "code": "AUTH_TOKEN_MISSING", "authReason": "token_missing", "canRetryWithDeviceToken": false,
            "recommendedNextStep": "update_auth_configuration",
        }),
    );
    let mut password = world();
    password.settings.mode = Mode::Password;
    let it = password.refused(&key(1).sign(cli(&[], json!({"password": "wrong"}))));
    recorded(
        &it.refusal,
        "INVALID_REQUEST",
        "unauthorized: gateway password mismatch (use this gateway's gateway.auth.password)",
        json!({
            "code": "AUTH_PASSWORD_MISMATCH", "authReason": "password_mismatch", "canRetryWithDeviceToken": false,
            "recommendedNextStep": "update_auth_credentials",
        }),
    );
    let it = world().refused(&cli(&[], Value::Null));
    recorded(
        &it.refusal,
        "NOT_PAIRED",
        "device identity required",
        json!({"code": "DEVICE_IDENTITY_REQUIRED"}),
    );

    let mut old = cli(&[], good());
    old["minProtocol"] = 1.into();
    old["maxProtocol"] = 3.into();
    let it = world().refused(&old).refusal;
    recorded(
        &it,
        "INVALID_REQUEST",
        "protocol mismatch",
        json!({
            "code": "PROTOCOL_MISMATCH", "clientMinProtocol": 1, "clientMaxProtocol": 3, "expectedProtocol": 4,
            "minimumProbeProtocol": 3,
        }),
    );
    assert_eq!(it.close(), (1002, "protocol mismatch".into()));

    let mut banana = cli(&[], good());
    banana["role"] = "banana".into();
    let it = world().refused(&banana).refusal;
    recorded(&it, "INVALID_REQUEST", "invalid role", Value::Null);
    assert_eq!(it.close(), (1008, "invalid role".into()));

    let mut worker = cli(&[], good());
    worker["role"] = "worker".into();
    let it = world().refused(&worker).refusal;
    assert!(it.error().is_none());
    assert_eq!(it.close(), (1008, "invalid-handshake".into()));

    let mut ui = cli(&["operator.admin"], good());
    ui["client"]["id"] = "openclaw-control-ui".into();
    ui["client"]["mode"] = "webchat".into();
    let it = world().refused(&ui).refusal;
    let origin = "origin not allowed (open the Control UI from the gateway host or allow it in gateway.controlUi.allowedOrigins)";
    recorded(
        &it,
        "INVALID_REQUEST",
        origin,
        json!({
            "code": "CONTROL_UI_ORIGIN_NOT_ALLOWED", "reason": "origin missing or invalid",
        }),
    );
    assert_eq!(it.close(), (1008, origin.into()));
}

#[test]
fn pairing_required_is_as_recorded_and_lets_a_node_wait() {
    let pend = remote().pends(&key(1).sign(node(good())));
    let id = key(1).public().device_id().to_string();
    let refusal = pend.refusal("51f66ab5-5993-4f34-8aeb-d1e72cec07f9");
    recorded(
        &refusal,
        "NOT_PAIRED",
        "pairing required: device is not approved yet",
        json!({
            "code": "PAIRING_REQUIRED", "reason": "not-paired", "requestId": "51f66ab5-5993-4f34-8aeb-d1e72cec07f9", "stage": "device",
            "remediationHint": "Approve this device from the pending pairing requests.",
            "deviceId": id, "requestedRole": "node",
            "recommendedNextStep": "wait_then_retry", "pauseReconnect": false,
        }),
    );
    assert_eq!(
        refusal.close(),
        (1008, "pairing required: device is not approved yet (requestId: 51f66ab5-5993-4f34-8aeb-d1e72cec07f9)".into())
    );
    let mut it = remote();
    it.pair(&key(1), Role::Operator, &["operator.read"], None);
    let pend = it.pends(&key(1).sign(cli(&["operator.read", "operator.write"], good())));
    let refusal = pend.refusal("9feb1bfa-fb58-4fdd-8147-06e43d8c4286");
    recorded(
        &refusal,
        "NOT_PAIRED",
        "pairing required: device is asking for more scopes than currently approved",
        json!({
            "code": "PAIRING_REQUIRED", "reason": "scope-upgrade", "requestId": "9feb1bfa-fb58-4fdd-8147-06e43d8c4286", "stage": "device",
            "remediationHint": "Review the requested scopes, then approve the pending upgrade.",
            "deviceId": id, "requestedRole": "operator", "requestedScopes": ["operator.read", "operator.write"],
            "approvedRoles": ["operator"], "approvedScopes": ["operator.read"],
        }),
    );
    assert_eq!(
        refusal.close().1,
        "pairing required: device is asking for more scopes than currently approved (requestId: 9feb1bfa-fb58-4fdd-8147-06e43d8c4",
        "cut at 120 bytes"
    );
}

// A: authentication.

#[test]
fn a2_validity_and_never_presence_of_a_secret_counts() {
    assert_eq!(world().code(&cli(&[], bad())), "AUTH_TOKEN_MISMATCH");
    assert_eq!(
        world().code(&cli(&[], json!({"token": ""}))),
        "AUTH_TOKEN_MISSING"
    );
    assert_eq!(
        world().code(&cli(&[], json!({"token": " "}))),
        "AUTH_TOKEN_MISSING"
    );
    // With a new device too: a wrong secret never reaches the pairing queue.
    let mut it = remote();
    assert_eq!(
        it.code(&key(1).sign(cli(&[], bad()))),
        "AUTH_TOKEN_MISMATCH"
    );
    assert_eq!(
        it.code(&key(1).sign(node(json!({"deviceToken": "x"})))),
        "AUTH_DEVICE_TOKEN_MISMATCH"
    );
}

#[test]
fn a4_an_unset_secret_never_authenticates() {
    for secret in [SharedSecret::NotConfigured, SharedSecret::Unresolved] {
        for guess in ["undefined", "null"] {
            let mut it = world();
            it.secret = secret.clone();
            assert_eq!(
                it.code(&cli(&[], json!({"token": guess}))),
                "AUTH_TOKEN_NOT_CONFIGURED"
            );
        }
    }
    let mut it = world();
    it.secret = SharedSecret::NotConfigured;
    assert_eq!(
        it.code(&cli(&[], json!({"token": ""}))),
        "AUTH_TOKEN_NOT_CONFIGURED"
    );
}

#[test]
fn a5_what_the_client_says_of_itself_grants_nothing() {
    let mut it = world();
    it.peer = tcp("10.0.0.1");
    it.settings.mode = Mode::TrustedProxy;
    it.ingress.trusted_proxies = vec![Cidr::parse("10.0.0.1").unwrap()];
    it.ingress.allowed_origins = vec![ingress::Origin::parse("https://ui.example").unwrap()];
    it.ingress.proxy_user = Some(ProxyUserSettings {
        user_header: "x-user".into(),
        ..ProxyUserSettings::default()
    });
    let mut it = it
        .with(("X-Forwarded-For", "203.0.113.9"))
        .with(("X-User", "alice"))
        .with(("Origin", "https://ui.example"));
    let mut params = node(Value::Null);
    params["client"]["id"] = "openclaw-control-ui".into();
    assert_eq!(it.code(&params), "DEVICE_IDENTITY_REQUIRED");
    // Whatever the id: a remote caller without a device has no scopes.
    for id in ["cli", "gateway-client", "openclaw-macos"] {
        let mut params = cli(&["operator.admin"], good());
        params["client"]["id"] = id.into();
        assert_eq!(remote().admitted(&params).scopes(), ScopeSet::NONE);
    }
}

#[test]
fn a6_only_a_direct_local_program_is_paired_silently() {
    let ask = key(1).sign(cli(&["operator.read"], good()));
    let it = world().admitted(&ask);
    assert!(matches!(
        it.enrolment(),
        Enrolment::Approve {
            via: ApprovedVia::Silent,
            ..
        }
    ));
    assert!(it.issues_token());

    // A browser on loopback, a caller from elsewhere, one behind a proxy, one on a listed loopback address: all pend.
    assert_eq!(
        world()
            .with(OWN_PAGE)
            .pends(&ask)
            .ask
            .browser_origin
            .as_deref(),
        Some("http://127.0.0.1:18789")
    );
    let _ = remote().pends(&ask);
    let mut proxied = world();
    proxied.ingress.trusted_proxies = vec![Cidr::parse("127.0.0.1").unwrap()];
    let _ = proxied.pends(&ask);
    let _ = proxied.with(("X-Forwarded-For", "203.0.113.9")).pends(&ask);
    let mut it = serve();
    let _ = it.pends(&ask);
    let mut manual = world();
    manual.settings.auto_approve_local = false;
    let _ = manual.pends(&ask);
}

#[test]
fn a_listed_address_pairs_a_new_node_that_came_by_itself_and_nothing_else() {
    let listed = || {
        let mut it = remote();
        it.settings.auto_approve_cidrs = vec![
            Cidr::parse("198.51.100.0/28").unwrap(),
            Cidr::parse("127.0.0.0/8").unwrap(),
        ];
        it
    };
    let ask = key(1).sign(node(good()));
    let admitted = listed().admitted(&ask);
    assert!(matches!(
        admitted.enrolment(),
        Enrolment::Approve {
            via: ApprovedVia::TrustedCidr,
            ..
        }
    ));
    assert_eq!(admitted.scopes(), ScopeSet::NONE);

    // One that an operator turned away waits for an operator.
    let mut again = listed();
    again.turned_away = vec![key(1).public().device_id()];
    let _ = again.pends(&ask);
    assert!(again.asked.contains(&"turned away"));

    // Off by default; other addresses, operators, pages, proxies and local programs pend as ever.
    let _ = remote().pends(&ask);
    let mut elsewhere = listed();
    elsewhere.peer = tcp("198.51.100.77");
    let _ = elsewhere.pends(&ask);
    let _ = listed().pends(&key(1).sign(cli(&["operator.read"], good())));
    let mut page = listed();
    page.ingress.allowed_origins = vec![ingress::Origin::parse("https://gw.example").unwrap()];
    let _ = page.with(("Origin", "https://gw.example")).pends(&ask);
    let mut proxied = listed();
    proxied.ingress.trusted_proxies = vec![Cidr::parse("198.51.100.7").unwrap()];
    let _ = proxied
        .with(("X-Forwarded-For", "198.51.100.9"))
        .pends(&ask);
    let mut tunnel = listed();
    tunnel.peer = tcp("127.0.0.1");
    tunnel.settings.auto_approve_local = false;
    let _ = tunnel.pends(&ask);

    // Only the first admission: a role, or a platform that changed, waits for an operator.
    let mut known = listed();
    known.pair(&key(1), Role::Operator, &["operator.read"], None);
    assert_eq!(known.pends(&ask).ask.reason, PairingReason::RoleUpgrade);
    let mut changed = listed();
    changed.pair(&key(1), Role::Node, &[], None);
    let mut other = node(good());
    other["client"]["platform"] = "darwin".into();
    let pend = changed.pends(&key(1).sign(other));
    assert_eq!(pend.ask.reason, PairingReason::MetadataUpgrade);
}

#[test]
fn a7_replayed_connect_is_nonce_mismatch() {
    let captured = key(1).sign(cli(&[], good()));
    let mut it = world();
    let Verdict::Refuse(refused) = it.connect_challenged(&captured, "another-nonce") else {
        panic!("a replay came in");
    };
    assert_eq!(
        refused.refusal.detail_code(),
        Some("DEVICE_AUTH_NONCE_MISMATCH")
    );
    assert!(it.asked.is_empty(), "and cost no look-up");
    assert_eq!(it.failed, []);
}

#[test]
fn a7_blank_stale_or_v1_proofs_are_refused_with_their_codes() {
    let fresh = || key(1).sign(cli(&[], good()));
    let mut blank = fresh();
    blank["device"]["nonce"] = " ".into();
    assert_eq!(world().code(&blank), "DEVICE_AUTH_NONCE_REQUIRED");
    let mut stale = fresh();
    stale["device"]["signedAt"] = (NOW_MS - 180_000).into();
    assert_eq!(world().code(&stale), "DEVICE_AUTH_SIGNATURE_EXPIRED");
    let mut v1 = fresh();
    v1["device"]["signature"] = sign(&key(1).0, "v1|x").into();
    assert_eq!(world().code(&v1), "DEVICE_AUTH_SIGNATURE_INVALID");
    let mut foreign = fresh();
    foreign["device"]["id"] = key(2).public().device_id().as_str().into();
    assert_eq!(world().code(&foreign), "DEVICE_AUTH_DEVICE_ID_MISMATCH");
}

#[test]
fn a9_every_signed_field_is_taken_from_the_request_itself() {
    let honest = key(1).sign(cli(&["operator.read"], good()));
    for (pointer, value) in [
        ("/role", json!("node")),
        ("/scopes", json!(["operator.admin"])),
        ("/auth", json!({"token": "other"})),
        ("/auth", json!({"deviceToken": "other"})),
        ("/auth", json!({"password": TOKEN})),
        ("/client/id", json!("gateway-client")),
        ("/client/mode", json!("backend")),
        ("/client/platform", json!("darwin")),
        ("/client/deviceFamily", json!("Mac")),
    ] {
        let mut forged = honest.clone();
        *forged.pointer_mut(pointer).unwrap() = value;
        assert_eq!(
            world().code(&forged),
            "DEVICE_AUTH_SIGNATURE_INVALID",
            "{pointer}"
        );
    }
}

#[test]
fn a10_a_node_needs_a_device() {
    assert_eq!(world().code(&node(good())), "DEVICE_IDENTITY_REQUIRED");
    let mut admin = world();
    admin.listener = ListenerClass::Admin;
    admin.peer = Peer::Unix { uid: 0 };
    assert_eq!(admin.code(&node(Value::Null)), "DEVICE_IDENTITY_REQUIRED");
}

#[test]
fn the_password_never_stands_in_the_signed_string() {
    let mut it = world();
    it.settings.mode = Mode::Password;
    let it = it.admitted(&key(1).sign(cli(&[], json!({"password": TOKEN}))));
    assert_eq!(it.method(), AuthMethod::Password);
}

#[test]
fn decision_2_either_field_carries_the_secret_in_both_modes() {
    for (mode, method) in [
        (Mode::Token, AuthMethod::Token),
        (Mode::Password, AuthMethod::Password),
    ] {
        for auth in [
            good(),
            json!({"password": TOKEN}),
            json!({"token": "wrong", "password": TOKEN}),
            json!({"token": TOKEN, "password": "wrong"}),
        ] {
            let mut it = world();
            it.settings.mode = mode;
            assert_eq!(it.admitted(&cli(&[], auth)).method(), method);
        }
    }
    let mut it = world();
    it.refused(&cli(&[], json!({"token": "a", "password": "b"})));
    assert_eq!(it.failed.len(), 1, "two wrong ones are one failure");
}

#[test]
fn older_protocols_are_for_nodes_and_probes() {
    let old = |mut params: Value| {
        params["minProtocol"] = 3.into();
        params["maxProtocol"] = 3.into();
        params
    };
    let _ = world().admitted(&key(1).sign(old(node(good()))));
    let mut probe = old(cli(&[], good()));
    probe["client"]["mode"] = "probe".into();
    let _ = world().admitted(&probe);
    assert_eq!(world().code(&old(cli(&[], good()))), "PROTOCOL_MISMATCH");
    let mut range = cli(&[], good());
    range["minProtocol"] = 3.into();
    range["maxProtocol"] = 5.into();
    let _ = world().admitted(&range);
    let mut reversed = cli(&[], good());
    reversed["minProtocol"] = 4.into();
    reversed["maxProtocol"] = 3.into();
    assert_eq!(world().code(&reversed), "PROTOCOL_MISMATCH");
    let mut new = node(good());
    new["minProtocol"] = 5.into();
    new["maxProtocol"] = 6.into();
    assert_eq!(world().code(&new), "PROTOCOL_MISMATCH");
}

// What a stranger costs.

#[test]
fn facts_are_asked_for_only_as_far_as_needed() {
    let mut it = world();
    let _ = it.refused(&cli(&[], Value::Null));
    assert!(it.asked.is_empty());
    let _ = it.refused(&cli(&[], bad()));
    assert_eq!(
        it.asked,
        ["limit", "secret"],
        "no record is looked up for a device-less stranger"
    );
    let _ = it.admitted(&cli(&[], good()));
    assert_eq!(it.asked, ["limit", "secret"]);
    let _ = it.admitted(&key(1).sign(cli(&[], good())));
    assert_eq!(it.asked, ["limit", "secret", "device"]);
    it.pair(&key(1), Role::Node, &[], Some("device-token"));
    let _ = it.admitted(&key(1).sign(node(json!({"deviceToken": "device-token"}))));
    assert_eq!(
        it.asked,
        ["limit", "device"],
        "a device token needs no shared secret"
    );
    let mut serve = serve();
    let _ = serve.refused(&cli(&[], bad()));
    assert!(
        !serve.asked.contains(&"whois"),
        "a credential speaks for itself"
    );
}

#[test]
fn an_answer_to_another_question_is_dropped() {
    let params: ConnectParams = serde_json::from_str(&cli(&[], good()).to_string()).unwrap();
    let w = world();
    let mut it = Admission::new(w.settings.clone(), w.attributed(), params, NONCE, NOW_MS);
    assert!(matches!(it.step(), Step::Need(Fact::Limit { .. })));
    it.answer(Answer::SharedSecret(ready("attacker")));
    assert!(matches!(it.step(), Step::Need(Fact::Limit { .. })));
    it.answer(Answer::Limit(Limit::Open {
        slow: Duration::ZERO,
    }));
    it.answer(Answer::SharedSecret(ready("attacker")));
    assert!(matches!(it.step(), Step::Need(Fact::SharedSecret)));
}

// S: scopes.

#[test]
fn s2_without_a_device_only_the_local_operator_has_scopes() {
    let ask = cli(&["operator.admin"], good());
    assert_eq!(world().admitted(&ask).scopes_wire(), ["operator.admin"]);
    let mut narrowed = world();
    narrowed.settings.local_operator_scopes = ScopeSet::from_wire(&["operator.read"]);
    assert_eq!(narrowed.admitted(&ask).scopes_wire(), ["operator.read"]);
    assert!(
        narrowed
            .admitted(&cli(&["operator.pairing"], good()))
            .scopes()
            .is_empty()
    );
    // The device of a local operator is held to the same ceiling, at first and later.
    let signed = key(1).sign(ask.clone());
    let first = narrowed.admitted(&signed);
    assert_eq!(first.scopes_wire(), ["operator.read"]);
    let Enrolment::Approve { ask: approved, .. } = first.enrolment() else {
        panic!("not approved");
    };
    assert_eq!(approved.scopes.to_wire(), ["operator.read"]);
    narrowed.pair(&key(1), Role::Operator, &["operator.read"], Some("t"));
    let later = narrowed.admitted(&signed);
    assert_eq!(later.scopes_wire(), ["operator.read"]);
    assert!(matches!(later.enrolment(), Enrolment::Paired));

    let mut proxied = world();
    proxied.ingress.trusted_proxies = vec![Cidr::parse("127.0.0.1").unwrap()];
    let mut proxy_listener = world().with(("X-Forwarded-For", "203.0.113.9"));
    proxy_listener.listener = ListenerClass::Proxy;
    for mut it in [
        remote(),
        serve(),
        proxied,
        proxy_listener,
        world().with(OWN_PAGE),
    ] {
        assert_eq!(it.admitted(&ask).scopes(), ScopeSet::NONE);
    }
}

#[test]
fn s5_a_paired_device_never_gets_more_than_was_approved() {
    let mut it = remote();
    it.pair(
        &key(1),
        Role::Operator,
        &["operator.read"],
        Some("device-token"),
    );
    let with_token =
        |scopes: &[&str]| key(1).sign(cli(scopes, json!({"deviceToken": "device-token"})));
    assert_eq!(
        it.code(&with_token(&["operator.admin"])),
        "AUTH_SCOPE_MISMATCH"
    );
    assert_eq!(
        it.admitted(&with_token(&["operator.read"])).scopes_wire(),
        ["operator.read"]
    );
    assert!(
        it.admitted(&with_token(&[])).scopes().is_empty(),
        "S8: fewer is fewer"
    );
    let with_secret = key(1).sign(cli(&["operator.admin"], good()));
    assert_eq!(
        it.pends(&with_secret).ask.reason,
        PairingReason::ScopeUpgrade
    );
}

#[test]
fn h5_the_scopes_header_only_narrows() {
    let cap = |value| world().with(("x-openclaw-scopes", value));
    let ask = cli(&["operator.read", "operator.admin"], good());
    assert_eq!(
        cap("operator.read").admitted(&ask).scopes_wire(),
        ["operator.read"]
    );
    assert!(cap("").admitted(&ask).scopes().is_empty());
    let read = cli(&["operator.read"], good());
    assert_eq!(
        cap("operator.admin").admitted(&read).scopes_wire(),
        ["operator.read"]
    );
}

#[test]
fn nodes_have_no_scopes_whatever_they_ask() {
    let mut params = node(good());
    params["scopes"] = json!(["operator.admin"]);
    let it = world().admitted(&key(1).sign(params));
    assert_eq!((it.role(), it.scopes()), (Role::Node, ScopeSet::NONE));
}

// Device tokens (decision 8) and the record.

#[test]
fn a_device_token_works_in_either_field_for_its_device_and_role_only() {
    let mut it = remote();
    it.pair(&key(1), Role::Node, &[], Some("device-token"));
    it.pair(&key(2), Role::Node, &[], Some("other-token"));
    for field in ["token", "deviceToken"] {
        let admitted = it.admitted(&key(1).sign(node(json!({field: "device-token"}))));
        assert_eq!(admitted.method(), AuthMethod::DeviceToken);
        assert!(!admitted.issues_token(), "sent once only");
    }
    let admitted = it.admitted(&key(1).sign(node(
        json!({"token": "wrong", "deviceToken": "device-token"}),
    )));
    assert_eq!(admitted.method(), AuthMethod::DeviceToken);
    for (who, params) in [
        (key(2), node(json!({"deviceToken": "device-token"}))),
        (key(3), node(json!({"deviceToken": "device-token"}))),
        (key(1), cli(&[], json!({"deviceToken": "device-token"}))),
        (key(1), node(json!({"deviceToken": "device-token2"}))),
    ] {
        assert_eq!(it.code(&who.sign(params)), "AUTH_DEVICE_TOKEN_MISMATCH");
    }
    let no_proof = cli(&[], json!({"token": "device-token"}));
    assert_eq!(
        it.code(&no_proof),
        "AUTH_TOKEN_MISMATCH",
        "a token is worth nothing without its key"
    );
}

#[test]
fn decision_8_a_token_is_issued_when_the_record_has_none() {
    let mut it = remote();
    it.pair(&key(1), Role::Node, &[], None);
    assert!(it.admitted(&key(1).sign(node(good()))).issues_token());
    let mut it = remote();
    it.pair(&key(1), Role::Node, &[], Some("device-token"));
    assert!(!it.admitted(&key(1).sign(node(good()))).issues_token());
}

#[test]
fn k1_a_revoked_token_is_refused_and_a_removed_device_is_unknown() {
    let mut it = remote();
    it.pair(&key(1), Role::Node, &[], None);
    assert_eq!(
        it.code(&key(1).sign(node(json!({"deviceToken": "device-token"})))),
        "AUTH_DEVICE_TOKEN_MISMATCH"
    );
    it.devices.clear();
    assert_eq!(
        it.code(&key(1).sign(node(json!({"deviceToken": "device-token"})))),
        "AUTH_DEVICE_TOKEN_MISMATCH"
    );
    assert_eq!(
        it.pends(&key(1).sign(node(good()))).ask.reason,
        PairingReason::NotPaired
    );
}

#[test]
fn upgrades_pend_unless_the_local_operator_asks() {
    let mut it = remote();
    it.pair(&key(1), Role::Operator, &["operator.read"], None);
    assert_eq!(
        it.pends(&key(1).sign(node(good()))).ask.reason,
        PairingReason::RoleUpgrade
    );
    let mut local = world();
    local.pair(&key(1), Role::Operator, &["operator.read"], Some("t"));
    let admitted = local.admitted(&key(1).sign(cli(&["operator.write"], good())));
    let Enrolment::Approve { ask, .. } = admitted.enrolment() else {
        panic!("not approved");
    };
    assert_eq!(ask.scopes.to_wire(), ["operator.read", "operator.write"]);
    assert_eq!(admitted.scopes_wire(), ["operator.write"]);
    assert!(!admitted.issues_token(), "it has one");
}

#[test]
fn n2_a_changed_platform_or_family_pends_even_locally() {
    for (field, value) in [
        ("platform", "darwin"),
        ("platform", "linux\u{a0}"),
        ("platform", "l\u{456}nux"),
        ("deviceFamily", "Mac"),
    ] {
        let mut params = node(good());
        params["client"][field] = value.into();
        let mut it = world();
        it.pair(&key(1), Role::Node, &[], Some("t"));
        assert_eq!(
            it.pends(&key(1).sign(params.clone())).ask.reason,
            PairingReason::MetadataUpgrade
        );
        params["auth"] = json!({"deviceToken": "t"});
        assert_eq!(
            it.pends(&key(1).sign(params)).ask.reason,
            PairingReason::MetadataUpgrade
        );
    }
    let mut same = node(good());
    same["client"]["platform"] = "  LINUX ".into();
    let mut it = world();
    it.pair(&key(1), Role::Node, &[], Some("t"));
    assert!(matches!(
        it.admitted(&key(1).sign(same)).enrolment(),
        Enrolment::Paired
    ));
}

// R: limits.

#[test]
fn r1_a_locked_client_is_not_compared_even_with_the_right_secret() {
    let mut it = remote();
    for _ in 0..10 {
        it.refused(&cli(&[], bad()));
        it.count();
    }
    let refused = it.refused(&cli(&[], good()));
    assert_eq!(it.asked, ["limit"]);
    assert_eq!(it.failed, []);
    let error = refused.refusal.error().unwrap();
    assert_eq!(error.detail_code(), Some("AUTH_RATE_LIMITED"));
    assert_eq!(error.retryable, Some(true));
    assert!(error.retry_after_ms.unwrap() <= 300_000);
    // R8: a paired device at the same address is not held up.
    it.pair(&key(1), Role::Node, &[], Some("device-token"));
    for field in ["deviceToken", "token"] {
        let admitted = it.admitted(&key(1).sign(node(json!({field: "device-token"}))));
        assert_eq!(admitted.slow(), Duration::ZERO);
    }
}

#[test]
fn r1_every_wrong_secret_is_named_whatever_the_verdict() {
    use Class::{DeviceToken as Device, SharedSecret as Shared, SignInLink as Link};
    let world = || {
        let mut it = link_world(link());
        it.pair(&key(1), Role::Operator, &["operator.read"], Some("dt"));
        it
    };
    let of = |it: &mut World, auth: &Value, scope: &str, family: &str| {
        let mut params = cli(&[scope], auth.clone());
        params["client"]["deviceFamily"] = family.into();
        let verdict = match it.connect(&key(1).sign(params)) {
            Verdict::Admit(admitted) => admitted.method().as_str(),
            Verdict::Pend(_) => "pends",
            Verdict::Refuse(refused) => refused.refusal.detail_code().unwrap(),
        };
        let classes: Vec<Class> = it.failed.iter().map(|(_, class)| *class).collect();
        (verdict, classes)
    };
    let (read, admin) = ("operator.read", "operator.admin");
    for (auth, scope, verdict, classes) in [
        (
            json!({"password": "no", "bootstrapToken": "x"}),
            read,
            "AUTH_BOOTSTRAP_TOKEN_INVALID",
            &[Shared, Link][..],
        ),
        (
            json!({"token": "no", "bootstrapToken": "link"}),
            read,
            "bootstrap-token",
            &[Shared],
        ),
        (
            json!({"token": "stale", "deviceToken": "dt"}),
            read,
            "device-token",
            &[Shared],
        ),
        (
            json!({"password": "no", "deviceToken": "dt"}),
            admin,
            "AUTH_SCOPE_MISMATCH",
            &[Shared],
        ),
        (
            json!({"token": "dt", "password": "no"}),
            read,
            "device-token",
            &[Shared],
        ),
        // What stands in `token` is the device's own, and no guess.
        (json!({"token": "dt"}), read, "device-token", &[]),
        (json!({"token": "dt"}), admin, "AUTH_SCOPE_MISMATCH", &[]),
        (
            json!({"token": "no", "password": "no", "deviceToken": "no", "bootstrapToken": "x"}),
            read,
            "AUTH_BOOTSTRAP_TOKEN_INVALID",
            &[Shared, Device, Link],
        ),
        // The first right one ends it; the others are not compared.
        (
            json!({"token": TOKEN, "deviceToken": "no", "bootstrapToken": "x"}),
            read,
            "token",
            &[],
        ),
        (
            json!({"deviceToken": "dt", "bootstrapToken": "x"}),
            read,
            "device-token",
            &[],
        ),
    ] {
        let got = of(&mut world(), &auth, scope, "Linux");
        assert_eq!(got, (verdict, classes.to_vec()), "{auth}");
    }
    let stale = json!({"token": "stale", "deviceToken": "dt"});
    assert_eq!(
        of(&mut world(), &stale, read, "Other"),
        ("pends", vec![Shared])
    );
    // A locked class is not compared, and neither is another one for it.
    let mut it = world();
    let client = LimitKey::from(it.attributed().client());
    for class in [Link, Shared] {
        it.failed = vec![(client.clone(), class); 10];
        it.count();
        let (code, classes) = of(
            &mut it,
            &json!({"password": "no", "bootstrapToken": "x"}),
            read,
            "Linux",
        );
        assert_eq!(code, "AUTH_RATE_LIMITED");
        assert_eq!(classes, if class == Link { &[Shared][..] } else { &[] });
        assert_eq!(it.asked.contains(&"secret"), class == Link);
    }
    assert_eq!(of(&mut it, &stale, read, "Linux"), ("device-token", vec![]));
}

#[test]
fn r1_a_missing_secret_is_never_counted() {
    for params in [
        cli(&[], Value::Null),
        cli(&[], json!({"token": ""})),
        key(1).sign(cli(&[], Value::Null)),
    ] {
        let mut it = remote();
        it.refused(&params);
        assert_eq!(it.failed, []);
    }
}

#[test]
fn r2_a_browser_on_loopback_is_not_exempt() {
    let exempt = |w: World| {
        let params: ConnectParams = serde_json::from_str(&cli(&[], bad()).to_string()).unwrap();
        let mut it = Admission::new(w.settings.clone(), w.attributed(), params, NONCE, NOW_MS);
        match it.step() {
            Step::Need(Fact::Limit { exempt, .. }) => exempt,
            _ => panic!("the limiter is asked first"),
        }
    };
    assert!(exempt(world()));
    assert!(!exempt(world().with(OWN_PAGE)));
    assert!(!exempt(remote()));
    let mut listed = world();
    listed.ingress.trusted_proxies = vec![Cidr::parse("127.0.0.1").unwrap()];
    assert!(!exempt(listed));
}

#[test]
fn r8_only_wrong_secrets_are_late() {
    let mut it = remote();
    it.refused(&cli(&[], bad()));
    assert!(!it.failed.is_empty());
    it.refused(&cli(&[], Value::Null));
    assert_eq!(it.failed, []);
    it.pair(&key(1), Role::Node, &[], Some("device-token"));
    it.refused(&key(1).sign(node(json!({"deviceToken": "no"}))));
    let device = LimitKey::Device(key(1).public().device_id());
    assert_eq!(it.failed, [(device, Class::DeviceToken)]);
    // A stranger with a key of its own counts against nobody.
    it.refused(&key(9).sign(node(json!({"deviceToken": "no"}))));
    assert_eq!(it.failed, []);
}

#[test]
fn r6_distributed_guessing_slows_strangers_and_spares_paired_devices() {
    let mut it = remote();
    for n in 0..1000_u32 {
        let key = LimitKey::V4(n.into());
        let _ = it.limiter.failure(it.now, &key, Class::SharedSecret, false);
        it.limiter.answered(&key, Class::SharedSecret);
    }
    assert!(it.admitted(&cli(&[], good())).slow() > Duration::ZERO);
    it.pair(&key(1), Role::Operator, &[], Some("t"));
    assert_eq!(
        it.admitted(&key(1).sign(cli(&[], good()))).slow(),
        Duration::ZERO
    );
}

// B: sign-in links.

fn link_world(link: SignInLink) -> World {
    let mut it = world().with(OWN_PAGE);
    it.link = Some((TokenDigest::of(b"link"), link));
    it
}

fn link() -> SignInLink {
    SignInLink {
        scopes: ScopeSet::from_wire(&["operator.read", "operator.write"]),
        expires_at_ms: NOW_MS + 1,
        used: false,
    }
}

fn page(scopes: &[&str]) -> Value {
    let mut params = cli(scopes, json!({"bootstrapToken": "link"}));
    params["client"]["id"] = "openclaw-control-ui".into();
    params["client"]["mode"] = "webchat".into();
    params
}

#[test]
fn b2_a_link_admits_one_browser_operator_and_pairs_it() {
    let it = link_world(link()).admitted(&key(1).sign(page(&["operator.write"])));
    assert_eq!(it.method(), AuthMethod::SignInLink);
    assert!(it.spent_link().unwrap().matches(Some(b"link")));
    assert_eq!(it.scopes_wire(), ["operator.write"]);
    assert!(it.issues_token());
    let Enrolment::Approve { ask, via } = it.enrolment() else {
        panic!("not approved");
    };
    assert_eq!(
        (*via, ask.scopes.to_wire()),
        (ApprovedVia::SignInLink, vec!["operator.write"])
    );
}

#[test]
fn b1_an_expired_or_unknown_link_is_refused() {
    let expired = SignInLink {
        expires_at_ms: NOW_MS,
        ..link()
    };
    let mut expired = link_world(expired);
    let code = expired.code(&key(1).sign(page(&[])));
    assert_eq!(code, "AUTH_BOOTSTRAP_TOKEN_INVALID");
    assert_eq!(expired.failed.len(), 1);
    let mut unknown = world().with(OWN_PAGE);
    assert_eq!(
        unknown.code(&key(1).sign(page(&[]))),
        "AUTH_BOOTSTRAP_TOKEN_INVALID"
    );
}

#[test]
fn b1_b3_links_are_minted_by_admins_for_ten_minutes() {
    let read = ScopeSet::from_wire(&["operator.read"]);
    for maker in [&["operator.pairing"][..], &["operator.write"], &[]] {
        assert!(SignInLink::mint(ScopeSet::from_wire(maker), read, NOW_MS).is_err());
    }
    let link = SignInLink::mint(ScopeSet::all(), read, NOW_MS).unwrap();
    assert_eq!(link.expires_at_ms - NOW_MS, 600_000);
    assert!(!link.used);
}

#[test]
fn b2_a_link_works_once_and_misuse_burns_it() {
    let used = SignInLink {
        used: true,
        ..link()
    };
    let refused = link_world(used).refused(&key(1).sign(page(&[])));
    assert_eq!(refused.refusal, AdmissionRefusal::SignInLinkInvalid);
    assert!(refused.burnt_link.is_none());
    let wider = key(1).sign(page(&["operator.admin"]));
    let as_node = key(1).sign(node(json!({"bootstrapToken": "link"})));
    for params in [wider, as_node] {
        let refused = link_world(link()).refused(&params);
        assert_eq!(refused.refusal, AdmissionRefusal::SignInLinkInvalid);
        assert!(refused.burnt_link.unwrap().matches(Some(b"link")));
    }
    // No page: whoever shows a link must be the browser that it was made for.
    let mut no_page = world();
    no_page.link = Some((TokenDigest::of(b"link"), link()));
    let refused = no_page.refused(&key(1).sign(cli(&[], json!({"bootstrapToken": "link"}))));
    assert!(refused.burnt_link.is_some());
}

// K: the secret's state; D: plaintext.

#[test]
fn k4_an_unresolvable_secret_admits_nobody_and_paired_devices_go_on() {
    let mut it = remote();
    it.secret = SharedSecret::Unresolved;
    assert_eq!(it.code(&cli(&[], good())), "AUTH_TOKEN_NOT_CONFIGURED");
    it.pair(&key(1), Role::Node, &[], Some("device-token"));
    let _ = it.admitted(&key(1).sign(node(json!({"deviceToken": "device-token"}))));
    it.secret = SharedSecret::Starting;
    let error = it.refused(&cli(&[], good())).refusal.error().unwrap();
    assert_eq!((&*error.code, error.retryable), ("UNAVAILABLE", Some(true)));
}

#[test]
fn k2_the_secret_is_the_one_resolved_for_this_attempt() {
    let mut it = world();
    let _ = it.admitted(&cli(&[], good()));
    it.secret = ready("rotated");
    assert_eq!(it.code(&cli(&[], good())), "AUTH_TOKEN_MISMATCH");
    let _ = it.admitted(&cli(&[], json!({"token": "rotated"})));
}

#[test]
fn d2_a_secret_in_the_clear_is_refused_before_it_is_compared() {
    let mut it = remote();
    it.ingress.allow_plaintext_from.clear();
    let refused = it.refused(&cli(&[], good()));
    assert_eq!(refused.refusal, AdmissionRefusal::PlaintextCredential);
    assert!(it.asked.is_empty());
}

// Listeners and modes.

#[test]
fn the_admin_socket_needs_no_secret_and_has_every_scope() {
    let mut it = world();
    it.settings.local_operator_scopes = ScopeSet::NONE;
    it.listener = ListenerClass::Admin;
    it.peer = Peer::Unix { uid: 0 };
    let admitted = it.admitted(&cli(&["operator.admin", "operator.pairing"], Value::Null));
    assert_eq!(
        admitted.scopes_wire(),
        ["operator.admin", "operator.pairing"]
    );
    assert_eq!(admitted.method(), AuthMethod::LocalUser);
    assert!(it.asked.is_empty());
}

#[test]
fn p2_through_exposed_listeners_a_device_pends() {
    let ask = key(1).sign(cli(&[], good()));
    let mut proxy = world().with(("X-Forwarded-For", "203.0.113.9"));
    proxy.listener = ListenerClass::Proxy;
    for mut it in [serve(), proxy] {
        assert_eq!(it.pends(&ask).ask.reason, PairingReason::NotPaired);
    }
}

#[test]
fn t2_t3_tailscale_identity_through_serve() {
    let ask = cli(&["operator.admin"], Value::Null);
    let admitted = serve().admitted(&ask);
    assert_eq!(
        (admitted.method(), admitted.user()),
        (AuthMethod::Tailscale, Some("alice@example.com"))
    );
    assert_eq!(admitted.scopes(), ScopeSet::NONE, "without a device");
    let _ = serve().pends(&key(1).sign(ask.clone()));

    let mut bob = serve();
    bob.whois = Whois::Found {
        login: "bob@example.com".into(),
    };
    assert_eq!(bob.code(&ask), "AUTH_TAILSCALE_IDENTITY_MISMATCH");
    let mut down = serve();
    down.whois = Whois::Failed;
    assert_eq!(
        down.refused(&ask).refusal,
        AdmissionRefusal::Tailscale(WhoisRefusal::Failed)
    );
    for header in ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"] {
        let mut it = serve();
        it.headers.retain(|(name, _)| *name != header);
        assert_eq!(it.code(&ask), "AUTH_TAILSCALE_PROXY_MISSING", "{header}");
        assert!(it.asked.is_empty());
    }
    let mut off = serve();
    off.settings.allow_tailscale = false;
    assert_eq!(off.code(&ask), "AUTH_TOKEN_MISSING", "Baseline B");
    let mut funnel = serve().with(("Tailscale-Funnel-Request", "?1"));
    funnel
        .headers
        .retain(|(name, _)| *name != "Tailscale-User-Login");
    assert_eq!(funnel.code(&key(1).sign(ask)), "AUTH_TOKEN_MISSING");
}

#[test]
fn t1_tailscale_headers_from_a_trusted_proxy_are_ignored() {
    let mut it = world();
    it.peer = tcp("10.0.0.1");
    it.settings.allow_tailscale = true;
    it.ingress.trusted_proxies = vec![Cidr::parse("10.0.0.1").unwrap()];
    let mut it = it
        .with(("X-Forwarded-For", "100.64.0.9"))
        .with(("X-Forwarded-Proto", "https"))
        .with(("X-Forwarded-Host", "gw"))
        .with(("Tailscale-User-Login", "alice@example.com"));
    it.whois = Whois::Found {
        login: "alice@example.com".into(),
    };
    assert_eq!(
        it.code(&cli(&[], json!({"token": ""}))),
        "AUTH_TOKEN_MISSING"
    );
    assert_eq!(
        it.code(&key(1).sign(cli(&[], Value::Null))),
        "AUTH_TOKEN_MISSING"
    );
}

#[test]
fn p6_trusted_proxy_mode_takes_the_proxys_word_only() {
    let proxied = |headers: &[(&'static str, &'static str)]| {
        let mut it = world();
        it.settings.mode = Mode::TrustedProxy;
        it.peer = tcp("10.0.0.1");
        it.ingress.trusted_proxies = vec![Cidr::parse("10.0.0.1").unwrap()];
        it.ingress.allow_plaintext_from = it.ingress.trusted_proxies.clone();
        it.ingress.proxy_user = Some(ProxyUserSettings {
            user_header: "x-user".into(),
            ..ProxyUserSettings::default()
        });
        it.headers.push(("X-Forwarded-For", "203.0.113.9"));
        it.headers.extend(headers);
        it
    };
    let admitted = proxied(&[("x-user", "alice")]).admitted(&cli(&["operator.admin"], Value::Null));
    assert_eq!(
        (admitted.user(), admitted.scopes()),
        (Some("alice"), ScopeSet::NONE)
    );
    assert_eq!(
        proxied(&[]).code(&cli(&[], Value::Null)),
        "AUTH_IDENTITY_HEADER_REQUIRED"
    );
    // The shared secret is no second door behind the proxy, not even beside a device token.
    assert_eq!(
        proxied(&[]).code(&cli(&[], good())),
        "AUTH_IDENTITY_HEADER_REQUIRED"
    );
    let both = key(1).sign(cli(&[], json!({"token": TOKEN, "deviceToken": "x"})));
    assert_eq!(proxied(&[]).code(&both), "AUTH_DEVICE_TOKEN_MISMATCH");
    let mut paired = proxied(&[]);
    paired.pair(&key(1), Role::Node, &[], Some("t"));
    let _ = paired.admitted(&key(1).sign(node(json!({"deviceToken": "t"}))));
    // D2: where no secret is taken, none is sent.
    let mut it = proxied(&[("x-user", "alice")]);
    it.pair(&key(1), Role::Operator, &[], None);
    let ask = key(1).sign(cli(&[], Value::Null));
    let listed = it.admitted(&ask);
    assert!(listed.is_private() && listed.issues_token());
    it.ingress.allow_plaintext_from.clear();
    let open = it.admitted(&ask);
    assert!(!open.is_private() && !open.issues_token());
    // A program on the host may use a local password.
    let mut local = world();
    local.settings.mode = Mode::TrustedProxy;
    local.ingress.proxy_user = Some(ProxyUserSettings::default());
    let _ = local.admitted(&cli(&[], json!({"password": TOKEN})));
    assert_eq!(local.code(&cli(&[], Value::Null)), "AUTH_UNAUTHORIZED");
}

#[test]
fn mode_none_serves_this_host_only() {
    let mut it = world();
    it.settings.mode = Mode::None;
    assert_eq!(
        it.admitted(&cli(&["operator.read"], Value::Null))
            .scopes_wire(),
        ["operator.read"]
    );
    let mut page = world().with(OWN_PAGE);
    page.settings.mode = Mode::None;
    assert_eq!(
        page.admitted(&cli(&["operator.read"], Value::Null))
            .scopes(),
        ScopeSet::NONE
    );
    let _ = page.pends(&key(1).sign(cli(&["operator.read"], Value::Null)));
    for mut it in [remote(), serve()] {
        it.settings.mode = Mode::None;
        assert_eq!(
            it.refused(&cli(&[], Value::Null)).refusal,
            AdmissionRefusal::NotLocal
        );
    }
}

#[test]
fn a_stale_control_ui_is_told_to_reload() {
    let mut it = world().with(OWN_PAGE);
    it.settings.control_ui_build = Some("build-2".into());
    let mut params = page(&[]);
    params["auth"] = good();
    params["client"]["buildId"] = "build-1".into();
    let _ = it.pends(&key(1).sign(params.clone()));
    it.pair(&key(1), Role::Operator, &[], None);
    let refusal = it.refused(&key(1).sign(params.clone())).refusal;
    recorded(
        &refusal,
        "UNAVAILABLE",
        "protocol mismatch: Control UI updated; reload this page to continue",
        json!({"code": "PROTOCOL_MISMATCH", "gatewayBuildId": "build-2", "reloadRequired": true}),
    );
    assert_eq!(refusal.error().unwrap().retryable, Some(false));
    params["client"]["buildId"] = "build-2".into();
    let _ = it.admitted(&key(1).sign(params));
}

#[test]
fn every_refusal_has_a_remedy_and_no_secret() {
    for params in [
        cli(&[], bad()),
        cli(&[], Value::Null),
        key(1).sign(node(json!({"deviceToken": "wrong-device-token"}))),
        key(1).sign(page(&[])),
        node(good()),
    ] {
        let refusal = remote().refused(&params).refusal;
        assert!(!refusal.remedy().is_empty());
        let all = format!(
            "{refusal:?} {} {} {:?}",
            refusal.public(),
            refusal.remedy(),
            refusal.error()
        );
        assert!(!all.contains(TOKEN) && !all.contains("wrong"));
    }
}

// HTTP requests.

const GOOD: Option<&str> = Some("Bearer gateway-token");
const BAD: Option<&str> = Some("Bearer wrong");

#[test]
fn h2_a_bearer_comes_from_its_own_scheme_only() {
    for (value, secret) in [
        ("Bearer t", "t"),
        ("bearer  t ", "t"),
        ("BEARER correct horse", "correct horse"),
    ] {
        let it = bearer(value.as_bytes()).unwrap();
        assert_eq!(it.expose_str(), Some(secret), "{value}");
    }
    for none in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer\tt",
        "Bearert",
        "Basic dDp0",
        "t",
        "Digest t",
        " Bearer t",
        "Béarer t",
    ] {
        assert!(bearer(none.as_bytes()).is_none(), "{none}");
    }
}

#[test]
fn h2_a_request_needs_the_secret() {
    let it = world().request(GOOD).unwrap();
    assert_eq!(
        (it.method(), it.scopes()),
        (AuthMethod::Token, ScopeSet::all())
    );
    assert!(it.success().is_some());
    assert_eq!(world().request_code(None), "AUTH_TOKEN_MISSING");
    assert_eq!(
        world().request_code(Some("Basic dDp0")),
        "AUTH_TOKEN_MISSING"
    );
    let mut it = world();
    let refused = it.request(BAD).unwrap_err();
    assert_eq!(refused.refusal.http_status(), 401);
    // Only a wrong secret is late, and only it is counted.
    assert_eq!(it.failed.len(), 1);
    it.request(None).unwrap_err();
    assert_eq!(it.failed, []);
    let mut it = world();
    it.settings.mode = Mode::Password;
    assert_eq!(it.request(GOOD).unwrap().method(), AuthMethod::Password);
    assert_eq!(it.request_code(BAD), "AUTH_PASSWORD_MISMATCH");
    for (secret, bare, with) in [
        (
            SharedSecret::NotConfigured,
            "AUTH_TOKEN_NOT_CONFIGURED",
            "AUTH_TOKEN_NOT_CONFIGURED",
        ),
        (
            SharedSecret::Unresolved,
            "AUTH_TOKEN_MISSING",
            "AUTH_TOKEN_NOT_CONFIGURED",
        ),
        (SharedSecret::Starting, "starting", "starting"),
    ] {
        let mut it = world();
        it.secret = secret;
        assert_eq!((it.request_code(None), it.request_code(GOOD)), (bare, with));
    }
}

#[test]
fn h2_a_device_token_is_a_bearer_within_its_scopes() {
    let mut it = remote();
    it.pair(&key(1), Role::Operator, &["operator.read"], Some("dt"));
    it.pair(&key(2), Role::Node, &[], Some("nt"));
    let device = it.request(Some("Bearer dt")).unwrap();
    assert_eq!(device.method(), AuthMethod::DeviceToken);
    assert_eq!(device.scopes(), ScopeSet::from_wire(&["operator.read"]));
    assert_eq!(device.device(), Some(&key(1).public().device_id()));
    let node = it.request(Some("Bearer nt")).unwrap();
    assert_eq!((node.role(), node.scopes()), (Role::Node, ScopeSet::NONE));
    // What a rotation left out is not there.
    let known = it.devices.get_mut(&key(1).public().device_id()).unwrap();
    known.grants[0].token_scopes = ScopeSet::NONE;
    assert_eq!(
        it.request(Some("Bearer dt")).unwrap().scopes(),
        ScopeSet::NONE
    );
}

#[test]
fn h5_over_http_a_header_only_narrows() {
    let cap = |scopes| {
        let mut it = world().with(("x-openclaw-scopes", scopes));
        it.pair(&key(1), Role::Operator, &["operator.read"], Some("dt"));
        let of = |it: &mut World, value| it.request(value).unwrap().scopes().to_wire();
        (of(&mut it, GOOD), of(&mut it, Some("Bearer dt")))
    };
    let read = vec!["operator.read"];
    assert_eq!(cap("operator.read"), (read.clone(), read.clone()));
    assert_eq!(cap("operator.admin").1, read);
    assert_eq!(cap(""), (vec![], vec![]));
}

#[test]
fn r1_r8_http_and_websocket_share_one_series_of_failures() {
    let mut it = remote();
    let client = LimitKey::from(it.attributed().client());
    let mut delays = Vec::new();
    for attempt in 0..10 {
        let _ = match attempt % 2 {
            0 => it.request(BAD).unwrap_err(),
            _ => it.refused(&cli(&[], bad())),
        };
        assert_eq!(it.failed, [(client.clone(), Class::SharedSecret)]);
        delays.push(it.count().as_millis());
    }
    assert_eq!(delays[..7], [250, 500, 1000, 2000, 4000, 5000, 5000]);
    // Not even the right one is compared now, on either way in.
    assert_eq!(it.request_code(GOOD), "AUTH_RATE_LIMITED");
    assert!(!it.asked.contains(&"secret"), "{:?}", it.asked);
    let refused = it.request(GOOD).unwrap_err();
    assert!(it.failed.is_empty() && refused.refusal.http_status() == 429);
    assert!(
        refused
            .refusal
            .retry_after()
            .is_some_and(|wait| wait.as_millis() <= 300_000)
    );
    assert_eq!(it.code(&cli(&[], good())), "AUTH_RATE_LIMITED");
    // A paired device goes on.
    it.pair(&key(1), Role::Operator, &["operator.read"], Some("dt"));
    assert!(it.request(Some("Bearer dt")).is_ok());
    // Missing ones were never counted.
    for _ in 0..50 {
        it.request(None).unwrap_err();
        assert_eq!(it.failed, []);
    }
}

#[test]
fn t4_over_http_a_tailnet_identity_is_no_credential() {
    let mut it = serve();
    assert_eq!(it.request_code(None), "AUTH_TOKEN_MISSING");
    assert!(!it.asked.contains(&"whois"), "{:?}", it.asked);
    assert!(it.request(GOOD).is_ok());
}

#[test]
fn d2_over_http_a_secret_in_the_clear_is_refused_before_it_is_compared() {
    let mut it = remote();
    it.ingress.allow_plaintext_from.clear();
    assert_eq!(it.request_code(GOOD), "AUTH_UNAUTHORIZED");
    assert!(it.asked.is_empty());
}

#[test]
fn s2_over_http_a_proxys_word_brings_no_scope() {
    let proxied = |headers: &[(&'static str, &'static str)]| {
        let mut it = remote();
        it.settings.mode = Mode::TrustedProxy;
        it.ingress.trusted_proxies = it.ingress.allow_plaintext_from.clone();
        it.ingress.proxy_user = Some(ProxyUserSettings {
            user_header: "x-user".into(),
            ..ProxyUserSettings::default()
        });
        it.headers.push(("X-Forwarded-For", "203.0.113.9"));
        it.headers.extend(headers);
        it.pair(&key(1), Role::Operator, &["operator.read"], Some("dt"));
        it
    };
    let alice = proxied(&[("x-user", "alice")]).request(None).unwrap();
    assert_eq!(
        (alice.user(), alice.scopes()),
        (Some("alice"), ScopeSet::NONE)
    );
    let narrow = [("x-user", "alice"), ("x-openclaw-scopes", "operator.admin")];
    assert_eq!(
        proxied(&narrow).request(None).unwrap().scopes(),
        ScopeSet::NONE
    );
    assert_eq!(
        proxied(&[]).request_code(None),
        "AUTH_IDENTITY_HEADER_REQUIRED"
    );
    // The shared secret is no second door, and a guess at a device token is counted.
    let mut guess = proxied(&[("x-user", "alice")]);
    let refused = guess.request(GOOD).unwrap_err();
    assert_eq!(refused.refusal, AdmissionRefusal::DeviceTokenMismatch);
    assert!(matches!(
        guess.failed[..],
        [(LimitKey::V4(_), Class::DeviceToken)]
    ));
    assert!(
        proxied(&[("x-user", "alice")])
            .request(Some("Bearer dt"))
            .is_ok()
    );
    // For programs on this host a password may be configured.
    let mut local = world();
    local.settings.mode = Mode::TrustedProxy;
    assert!(local.request(GOOD).is_ok());
    assert_eq!(local.request_code(None), "AUTH_UNAUTHORIZED");
}

#[test]
fn over_http_mode_none_and_the_admin_socket_ask_for_nothing() {
    let mut it = world();
    it.settings.mode = Mode::None;
    assert_eq!(it.request(None).unwrap().scopes(), ScopeSet::all());
    let mut page = world().with(OWN_PAGE);
    page.settings.mode = Mode::None;
    assert_eq!(page.request(None).unwrap().scopes(), ScopeSet::NONE);
    for mut it in [remote(), serve()] {
        it.settings.mode = Mode::None;
        assert_eq!(
            it.request(None).unwrap_err().refusal,
            AdmissionRefusal::NotLocal
        );
    }
    let mut admin = world();
    admin.listener = ListenerClass::Admin;
    admin.peer = Peer::Unix { uid: 0 };
    assert_eq!(admin.request(None).unwrap().method(), AuthMethod::LocalUser);
}
