//! From a `connect` request to a verdict, one fact at a time.
//!
//! In: an `Attributed` connection, its challenge, the `connect` parameters, the wall clock, settings; then one answer for
//! each `Fact` asked for. Out: `Verdict`: `Admitted`, which only this module makes, a pairing request to file, or a
//! refusal. The order of refusals is the order of the code: `open` (protocol, role, browser, device proof), then
//! `authenticate` (which credential), then `pair` (what the record says).
//! Attacker controls: every parameter. Bounds: each fact is asked for once; a stranger's request ends before the look-up
//! that an earlier check spares.
//! Errors: `AdmissionRefusal`.

mod bearer;
mod facts;
mod refusal;
mod shared;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

pub use bearer::{AdmittedRequest, BearerAdmission, bearer};
pub use facts::{Answer, Fact, Grant, KnownDevice, SharedSecret, SignInLink, TokenHolder};
pub use refusal::{AdmissionRefusal, PairingRequired, SecretKind};

use super::device::{self, Proof, PublicKey, Signed, pinned_metadata};
use super::rate_limit::{Class, LimitKey};
use super::scope::{Role, ScopeSet};
use super::secret_eq::TokenDigest;
use super::whois;
use crate::base::names::names;
use crate::base::{DeviceId, Secret};
use crate::ingress::{Attributed, Cidr, Client, ListenerClass, ProxyUserRefusal};
use crate::rpc::types::connect::{
    ClientId, ClientInfo, ClientMode, ConnectAuth, ConnectParams, PROTOCOL, PROTOCOL_MIN_NODE,
};
use facts::Facts;
use shared::Check;

names! {
    /// `gateway.auth.mode`.
    pub enum Mode {
        None = "none",
        Token = "token",
        Password = "password",
        TrustedProxy = "trusted-proxy",
    }
}

/// What `config` fills in.
#[derive(Clone, Debug)]
pub struct Settings {
    pub mode: Mode,
    /// Tailscale identities count on the `serve` listener.
    pub allow_tailscale: bool,
    /// `gateway.auth.localOperatorScopes` (decision 4).
    pub local_operator_scopes: ScopeSet,
    /// `gateway.nodes.pairing.autoApproveLocal`.
    pub auto_approve_local: bool,
    /// `gateway.nodes.pairing.autoApproveCidrs` (decision 23).
    pub auto_approve_cidrs: Vec<Cidr>,
    /// The build of the embedded Control UI, if a stale page is to be told to reload.
    pub control_ui_build: Option<String>,
}

/// What the caller of an admission does next.
pub enum Step<T> {
    /// Look this up and `answer`.
    Need(Fact),
    Done(Box<T>, Failed),
}

/// The wrong secrets that an attempt compared, whatever its verdict is: whom each counts against, at most once per class.
/// All of them go to `Limiter::failure`, also those of a caller who is admitted by another credential. A refusal that has
/// some is late by what the limiter says; every other one is prompt (decision 15).
pub type Failed = Vec<(LimitKey, Class)>;

/// The end.
pub enum Verdict {
    Admit(Admitted),
    /// File the request (its id may be an older one's), then refuse with `Pend::refusal`.
    Pend(Pend),
    Refuse(Refused),
}

/// A refusal and what it leaves behind.
#[derive(Debug)]
pub struct Refused {
    pub refusal: AdmissionRefusal,
    /// A sign-in link that was misused, and so must never work again (B2).
    pub burnt_link: Option<TokenDigest>,
}

names! {
    /// Why a device must wait for an operator.
    pub enum PairingReason {
        NotPaired = "not-paired",
        RoleUpgrade = "role-upgrade",
        ScopeUpgrade = "scope-upgrade",
        MetadataUpgrade = "metadata-upgrade",
    }
}

impl PairingReason {
    fn requirement(self) -> &'static str {
        match self {
            Self::NotPaired => "device is not approved yet",
            Self::RoleUpgrade => "device is asking for a higher role than currently approved",
            Self::ScopeUpgrade => "device is asking for more scopes than currently approved",
            Self::MetadataUpgrade => "device identity changed and must be re-approved",
        }
    }

    /// As recorded; clients show it.
    fn hint(self) -> &'static str {
        match self {
            Self::NotPaired => "Approve this device from the pending pairing requests.",
            Self::ScopeUpgrade => "Review the requested scopes, then approve the pending upgrade.",
            Self::RoleUpgrade => "An operator must approve the requested role.",
            Self::MetadataUpgrade => "An operator must approve the device's new details.",
        }
    }
}

/// What a device asks to be approved for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub reason: PairingReason,
    pub device: DeviceId,
    pub public_key: PublicKey,
    pub role: Role,
    /// The known scopes among those asked for.
    pub scopes: ScopeSet,
    /// As sent, for the approver to read.
    pub scopes_asked: Vec<String>,
    pub client: ClientInfo,
    /// The page that asks, if a browser does.
    pub browser_origin: Option<String>,
    /// Where it came from.
    pub from: Client,
}

/// A request for approval that is still to be filed.
#[derive(Debug)]
pub struct Pend {
    pub ask: Ask,
    approved: Vec<(Role, ScopeSet)>,
}

impl Pend {
    /// The refusal that names the filed request.
    pub fn refusal(&self, request_id: &str) -> AdmissionRefusal {
        let scopes = self
            .approved
            .iter()
            .filter(|(role, _)| *role == self.ask.role)
            .flat_map(|(_, scopes)| scopes.to_wire())
            .collect();
        AdmissionRefusal::PairingRequired(Box::new(PairingRequired {
            reason: self.ask.reason,
            request_id: request_id.to_owned(),
            device: self.ask.device.clone(),
            role: self.ask.role,
            scopes: self.ask.scopes_asked.clone(),
            approved_roles: self.approved.iter().map(|(role, _)| *role).collect(),
            approved_scopes: scopes,
        }))
    }
}

names! {
    /// How a caller was recognised, as logs and records name it.
    pub enum AuthMethod {
        None = "none",
        /// The peer of the admin socket, by its user id.
        LocalUser = "local-user",
        Token = "token",
        Password = "password",
        DeviceToken = "device-token",
        SignInLink = "bootstrap-token",
        Tailscale = "tailscale",
        TrustedProxy = "trusted-proxy",
    }
}

/// How the device stands in the record.
#[derive(Clone, Debug)]
pub enum Enrolment {
    /// No device.
    None,
    /// Paired, and the record covers the request.
    Paired,
    /// To be approved now, without asking anybody: `ask.scopes` is what the record then holds for the role.
    Approve { ask: Box<Ask>, via: ApprovedVia },
}

names! {
    /// Whose approval a device has, as its record and `device.pair.list` name it.
    pub enum ApprovedVia {
        /// An operator decided.
        Owner = "owner",
        /// A program on this host that has the shared secret.
        Silent = "silent",
        /// An operator's sign-in link.
        SignInLink = "bootstrap",
        /// `Settings::auto_approve_cidrs` names its address.
        TrustedCidr = "trusted-cidr",
    }
}

/// A caller who may come in. Only this module makes one, so that whoever takes it cannot have forgotten the check.
#[derive(Clone, Debug)]
pub struct Admitted {
    role: Role,
    scopes: ScopeSet,
    scopes_asked: Vec<String>,
    method: AuthMethod,
    device: Option<DeviceId>,
    token: Option<TokenDigest>,
    user: Option<String>,
    client: ClientInfo,
    from: Client,
    enrolment: Enrolment,
    private: bool,
    issue_token: bool,
    spent_link: Option<TokenDigest>,
    success: Option<(LimitKey, Class)>,
    slow: Duration,
}

impl Admitted {
    pub fn role(&self) -> Role {
        self.role
    }

    /// What the caller may do, whatever it asked for.
    pub fn scopes(&self) -> ScopeSet {
        self.scopes
    }

    /// `hello-ok.auth.scopes`.
    pub fn scopes_wire(&self) -> Vec<&'static str> {
        self.scopes.to_wire_as_asked(&self.scopes_asked)
    }

    pub fn method(&self) -> AuthMethod {
        self.method
    }

    /// The device whose key signed this connection's challenge.
    pub fn device(&self) -> Option<&DeviceId> {
        self.device.as_ref()
    }

    /// The device token that it showed, if it came in by one.
    pub fn token(&self) -> Option<&TokenDigest> {
        self.token.as_ref()
    }

    /// The verified user of a tailnet or of a trusted proxy.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// What the client said of itself. It grants nothing (A5).
    pub fn client(&self) -> &ClientInfo {
        &self.client
    }

    /// Whom limits count.
    pub fn from(&self) -> Client {
        self.from
    }

    pub fn enrolment(&self) -> &Enrolment {
        &self.enrolment
    }

    /// A secret may cross its connection (decision 10).
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// Make a device token, store its digest and send it in `hello-ok` (decision 8).
    pub fn issues_token(&self) -> bool {
        self.issue_token
    }

    /// The sign-in link that this connect used up. It must be marked used before `hello-ok` goes out.
    pub fn spent_link(&self) -> Option<&TokenDigest> {
        self.spent_link.as_ref()
    }

    /// For `Limiter::success`.
    pub fn success(&self) -> Option<&(LimitKey, Class)> {
        self.success.as_ref()
    }

    /// How long to hold the answer back while strangers are guessing from everywhere; zero for paired devices.
    pub fn slow(&self) -> Duration {
        self.slow
    }
}

/// One `connect` on its way to a verdict.
pub struct Admission {
    settings: Settings,
    attributed: Attributed,
    connect: ConnectParams,
    now_ms: u64,
    opening: Result<Opening, AdmissionRefusal>,
    facts: Facts,
}

/// What `connect` says, once it is known to be well-formed and signed.
#[derive(Clone, Debug)]
struct Opening {
    role: Role,
    requested: ScopeSet,
    proof: Option<Proof>,
}

/// The caller is recognised.
struct Login {
    method: AuthMethod,
    token: Option<TokenDigest>,
    user: Option<String>,
    link: Option<(TokenDigest, SignInLink)>,
    success: Option<(LimitKey, Class)>,
    slow: Duration,
}

impl Login {
    fn by(method: AuthMethod) -> Self {
        Self {
            method,
            token: None,
            user: None,
            link: None,
            success: None,
            slow: Duration::ZERO,
        }
    }
}

/// Why `decide` cannot go on.
enum Stop {
    Need(Fact),
    Refuse(Refused),
}

impl From<AdmissionRefusal> for Refused {
    fn from(refusal: AdmissionRefusal) -> Self {
        Self {
            refusal,
            burnt_link: None,
        }
    }
}

impl From<Fact> for Stop {
    fn from(fact: Fact) -> Self {
        Self::Need(fact)
    }
}

impl From<AdmissionRefusal> for Stop {
    fn from(refusal: AdmissionRefusal) -> Self {
        Self::Refuse(refusal.into())
    }
}

impl Admission {
    /// `nonce` is the one that this connection was challenged with.
    pub fn new(
        settings: Settings,
        attributed: Attributed,
        connect: ConnectParams,
        nonce: &str,
        now_ms: u64,
    ) -> Self {
        let opening = open(settings.mode, &attributed, &connect, nonce, now_ms);
        Self {
            settings,
            attributed,
            connect,
            now_ms,
            opening,
            facts: Facts::default(),
        }
    }

    /// The next fact that is needed, or the verdict.
    pub fn step(&mut self) -> Step<Verdict> {
        let mut failed = Failed::new();
        let decided = self.decide(&mut failed);
        self.facts.step(decided, Verdict::Refuse, failed)
    }

    /// Begins anew, for what was found may be out of date.
    pub fn again(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.facts = Facts::default();
    }

    /// Answers the fact that the last `step` asked for.
    pub fn answer(&mut self, answer: Answer) {
        self.facts.answer(answer);
    }

    /// Whatever compares a secret adds a wrong one to `failed`, so that no way out can forget it.
    fn decide(&self, failed: &mut Failed) -> Result<Verdict, Stop> {
        let opening = self.opening.clone()?;
        let login = self.authenticate(&opening, failed)?;
        self.pair(opening, login)
    }

    // Row 16 of DEVICE_AUTH.md: who is it?

    fn authenticate(&self, opening: &Opening, failed: &mut Failed) -> Result<Login, Stop> {
        if self.attributed.listener() == ListenerClass::Admin {
            return Ok(Login::by(AuthMethod::LocalUser));
        }
        let presented = Presented::new(self.connect.auth.as_ref());
        if presented.any() && !self.attributed.is_private() {
            return Err(AdmissionRefusal::PlaintextCredential.into());
        }
        match self.settings.mode {
            Mode::None => self.authenticate_nobody(),
            Mode::TrustedProxy => self.authenticate_behind_proxy(opening, &presented, failed),
            Mode::Token | Mode::Password if presented.any() => {
                self.authenticate_secret(opening, &presented, true, failed)
            }
            Mode::Token | Mode::Password => self.authenticate_without_secret(),
        }
    }

    /// Mode `none`: this host's own programs, and pages that this Gateway served to it.
    fn authenticate_nobody(&self) -> Result<Login, Stop> {
        if !shared::is_own_host(&self.attributed) {
            return Err(AdmissionRefusal::NotLocal.into());
        }
        Ok(Login::by(AuthMethod::None))
    }

    /// Trusted-proxy mode: the proxy's word. A paired device's own token counts as everywhere, and for programs on this
    /// host a password may be configured beside it; the proxy's users have none.
    fn authenticate_behind_proxy(
        &self,
        opening: &Opening,
        presented: &Presented<'_>,
        failed: &mut Failed,
    ) -> Result<Login, Stop> {
        let refusal = match self.attributed.proxy_user() {
            Some(Ok(user)) => {
                return Ok(Login {
                    user: Some(user.clone()),
                    ..Login::by(AuthMethod::TrustedProxy)
                });
            }
            Some(Err(refusal)) => refusal.clone(),
            None => ProxyUserRefusal::UntrustedSource,
        };
        let local = self.attributed.is_direct_local();
        let device_token = opening.proof.is_some() && presented.device_token.is_some();
        if device_token || (local && presented.any()) {
            return self.authenticate_secret(opening, presented, local, failed);
        }
        Err(AdmissionRefusal::ProxyUser(refusal).into())
    }

    /// No credential at all: a tailnet identity behind Serve, or nothing.
    fn authenticate_without_secret(&self) -> Result<Login, Stop> {
        if let Some(claim) = self.attributed.tailscale()
            && self.settings.allow_tailscale
            && !claim.funnel
        {
            let (source, login) = whois::question(claim).map_err(AdmissionRefusal::Tailscale)?;
            let Some(answer) = &self.facts.whois else {
                return Err(Stop::Need(Fact::Whois(source)));
            };
            let user = whois::judge(login, answer).map_err(AdmissionRefusal::Tailscale)?;
            return Ok(Login {
                user: Some(user),
                ..Login::by(AuthMethod::Tailscale)
            });
        }
        Err(shared::missing(&self.facts, self.secret_kind())?.into())
    }

    /// The shared secret, then the device's own token, then a sign-in link. A wrong one of each is a failure of its class.
    fn authenticate_secret(
        &self,
        opening: &Opening,
        presented: &Presented<'_>,
        shared_secret_counts: bool,
        failed: &mut Failed,
    ) -> Result<Login, Stop> {
        let kind = self.secret_kind();
        let mut refused = None;

        let shared = [presented.token, presented.password];
        if shared_secret_counts && shared.iter().any(Option::is_some) {
            match shared::check(&self.facts, &self.attributed, kind, shared, failed)? {
                Check::Right { success, slow } => {
                    return Ok(Login {
                        success: Some(success),
                        slow,
                        ..Login::by(kind.method())
                    });
                }
                Check::Wrong => {
                    refused = Some(AdmissionRefusal::SecretMismatch {
                        kind,
                        may_retry_with_device_token: opening.proof.is_some()
                            && presented.token.is_some()
                            && presented.device_token.is_none(),
                    });
                }
                Check::Not(refusal) => refused = Some(refusal),
            }
        }
        if presented.device_token.is_some() || presented.token.is_some() {
            match self.device_token(opening, presented, failed)? {
                TokenCheck::Good(login) => return Ok(login),
                TokenCheck::Wrong if presented.device_token.is_some() => {
                    let locked = matches!(refused, Some(AdmissionRefusal::RateLimited { .. }));
                    if !locked {
                        refused = Some(AdmissionRefusal::DeviceTokenMismatch);
                    }
                }
                TokenCheck::Wrong => {}
                TokenCheck::Locked(refusal) => refused = Some(refusal),
            }
        }
        if let Some(link) = presented.link {
            return self.sign_in_link(opening, link, failed);
        }
        let refusal = refused.unwrap_or(AdmissionRefusal::SecretMissing(kind));
        Err(refusal.into())
    }

    /// Official clients send a device's token in `token` too. What is none there is a guess at the shared secret only:
    /// a device whose shared secret is stale must not lock its own token out.
    fn device_token(
        &self,
        opening: &Opening,
        presented: &Presented<'_>,
        failed: &mut Failed,
    ) -> Result<TokenCheck, Stop> {
        let Some(proof) = &opening.proof else {
            return Ok(TokenCheck::Wrong);
        };
        let key = LimitKey::Device(proof.device.clone());
        let limit = self.facts.limit(&self.attributed, &key, Class::DeviceToken);
        if let Err(locked) = limit? {
            return Ok(TokenCheck::Locked(locked));
        }
        let Some(known) = self.device(&proof.device)? else {
            return Ok(TokenCheck::Wrong);
        };
        let counted = (key, Class::DeviceToken);
        let grant = known.grant(opening.role);
        let matching = grant.and_then(|grant| {
            let digest = grant.token.as_ref()?;
            let own_field = digest.matches(presented.device_token);
            let token_field = digest.matches(presented.token);
            (own_field | token_field).then_some((grant, digest, token_field))
        });
        let Some((grant, digest, in_token_field)) = matching else {
            failed.extend(presented.device_token.map(|_| counted));
            return Ok(TokenCheck::Wrong);
        };
        if in_token_field && presented.password.is_none() {
            // So it was no guess at the shared secret.
            failed.retain(|(_, class)| *class != Class::SharedSecret);
        }
        let carried = grant.scopes.meet(grant.token_scopes);
        if !carried.allows_all(opening.requested) {
            return Err(AdmissionRefusal::ScopeMismatch.into());
        }
        Ok(TokenCheck::Good(Login {
            token: Some(digest.clone()),
            success: Some(counted),
            ..Login::by(AuthMethod::DeviceToken)
        }))
    }

    /// A link admits one browser operator's device, once, within its scopes and its time. Any other use burns it.
    fn sign_in_link(
        &self,
        opening: &Opening,
        token: &[u8],
        failed: &mut Failed,
    ) -> Result<Login, Stop> {
        let client = LimitKey::from(self.attributed.client());
        let limit = self
            .facts
            .limit(&self.attributed, &client, Class::SignInLink);
        let slow = limit??;
        let digest = TokenDigest::of(token);
        let Some(link) = &self.facts.link else {
            return Err(Stop::Need(Fact::SignInLink(digest)));
        };
        let live = link
            .as_ref()
            .filter(|link| !link.used && self.now_ms < link.expires_at_ms);
        let fits = |link: &&SignInLink| {
            opening.role == Role::Operator
                && opening.proof.is_some()
                && self.attributed.origin().is_some()
                && link.scopes.allows_all(opening.requested)
        };
        match live.filter(fits) {
            Some(link) => Ok(Login {
                link: Some((digest, link.clone())),
                success: Some((client, Class::SignInLink)),
                slow,
                ..Login::by(AuthMethod::SignInLink)
            }),
            None => {
                failed.push((client, Class::SignInLink));
                Err(Stop::Refuse(Refused {
                    refusal: AdmissionRefusal::SignInLinkInvalid,
                    burnt_link: live.map(|_| digest),
                }))
            }
        }
    }

    // Row 17: what does the record say?

    fn pair(&self, opening: Opening, login: Login) -> Result<Verdict, Stop> {
        let Some(proof) = opening.proof.clone() else {
            let granted = self.scopes_without_device(&login);
            return Ok(self.admit(opening, login, granted, Enrolment::None, false));
        };
        let known = self.device(&proof.device)?;
        let grant = known.and_then(|known| known.grant(opening.role));
        let ask = |reason, scopes| self.ask(&opening, &proof, reason, scopes);
        let missing = match (known, grant) {
            (None, _) => Some(PairingReason::NotPaired),
            (Some(known), _) if !self.metadata_is_pinned(known) => {
                Some(PairingReason::MetadataUpgrade)
            }
            (Some(_), None) => Some(PairingReason::RoleUpgrade),
            (Some(_), Some(grant)) if !grant.scopes.allows_all(opening.requested) => {
                Some(PairingReason::ScopeUpgrade)
            }
            (Some(_), Some(_)) => None,
        };
        let approved = grant.map_or(ScopeSet::NONE, |grant| grant.scopes);
        let Some(reason) = missing else {
            let issue_token = grant.is_some_and(|grant| grant.token.is_none());
            return Ok(self.admit(opening, login, approved, Enrolment::Paired, issue_token));
        };
        let Some((via, ceiling)) =
            self.approval_in_advance(&login, opening.role, &proof.device, reason)?
        else {
            let approved = known.map_or_else(Vec::new, |known| {
                let grants = known.grants.iter();
                grants.map(|grant| (grant.role, grant.scopes)).collect()
            });
            let ask = ask(reason, opening.requested);
            return Ok(Verdict::Pend(Pend { ask, approved }));
        };
        // What the approval adds. Nodes have no scopes.
        let added = match opening.role {
            Role::Operator => opening.requested.meet(ceiling),
            Role::Node => ScopeSet::NONE,
        };
        let granted = approved.union(added);
        if reason == PairingReason::ScopeUpgrade && granted == approved {
            // A local operator that asks beyond its ceiling gets what it has (S2).
            let issue_token = grant.is_some_and(|grant| grant.token.is_none());
            return Ok(self.admit(opening, login, approved, Enrolment::Paired, issue_token));
        }
        let issue_token = grant.is_none_or(|grant| grant.token.is_none());
        let ask = Box::new(ask(reason, granted));
        let enrolment = Enrolment::Approve { ask, via };
        Ok(self.admit(opening, login, granted, enrolment, issue_token))
    }

    /// Whose approval stands ready, and for which scopes at most: a sign-in link's, that of the local operator, or, for a
    /// node that was never seen nor turned away, that of its address. A changed platform or device family is never waved through silently (N2).
    fn approval_in_advance(
        &self,
        login: &Login,
        role: Role,
        device: &DeviceId,
        reason: PairingReason,
    ) -> Result<Option<(ApprovedVia, ScopeSet)>, Stop> {
        if let Some((_, link)) = &login.link {
            return Ok(Some((ApprovedVia::SignInLink, link.scopes)));
        }
        let silent = self.is_local_operator(login)
            && self.settings.auto_approve_local
            && reason != PairingReason::MetadataUpgrade;
        if silent {
            return Ok(Some((ApprovedVia::Silent, self.local_ceiling(login))));
        }
        let first_node = role == Role::Node && reason == PairingReason::NotPaired;
        if !first_node || !self.comes_from_trusted_cidr(login) {
            return Ok(None);
        }
        let turned_away = self.facts.turned_away;
        let turned_away = turned_away.ok_or_else(|| Fact::TurnedAway(device.clone()))?;
        Ok((!turned_away).then_some((ApprovedVia::TrustedCidr, ScopeSet::NONE)))
    }

    /// A program with the shared secret at an address that the operator listed (decision 23). It came by itself: through a
    /// proxy, a tunnel, a managed listener or a page, an address says nothing about who asks.
    fn comes_from_trusted_cidr(&self, login: &Login) -> bool {
        let by_secret = matches!(login.method, AuthMethod::Token | AuthMethod::Password);
        let direct = self.attributed.listener() == ListenerClass::Main
            && !self.attributed.via_proxy()
            && self.attributed.origin().is_none();
        let listed = |ip: IpAddr| {
            !ip.is_loopback() && Cidr::any_contains(&self.settings.auto_approve_cidrs, ip)
        };
        by_secret && direct && matches!(self.attributed.client(), Client::Ip(ip) if listed(ip))
    }

    /// A direct-local program that knows the shared secret (or needs none), decision 4.
    fn is_local_operator(&self, login: &Login) -> bool {
        let by_secret = matches!(
            login.method,
            AuthMethod::Token | AuthMethod::Password | AuthMethod::None | AuthMethod::LocalUser
        );
        by_secret && self.attributed.is_direct_local()
    }

    fn local_ceiling(&self, login: &Login) -> ScopeSet {
        match login.method {
            AuthMethod::LocalUser => ScopeSet::all(),
            _ => self.settings.local_operator_scopes,
        }
    }

    fn scopes_without_device(&self, login: &Login) -> ScopeSet {
        if self.is_local_operator(login) {
            self.local_ceiling(login)
        } else {
            ScopeSet::NONE
        }
    }

    fn metadata_is_pinned(&self, known: &KnownDevice) -> bool {
        let client = &self.connect.client;
        pinned_metadata(Some(&client.platform)) == known.platform
            && pinned_metadata(client.device_family.as_deref()) == known.device_family
    }

    fn ask(
        &self,
        opening: &Opening,
        proof: &Proof,
        reason: PairingReason,
        scopes: ScopeSet,
    ) -> Ask {
        Ask {
            reason,
            device: proof.device.clone(),
            public_key: proof.public_key,
            role: opening.role,
            scopes,
            scopes_asked: self.scopes_asked().to_vec(),
            client: self.connect.client.clone(),
            browser_origin: self.attributed.origin().map(ToString::to_string),
            from: self.attributed.client(),
        }
    }

    fn admit(
        &self,
        opening: Opening,
        login: Login,
        granted: ScopeSet,
        enrolment: Enrolment,
        issue_token: bool,
    ) -> Verdict {
        // Row 18: a page that is older than this Gateway would misread what follows.
        if let (Some(ours), ClientId::ControlUi) =
            (&self.settings.control_ui_build, self.connect.client.id)
            && self.connect.client.build_id.as_ref() != Some(ours)
        {
            let build_id = ours.clone();
            return Verdict::Refuse(AdmissionRefusal::ReloadRequired { build_id }.into());
        }
        let mut scopes = match opening.role {
            Role::Operator => opening.requested.meet(granted),
            Role::Node => ScopeSet::NONE,
        };
        if let Some(cap) = self.attributed.scopes_cap() {
            scopes = scopes.meet(ScopeSet::from_wire(cap));
        }
        let paired = matches!(enrolment, Enrolment::Paired);
        // Where no secret is taken, none is sent (decision 10).
        let private = self.attributed.is_private();
        Verdict::Admit(Admitted {
            role: opening.role,
            scopes,
            scopes_asked: self.scopes_asked().to_vec(),
            method: login.method,
            device: opening.proof.map(|proof| proof.device),
            token: login.token,
            user: login.user,
            client: self.connect.client.clone(),
            from: self.attributed.client(),
            enrolment,
            private,
            issue_token: issue_token && private && login.method != AuthMethod::DeviceToken,
            spent_link: login.link.map(|(digest, _)| digest),
            success: login.success,
            slow: if paired { Duration::ZERO } else { login.slow },
        })
    }

    fn scopes_asked(&self) -> &[String] {
        self.connect.scopes.as_deref().unwrap_or_default()
    }

    fn secret_kind(&self) -> SecretKind {
        shared::kind(self.settings.mode)
    }

    // Facts.

    fn device(&self, id: &DeviceId) -> Result<Option<&KnownDevice>, Stop> {
        let known = self.facts.device.as_ref().map(Option::as_ref);
        known.ok_or_else(|| Stop::Need(Fact::Device(id.clone())))
    }
}

impl SecretKind {
    fn method(self) -> AuthMethod {
        match self {
            Self::Token => AuthMethod::Token,
            Self::Password => AuthMethod::Password,
        }
    }
}

enum TokenCheck {
    Good(Login),
    Wrong,
    Locked(AdmissionRefusal),
}

/// The credentials that are really there; an empty or blank one is none.
struct Presented<'a> {
    token: Option<&'a [u8]>,
    password: Option<&'a [u8]>,
    device_token: Option<&'a [u8]>,
    link: Option<&'a [u8]>,
}

impl<'a> Presented<'a> {
    fn new(auth: Option<&'a ConnectAuth>) -> Self {
        let field = |secret: Option<&'a Secret>| {
            secret
                .map(Secret::expose)
                .filter(|bytes| !bytes.trim_ascii().is_empty())
        };
        Self {
            token: field(auth.and_then(|auth| auth.token.as_ref())),
            password: field(auth.and_then(|auth| auth.password.as_ref())),
            device_token: field(auth.and_then(|auth| auth.device_token.as_ref())),
            link: field(auth.and_then(|auth| auth.bootstrap_token.as_ref())),
        }
    }

    fn any(&self) -> bool {
        self.token.is_some()
            || self.password.is_some()
            || self.device_token.is_some()
            || self.link.is_some()
    }
}

/// Rows 5 to 15: what the request itself shows, before anything is looked up.
fn open(
    mode: Mode,
    attributed: &Attributed,
    connect: &ConnectParams,
    nonce: &str,
    now_ms: u64,
) -> Result<Opening, AdmissionRefusal> {
    let client = &connect.client;
    let role = connect.role.as_deref().unwrap_or("operator");
    let claims_worker = role == "worker"
        || client.id == ClientId::Worker
        || client.mode == ClientMode::Worker
        || connect.worker_runs.is_some();
    if claims_worker {
        return Err(AdmissionRefusal::Worker);
    }
    check_protocol(connect, role)?;
    let role = Role::from_wire(role).ok_or(AdmissionRefusal::InvalidRole)?;
    if is_browser(client) && attributed.origin().is_none() {
        return Err(AdmissionRefusal::OriginMissing);
    }
    let scopes = connect.scopes.as_deref().unwrap_or_default();
    let requested = match role {
        Role::Operator => ScopeSet::from_wire(scopes),
        Role::Node => ScopeSet::NONE,
    };
    let Some(device) = &connect.device else {
        if needs_device(mode, attributed, connect, role) {
            return Err(AdmissionRefusal::DeviceIdentityRequired);
        }
        return Ok(Opening {
            role,
            requested,
            proof: None,
        });
    };
    let signed = Signed {
        device_id: &device.id,
        client_id: client.id.as_str(),
        client_mode: client.mode.as_str(),
        role,
        scopes,
        signed_at_ms: device.signed_at,
        token: signed_token(connect.auth.as_ref()),
        nonce,
        platform: Some(&client.platform),
        device_family: client.device_family.as_deref(),
    };
    let proof = device::verify(device, &signed, nonce, now_ms).map_err(AdmissionRefusal::Device)?;
    Ok(Opening {
        role,
        requested,
        proof: Some(proof),
    })
}

fn check_protocol(connect: &ConnectParams, role: &str) -> Result<(), AdmissionRefusal> {
    let (min, max) = (connect.min_protocol, connect.max_protocol);
    let older_is_enough = role == "node" || connect.client.mode == ClientMode::Probe;
    let oldest = if older_is_enough {
        PROTOCOL_MIN_NODE
    } else {
        PROTOCOL
    };
    if min <= PROTOCOL && max >= oldest && min <= max {
        return Ok(());
    }
    Err(AdmissionRefusal::ProtocolMismatch { min, max })
}

/// Client ids and modes that only a web page uses.
fn is_browser(client: &ClientInfo) -> bool {
    client.mode == ClientMode::Webchat
        || matches!(
            client.id,
            ClientId::WebchatUi | ClientId::ControlUi | ClientId::Webchat
        )
}

/// A node always needs one; an operator may do without if it shows some other sign of who it is. That sign is judged
/// later, so its mere presence decides nothing (A2).
fn needs_device(mode: Mode, attributed: &Attributed, connect: &ConnectParams, role: Role) -> bool {
    let shows_secret = connect
        .auth
        .as_ref()
        .is_some_and(|auth| auth.token.is_some() || auth.password.is_some());
    let known_otherwise = mode == Mode::None
        || attributed.listener() == ListenerClass::Admin
        || attributed.proxy_user().is_some()
        || attributed
            .tailscale()
            .is_some_and(|claim| claim.login.is_some() && !claim.funnel);
    role == Role::Node || !(shows_secret || known_otherwise)
}

/// The token slot of the signed string: the first field that is there, even if it is empty; never the password.
fn signed_token(auth: Option<&ConnectAuth>) -> &str {
    auth.and_then(|auth| {
        auth.token
            .as_ref()
            .or(auth.device_token.as_ref())
            .or(auth.bootstrap_token.as_ref())
    })
    .and_then(Secret::expose_str)
    .unwrap_or_default()
}
