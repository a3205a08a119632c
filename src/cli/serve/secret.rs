//! The configured secret, read anew at every attempt.

use std::sync::Arc;

use crate::auth::admission::SharedSecret;
use crate::auth::secret_eq::ConfiguredSecret;
use crate::base::Secret;
use crate::config::{Resolver, SecretKind, ServerSecret};
use crate::session::SecretSource;

/// Where the shared secret of this Gateway comes from.
pub struct Secrets(Source);

enum Source {
    /// Made for this process only.
    Fixed(Arc<ConfiguredSecret>, SecretKind),
    /// From the configuration: a file or variable may be changed at any time, and counts at the next attempt.
    Configured {
        secret: ServerSecret,
        resolver: Resolver,
    },
}

impl Secrets {
    pub fn fixed(password: &Secret) -> Option<Self> {
        let configured = ConfiguredSecret::new(password)?;
        Some(Self(Source::Fixed(
            Arc::new(configured),
            SecretKind::Password,
        )))
    }

    pub fn configured(secret: ServerSecret, resolver: Resolver) -> Self {
        Self(Source::Configured { secret, resolver })
    }

    pub fn mode_name(&self) -> &'static str {
        let kind = match &self.0 {
            Source::Fixed(_, kind) => *kind,
            Source::Configured { secret, .. } => secret.kind,
        };
        match kind {
            SecretKind::Token => "token",
            SecretKind::Password => "password",
        }
    }
}

impl SecretSource for Secrets {
    fn shared_secret(&self) -> SharedSecret {
        match &self.0 {
            Source::Fixed(secret, _) => SharedSecret::Ready(Arc::clone(secret)),
            Source::Configured { secret, resolver } => match secret.resolve(resolver) {
                Ok(resolved) => ConfiguredSecret::new(&resolved)
                    .map_or(SharedSecret::NotConfigured, |configured| {
                        SharedSecret::Ready(Arc::new(configured))
                    }),
                Err(error) => {
                    tracing::error!(setting = secret.setting, %error, "the shared secret no longer resolves");
                    SharedSecret::Unresolved
                }
            },
        }
    }
}
