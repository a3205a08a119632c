//! What admission may ask its caller to look up, and the answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{AdmissionRefusal, Failed, Refused, Step, Stop};
use crate::auth::device::PublicKey;
use crate::auth::permission::PermissionRefusal;
use crate::auth::rate_limit::{Class, Limit, LimitKey};
use crate::auth::scope::{Role, Scope, ScopeSet};
use crate::auth::secret_eq::{ConfiguredSecret, TokenDigest};
use crate::auth::whois::Whois;
use crate::base::{DeviceId, limits};
use crate::ingress::Attributed;

/// One look-up. Each is asked for at most once, and only when every cheaper check has passed.
#[derive(Clone, Debug)]
pub enum Fact {
    /// `rate_limit::Limiter::check`, before anything secret is compared.
    Limit {
        key: LimitKey,
        class: Class,
        exempt: bool,
    },
    /// The secret of the configured mode, resolved now (K2).
    SharedSecret,
    /// The pairing record of a device that has proved its key.
    Device(DeviceId),
    /// Whether an operator removed or rejected this device, which is not paired.
    TurnedAway(DeviceId),
    /// The sign-in link with this token.
    SignInLink(TokenDigest),
    /// The local Tailscale daemon's word on an address.
    Whois(IpAddr),
    /// The live device token with this digest: over HTTP nobody proves a device's key.
    TokenHolder(TokenDigest),
}

/// The answer to a `Fact`, variant by variant.
#[derive(Clone)]
pub enum Answer {
    Limit(Limit),
    SharedSecret(SharedSecret),
    Device(Option<KnownDevice>),
    TurnedAway(bool),
    SignInLink(Option<SignInLink>),
    Whois(Whois),
    TokenHolder(Option<TokenHolder>),
}

/// Whose device token it is, and what it carries.
#[derive(Clone, Debug)]
pub struct TokenHolder {
    pub device: DeviceId,
    pub role: Role,
    pub scopes: ScopeSet,
}

/// The state of the configured secret.
#[derive(Clone)]
pub enum SharedSecret {
    Ready(Arc<ConfiguredSecret>),
    NotConfigured,
    /// The process has not resolved its secrets yet (decision 18).
    Starting,
    /// It was resolved once and can no longer be: it admits nobody (K4).
    Unresolved,
}

/// What the server's record says about a paired device.
#[derive(Clone, Debug)]
pub struct KnownDevice {
    pub public_key: PublicKey,
    /// As `device::pinned_metadata` writes it.
    pub platform: String,
    /// As `device::pinned_metadata` writes it.
    pub device_family: String,
    pub grants: Vec<Grant>,
}

/// What was approved for one role of a device.
#[derive(Clone, Debug)]
pub struct Grant {
    pub role: Role,
    pub scopes: ScopeSet,
    /// `None`: none was issued yet, or it was revoked or rotated away.
    pub token: Option<TokenDigest>,
    /// What that token carries; a rotation may have left it less than was approved.
    pub token_scopes: ScopeSet,
}

impl KnownDevice {
    pub fn grant(&self, role: Role) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.role == role)
    }
}

/// A single-use sign-in link: one browser operator's approval in advance (B1, B2). It never holds the shared secret.
#[derive(Clone, Debug)]
pub struct SignInLink {
    pub scopes: ScopeSet,
    pub expires_at_ms: u64,
    pub used: bool,
}

impl SignInLink {
    /// A new link, for at most these scopes and `limits::SIGN_IN_LINK_TTL`. Who makes one must hold `operator.admin`,
    /// because it is an approval in advance (B3).
    pub fn mint(maker: ScopeSet, scopes: ScopeSet, now_ms: u64) -> Result<Self, PermissionRefusal> {
        if !maker.contains(Scope::Admin) {
            return Err(PermissionRefusal::Scope(Scope::Admin));
        }
        let ttl_ms = u64::try_from(limits::SIGN_IN_LINK_TTL.as_millis()).unwrap_or(0);
        Ok(Self {
            scopes,
            expires_at_ms: now_ms.saturating_add(ttl_ms),
            used: false,
        })
    }
}

/// The answers so far.
#[derive(Default)]
pub(super) struct Facts {
    /// What the last step asked for.
    asked: Option<Fact>,
    pub(super) limits: Vec<((LimitKey, Class), Limit)>,
    pub(super) shared_secret: Option<SharedSecret>,
    pub(super) device: Option<Option<KnownDevice>>,
    pub(super) turned_away: Option<bool>,
    pub(super) link: Option<Option<SignInLink>>,
    pub(super) whois: Option<Whois>,
    pub(super) holder: Option<Option<TokenHolder>>,
}

impl Facts {
    /// Makes a step of what was decided, or could not yet be.
    pub(super) fn step<T>(
        &mut self,
        decided: Result<T, Stop>,
        refuse: impl FnOnce(Refused) -> T,
        failed: Failed,
    ) -> Step<T> {
        let verdict = match decided {
            Ok(verdict) => verdict,
            Err(Stop::Refuse(refused)) => refuse(refused),
            Err(Stop::Need(fact)) => {
                self.asked = Some(fact.clone());
                return Step::Need(fact);
            }
        };
        Step::Done(Box::new(verdict), failed)
    }

    /// Files an answer. One to another question is dropped, so that the same question is asked again.
    pub(super) fn answer(&mut self, answer: Answer) {
        match (self.asked.take(), answer) {
            (Some(Fact::Limit { key, class, .. }), Answer::Limit(limit)) => {
                self.limits.push(((key, class), limit));
            }
            (Some(Fact::SharedSecret), Answer::SharedSecret(it)) => self.shared_secret = Some(it),
            (Some(Fact::Device(_)), Answer::Device(it)) => self.device = Some(it),
            (Some(Fact::TurnedAway(_)), Answer::TurnedAway(it)) => self.turned_away = Some(it),
            (Some(Fact::SignInLink(_)), Answer::SignInLink(it)) => self.link = Some(it),
            (Some(Fact::Whois(_)), Answer::Whois(it)) => self.whois = Some(it),
            (Some(Fact::TokenHolder(_)), Answer::TokenHolder(it)) => self.holder = Some(it),
            _ => {}
        }
    }

    /// The limiter's word on an attempt: by how much an unpaired caller is slowed, or the refusal of a lock-out. Nothing
    /// secret is compared before.
    pub(super) fn limit(
        &self,
        attributed: &Attributed,
        key: &LimitKey,
        class: Class,
    ) -> Result<Result<Duration, AdmissionRefusal>, Fact> {
        let asked = |((it, of), _): &&((LimitKey, Class), Limit)| it == key && *of == class;
        match self.limits.iter().find(asked) {
            Some((_, Limit::Open { slow })) => Ok(Ok(*slow)),
            Some((_, Limit::Locked { retry_after })) => {
                let retry_after = *retry_after;
                Ok(Err(AdmissionRefusal::RateLimited { retry_after }))
            }
            None => Err(Fact::Limit {
                key: key.clone(),
                class,
                exempt: attributed.is_direct_local(),
            }),
        }
    }

    pub(super) fn shared_secret(&self) -> Result<&SharedSecret, Fact> {
        self.shared_secret.as_ref().ok_or(Fact::SharedSecret)
    }
}
