//! What it means to run a command: the plan, its text, its environment, its policy and its output.
//!
//! Shared by the Gateway and the node host, so that both judge the same command by the same code.
//! In: argument vectors, environments, policies, bytes of output. Out: plans, texts, verdicts, capped texts.
//! Attacker controls: every argument, name and value, and all output of a command.
//! Bounds: `plan::ARGV_BYTES_MAX`, `env::OVERRIDES_MAX`, `wrappers::DEPTH_MAX`, and the cap given to `output::Capped`.
//! Errors: one enum per module; each says what to change.

pub mod argv_text;
