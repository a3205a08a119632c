//! Any `connect` at any door: whoever is admitted has shown a credential that is right for that door, and holds no scope
//! that the server's own record or setting does not give; the machine ends, and closes as the protocol says. Whatever the
//! verdict is, every wrong secret that was compared is named with its class, and none of a locked class was compared.
//!
//! A `"sign": n` in the parameters is replaced by device n's proof, because a fuzzer cannot guess a signature; the bits of
//! a `"locked": n` say for which classes the limiter is locked.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use portcullis::auth::admission::{
    Admission, Admitted, Answer, AuthMethod, Enrolment, Fact, Failed, Grant, KnownDevice, Mode,
    Settings, SharedSecret, SignInLink, Step, Verdict,
};
use portcullis::auth::device::{PublicKey, Signed, sign};
use portcullis::auth::rate_limit::{Class, Limit};
use portcullis::auth::scope::{Role, ScopeSet};
use portcullis::auth::secret_eq::{ConfiguredSecret, TokenDigest};
use portcullis::auth::whois::Whois;
use portcullis::base::Secret;
use portcullis::ingress::{self, Attributed, ListenerClass, Peer, Request, attribute};
use portcullis::rpc::types::connect::ConnectParams;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

const NONCE: &str = "n";
const NOW_MS: u64 = 1_000_000;
const SECRET: &str = "the-gateways-secret";
const TOKEN: &str = "the-devices-token";
const LINK: &str = "the-sign-in-link";

static DOORS: LazyLock<Vec<Attributed>> = LazyLock::new(|| {
    let door = |listener, peer, extra: &[(&'static str, &'static [u8])]| {
        let mut headers: Vec<(&str, &[u8])> = vec![("host", b"127.0.0.1:18789")];
        headers.extend(extra);
        let settings = ingress::Settings {
            allow_plaintext_from: vec![ingress::Cidr::parse("0.0.0.0/0").expect("a range")],
            ..ingress::Settings::default()
        };
        let request = Request {
            listener,
            peer,
            local: None,
            tls: false,
            headers: &headers,
            own_addresses: None,
        };
        attribute(&request, &settings).expect("an honest request")
    };
    let loopback = Peer::Tcp("127.0.0.1:1".parse().expect("an address"));
    vec![
        door(ListenerClass::Main, loopback, &[]),
        door(
            ListenerClass::Main,
            loopback,
            &[("origin", b"http://127.0.0.1:18789")],
        ),
        door(
            ListenerClass::Main,
            Peer::Tcp("203.0.113.7:1".parse().expect("an address")),
            &[],
        ),
        door(
            ListenerClass::Proxy,
            loopback,
            &[("x-forwarded-for", b"203.0.113.9")],
        ),
        door(
            ListenerClass::Main,
            loopback,
            &[("x-openclaw-scopes", b"operator.write")],
        ),
    ]
});

fuzz_target!(|input: &str| {
    let Some((door, text)) = input.split_at_checked(1) else {
        return;
    };
    let door = usize::from(door.as_bytes()[0]) % DOORS.len();
    let Ok(mut params) = serde_json::from_str::<Value>(text) else {
        return;
    };
    let locked = params.as_object_mut().and_then(|it| it.remove("locked"));
    let locked = locked.and_then(|it| it.as_u64()).unwrap_or(0);
    let is_locked = |class: Class| locked >> (class as u32) & 1 == 1;
    let signer = prove(&mut params);
    let Ok(connect) = serde_json::from_str::<ConnectParams>(&params.to_string()) else {
        return;
    };
    let settings = Settings {
        mode: Mode::Password,
        allow_tailscale: true,
        local_operator_scopes: ScopeSet::from_wire(&["operator.read", "operator.pairing"]),
        auto_approve_local: true,
        auto_approve_cidrs: Vec::new(),
        control_ui_build: None,
    };
    let mut it = Admission::new(settings, DOORS[door].clone(), connect, NONCE, NOW_MS);
    let mut open = Vec::new();
    for _ in 0..10 {
        match it.step() {
            Step::Need(Fact::Limit { class, .. }) => {
                let retry_after = Duration::from_secs(1);
                it.answer(Answer::Limit(if is_locked(class) {
                    Limit::Locked { retry_after }
                } else {
                    open.push(class);
                    let slow = Duration::ZERO;
                    Limit::Open { slow }
                }));
            }
            Step::Need(fact) => {
                if let Fact::SignInLink(_) = fact {
                    assert!(open.contains(&Class::SignInLink));
                }
                it.answer(look_up(&fact));
            }
            Step::Done(verdict, failed) => {
                judge_failed(&verdict, &failed, &open, &params, signer);
                return judge(*verdict, &params, signer, door);
            }
        }
    }
    panic!("it never ends");
});

/// `open` are the classes of which the limiter allowed a comparison.
fn judge_failed(
    verdict: &Verdict,
    failed: &Failed,
    open: &[Class],
    params: &Value,
    signer: Option<u64>,
) {
    let auth = |field: &str| {
        let text = params["auth"][field].as_str();
        text.filter(|text| !text.as_bytes().trim_ascii().is_empty())
    };
    let operator = params["role"].as_str().unwrap_or("operator") == "operator";
    let own = |text: Option<&str>| signer == Some(1) && operator && text == Some(TOKEN);
    // A device's own token in `token` is no guess at the secret, if it could be recognised.
    let recognised = |text: &&str| own(Some(*text)) && open.contains(&Class::DeviceToken);
    let token = auth("token").filter(|text| !recognised(text));
    let guesses = [token, auth("password")];
    let knows = [auth("token"), auth("password")].contains(&Some(SECRET));
    let by_token = own(auth("token")) || own(auth("deviceToken"));
    let wrong = |class: Class| match class {
        Class::SharedSecret => !knows && guesses.iter().any(Option::is_some),
        Class::DeviceToken => signer == Some(1) && auth("deviceToken").is_some() && !by_token,
        Class::SignInLink => !matches!(verdict, Verdict::Admit(_)),
    };
    for class in [Class::SharedSecret, Class::DeviceToken, Class::SignInLink] {
        let named = failed.iter().filter(|(_, of)| *of == class).count();
        let compared = open.contains(&class);
        assert_eq!(
            named,
            usize::from(compared && wrong(class)),
            "{class:?}: {failed:?}"
        );
    }
}

fn judge(verdict: Verdict, params: &Value, signer: Option<u64>, door: usize) {
    let it = match verdict {
        Verdict::Admit(it) => it,
        Verdict::Pend(pend) => {
            assert!(signer.is_some() && params["auth"].to_string().contains("the-"));
            assert!(pend.refusal("id").close().1.len() <= 120);
            return;
        }
        Verdict::Refuse(refused) => {
            let (code, reason) = refused.refusal.close();
            assert!([1002, 1008].contains(&code) && reason.len() <= 120);
            assert!(
                !format!("{:?}{:?}", refused.refusal, refused.refusal.error()).contains("the-")
            );
            return;
        }
    };
    let auth = |field: &str| params["auth"][field].as_str();
    let shown = match it.method() {
        AuthMethod::Password => [auth("token"), auth("password")].contains(&Some(SECRET)),
        AuthMethod::DeviceToken => {
            signer == Some(1) && [auth("token"), auth("deviceToken")].contains(&Some(TOKEN))
        }
        AuthMethod::SignInLink => {
            signer.is_some() && door == 1 && auth("bootstrapToken") == Some(LINK)
        }
        _ => false,
    };
    assert!(shown, "admitted by {:?}", it.method());
    assert!(ceiling(&it, signer, door).allows_all(it.scopes()));
    match it.role() {
        Role::Node => assert!(signer.is_some() && it.scopes().is_empty()),
        Role::Operator => {}
    }
    if let Enrolment::Approve { .. } = it.enrolment() {
        assert!(door == 0 || door == 4 || it.method() == AuthMethod::SignInLink);
    }
}

/// What the server's side gives at most.
fn ceiling(it: &Admitted, signer: Option<u64>, door: usize) -> ScopeSet {
    let mut names = vec![];
    if signer == Some(1) {
        names.push("operator.read");
    }
    if door == 0 || door == 4 {
        names.extend(["operator.read", "operator.pairing"]);
    }
    if it.method() == AuthMethod::SignInLink {
        names.push("operator.write");
    }
    let all = ScopeSet::from_wire(&names);
    if door == 4 {
        all.meet(ScopeSet::from_wire(&["operator.write"]))
    } else {
        all
    }
}

fn look_up(fact: &Fact) -> Answer {
    match fact {
        Fact::Limit { .. } => unreachable!("answered before"),
        Fact::SharedSecret => {
            let secret = ConfiguredSecret::new(&Secret::new(SECRET)).expect("not blank");
            Answer::SharedSecret(SharedSecret::Ready(Arc::new(secret)))
        }
        Fact::Device(id) => {
            let (_, public_key) = key(1);
            let known = KnownDevice {
                public_key,
                platform: "linux".into(),
                device_family: "linux".into(),
                grants: vec![
                    Grant {
                        role: Role::Operator,
                        scopes: ScopeSet::from_wire(&["operator.read"]),
                        token_scopes: ScopeSet::from_wire(&["operator.read"]),
                        token: Some(TokenDigest::of(TOKEN.as_bytes())),
                    },
                    Grant {
                        role: Role::Node,
                        scopes: ScopeSet::NONE,
                        token_scopes: ScopeSet::NONE,
                        token: None,
                    },
                ],
            };
            Answer::Device((*id == public_key.device_id()).then_some(known))
        }
        Fact::TurnedAway(_) => Answer::TurnedAway(false),
        Fact::SignInLink(digest) => {
            Answer::SignInLink(digest.matches(Some(LINK.as_bytes())).then(|| SignInLink {
                scopes: ScopeSet::from_wire(&["operator.write"]),
                expires_at_ms: NOW_MS + 1,
                used: false,
            }))
        }
        Fact::Whois(_) => Answer::Whois(Whois::Failed),
        // `connect` proves its device.
        Fact::TokenHolder(_) => Answer::TokenHolder(None),
    }
}

fn key(seed: u64) -> (Ed25519KeyPair, PublicKey) {
    let seed = u8::try_from(seed % 4).expect("below four");
    let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a seed");
    let public = PublicKey::from_bytes(key.public_key().as_ref().try_into().expect("32 bytes"));
    (key, public)
}

/// Puts a device's proof in place of `"sign": n`, and says whose.
fn prove(params: &mut Value) -> Option<u64> {
    let seed = params.as_object_mut()?.remove("sign")?.as_u64()? % 4;
    let (key, public) = key(seed);
    let id = public.device_id().to_string();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let auth = &params["auth"];
    let token = ["token", "deviceToken", "bootstrapToken"]
        .iter()
        .find_map(|name| auth[*name].as_str());
    let scopes: Vec<String> = serde_json::from_value(params["scopes"].clone()).unwrap_or_default();
    let client = &params["client"];
    let payload = Signed {
        device_id: &id,
        client_id: &text(&client["id"]),
        client_mode: &text(&client["mode"]),
        role: Role::from_wire(params["role"].as_str().unwrap_or("operator"))?,
        scopes: &scopes,
        signed_at_ms: NOW_MS,
        token: token.unwrap_or_default(),
        nonce: NONCE,
        platform: client["platform"].as_str(),
        device_family: client["deviceFamily"].as_str(),
    }
    .v3();
    params["device"] = json!({
        "id": id, "publicKey": public.to_wire(), "signature": sign(&key, &payload), "signedAt": NOW_MS, "nonce": NONCE,
    });
    Some(seed)
}
