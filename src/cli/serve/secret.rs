//! The keeper of the shared secret.
//!
//! In: the configured reference. Out: the secret as it stands now, with the hub's number of it. What the environment or
//! a file holds is read at every attempt; what a provider's program prints is kept for `SECRET_EXEC_INTERVAL`, and the
//! program never runs on an attempt's time. A secret that no longer resolves admits nobody: the one before it is kept
//! only to be compared with the next, so that a rotation is noticed (rows K2, K4).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::audit;
use crate::auth::admission::SharedSecret;
use crate::auth::secret_eq::ConfiguredSecret;
use crate::base::{Secret, limits};
use crate::config::{ConfigError, Resolver, SecretKind, ServerSecret};
use crate::hub::{Hub, Withdrawal};
use crate::session::SecretSource;

/// Where the shared secret of this Gateway comes from, and what it is.
pub struct Secrets {
    source: Source,
    state: Mutex<State>,
}

enum Source {
    /// Made for this process only.
    Fixed(SecretKind),
    Configured {
        secret: ServerSecret,
        resolver: Resolver,
        exec_interval: Duration,
    },
}

#[derive(Default)]
struct State {
    /// The last that resolved; `None` at the start.
    last: Option<Arc<ConfiguredSecret>>,
    since: u64,
    failing: bool,
    checked_at: Option<Instant>,
}

impl Secrets {
    pub fn fixed(password: &Secret) -> Option<Self> {
        let last = Some(Arc::new(ConfiguredSecret::new(password)?));
        Some(Self {
            source: Source::Fixed(SecretKind::Password),
            state: Mutex::new(State {
                last,
                ..State::default()
            }),
        })
    }

    /// Nothing is resolved before `settle`.
    pub fn configured(secret: ServerSecret, resolver: Resolver) -> Self {
        Self {
            source: Source::Configured {
                secret,
                resolver,
                exec_interval: limits::SECRET_EXEC_INTERVAL,
            },
            state: Mutex::default(),
        }
    }

    pub fn mode_name(&self) -> &'static str {
        let kind = match &self.source {
            Source::Fixed(kind) => *kind,
            Source::Configured { secret, .. } => secret.kind,
        };
        match kind {
            SecretKind::Token => "token",
            SecretKind::Password => "password",
        }
    }

    /// Whether resolving runs a program.
    pub fn takes_time(&self) -> bool {
        matches!(&self.source, Source::Configured { secret, .. } if secret.takes_time())
    }

    /// The first resolution. What fails here refuses to start.
    pub fn settle(&self) -> Result<(), ConfigError> {
        let Source::Configured {
            secret, resolver, ..
        } = &self.source
        else {
            return Ok(());
        };
        let resolved = configured(secret, resolver)?.1;
        let mut state = self.state();
        state.checked_at = Some(Instant::now());
        state.last.get_or_insert(Arc::new(resolved));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a few assignments after all that may fail.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what was resolved.
    fn take(
        state: &mut State,
        hub: &Hub,
        setting: &'static str,
        outcome: Result<(Secret, ConfiguredSecret), ConfigError>,
    ) {
        let note = |change| hub.note(&audit::Event::SecretChanged { setting, change });
        state.checked_at = Some(Instant::now());
        let (text, resolved) = match outcome {
            Ok(found) => found,
            Err(error) => {
                if !state.failing {
                    state.failing = true;
                    tracing::error!(setting, %error, "the shared secret no longer resolves and admits nobody");
                    hub.set_alarm(setting, Some(error.to_string()));
                    note("unresolved");
                }
                return;
            }
        };
        if state.failing {
            state.failing = false;
            tracing::warn!(setting, "the shared secret resolves again");
            hub.set_alarm(setting, None);
            note("resolved");
        }
        let same = |last: &Arc<ConfiguredSecret>| last.matches(Some(text.expose()));
        if !state.last.as_ref().is_some_and(same) {
            note("rotated");
            state.since = hub.next_standing();
            state.last = Some(Arc::new(resolved));
            let closed = hub.withdraw(Withdrawal::Secret, state.since);
            tracing::warn!(setting, closed, "the shared secret was rotated");
        }
    }
}

fn configured(
    secret: &ServerSecret,
    resolver: &Resolver,
) -> Result<(Secret, ConfiguredSecret), ConfigError> {
    let text = secret.resolve(resolver)?;
    let digest = ConfiguredSecret::new(&text).ok_or(ConfigError::NoSecret)?;
    Ok((text, digest))
}

impl SecretSource for Secrets {
    fn shared_secret(&self, hub: &Hub) -> (SharedSecret, u64) {
        let mut state = self.state();
        if let (
            Source::Configured {
                secret, resolver, ..
            },
            false,
            Some(_),
        ) = (&self.source, self.takes_time(), &state.last)
        {
            // Read under the lock: of two attempts, the later one never ends with the older secret.
            let outcome = configured(secret, resolver);
            Self::take(&mut state, hub, secret.setting, outcome);
        }
        let secret = match &state.last {
            _ if state.failing => SharedSecret::Unresolved,
            Some(secret) => SharedSecret::Ready(Arc::clone(secret)),
            None => SharedSecret::Starting,
        };
        (secret, state.since)
    }

    fn refresh(&self, hub: &Hub) {
        let Source::Configured {
            secret,
            resolver,
            exec_interval,
        } = &self.source
        else {
            return;
        };
        if !self.takes_time() {
            self.shared_secret(hub);
            return;
        }
        let checked_at = self.state().checked_at;
        if checked_at.is_none_or(|at| at.elapsed() >= *exec_interval) {
            let outcome = configured(secret, resolver);
            Self::take(&mut self.state(), hub, secret.setting, outcome);
        }
    }
}
