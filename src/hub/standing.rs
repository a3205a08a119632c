//! What a session stands on besides its device, and what becomes of it when the configuration takes that away.
//!
//! Each withdrawal has a number. A session remembers the numbers that were current when it was judged, and stands as
//! long as no later withdrawal concerns the way in which it was admitted.

use super::{Caller, Hub};
use crate::audit::{self, Durability};
use crate::auth::admission::AuthMethod;

/// What a change takes away. Each includes those before it; none includes the admin socket, which is the operator's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Withdrawal {
    /// The shared secret was rotated.
    Secret,
    /// Something else about who may come in without a device token.
    Rules,
    /// Whose requests are believed to be whose: proxies, hosts, origins.
    Ingress,
}

/// The withdrawals that were current when a caller was attributed, judged, and compared with the shared secret. Also,
/// in the hub, the latest withdrawal of each kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Standing {
    pub ingress: u64,
    pub rules: u64,
    pub secret: u64,
}

impl Standing {
    fn holds(self, method: AuthMethod, withdrawn: Self) -> bool {
        let ingress = self.ingress >= withdrawn.ingress;
        let rules = ingress && self.rules >= withdrawn.rules;
        match method {
            AuthMethod::LocalUser => true,
            // A sign-in link is an approval of the device.
            AuthMethod::DeviceToken | AuthMethod::SignInLink => ingress,
            AuthMethod::None | AuthMethod::Tailscale | AuthMethod::TrustedProxy => rules,
            AuthMethod::Token | AuthMethod::Password => rules && self.secret >= withdrawn.secret,
        }
    }
}

/// The withdrawals so far.
#[derive(Default)]
pub(super) struct Withdrawn {
    next: u64,
    latest: Standing,
}

impl Withdrawn {
    pub(super) fn spares(&self, method: AuthMethod, standing: Standing) -> bool {
        standing.holds(method, self.latest)
    }
}

impl Hub {
    /// A number for what is about to come into force. Whoever is judged by it stands when `withdraw` is called with
    /// the same number; the old rules count until then.
    pub fn next_standing(&self) -> u64 {
        let mut inner = self.lock();
        inner.withdrawn.next += 1;
        inner.withdrawn.next
    }

    /// Whether nothing on which such a caller stands was withdrawn since it was judged.
    pub fn spares(&self, method: AuthMethod, standing: Standing) -> bool {
        self.lock().withdrawn.spares(method, standing)
    }

    /// Closes every session that stands on what was in force before `number`, and lets none open that still would.
    /// Returns how many were closed.
    pub fn withdraw(&self, what: Withdrawal, number: u64) -> usize {
        let mut inner = self.lock();
        let latest = &mut inner.withdrawn.latest;
        for (field, kind) in [
            (&mut latest.secret, Withdrawal::Secret),
            (&mut latest.rules, Withdrawal::Rules),
            (&mut latest.ingress, Withdrawal::Ingress),
        ] {
            if kind <= what {
                *field = number.max(*field);
            }
        }
        let fallen = |caller: &Caller| !inner.withdrawn.spares(caller.method, caller.standing);
        let closed = inner
            .connections
            .iter()
            .filter(|(_, it)| fallen(&it.caller));
        closed
            .map(|(_, connection)| connection.outbox.close(4001, "gateway auth changed"))
            .count()
    }

    /// Records what became of the Gateway without anybody's decision. A log that cannot be written does not undo it.
    pub fn note(&self, event: &audit::Event) {
        if let Err(error) = self.audit.append(event, Durability::Synced) {
            tracing::error!(%error, "a change could not be recorded");
        }
    }

    /// What an operator must attend to, by setting, until it is well again.
    pub fn set_alarm(&self, setting: &'static str, what: Option<String>) {
        let alarms = &mut self.lock().alarms;
        match what {
            Some(what) => alarms.insert(setting, what),
            None => alarms.remove(setting),
        };
    }

    pub fn alarms(&self) -> Vec<(&'static str, String)> {
        let inner = self.lock();
        let alarms = inner.alarms.iter();
        alarms
            .map(|(setting, what)| (*setting, what.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k2_only_what_a_session_stands_on_ends_it() {
        use AuthMethod::{DeviceToken, LocalUser, Password, Tailscale};
        let before = Standing::default();
        let all = [LocalUser, DeviceToken, Tailscale, Password];
        let stand = |withdrawn: Standing| all.map(|method| before.holds(method, withdrawn));
        assert_eq!(stand(before), [true; 4]);
        let (ingress, rules, secret) = (1, 1, 1);
        let rotated = Standing { secret, ..before };
        assert_eq!(stand(rotated), [true, true, true, false]);
        let reloaded = Standing { rules, ..rotated };
        assert_eq!(stand(reloaded), [true, true, false, false]);
        let moved = Standing {
            ingress,
            ..reloaded
        };
        assert_eq!(stand(moved), [true, false, false, false]);
        let new = all.map(|method| moved.holds(method, moved));
        assert_eq!(new, [true; 4]);
    }
}
