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
use crate::config::{ConfigError, Resolver, ServerSecret};
use crate::hub::{Hub, Withdrawal};
use crate::session::SecretSource;

/// Where the shared secret of this Gateway comes from, and what it is.
pub struct Secrets {
    source: Source,
    state: Mutex<State>,
}

enum Source {
    /// Made for this process only.
    Fixed,
    Configured {
        secret: ServerSecret,
        resolver: Resolver,
        exec_interval: Duration,
    },
    /// Nobody comes in by one.
    Absent,
}

#[derive(Default)]
struct State {
    /// The last that resolved; `None` at the start.
    last: Option<Arc<ConfiguredSecret>>,
    since: u64,
    failing: bool,
    /// Another keeper has taken over; what this one still learns has no effect.
    retired: bool,
    checked_at: Option<Instant>,
}

impl Secrets {
    pub fn fixed(password: &Secret) -> Option<Self> {
        let last = Some(Arc::new(ConfiguredSecret::new(password)?));
        Some(Self {
            source: Source::Fixed,
            state: Mutex::new(State {
                last,
                ..State::default()
            }),
        })
    }

    /// Nothing is resolved before `settle`.
    pub fn configured(secret: Option<ServerSecret>, resolver: Resolver) -> Self {
        Self {
            source: match secret {
                Some(secret) => Source::Configured {
                    secret,
                    resolver,
                    exec_interval: limits::SECRET_EXEC_INTERVAL,
                },
                None => Source::Absent,
            },
            state: Mutex::default(),
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

    /// Whether it is the secret that `other` has now.
    pub fn is_the_same_as(&self, other: &Self) -> bool {
        let ours = self.state().last.clone();
        let theirs = other.state().last.clone();
        match (ours, theirs) {
            (Some(ours), Some(theirs)) => ours.equals(&theirs),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        }
    }

    /// Takes over, under the hub's number.
    pub fn begin(&self, since: u64) {
        self.state().since = since;
    }

    /// Gives over to another: what it raised is not to be attended to any more.
    pub fn end(&self, hub: &Hub) {
        self.state().retired = true;
        if let Source::Configured { secret, .. } = &self.source {
            hub.set_alarm(secret.setting, None);
        }
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
        if state.retired {
            return;
        }
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
            None if matches!(self.source, Source::Absent) => SharedSecret::NotConfigured,
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

#[cfg(test)]
mod tests {
    use super::super::tests::gateway;
    use super::*;
    use crate::config::{Env, ServerFlags, Settings};

    /// A keeper of what `sh` reads from a file, which it may be asked for again after `exec_interval`.
    fn keeper(dir: &std::path::Path, interval: Duration) -> Secrets {
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        let config = serde_json::json!({
            "gateway": {"auth": {"token": {"source": "exec", "provider": "sh", "id": "it"}}},
            "secrets": {"providers": {"sh": {
                "source": "exec", "command": shell, "args": ["-c", "cat $HOME/secret"],
                "passEnv": ["HOME"], "jsonOnly": false, "timeoutMs": 60000,
            }}},
        });
        let path = dir.join("openclaw.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let env = Env::given([("HOME", text(dir)), ("OPENCLAW_CONFIG_PATH", text(&path))]);
        let settings = Settings::load(&env, None).unwrap();
        let secret = settings.server(&ServerFlags::default()).unwrap().secret;
        let mut keeper = Secrets::configured(secret, settings.resolver);
        if let Source::Configured { exec_interval, .. } = &mut keeper.source {
            *exec_interval = interval;
        }
        keeper
    }

    #[test]
    fn k2_a_program_is_asked_off_the_path_of_attempts_and_k4_never_falls_back() {
        let (parts, _daemon, home) = gateway();
        let hub = &parts.hub;
        let file = home.path().join("secret");
        let opens = |keeper: &Secrets, secret: &str| match keeper.shared_secret(hub).0 {
            SharedSecret::Ready(it) => Some(it.matches(Some(secret.as_bytes()))),
            SharedSecret::Unresolved => Some(false),
            SharedSecret::Starting | SharedSecret::NotConfigured => None,
        };
        std::fs::write(&file, "the first secret").unwrap();
        let keeper = keeper(home.path(), Duration::ZERO);
        assert_eq!(opens(&keeper, "the first secret"), None);
        keeper.settle().unwrap();
        assert_eq!(opens(&keeper, "the first secret"), Some(true));
        std::fs::write(&file, "another secret").unwrap();
        // An attempt runs no program.
        assert_eq!(opens(&keeper, "the first secret"), Some(true));
        let before = keeper.shared_secret(hub).1;
        keeper.refresh(hub);
        assert_eq!(opens(&keeper, "the first secret"), Some(false));
        assert_eq!(opens(&keeper, "another secret"), Some(true));
        assert!(keeper.shared_secret(hub).1 > before);
        std::fs::remove_file(&file).unwrap();
        keeper.refresh(hub);
        assert_eq!(opens(&keeper, "another secret"), Some(false));
        assert_eq!(hub.alarms().len(), 1);
        // The same secret again is no rotation.
        let before = keeper.shared_secret(hub).1;
        std::fs::write(&file, "another secret").unwrap();
        keeper.refresh(hub);
        assert_eq!(opens(&keeper, "another secret"), Some(true));
        assert_eq!(keeper.shared_secret(hub).1, before);
        assert!(hub.alarms().is_empty());
    }

    #[test]
    fn k3_a_keeper_that_was_replaced_changes_nothing_any_more() {
        let (parts, _daemon, home) = gateway();
        let file = home.path().join("secret");
        std::fs::write(&file, "the first secret").unwrap();
        let keeper = keeper(home.path(), Duration::ZERO);
        keeper.settle().unwrap();
        let before = keeper.shared_secret(&parts.hub).1;
        keeper.end(&parts.hub);
        // Its program ends when another keeper is in force already.
        std::fs::write(&file, "another secret").unwrap();
        keeper.refresh(&parts.hub);
        std::fs::remove_file(&file).unwrap();
        keeper.refresh(&parts.hub);
        assert_eq!(keeper.shared_secret(&parts.hub).1, before);
        assert_eq!(parts.hub.next_standing(), before + 1, "no number was drawn");
        assert!(parts.hub.alarms().is_empty());
    }

    #[test]
    fn a_program_is_not_asked_twice_within_its_interval() {
        let (parts, _daemon, home) = gateway();
        let file = home.path().join("secret");
        std::fs::write(&file, "the first secret").unwrap();
        let keeper = keeper(home.path(), Duration::from_secs(3600));
        keeper.settle().unwrap();
        std::fs::remove_file(&file).unwrap();
        keeper.refresh(&parts.hub);
        assert!(parts.hub.alarms().is_empty());
    }
}
