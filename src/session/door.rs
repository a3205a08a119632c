//! The door: what admission may ask for, and the effects of its verdict.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::decision::Decision;
use crate::auth::admission::{
    self, Admission, AdmissionRefusal, Admitted, AdmittedRequest, Answer, ApprovedVia,
    BearerAdmission, Enrolment, Fact, Failed, Pend, Refused, SharedSecret, Step, Verdict,
};
use crate::auth::rate_limit::{Class, LimitKey, Limiter, LimiterSettings};
use crate::auth::scope::Role;
use crate::auth::whois::Whois;
use crate::base::{DeviceId, Secret};
use crate::hub::{Denied, Hub, Issued, Standing};
use crate::ingress::cidr::{is_private, is_tailnet};
use crate::ingress::{self, Attributed, Client, ListenerClass};
use crate::machine;
use crate::net::Tailnet;
use crate::pairing::DeviceFacts;
use crate::rpc::types::connect::ConnectParams;

/// Where the configured secret comes from. Asked at every attempt, so that a rotated secret counts at once.
pub trait SecretSource: Send + Sync {
    /// With the secret goes the number under which the hub may withdraw it.
    fn shared_secret(&self, hub: &Hub) -> (SharedSecret, u64);

    /// Looks whether the secret has changed though nobody asks. May block.
    fn refresh(&self, hub: &Hub);
}

/// What the configuration says about who may come in, replaced as a whole: no attempt sees half of a change (K3).
pub struct Rules {
    pub admission: admission::Settings,
    pub ingress: ingress::Settings,
    pub secret: Arc<dyn SecretSource>,
    /// The hub's number of these rules.
    pub since: u64,
}

/// Who can say which tailnet user an address belongs to. An error, a time-out and no answer are `Whois::Failed`; the
/// implementation bounds its time.
pub trait WhoisSource: Send + Sync {
    fn whois(&self, source: IpAddr) -> Pin<Box<dyn Future<Output = Whois> + Send + '_>>;
}

impl WhoisSource for Tailnet {
    fn whois(&self, source: IpAddr) -> Pin<Box<dyn Future<Output = Whois> + Send + '_>> {
        Box::pin(Self::whois(self, source))
    }
}

/// Who may come in, with all that it takes to find out.
pub struct Door {
    rules: RwLock<Arc<Rules>>,
    whois: Option<Arc<dyn WhoisSource>>,
    limiter: Mutex<Limiter>,
}

/// An admitted connection, and the token that it is issued.
pub struct Entry {
    pub admitted: Admitted,
    pub issued: Option<Issued>,
    pub newly_paired: bool,
    pub standing: Standing,
}

/// A connection that stays outside.
pub struct TurnedAway {
    pub refusal: AdmissionRefusal,
    /// How long the answer is held back.
    pub late: Duration,
    _waiting: Vec<Waiting>,
}

/// Counts a held-back answer for as long as it is held back, also if its caller hangs up before: whoever does not wait
/// must not be able to guess faster (R8).
struct Waiting {
    door: Arc<Door>,
    key: LimitKey,
    class: Class,
    due: tokio::time::Instant,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (door, key, class, due) = (
            Arc::clone(&self.door),
            self.key.clone(),
            self.class,
            self.due,
        );
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if due > tokio::time::Instant::now() => {
                runtime.spawn(async move {
                    tokio::time::sleep_until(due).await;
                    door.limiter().answered(&key, class);
                });
            }
            _ => door.limiter().answered(&key, class),
        }
    }
}

impl Door {
    /// Without a `whois` no tailnet identity is proved, and so none is believed.
    pub fn new(
        rules: Rules,
        whois: Option<Arc<dyn WhoisSource>>,
        limiter: LimiterSettings,
    ) -> Self {
        Self {
            rules: RwLock::new(Arc::new(rules)),
            whois,
            limiter: Mutex::new(Limiter::new(limiter)),
        }
    }

    /// The rules in force. An attempt takes them once.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other rules in force. Failures that were counted stay counted.
    pub fn set_rules(&self, mut rules: Rules, limiter: LimiterSettings) {
        let mut in_force = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        // The daemon said it, and no configuration.
        rules
            .ingress
            .tailnet_name
            .clone_from(&in_force.ingress.tailnet_name);
        *in_force = Arc::new(rules);
        drop(in_force);
        self.limiter().set_settings(limiter);
    }

    /// The name by which Serve's clients reach this host. Whoever is in stays in.
    pub fn set_tailnet_name(&self, name: ingress::Host) {
        let mut in_force = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let mut ingress = in_force.ingress.clone();
        ingress.tailnet_name = Some(name);
        *in_force = Arc::new(Rules {
            admission: in_force.admission.clone(),
            ingress,
            secret: Arc::clone(&in_force.secret),
            since: in_force.since,
        });
    }

    /// Takes one `connect` from its facts to its verdict and lets the verdict take effect. `attributed_by` is the number
    /// of the rules by which it was attributed.
    ///
    /// Facts may be waited for; from the verdict on nothing is, so a caller who is dropped leaves either no trace or a
    /// whole one.
    pub async fn admit(
        self: &Arc<Self>,
        hub: &Hub,
        attributed: Attributed,
        attributed_by: u64,
        connect: ConnectParams,
        nonce: &str,
    ) -> Result<Entry, Box<TurnedAway>> {
        let rules = self.rules();
        let mut standing = Standing {
            ingress: attributed_by,
            rules: rules.since,
            secret: 0,
        };
        let exempt = attributed.is_direct_local();
        let path = path_of(&attributed);
        let mut admission = Admission::new(
            rules.admission.clone(),
            attributed,
            connect,
            nonce,
            machine::now_ms(),
        );
        let mut waited = false;
        let mut waiting = Vec::new();
        let verdict = loop {
            match admission.step() {
                Step::Need(fact) => {
                    let answer = self.look_up(hub, &rules, &mut standing, fact).await;
                    admission.answer(answer);
                }
                Step::Done(verdict, mut failed) => {
                    // A caller who was made to wait is judged twice, and counted once.
                    failed.retain(|(key, class)| {
                        let counted = |it: &Waiting| it.key == *key && it.class == *class;
                        !waiting.iter().any(counted)
                    });
                    waiting.extend(self.count(failed, exempt));
                    match *verdict {
                        Verdict::Admit(admitted) if !waited && !admitted.slow().is_zero() => {
                            // Before anything takes effect: a caller who goes meanwhile has no token that never arrived.
                            // What was found before may be gone after, so all of it is asked again.
                            tokio::time::sleep(admitted.slow()).await;
                            waited = true;
                            admission.again(machine::now_ms());
                        }
                        verdict => break verdict,
                    }
                }
            }
        };
        if let (Verdict::Admit(admitted), false) = (&verdict, waiting.is_empty()) {
            log_beside(admitted, &path);
        }
        match verdict {
            Verdict::Admit(admitted) if !hub.spares(admitted.method(), standing) => {
                Err(AdmissionRefusal::Starting)
            }
            Verdict::Admit(admitted) => self.enter(hub, admitted, standing),
            Verdict::Pend(pend) => Err(file(hub, &pend, path)),
            Verdict::Refuse(refused) => Err(burn(hub, refused)),
        }
        .map_err(|refusal| turn_away(refusal, waiting))
    }

    /// The same for one HTTP request and its bearer, by the rules that attributed it.
    pub async fn admit_request(
        self: &Arc<Self>,
        hub: &Hub,
        rules: &Rules,
        attributed: Attributed,
        bearer: Option<Secret>,
    ) -> Result<AdmittedRequest, Box<TurnedAway>> {
        let exempt = attributed.is_direct_local();
        let mut admission = BearerAdmission::new(rules.admission.clone(), attributed, bearer);
        // A request is over before anything could be withdrawn from it.
        let mut standing = Standing::default();
        let (verdict, waiting) = loop {
            match admission.step() {
                Step::Need(fact) => {
                    let answer = self.look_up(hub, rules, &mut standing, fact).await;
                    admission.answer(answer);
                }
                Step::Done(verdict, failed) => break (*verdict, self.count(failed, exempt)),
            }
        };
        if let Ok(admitted) = &verdict
            && let Some((key, class)) = admitted.success()
        {
            self.limiter().success(key, *class);
        }
        verdict.map_err(|refused| turn_away(burn(hub, refused), waiting))
    }

    async fn look_up(
        &self,
        hub: &Hub,
        rules: &Rules,
        standing: &mut Standing,
        fact: Fact,
    ) -> Answer {
        match fact {
            Fact::Limit { key, class, exempt } => {
                Answer::Limit(self.limiter().check(Instant::now(), &key, class, exempt))
            }
            Fact::SharedSecret => {
                let (secret, since) = rules.secret.shared_secret(hub);
                standing.secret = since;
                Answer::SharedSecret(secret)
            }
            Fact::Device(id) => Answer::Device(hub.known_device(&id)),
            Fact::TurnedAway(id) => Answer::TurnedAway(hub.is_turned_away(&id)),
            Fact::SignInLink(digest) => Answer::SignInLink(hub.sign_in_link(&digest)),
            Fact::Whois(source) => Answer::Whois(match &self.whois {
                Some(whois) => whois.whois(source).await,
                None => Whois::Failed,
            }),
            Fact::TokenHolder(digest) => Answer::TokenHolder(hub.token_holder(&digest)),
        }
    }

    /// The effects of an admission, in the order in which they must happen: link spent, device paired, token issued.
    fn enter(
        &self,
        hub: &Hub,
        admitted: Admitted,
        standing: Standing,
    ) -> Result<Entry, AdmissionRefusal> {
        if let Some((key, class)) = admitted.success() {
            self.limiter().success(key, *class);
        }
        if let Some(link) = admitted.spent_link() {
            let spent = admitted.device().is_some_and(|device| {
                hub.spend_sign_in_link(link, device, &address(admitted.from()))
                    .unwrap_or(false)
            });
            if !spent {
                return Err(AdmissionRefusal::SignInLinkInvalid);
            }
        }
        let mut newly_paired = false;
        if let Enrolment::Approve { ask, via } = admitted.enrolment() {
            let rule = match via {
                ApprovedVia::Owner => "owner",
                ApprovedVia::Silent => "direct local caller",
                ApprovedVia::SignInLink => "sign-in link",
                ApprovedVia::TrustedCidr => "gateway.nodes.pairing.autoApproveCidrs",
            };
            if let Err(denied) = hub.pair_device(device_facts(ask, String::new()), *via, rule) {
                log_fault("pairing", &denied);
                return Err(AdmissionRefusal::PairingQueueFull);
            }
            newly_paired = true;
        }
        let issued = match (admitted.issues_token(), admitted.device()) {
            (true, Some(device)) => match hub.issue_device_token(device, admitted.role()) {
                Ok(issued) => issued,
                Err(fault) => {
                    log_fault("issuing a device token", &Denied::Fault(fault));
                    return Err(AdmissionRefusal::Starting);
                }
            },
            _ => None,
        };
        Ok(Entry {
            admitted,
            issued,
            newly_paired,
            standing,
        })
    }

    /// Counts the wrong secrets of an attempt. Each waits until its answer is due, also if the caller is admitted by
    /// another credential and answered at once.
    fn count(self: &Arc<Self>, failed: Failed, exempt: bool) -> Vec<Waiting> {
        let count = |(key, class)| {
            let late = self.limiter().failure(Instant::now(), &key, class, exempt);
            Waiting {
                door: Arc::clone(self),
                key,
                class,
                due: tokio::time::Instant::now() + late,
            }
        };
        failed.into_iter().map(count).collect()
    }

    pub(super) fn limiter(&self) -> MutexGuard<'_, Limiter> {
        // Counters are whole after every call, so a panic elsewhere does not spoil them.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A misused sign-in link must never work again (B2).
fn burn(hub: &Hub, refused: Refused) -> AdmissionRefusal {
    if let Some(link) = &refused.burnt_link {
        hub.burn_sign_in_link(link);
    }
    refused.refusal
}

/// A refusal is answered when the last of its wrong secrets is due, and at once if there are none.
fn turn_away(refusal: AdmissionRefusal, waiting: Vec<Waiting>) -> Box<TurnedAway> {
    let due = waiting.iter().map(|it| it.due).max();
    let late = due.map_or(Duration::ZERO, |due| {
        due.duration_since(tokio::time::Instant::now())
    });
    Box::new(TurnedAway {
        refusal,
        late,
        _waiting: waiting,
    })
}

/// Nobody is refused who could tell of it, and it may be a paired device that guesses.
fn log_beside(admitted: &Admitted, path: &str) {
    let decision = Decision::of("wrong_secret_beside");
    if decision.logged {
        tracing::warn!(
            client = %address(admitted.from()),
            via = path,
            device = admitted.device().map(DeviceId::as_str),
            left_out = decision.left_out,
            "admitted by {} with a wrong secret beside it: it is counted",
            admitted.method().as_str()
        );
    }
}

fn file(hub: &Hub, pend: &Pend, path: String) -> AdmissionRefusal {
    match hub.file_device_request(device_facts(&pend.ask, path)) {
        Ok(request) => pend.refusal(&request.request_id),
        Err(fault) => {
            log_fault("filing a pairing request", &Denied::Fault(fault));
            AdmissionRefusal::PairingQueueFull
        }
    }
}

fn device_facts(ask: &admission::Ask, path: String) -> DeviceFacts {
    let client = &ask.client;
    DeviceFacts {
        id: ask.device.clone(),
        public_key: ask.public_key.to_wire(),
        display_name: client.display_name.clone(),
        platform: crate::auth::device::pinned_metadata(Some(&client.platform)),
        device_family: crate::auth::device::pinned_metadata(client.device_family.as_deref()),
        platform_shown: Some(client.platform.clone()),
        device_family_shown: client.device_family.clone(),
        client_id: client.id.as_str().to_owned(),
        client_mode: client.mode.as_str().to_owned(),
        role: ask.role,
        scopes: match ask.role {
            Role::Operator => ask.scopes,
            Role::Node => crate::auth::scope::ScopeSet::NONE,
        },
        remote_ip: match ask.from {
            Client::Ip(ip) if !ip.is_loopback() => Some(ip.to_string()),
            Client::Ip(_) | Client::Local => None,
        },
        path,
        browser_origin: ask.browser_origin.clone(),
    }
}

/// The transport path as the pairing queue, `nodes describe` and the audit log name it (decision 26).
pub(crate) fn path_of(attributed: &Attributed) -> String {
    let peer = attributed.peer().ip();
    let funnel = attributed.tailscale().is_some_and(|claim| claim.funnel);
    let name = match (attributed.listener(), attributed.client()) {
        (ListenerClass::Admin, _) => "admin",
        (ListenerClass::Serve, _) if funnel => "funnel",
        (ListenerClass::Serve, _) => "serve",
        (ListenerClass::Proxy, _) | (ListenerClass::Main, _) if attributed.via_proxy() => {
            return peer.map_or_else(|| "proxy".to_owned(), |peer| format!("proxy {peer}"));
        }
        (_, Client::Local) => "proxy",
        (_, Client::Ip(ip)) if ip.is_loopback() => "loopback",
        (_, Client::Ip(ip)) if is_tailnet(ip) => "tailnet",
        (_, Client::Ip(ip)) if is_private(ip) => "lan",
        _ => "public",
    };
    name.to_owned()
}

/// A client's address for the record.
pub(crate) fn address(client: Client) -> String {
    match client {
        Client::Ip(ip) => ip.to_string(),
        Client::Local => "local".to_owned(),
    }
}

fn log_fault(what: &str, denied: &Denied) {
    tracing::error!(error = %denied, "{what} failed");
}
