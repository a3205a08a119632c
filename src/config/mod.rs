//! The config: `openclaw.json` as JSON5, parsed once into settings.
//!
//! In: the file, the environment, flags. Out: [`Settings`], which the assembly hands to the modules that own them;
//! nothing below this layer imports it. Attacker controls: nothing, unless they can write the file; then the mode
//! and owner checks refuse it. Bounds: bytes, depth and list lengths. Errors: [`ConfigError`], each naming the
//! setting and the value that would be right; all exit with 78.

mod env;
mod error;
mod exec_provider;
mod load;
mod reader;
mod resolve;
mod schema;
mod secret_ref;
mod server;
mod tls;
mod tree;

#[cfg(test)]
mod tests;

pub use env::Env;
pub use error::ConfigError;
pub use exec_provider::{ReplyError, parse_reply};
pub use load::Paths;
pub use resolve::{
    Auth, AuthMode, Bind, CommandRules, ControlUi, Exec, ExecMode, Gateway, GatewayMode, Nodes,
    PORT_DEFAULT, Proxy, RateLimit, Remote, Settings, TailscaleMode,
};
pub use schema::Ineffective;
pub use secret_ref::{Resolver, SecretInput, SecretRef, Source, check_strength, parse_secret};
pub use server::{ServerFlags, ServerSecret, ServerSettings};
pub use tls::Tls;
