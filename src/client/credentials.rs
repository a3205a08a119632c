//! Which credential a client sends: one pure function for calls, probes, status, approval monitoring and the node host.
//!
//! In: who asks, where to, and what each place holds. Out: at most one token and one password, with the reason for
//! every place that was looked at. Attacker controls: nothing. Bounds: eight places. Errors: [`Refused`].
//!
//! Two rules keep a secret from going where it should not: an address from elsewhere never meets a stored credential
//! (D4), and a place that is configured but cannot be read ends the search, so that no other credential masks it (K4).

use std::fmt;

use crate::base::Secret;

/// What one place holds. A blank value is `Unset`.
#[derive(Clone, Default)]
pub enum Place {
    #[default]
    Unset,
    Value(Secret),
    /// Configured, and cannot be read now; the sentence says why.
    Unresolved(String),
}

/// All implicit places.
#[derive(Clone, Default)]
pub struct Places {
    pub env_token: Place,
    pub env_password: Place,
    pub auth_token: Place,
    pub auth_password: Place,
    pub remote_token: Place,
    pub remote_password: Place,
}

/// `gateway.mode`, from the client's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Local,
    Remote,
}

/// Who said where the Gateway is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The config, or the default.
    Configured,
    /// `--url`.
    FlagUrl,
    /// `OPENCLAW_GATEWAY_URL`.
    EnvUrl,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    Call,
    Probe,
    Status,
    ApprovalMonitor,
    NodeHost,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Token,
    Password,
}

/// A place, by the name that the operator knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// `--token` or `--password`, or a tool's `gatewayToken`.
    Explicit,
    /// `OPENCLAW_GATEWAY_TOKEN` or `OPENCLAW_GATEWAY_PASSWORD`.
    Env,
    /// `gateway.auth.*`.
    Auth,
    /// `gateway.remote.*`.
    Remote,
}

impl Source {
    pub fn name(self, kind: Kind) -> &'static str {
        match (self, kind) {
            (Self::Explicit, Kind::Token) => "--token",
            (Self::Explicit, Kind::Password) => "--password",
            (Self::Env, Kind::Token) => "OPENCLAW_GATEWAY_TOKEN",
            (Self::Env, Kind::Password) => "OPENCLAW_GATEWAY_PASSWORD",
            (Self::Auth, Kind::Token) => "gateway.auth.token",
            (Self::Auth, Kind::Password) => "gateway.auth.password",
            (Self::Remote, Kind::Token) => "gateway.remote.token",
            (Self::Remote, Kind::Password) => "gateway.remote.password",
        }
    }
}

/// Why a place was or was not used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Won,
    Unset,
    /// An earlier place won.
    Outranked {
        by: Source,
    },
    /// The other kind was given explicitly, and then nothing implicit is added.
    ExplicitGiven,
    /// `--url` never meets a stored credential.
    FlagUrl,
    /// `OPENCLAW_GATEWAY_URL` meets the environment only.
    EnvUrl,
    /// The node host in local mode ignores `gateway.remote.*`.
    NodeHostLocal,
    /// A probe of a remote Gateway uses `gateway.remote.token` only.
    StrictProbe,
    Unresolved(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Won => f.write_str("used"),
            Self::Unset => f.write_str("not set"),
            Self::Outranked { by } => write!(
                f,
                "outranked by {}",
                match by {
                    Source::Explicit => "the flag",
                    Source::Env => "the environment",
                    Source::Auth => "gateway.auth",
                    Source::Remote => "gateway.remote",
                }
            ),
            Self::ExplicitGiven => f.write_str("not added to an explicit credential"),
            Self::FlagUrl => f.write_str("not sent to an address from --url"),
            Self::EnvUrl => f.write_str("not sent to an address from OPENCLAW_GATEWAY_URL"),
            Self::NodeHostLocal => f.write_str("not used by the node host in local mode"),
            Self::StrictProbe => f.write_str("not used to probe a remote gateway"),
            Self::Unresolved(why) => write!(f, "configured and cannot be read: {why}"),
        }
    }
}

/// One line of the explanation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub kind: Kind,
    pub source: Source,
    pub verdict: Verdict,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source.name(self.kind), self.verdict)
    }
}

/// The question.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    pub mode: Mode,
    pub target: Target,
    pub caller: Caller,
    pub explicit_token: Option<&'a Secret>,
    pub explicit_password: Option<&'a Secret>,
    pub places: &'a Places,
}

/// The answer.
#[derive(Clone, Default)]
pub struct Credentials {
    pub token: Option<Secret>,
    pub password: Option<Secret>,
    /// What was looked at, in order.
    pub steps: Vec<Step>,
}

/// Why nothing may be sent at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// `--url` without `--token` or `--password`.
    UrlWithoutCredential,
    /// A configured place cannot be read.
    Unresolved {
        setting: &'static str,
        why: String,
        steps: Vec<Step>,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UrlWithoutCredential => f.write_str(
                "--url needs --token or --password: stored and environment credentials are never sent to an address from the command line",
            ),
            Self::Unresolved { setting, why, .. } => write!(
                f,
                "{setting} is configured and cannot be read: {why}; no other credential is tried in its place"
            ),
        }
    }
}

impl std::error::Error for Refused {}

/// Chooses the credentials (decision 9).
pub fn choose(query: &Query<'_>) -> Result<Credentials, Refused> {
    let explicit = query.explicit_token.is_some() || query.explicit_password.is_some();
    if query.target == Target::FlagUrl && !explicit {
        return Err(Refused::UrlWithoutCredential);
    }
    let mut chosen = Credentials::default();
    chosen.token = one_kind(query, Kind::Token, explicit, &mut chosen.steps)?;
    chosen.password = one_kind(query, Kind::Password, explicit, &mut chosen.steps)?;
    Ok(chosen)
}

/// The order of the implicit places. The two kinds differ in remote mode: an environment password outranks the config's.
fn order(mode: Mode, kind: Kind) -> [Source; 3] {
    match (mode, kind) {
        (Mode::Local, _) => [Source::Env, Source::Auth, Source::Remote],
        (Mode::Remote, Kind::Token) => [Source::Remote, Source::Env, Source::Auth],
        (Mode::Remote, Kind::Password) => [Source::Env, Source::Remote, Source::Auth],
    }
}

/// Why this caller may not look at this place at all.
fn barred(query: &Query<'_>, kind: Kind, source: Source, explicit: bool) -> Option<Verdict> {
    match query.target {
        Target::FlagUrl => return Some(Verdict::FlagUrl),
        _ if explicit => return Some(Verdict::ExplicitGiven),
        Target::EnvUrl if source != Source::Env => return Some(Verdict::EnvUrl),
        Target::EnvUrl => return None,
        Target::Configured => {}
    }
    let strict = matches!(query.caller, Caller::Probe | Caller::Status);
    match (query.mode, source) {
        (Mode::Local, Source::Remote) if query.caller == Caller::NodeHost => {
            Some(Verdict::NodeHostLocal)
        }
        (Mode::Remote, Source::Env | Source::Auth) if strict && kind == Kind::Token => {
            Some(Verdict::StrictProbe)
        }
        _ => None,
    }
}

fn one_kind(
    query: &Query<'_>,
    kind: Kind,
    explicit: bool,
    steps: &mut Vec<Step>,
) -> Result<Option<Secret>, Refused> {
    let mut note = |source, verdict| {
        steps.push(Step {
            kind,
            source,
            verdict,
        });
    };
    let given = match kind {
        Kind::Token => query.explicit_token,
        Kind::Password => query.explicit_password,
    };
    let mut winner = given.map(|secret| (Source::Explicit, secret));
    let verdict = if given.is_some() {
        Verdict::Won
    } else {
        Verdict::Unset
    };
    note(Source::Explicit, verdict);
    for source in order(query.mode, kind) {
        if let Some(verdict) = barred(query, kind, source, explicit) {
            note(source, verdict);
            continue;
        }
        match (winner, query.places.at(source, kind)) {
            (_, Place::Unset) => note(source, Verdict::Unset),
            (Some((by, _)), _) => note(source, Verdict::Outranked { by }),
            (None, Place::Value(secret)) => {
                note(source, Verdict::Won);
                winner = Some((source, secret));
            }
            (None, Place::Unresolved(why)) => {
                note(source, Verdict::Unresolved(why.clone()));
                return Err(Refused::Unresolved {
                    setting: source.name(kind),
                    why: why.clone(),
                    steps: steps.clone(),
                });
            }
        }
    }
    Ok(winner.map(|(_, secret)| secret.clone()))
}

impl Places {
    fn at(&self, source: Source, kind: Kind) -> &Place {
        match (source, kind) {
            (Source::Env, Kind::Token) => &self.env_token,
            (Source::Env, Kind::Password) => &self.env_password,
            (Source::Auth, Kind::Token) => &self.auth_token,
            (Source::Auth, Kind::Password) => &self.auth_password,
            (Source::Remote, Kind::Token) => &self.remote_token,
            (Source::Remote, Kind::Password) => &self.remote_password,
            (Source::Explicit, _) => &Place::Unset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract as a table, written apart from the code: mode, target, caller, kind, and the places in order.
    const CONTRACT: &[(Mode, Target, &[Caller], Kind, &str)] = {
        use Caller::*;
        use Kind::*;
        use Mode::*;
        use Target::*;
        &[
            (
                Local,
                Configured,
                &[Call, Probe, Status, ApprovalMonitor],
                Token,
                "env auth remote",
            ),
            (
                Local,
                Configured,
                &[Call, Probe, Status, ApprovalMonitor],
                Password,
                "env auth remote",
            ),
            (Local, Configured, &[NodeHost], Token, "env auth"),
            (Local, Configured, &[NodeHost], Password, "env auth"),
            (
                Remote,
                Configured,
                &[Call, ApprovalMonitor, NodeHost],
                Token,
                "remote env auth",
            ),
            (
                Remote,
                Configured,
                &[Call, ApprovalMonitor, NodeHost],
                Password,
                "env remote auth",
            ),
            (Remote, Configured, &[Probe, Status], Token, "remote"),
            (
                Remote,
                Configured,
                &[Probe, Status],
                Password,
                "env remote auth",
            ),
            (
                Local,
                EnvUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Token,
                "env",
            ),
            (
                Local,
                EnvUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Password,
                "env",
            ),
            (
                Remote,
                EnvUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Token,
                "env",
            ),
            (
                Remote,
                EnvUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Password,
                "env",
            ),
            (
                Local,
                FlagUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Token,
                "",
            ),
            (
                Local,
                FlagUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Password,
                "",
            ),
            (
                Remote,
                FlagUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Token,
                "",
            ),
            (
                Remote,
                FlagUrl,
                &[Call, Probe, Status, ApprovalMonitor, NodeHost],
                Password,
                "",
            ),
        ]
    };

    const CALLERS: [Caller; 5] = [
        Caller::Call,
        Caller::Probe,
        Caller::Status,
        Caller::ApprovalMonitor,
        Caller::NodeHost,
    ];

    fn place(state: usize, name: &str) -> Place {
        match state {
            0 => Place::Unset,
            1 => Place::Value(Secret::new(name.as_bytes())),
            _ => Place::Unresolved(name.to_owned()),
        }
    }

    fn text(secret: Option<&Secret>) -> Option<&str> {
        secret.and_then(Secret::expose_str)
    }

    /// What the contract says of one kind: the winning place's name, or the unreadable one's.
    fn expected(
        rule: &str,
        explicit: (bool, bool),
        states: impl Fn(&str) -> usize,
    ) -> Result<Option<&str>, &str> {
        if explicit.0 {
            return Ok(Some("explicit"));
        }
        if explicit.1 {
            return Ok(None);
        }
        for name in rule.split_whitespace() {
            match states(name) {
                0 => {}
                1 => return Ok(Some(name)),
                _ => return Err(name),
            }
        }
        Ok(None)
    }

    #[test]
    fn every_combination_follows_the_contract() {
        let mut combinations = 0;
        let explicit = Secret::new(&b"explicit"[..]);
        for mode in [Mode::Local, Mode::Remote] {
            for target in [Target::Configured, Target::FlagUrl, Target::EnvUrl] {
                for caller in CALLERS {
                    let rule = |kind| {
                        let mut rows = CONTRACT.iter().filter(|row| {
                            (row.0, row.1, row.3) == (mode, target, kind) && row.2.contains(&caller)
                        });
                        let row = rows.next().unwrap();
                        assert!(rows.next().is_none());
                        row.4
                    };
                    for code in 0..3_usize.pow(6) {
                        let state = |index: u32| code / 3_usize.pow(index) % 3;
                        let places = Places {
                            env_token: place(state(0), "env"),
                            auth_token: place(state(1), "auth"),
                            remote_token: place(state(2), "remote"),
                            env_password: place(state(3), "env"),
                            auth_password: place(state(4), "auth"),
                            remote_password: place(state(5), "remote"),
                        };
                        let index = |name: &str| match name {
                            "env" => 0,
                            "auth" => 1,
                            _ => 2,
                        };
                        for (with_token, with_password) in
                            [(false, false), (true, false), (false, true), (true, true)]
                        {
                            combinations += 1;
                            let answer = choose(&Query {
                                mode,
                                target,
                                caller,
                                explicit_token: with_token.then_some(&explicit),
                                explicit_password: with_password.then_some(&explicit),
                                places: &places,
                            });
                            if target == Target::FlagUrl && !with_token && !with_password {
                                assert_eq!(answer.err(), Some(Refused::UrlWithoutCredential));
                                continue;
                            }
                            let token =
                                expected(rule(Kind::Token), (with_token, with_password), |name| {
                                    state(index(name))
                                });
                            let password = expected(
                                rule(Kind::Password),
                                (with_password, with_token),
                                |name| state(index(name) + 3),
                            );
                            match (answer, token, password) {
                                (Ok(answer), Ok(token), Ok(password)) => {
                                    assert_eq!(text(answer.token.as_ref()), token);
                                    assert_eq!(text(answer.password.as_ref()), password);
                                    assert_eq!(answer.steps.len(), 8);
                                    let won =
                                        answer.steps.iter().filter(|s| s.verdict == Verdict::Won);
                                    assert_eq!(
                                        won.count(),
                                        usize::from(token.is_some())
                                            + usize::from(password.is_some())
                                    );
                                }
                                (Err(Refused::Unresolved { why, .. }), Err(name), _)
                                | (Err(Refused::Unresolved { why, .. }), Ok(_), Err(name)) => {
                                    assert_eq!(why, name);
                                }
                                (answer, token, password) => panic!(
                                    "{mode:?} {target:?} {caller:?} {code}: {:?} {token:?} {password:?}",
                                    answer.err()
                                ),
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(combinations, 2 * 3 * 5 * 729 * 4);
    }

    #[test]
    fn the_explanation_names_every_place_and_no_secret() {
        let places = Places {
            env_token: place(1, "hunter2"),
            auth_token: place(1, "hunter3"),
            ..Places::default()
        };
        let answer = choose(&Query {
            mode: Mode::Local,
            target: Target::Configured,
            caller: Caller::Call,
            explicit_token: None,
            explicit_password: None,
            places: &places,
        });
        let lines: Vec<String> = answer
            .unwrap_or_default()
            .steps
            .iter()
            .map(Step::to_string)
            .collect();
        assert_eq!(lines[1], "OPENCLAW_GATEWAY_TOKEN: used");
        assert_eq!(lines[2], "gateway.auth.token: outranked by the environment");
        assert!(!lines.concat().contains("hunter"));
    }
}
