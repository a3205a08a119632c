//! Approvals: for whom, on which node, for exactly what, until when, once.
//!
//! In: requests for an approval, decisions, and requests that lean on one. Out: whether a decision counts, and the plan
//! that may be put on the wire, once. Attacker controls: ids, decisions, and what leans on an approval.
//! Bounds: `APPROVALS_MAX` records of `APPROVALS_BYTES_MAX` together. Errors: `DecideError`, `ApprovalError`, in the reference's sentences.
//!
//! requested -> decided (allow-once | allow-always | deny) -> used, once; or ended: expired, cancelled.

use std::collections::VecDeque;
use std::fmt;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::base::limits::{APPROVALS_BYTES_MAX, APPROVALS_MAX};
use crate::base::names::names;
use crate::base::{ConnId, DeviceId};
use crate::exec::env::Overrides;
use crate::exec::plan::{Plan, Prepared};

names! {
    /// What an operator said.
    pub enum Decision {
        AllowOnce = "allow-once",
        AllowAlways = "allow-always",
        Deny = "deny",
    }
}

impl Decision {
    /// Anything but the two exact words of consent is a denial (X11).
    pub fn parse(word: &str) -> Self {
        Self::from_wire(word).unwrap_or(Self::Deny)
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

/// Digests of what an approval is for: the whole plan (argv, cwd, agent, session, the file's hash, the node's policy), and
/// the environment apart, because the reference tells the two apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binding {
    pub plan: [u8; 32],
    pub env: [u8; 32],
}

impl Binding {
    pub fn of(plan: &Plan, env: &Overrides) -> Self {
        Self {
            plan: digest_of(plan),
            env: digest_of(env),
        }
    }

    /// Both in one, for people and for the record.
    pub fn sha256(&self) -> [u8; 32] {
        digest_of(&(self.plan, self.env))
    }
}

/// JSON says where each string ends, so no two values are the same bytes.
fn digest_of(value: &impl Serialize) -> [u8; 32] {
    let json = serde_json::to_vec(value).expect("strings and numbers are representable as JSON");
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, &json).as_ref());
    out
}

/// What somebody wants to run.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub id: String,
    pub caller: Caller,
    /// The device that asks, also by a turn.
    pub device: Option<DeviceId>,
    pub node: DeviceId,
    pub prepared: Prepared,
    pub env: Overrides,
    /// Whether the node could keep a rule for it; only then may the answer be `allow-always`.
    pub may_always: bool,
    pub created_at_ms: u64,
    pub expires_at_ms: u64,
}

impl Wanted {
    /// What others chose the length of.
    fn bytes(&self) -> usize {
        let env = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len());
        self.id.len() + self.prepared.raw.get().len() + env.sum::<usize>()
    }
}

/// Why an approval ended without being used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ended {
    Expired,
    /// The turn or the connection that asked is over.
    Cancelled,
}

impl Ended {
    /// The reference's `terminalReason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "timeout",
            Self::Cancelled => "run-aborted",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Pending,
    Decided(Decision),
    /// The decision was carried out.
    Used(Decision),
    Ended(Ended),
}

/// One approval, from its request to its end. The Gateway puts control fields on the wire from this record alone.
#[derive(Clone, Debug)]
pub struct Approval {
    pub wanted: Wanted,
    pub binding: Binding,
    pub state: State,
    /// When it was decided or ended, and by whom if it was decided.
    pub closed_at_ms: Option<u64>,
    pub decided_by: Option<Caller>,
}

impl Approval {
    pub fn new(wanted: Wanted) -> Self {
        Self {
            binding: Binding::of(&wanted.prepared.plan, &wanted.env),
            wanted,
            state: State::Pending,
            closed_at_ms: None,
            decided_by: None,
        }
    }

    /// What may be answered, in the reference's order.
    pub fn allowed_decisions(&self) -> &'static [&'static str] {
        if self.wanted.may_always {
            &["allow-once", "allow-always", "deny"]
        } else {
            &["allow-once", "deny"]
        }
    }

    fn is_pending(&self, now_ms: u64) -> bool {
        self.state == State::Pending && now_ms < self.wanted.expires_at_ms
    }

    /// Whether it can still lead to an execution.
    fn is_live(&self, now_ms: u64) -> bool {
        let open = match self.state {
            State::Pending => true,
            State::Decided(decision) => decision.allows(),
            State::Used(_) | State::Ended(_) => false,
        };
        open && now_ms < self.wanted.expires_at_ms
    }

    /// Whether the approval covers what leans on it; changes nothing.
    pub fn check(&self, used: &Use<'_>) -> Result<Decision, ApprovalError> {
        let decision = match self.state {
            State::Decided(decision) if self.is_live(used.now_ms) => decision,
            _ => return Err(ApprovalError::Required),
        };
        // Whose it is comes first: a stranger learns nothing about what was approved.
        if self.wanted.caller != *used.caller {
            return Err(ApprovalError::WrongCaller);
        }
        if self.wanted.node != *used.node {
            return Err(ApprovalError::WrongNode);
        }
        if self.binding.plan != used.binding.plan {
            return Err(ApprovalError::WrongRequest);
        }
        if self.binding.env != used.binding.env {
            return Err(ApprovalError::WrongEnv);
        }
        Ok(decision)
    }
}

/// A request that leans on an approval.
#[derive(Clone, Debug)]
pub struct Use<'a> {
    pub caller: &'a Caller,
    pub node: &'a DeviceId,
    pub binding: &'a Binding,
    pub now_ms: u64,
}

/// Why an approval does not cover a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ApprovalError {
    /// There is none: not this id, not decided, denied, used or expired. The reference answers them alike.
    Required,
    WrongRequest,
    WrongNode,
    WrongCaller,
    WrongEnv,
}

impl ApprovalError {
    pub fn detail_code(self) -> &'static str {
        match self {
            Self::Required => "APPROVAL_REQUIRED",
            Self::WrongRequest => "APPROVAL_REQUEST_MISMATCH",
            Self::WrongNode => "APPROVAL_NODE_MISMATCH",
            Self::WrongCaller => "APPROVAL_CLIENT_MISMATCH",
            Self::WrongEnv => "APPROVAL_ENV_MISMATCH",
        }
    }
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

/// Why nobody allowed what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Unapproved {
    /// Nobody who could decide is connected, so nobody was asked (decision 25).
    NoApprover,
    Denied,
    Ended(Ended),
}

impl fmt::Display for Unapproved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoApprover => "approval required: nobody who could approve is connected",
            Self::Denied => "approval denied by an operator",
            Self::Ended(Ended::Expired) => "approval required: nobody decided in time",
            Self::Ended(Ended::Cancelled) => "approval required: the request was withdrawn",
        })
    }
}

/// Why a request or a decision is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DecideError {
    /// No such id, or expired, or cancelled, or lost with a restart.
    NotFound,
    AlreadyResolved,
    AlwaysUnavailable,
    /// The id that the caller chose is taken.
    IdTaken,
    /// A word that is no decision. It has denied (X11).
    Unknown,
    /// As many are open as may be, or as long ones.
    Full,
}

impl DecideError {
    /// The reference's `details.reason`.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::NotFound => Some("APPROVAL_NOT_FOUND"),
            Self::AlreadyResolved => Some("APPROVAL_ALREADY_RESOLVED"),
            Self::AlwaysUnavailable => Some("APPROVAL_ALLOW_ALWAYS_UNAVAILABLE"),
            Self::IdTaken | Self::Unknown | Self::Full => None,
        }
    }
}

impl fmt::Display for DecideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("unknown or expired approval id"),
            Self::AlreadyResolved => f.write_str("approval already resolved"),
            Self::AlwaysUnavailable => f.write_str("allow-always is unavailable for this request"),
            Self::IdTaken => f.write_str("approval id already pending"),
            Self::Unknown => f.write_str("invalid decision"),
            Self::Full => f.write_str("too many approvals are open already, or too long ones"),
        }
    }
}

/// All approvals that can still be decided or used, and the latest of those that cannot. Lost with the process: what
/// nobody decided before a restart is asked again.
#[derive(Default)]
pub struct Approvals(VecDeque<Approval>);

impl Approvals {
    /// Whether this one could be entered now.
    pub fn has_room(&self, wanted: &Wanted, now_ms: u64) -> Result<(), DecideError> {
        if self.get(&wanted.id).is_some() {
            return Err(DecideError::IdTaken);
        }
        let bytes: usize = self.live(now_ms).map(Wanted::bytes).sum();
        if self.live(now_ms).count() >= APPROVALS_MAX
            || bytes + wanted.bytes() > APPROVALS_BYTES_MAX
        {
            return Err(DecideError::Full);
        }
        Ok(())
    }

    /// Enters a new one; the oldest that are over give way. Full and nothing over: it is not entered.
    pub fn open(&mut self, approval: Approval, now_ms: u64) {
        let mut bytes: usize = self.0.iter().map(|it| it.wanted.bytes()).sum();
        bytes += approval.wanted.bytes();
        while self.0.len() >= APPROVALS_MAX || bytes > APPROVALS_BYTES_MAX {
            let over = self.0.iter().position(|it| !it.is_live(now_ms));
            let Some(over) = over.and_then(|over| self.0.remove(over)) else {
                return;
            };
            bytes -= over.wanted.bytes();
        }
        self.0.push_back(approval);
    }

    pub fn get(&self, id: &str) -> Option<&Approval> {
        self.0.iter().find(|it| it.wanted.id == id)
    }

    fn get_mut(&mut self, id: &str) -> Option<&mut Approval> {
        self.0.iter_mut().find(|it| it.wanted.id == id)
    }

    /// Those that wait for a decision, oldest first.
    pub fn pending(&self, now_ms: u64) -> impl Iterator<Item = &Approval> {
        self.0.iter().filter(move |it| it.is_pending(now_ms))
    }

    /// Those that can still lead to an execution.
    pub fn live(&self, now_ms: u64) -> impl Iterator<Item = &Wanted> {
        let live = self.0.iter().filter(move |it| it.is_live(now_ms));
        live.map(|it| &it.wanted)
    }

    /// Whether a decision would count, and whether it is the first; the same one again is no error.
    pub fn check_decision(
        &self,
        id: &str,
        decision: Decision,
        now_ms: u64,
    ) -> Result<bool, DecideError> {
        let approval = self.get(id).ok_or(DecideError::NotFound)?;
        match approval.state {
            State::Pending if now_ms >= approval.wanted.expires_at_ms => Err(DecideError::NotFound),
            State::Pending if decision == Decision::AllowAlways && !approval.wanted.may_always => {
                Err(DecideError::AlwaysUnavailable)
            }
            State::Pending => Ok(true),
            State::Decided(said) | State::Used(said) if said == decision => Ok(false),
            State::Decided(_) | State::Used(_) => Err(DecideError::AlreadyResolved),
            State::Ended(_) => Err(DecideError::NotFound),
        }
    }

    /// Enters a decision that `check_decision` let pass.
    pub fn decide(&mut self, id: &str, decision: Decision, by: Caller, now_ms: u64) {
        if let Some(approval) = self.get_mut(id).filter(|it| it.state == State::Pending) {
            approval.state = State::Decided(decision);
            approval.closed_at_ms = Some(now_ms);
            approval.decided_by = Some(by);
        }
    }

    /// Ends one that is not used. `None` if there is nothing to end.
    pub fn end(&mut self, id: &str, ended: Ended, now_ms: u64) -> Option<&Approval> {
        let approval = self.get_mut(id)?;
        let open = match approval.state {
            State::Pending => true,
            State::Decided(decision) => decision.allows(),
            State::Used(_) | State::Ended(_) => false,
        };
        if open {
            approval.state = State::Ended(ended);
            approval.closed_at_ms = Some(now_ms);
        }
        open.then_some(approval)
    }

    /// Whether one covers what leans on it; changes nothing.
    pub fn check(&self, id: &str, used: &Use<'_>) -> Result<Decision, ApprovalError> {
        self.get(id).ok_or(ApprovalError::Required)?.check(used)
    }

    /// Checks and uses up an approval. A request that it does not cover leaves it as it was: otherwise anybody could
    /// burn it by guessing its id.
    pub fn redeem(&mut self, id: &str, used: &Use<'_>) -> Result<Decision, ApprovalError> {
        let decision = self.check(id, used)?;
        if let Some(approval) = self.get_mut(id) {
            approval.state = State::Used(decision);
        }
        Ok(decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::EXEC_ARGV_BYTES_MAX;

    fn device(digit: u8) -> DeviceId {
        DeviceId::from_digest([digit; 32])
    }

    fn prepared(argv: &[&str], cwd: &str, agent: Option<&str>) -> Prepared {
        let plan = serde_json::json!({"plan": {
            "argv": argv, "cwd": cwd, "commandText": "t", "agentId": agent, "sessionKey": null,
        }});
        Prepared::parse(&plan.to_string()).unwrap()
    }

    fn env(pairs: &[(&str, &str)]) -> Overrides {
        let own = |text: &str| text.to_owned();
        pairs.iter().map(|(k, v)| (own(k), own(v))).collect()
    }

    fn wanted(id: &str) -> Wanted {
        Wanted {
            id: id.to_owned(),
            caller: Caller::Device(device(1)),
            device: Some(device(1)),
            node: device(2),
            prepared: prepared(&["ls", " x"], "/w", Some("main")),
            env: Overrides::new(),
            may_always: false,
            created_at_ms: 0,
            expires_at_ms: 1000,
        }
    }

    fn table() -> Approvals {
        let mut table = Approvals::default();
        table.open(Approval::new(wanted("r1")), 0);
        table
    }

    fn allowed() -> Approvals {
        let mut table = table();
        assert_eq!(table.check_decision("r1", Decision::AllowOnce, 1), Ok(true));
        table.decide("r1", Decision::AllowOnce, Caller::Device(device(3)), 1);
        table
    }

    fn binding(argv: &[&str], variables: &[(&str, &str)]) -> Binding {
        Binding::of(&prepared(argv, "/w", Some("main")).plan, &env(variables))
    }

    fn attempt(
        table: &mut Approvals,
        binding: &Binding,
        (caller, node, id, now_ms): (u8, u8, &str, u64),
    ) -> Result<Decision, ApprovalError> {
        let used = Use {
            caller: &Caller::Device(device(caller)),
            node: &device(node),
            binding,
            now_ms,
        };
        table.redeem(id, &used)
    }

    #[test]
    fn x1_exact_request_node_and_caller() {
        let same = binding(&["ls", " x"], &[]);
        let tried = |binding: &Binding, with| attempt(&mut allowed(), binding, with);
        assert_eq!(tried(&same, (1, 2, "r1", 999)), Ok(Decision::AllowOnce));
        let wrong = |result: Result<Decision, ApprovalError>| result.unwrap_err();
        let other = binding(&["ls", "x"], &[]);
        assert_eq!(
            wrong(tried(&other, (1, 2, "r1", 0))),
            ApprovalError::WrongRequest
        );
        assert_eq!(
            wrong(tried(&same, (1, 3, "r1", 0))),
            ApprovalError::WrongNode
        );
        assert_eq!(
            wrong(tried(&same, (9, 2, "r1", 0))),
            ApprovalError::WrongCaller
        );
        assert_eq!(
            wrong(tried(&same, (1, 2, "r2", 0))),
            ApprovalError::Required
        );
        let one_connection = |n| Caller::Connection(ConnId::from_random([n; 16]));
        assert_ne!(one_connection(1), one_connection(2));
    }

    #[test]
    fn every_part_of_a_plan_is_bound() {
        let of = |text: &str| {
            let prepared = Prepared::parse(&format!("{{\"plan\":{text}}}")).unwrap();
            Binding::of(&prepared.plan, &Overrides::new())
        };
        let plan = r#"{"argv":["a","b"],"cwd":"/w","commandText":"t","agentId":"m","sessionKey":"s","mutableFileOperand":{"argvIndex":0,"path":"/a","sha256":"00"},"policySnapshot":{"security":"full","ask":"off","askFallback":"deny","allowlistRules":[]}}"#;
        for (part, other) in [
            (r#""b""#, r#""c""#),
            (r#"["a","b"]"#, r#"["ab"]"#),
            (r#"["a","b"]"#, r#"["a","b",""]"#),
            ("/w", "/v"),
            (r#""m""#, "null"),
            (
                r#""agentId":"m","sessionKey":"s""#,
                r#""agentId":"s","sessionKey":"m""#,
            ),
            (r#""s","#, r#""","#),
            (r#""00""#, r#""01""#),
            (r#""path":"/a""#, r#""path":"/b""#),
            (r#""off""#, r#""always""#),
        ] {
            assert!(plan.contains(part), "{part}");
            assert_ne!(of(plan), of(&plan.replacen(part, other, 1)), "{other}");
        }
        assert_ne!(binding(&["a"], &[("b", "")]), binding(&["a"], &[]));
        assert_eq!(of(plan).sha256(), of(plan).sha256());
        assert!(plan.len() < EXEC_ARGV_BYTES_MAX);
    }

    #[test]
    fn x3_the_environment_is_bound_too() {
        let other_env = binding(&["ls", " x"], &[("LD_PRELOAD", "/tmp/x")]);
        let refused = attempt(&mut allowed(), &other_env, (1, 2, "r1", 0)).unwrap_err();
        assert_eq!(refused.to_string(), "approval id env binding mismatch");
    }

    #[test]
    fn x9_once_and_in_time() {
        let same = binding(&["ls", " x"], &[]);
        let required = Err(ApprovalError::Required);
        assert_eq!(attempt(&mut allowed(), &same, (1, 2, "r1", 1000)), required);
        let mut undecided = table();
        assert_eq!(attempt(&mut undecided, &same, (1, 2, "r1", 1)), required);
        let mut it = allowed();
        assert!(attempt(&mut it, &same, (1, 7, "r1", 1)).is_err());
        assert!(
            attempt(&mut it, &same, (1, 2, "r1", 1)).is_ok(),
            "a wrong use burned it"
        );
        assert_eq!(attempt(&mut it, &same, (1, 2, "r1", 1)), required);
        assert_eq!(
            it.check_decision("r1", Decision::Deny, 2),
            Err(DecideError::AlreadyResolved)
        );
        assert!(it.end("r1", Ended::Cancelled, 1).is_none());
    }

    #[test]
    fn x9_what_ended_is_not_decided_any_more() {
        let late = table().check_decision("r1", Decision::AllowOnce, 1000);
        assert_eq!(late, Err(DecideError::NotFound));
        let mut cancelled = table();
        assert!(cancelled.end("r1", Ended::Cancelled, 1).is_some());
        assert_eq!(
            cancelled.check_decision("r1", Decision::AllowOnce, 1),
            Err(DecideError::NotFound)
        );
        cancelled.decide("r1", Decision::AllowOnce, Caller::Device(device(3)), 2);
        let same = binding(&["ls", " x"], &[]);
        assert!(attempt(&mut cancelled, &same, (1, 2, "r1", 1)).is_err());
        // Allowed and then cancelled: the answer is not carried out any more.
        let mut allowed = allowed();
        assert!(allowed.end("r1", Ended::Cancelled, 1).is_some());
        assert!(attempt(&mut allowed, &same, (1, 2, "r1", 1)).is_err());
    }

    #[test]
    fn a_decision_is_taken_once_and_may_be_repeated() {
        let it = allowed();
        assert_eq!(it.check_decision("r1", Decision::AllowOnce, 1), Ok(false));
        assert_eq!(
            it.check_decision("r1", Decision::Deny, 1),
            Err(DecideError::AlreadyResolved)
        );
        assert_eq!(
            table().check_decision("r1", Decision::AllowAlways, 1),
            Err(DecideError::AlwaysUnavailable)
        );
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
        let mut denied = table();
        denied.decide("r1", Decision::Deny, Caller::Device(device(3)), 1);
        let same = binding(&["ls", " x"], &[]);
        assert_eq!(
            attempt(&mut denied, &same, (1, 2, "r1", 1)),
            Err(ApprovalError::Required)
        );
    }

    #[test]
    fn the_table_is_bounded_and_what_is_open_stays() {
        let mut table = Approvals::default();
        for n in 0..APPROVALS_MAX {
            let id = format!("r{n}");
            assert_eq!(table.has_room(&wanted(&id), 0), Ok(()));
            table.open(Approval::new(wanted(&id)), 0);
        }
        assert_eq!(table.has_room(&wanted("r0"), 0), Err(DecideError::IdTaken));
        assert_eq!(table.has_room(&wanted("new"), 0), Err(DecideError::Full));
        table.open(Approval::new(wanted("new")), 0);
        assert!(table.get("new").is_none());
        table.decide("r5", Decision::Deny, Caller::Device(device(3)), 1);
        assert_eq!(table.has_room(&wanted("new"), 0), Ok(()));
        table.open(Approval::new(wanted("new")), 0);
        assert!(table.get("new").is_some() && table.get("r5").is_none());
        assert_eq!(table.pending(0).count(), APPROVALS_MAX);
        assert_eq!(table.pending(1000).count(), 0);
    }
    #[test]
    fn what_long_ones_hold_together_is_bounded() {
        let long = |id: &str| Wanted {
            env: [("A".to_owned(), "x".repeat(APPROVALS_BYTES_MAX * 2 / 5))].into(),
            ..wanted(id)
        };
        let mut table = Approvals::default();
        for id in ["r1", "r2"] {
            assert_eq!(table.has_room(&long(id), 0), Ok(()));
            table.open(Approval::new(long(id)), 0);
        }
        assert_eq!(table.has_room(&long("r3"), 0), Err(DecideError::Full));
        table.open(Approval::new(long("r3")), 0);
        assert!(table.get("r3").is_none());
        assert_eq!(table.has_room(&wanted("short"), 0), Ok(()));
        table.open(Approval::new(wanted("short")), 0);
        table.decide("r1", Decision::Deny, Caller::Device(device(3)), 1);
        assert_eq!(table.has_room(&long("r3"), 0), Ok(()));
        table.open(Approval::new(long("r3")), 0);
        let open: Vec<&str> = table.live(0).map(|it| it.id.as_str()).collect();
        assert_eq!(open, ["r2", "short", "r3"]);
    }
}
