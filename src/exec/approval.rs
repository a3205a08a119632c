//! One approval: for whom, on which node, for exactly what, until when, once.
//!
//! In: an approval that the Gateway keeps, and a request that leans on it. Out: the decision to put on the wire, once, or
//! why not. Attacker controls: the request. Bounds: two SHA-256 per check. Errors: `ApprovalError`, in the reference's
//! sentences.

use std::fmt;

use ring::digest::{Context, SHA256};

use crate::base::{ConnId, DeviceId};
use crate::exec::env::Overrides;

/// What an operator said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    AllowOnce,
    AllowAlways,
    Deny,
}

impl Decision {
    /// Anything but the two exact words of consent is a denial (X11).
    pub fn parse(word: &str) -> Self {
        match word {
            "allow-once" => Self::AllowOnce,
            "allow-always" => Self::AllowAlways,
            _ => Self::Deny,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowOnce => "allow-once",
            Self::AllowAlways => "allow-always",
            Self::Deny => "deny",
        }
    }

    pub fn allows(self) -> bool {
        self != Self::Deny
    }
}

/// Who may use an approval: the one for whom it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    Device(DeviceId),
    /// A client without a device; its approval ends with its connection.
    Connection(ConnId),
    /// An agent's turn, by its run id.
    Turn(String),
}

/// Digests of what an approval is for. The environment has one of its own because the reference tells the two apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    request: [u8; 32],
    env: [u8; 32],
}

/// The parts of a request that an approval is for.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    pub argv: &'a [String],
    pub cwd: Option<&'a str>,
    pub env: &'a Overrides,
    pub agent_id: Option<&'a str>,
    pub session_key: Option<&'a str>,
}

impl Binding {
    pub fn of(bound: &Bound<'_>) -> Self {
        let mut request = Fields::new();
        request.count(bound.argv.len());
        for arg in bound.argv {
            request.field(Some(arg));
        }
        request.field(bound.cwd);
        request.field(bound.agent_id);
        request.field(bound.session_key);
        let mut env = Fields::new();
        for (name, value) in bound.env {
            env.field(Some(name));
            env.field(Some(value));
        }
        Self {
            request: request.finish(),
            env: env.finish(),
        }
    }
}

/// SHA-256 over fields that each say their length, so that no two lists of fields are the same bytes.
struct Fields(Context);

impl Fields {
    fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    fn count(&mut self, count: usize) {
        self.0.update(&(count as u64).to_be_bytes());
    }

    fn field(&mut self, field: Option<&str>) {
        match field {
            None => self.0.update(&[0]),
            Some(text) => {
                self.0.update(&[1]);
                self.count(text.len());
                self.0.update(text.as_bytes());
            }
        }
    }

    fn finish(self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

/// A decision that may be used once. The Gateway puts control fields on the wire from this record alone.
#[derive(Clone, Debug)]
pub struct Approval {
    pub run_id: String,
    pub caller: Caller,
    pub node: DeviceId,
    pub binding: Binding,
    pub decision: Decision,
    pub expires_at_ms: u64,
    pub used: bool,
}

/// A request that leans on an approval.
#[derive(Clone, Debug)]
pub struct Use<'a> {
    pub run_id: &'a str,
    pub caller: &'a Caller,
    pub node: &'a DeviceId,
    pub binding: &'a Binding,
    pub now_ms: u64,
}

/// Why an approval does not cover a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApprovalError {
    /// There is none: not this id, denied, used or expired. The reference answers them alike.
    Required,
    WrongRequest,
    WrongNode,
    WrongCaller,
    WrongEnv,
}

impl fmt::Display for ApprovalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Required => "approval required",
            Self::WrongRequest => "approval id does not match request",
            Self::WrongNode => "approval id not valid for this node",
            Self::WrongCaller => "approval id not valid for this client/device",
            Self::WrongEnv => "approval id env binding mismatch",
        })
    }
}

impl Approval {
    /// Whether the approval covers the request; changes nothing.
    pub fn check(&self, request: &Use<'_>) -> Result<Decision, ApprovalError> {
        let live = !self.used
            && self.decision.allows()
            && request.now_ms < self.expires_at_ms
            && self.run_id == request.run_id;
        if !live {
            return Err(ApprovalError::Required);
        }
        // Whose it is comes first: a stranger learns nothing about what was approved.
        if self.caller != *request.caller {
            return Err(ApprovalError::WrongCaller);
        }
        if self.node != *request.node {
            return Err(ApprovalError::WrongNode);
        }
        if self.binding.request != request.binding.request {
            return Err(ApprovalError::WrongRequest);
        }
        if self.binding.env != request.binding.env {
            return Err(ApprovalError::WrongEnv);
        }
        Ok(self.decision)
    }

    /// Checks and uses up the approval. A request that it does not cover leaves it as it was: otherwise anybody could
    /// burn it by guessing its id.
    pub fn redeem(&mut self, request: &Use<'_>) -> Result<Decision, ApprovalError> {
        let decision = self.check(request)?;
        self.used = true;
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(digit: u8) -> DeviceId {
        DeviceId::from_digest([digit; 32])
    }

    fn argv(args: &[&str]) -> Vec<String> {
        args.iter().map(|arg| (*arg).to_owned()).collect()
    }

    fn binding(args: &[&str], env: &[(&str, &str)]) -> Binding {
        let env = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Binding::of(&Bound {
            argv: &argv(args),
            cwd: Some("/w"),
            env: &env,
            agent_id: Some("main"),
            session_key: None,
        })
    }

    fn approval() -> Approval {
        Approval {
            run_id: "r1".into(),
            caller: Caller::Device(device(1)),
            node: device(2),
            binding: binding(&["ls", " x"], &[]),
            decision: Decision::AllowOnce,
            expires_at_ms: 1000,
            used: false,
        }
    }

    fn attempt(
        binding: &Binding,
        caller: u8,
        node: u8,
        run_id: &str,
        now_ms: u64,
    ) -> Result<Decision, ApprovalError> {
        approval().redeem(&Use {
            run_id,
            caller: &Caller::Device(device(caller)),
            node: &device(node),
            binding,
            now_ms,
        })
    }

    #[test]
    fn x1_exact_request_node_and_caller() {
        let same = binding(&["ls", " x"], &[]);
        assert_eq!(attempt(&same, 1, 2, "r1", 999), Ok(Decision::AllowOnce));
        assert_eq!(
            attempt(&binding(&["ls", "x"], &[]), 1, 2, "r1", 0),
            Err(ApprovalError::WrongRequest)
        );
        assert_eq!(attempt(&same, 1, 3, "r1", 0), Err(ApprovalError::WrongNode));
        assert_eq!(
            attempt(&same, 9, 2, "r1", 0),
            Err(ApprovalError::WrongCaller)
        );
        assert_eq!(attempt(&same, 1, 2, "r2", 0), Err(ApprovalError::Required));
        let one_connection = |n| Caller::Connection(ConnId::from_random([n; 16]));
        assert_ne!(one_connection(1), one_connection(2));
    }

    #[test]
    fn x3_the_environment_is_bound_too() {
        let other_env = binding(&["ls", " x"], &[("LD_PRELOAD", "/tmp/x")]);
        let refused = attempt(&other_env, 1, 2, "r1", 0).unwrap_err();
        assert_eq!(refused.to_string(), "approval id env binding mismatch");
    }

    #[test]
    fn x9_once_and_in_time() {
        let same = binding(&["ls", " x"], &[]);
        assert_eq!(
            attempt(&same, 1, 2, "r1", 1000),
            Err(ApprovalError::Required)
        );
        let mut it = approval();
        let caller = Caller::Device(device(1));
        let node = device(2);
        let ours = Use {
            run_id: "r1",
            caller: &caller,
            node: &node,
            binding: &same,
            now_ms: 1,
        };
        let elsewhere = device(7);
        assert!(
            it.redeem(&Use {
                node: &elsewhere,
                ..ours.clone()
            })
            .is_err()
        );
        assert!(it.redeem(&ours).is_ok(), "a wrong use burned it");
        assert_eq!(it.redeem(&ours), Err(ApprovalError::Required));
    }

    #[test]
    fn x11_unknown_decisions_deny() {
        for word in [
            "allow_always",
            "allow-always ",
            "yes",
            "",
            "Allow-Once",
            "deny",
        ] {
            assert_eq!(Decision::parse(word), Decision::Deny, "{word:?}");
        }
        let mut denied = approval();
        denied.decision = Decision::Deny;
        let same = denied.binding.clone();
        let caller = denied.caller.clone();
        let node = denied.node.clone();
        let ours = Use {
            run_id: "r1",
            caller: &caller,
            node: &node,
            binding: &same,
            now_ms: 1,
        };
        assert_eq!(denied.redeem(&ours), Err(ApprovalError::Required));
    }

    #[test]
    fn fields_cannot_run_into_each_other() {
        let all = [
            binding(&["a", "b"], &[]),
            binding(&["ab"], &[]),
            binding(&["a", "b", ""], &[]),
            binding(&["a"], &[("b", "")]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one));
        }
        let none = Overrides::new();
        let args = argv(&["a"]);
        let bound = Bound {
            argv: &args,
            cwd: None,
            env: &none,
            agent_id: Some(""),
            session_key: None,
        };
        assert_ne!(
            Binding::of(&bound),
            Binding::of(&Bound {
                agent_id: None,
                ..bound
            })
        );
        assert_ne!(
            Binding::of(&bound),
            Binding::of(&Bound {
                agent_id: None,
                session_key: Some(""),
                ..bound
            })
        );
    }
}
