//! From one HTTP request to a verdict: the same secrets, limits and facts as for `connect`, without a device's proof.
//!
//! A Tailscale identity is never asked for here (T4), and a scope only ever comes from a setting or from the record of a
//! device: `x-openclaw-scopes` narrows it (H5).

use std::time::Duration;

use super::facts::{Answer, Fact, Facts};
use super::shared::{self, Check};
use super::{AdmissionRefusal, AuthMethod, Failed, Mode, Refused, Settings, Step, Stop};
use crate::auth::rate_limit::{Class, LimitKey};
use crate::auth::scope::{Role, ScopeSet};
use crate::auth::secret_eq::TokenDigest;
use crate::base::{DeviceId, Secret};
use crate::ingress::{Attributed, Client, ListenerClass, ProxyUserRefusal};

/// The credential of an `Authorization` header's value. Another scheme than `Bearer` carries none (decision 2).
pub fn bearer(value: &[u8]) -> Option<Secret> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && rest.starts_with(b" ");
    let secret = rest.trim_ascii();
    (is_bearer && !secret.is_empty()).then(|| Secret::new(secret))
}

/// A request that may be answered. Only this module makes one.
#[derive(Clone, Debug)]
pub struct AdmittedRequest {
    method: AuthMethod,
    role: Role,
    scopes: ScopeSet,
    device: Option<DeviceId>,
    user: Option<String>,
    from: Client,
    success: Option<(LimitKey, Class)>,
    slow: Duration,
}

impl AdmittedRequest {
    pub fn method(&self) -> AuthMethod {
        self.method
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub fn scopes(&self) -> ScopeSet {
        self.scopes
    }

    /// The device that the token was issued to. It proved no key.
    pub fn device(&self) -> Option<&DeviceId> {
        self.device.as_ref()
    }

    /// The user whom a trusted proxy vouches for.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Whom limits count.
    pub fn from(&self) -> Client {
        self.from
    }

    /// For `Limiter::success`.
    pub fn success(&self) -> Option<&(LimitKey, Class)> {
        self.success.as_ref()
    }

    /// How long to hold the answer back while strangers are guessing from everywhere.
    pub fn slow(&self) -> Duration {
        self.slow
    }
}

/// One request on its way to a verdict.
pub struct BearerAdmission {
    settings: Settings,
    attributed: Attributed,
    presented: Option<Secret>,
    facts: Facts,
}

impl BearerAdmission {
    pub fn new(settings: Settings, attributed: Attributed, presented: Option<Secret>) -> Self {
        Self {
            settings,
            attributed,
            presented,
            facts: Facts::default(),
        }
    }

    /// The next fact that is needed, or the verdict.
    pub fn step(&mut self) -> Step<Result<AdmittedRequest, Refused>> {
        let mut failed = Failed::new();
        let decided = self.decide(&mut failed).map(Ok);
        self.facts.step(decided, Err, failed)
    }

    /// Answers the fact that the last `step` asked for.
    pub fn answer(&mut self, answer: Answer) {
        self.facts.answer(answer);
    }

    fn decide(&self, failed: &mut Failed) -> Result<AdmittedRequest, Stop> {
        let mut admitted = self.authenticate(failed)?;
        if let Some(cap) = self.attributed.scopes_cap() {
            admitted.scopes = admitted.scopes.meet(ScopeSet::from_wire(cap));
        }
        Ok(admitted)
    }

    fn authenticate(&self, failed: &mut Failed) -> Result<AdmittedRequest, Stop> {
        let attributed = &self.attributed;
        if attributed.listener() == ListenerClass::Admin {
            return Ok(self.admitted(AuthMethod::LocalUser, ScopeSet::all()));
        }
        let presented = self.presented.as_ref().map(Secret::expose);
        if presented.is_some() && !attributed.is_private() {
            return Err(AdmissionRefusal::PlaintextCredential.into());
        }
        let operator = self.settings.local_operator_scopes;
        match (self.settings.mode, presented) {
            (Mode::None, _) if !shared::is_own_host(attributed) => {
                Err(AdmissionRefusal::NotLocal.into())
            }
            (Mode::None, _) if attributed.is_direct_local() => {
                Ok(self.admitted(AuthMethod::None, operator))
            }
            (Mode::None, _) => Ok(self.admitted(AuthMethod::None, ScopeSet::NONE)),
            (Mode::TrustedProxy, None) => self.proxy_user(),
            // The proxy's users have no shared secret; for programs on this host a password may be configured.
            (Mode::TrustedProxy, Some(secret)) => {
                self.secret(secret, attributed.is_direct_local(), failed)
            }
            (Mode::Token | Mode::Password, Some(secret)) => self.secret(secret, true, failed),
            (Mode::Token | Mode::Password, None) => {
                Err(shared::missing(&self.facts, shared::kind(self.settings.mode))?.into())
            }
        }
    }

    /// The proxy's word says who it is and nothing of what they may do (S2), so that needs a device's token.
    fn proxy_user(&self) -> Result<AdmittedRequest, Stop> {
        match self.attributed.proxy_user() {
            Some(Ok(user)) => Ok(AdmittedRequest {
                user: Some(user.clone()),
                ..self.admitted(AuthMethod::TrustedProxy, ScopeSet::NONE)
            }),
            Some(Err(refusal)) => Err(AdmissionRefusal::ProxyUser(refusal.clone()).into()),
            None => Err(AdmissionRefusal::ProxyUser(ProxyUserRefusal::UntrustedSource).into()),
        }
    }

    /// The shared secret, then a device's token. Who guesses at either is counted by address; a lock-out does not keep a
    /// paired device out, whose token nobody guesses.
    fn secret(
        &self,
        secret: &[u8],
        shared_counts: bool,
        failed: &mut Failed,
    ) -> Result<AdmittedRequest, Stop> {
        let kind = shared::kind(self.settings.mode);
        let wrong = if shared_counts {
            let presented = [Some(secret), None];
            match shared::check(&self.facts, &self.attributed, kind, presented, failed)? {
                Check::Right { success, slow } => {
                    return Ok(AdmittedRequest {
                        success: Some(success),
                        slow,
                        ..self.admitted(kind.method(), self.settings.local_operator_scopes)
                    });
                }
                Check::Wrong => AdmissionRefusal::SecretMismatch {
                    kind,
                    may_retry_with_device_token: false,
                },
                Check::Not(refusal) => refusal,
            }
        } else {
            let counted = (LimitKey::from(self.attributed.client()), Class::DeviceToken);
            match self.facts.limit(&self.attributed, &counted.0, counted.1)? {
                Ok(_) => {
                    failed.push(counted);
                    AdmissionRefusal::DeviceTokenMismatch
                }
                Err(locked) => locked,
            }
        };
        let Some(holder) = &self.facts.holder else {
            return Err(Fact::TokenHolder(TokenDigest::of(secret)).into());
        };
        if let Some(holder) = holder {
            // A right one, so no guess at the other kind.
            failed.clear();
            return Ok(AdmittedRequest {
                role: holder.role,
                device: Some(holder.device.clone()),
                ..self.admitted(AuthMethod::DeviceToken, holder.scopes)
            });
        }
        Err(wrong.into())
    }

    fn admitted(&self, method: AuthMethod, scopes: ScopeSet) -> AdmittedRequest {
        AdmittedRequest {
            method,
            role: Role::Operator,
            scopes,
            device: None,
            user: None,
            from: self.attributed.client(),
            success: None,
            slow: Duration::ZERO,
        }
    }
}
