//! Roles and scopes: the words in which a permission is written.
//!
//! In: scope names as a peer or the config writes them. Out: a `ScopeSet`, a closed set of bits.
//! Attacker controls: every name. Bounds: a name that we do not know adds nothing, so a set has one size.
//! Errors: none; an unknown scope is never granted and never implied, not even by `operator.admin`.

use std::fmt;

use crate::base::names::names;

names! {
    /// What a connection is: an operator decides, a node executes.
    pub enum Role {
        Operator = "operator",
        Node = "node",
    }
}

names! {
    /// One operator scope. Nodes have none.
    #[repr(u8)]
    pub enum Scope {
        Admin = "operator.admin",
        Read = "operator.read",
        Write = "operator.write",
        Approvals = "operator.approvals",
        Questions = "operator.questions",
        Pairing = "operator.pairing",
        Talk = "operator.talk",
        TalkSecrets = "operator.talk.secrets",
    }
}

impl Scope {
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of scopes as granted. What they imply is asked with `allows`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ScopeSet(u8);

impl ScopeSet {
    pub const NONE: Self = Self(0);

    /// Every scope that an operator can hold.
    pub fn all() -> Self {
        Scope::ALL.iter().copied().collect()
    }

    /// The known scopes among these names. Unknown ones are left out.
    pub fn from_wire<S: AsRef<str>>(names: &[S]) -> Self {
        names
            .iter()
            .filter_map(|name| Scope::from_wire(name.as_ref()))
            .collect()
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether exactly this scope was granted.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether a holder may do what needs this scope: it was granted, or a granted one implies it.
    pub fn allows(self, scope: Scope) -> bool {
        if self.contains(scope) || self.contains(Scope::Admin) {
            return true;
        }
        match scope {
            Scope::Read | Scope::Talk => self.contains(Scope::Write),
            Scope::Admin
            | Scope::Write
            | Scope::Approvals
            | Scope::Questions
            | Scope::Pairing
            | Scope::TalkSecrets => false,
        }
    }

    /// The first scope of `wanted` that a holder may not exercise.
    pub fn first_missing(self, wanted: Self) -> Option<Scope> {
        wanted.iter().find(|scope| !self.allows(*scope))
    }

    pub fn allows_all(self, wanted: Self) -> bool {
        self.first_missing(wanted).is_none()
    }

    /// What both sets allow, in as few words as the first: a request cut to a grant, or a grant cut to a cap. Neither side
    /// widens the other; `operator.admin` cut to `operator.read` is `operator.read`.
    #[must_use]
    pub fn meet(self, other: Self) -> Self {
        let named: Self = self.iter().filter(|scope| other.allows(*scope)).collect();
        let implied = other
            .iter()
            .filter(|scope| self.allows(*scope) && !named.allows(*scope));
        named.union(implied.collect())
    }

    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        let all = Scope::ALL.iter().copied();
        all.filter(move |scope| self.contains(*scope))
    }

    /// The names, in the order of `Scope::ALL`.
    pub fn to_wire(self) -> Vec<&'static str> {
        self.iter().map(Scope::as_str).collect()
    }

    /// The names in the order in which they were asked for, as `hello-ok` echoes them; the rest follow.
    pub fn to_wire_as_asked<S: AsRef<str>>(self, asked: &[S]) -> Vec<&'static str> {
        let mut left = self;
        let mut names = Vec::new();
        for scope in asked
            .iter()
            .filter_map(|name| Scope::from_wire(name.as_ref()))
        {
            if left.contains(scope) {
                left.0 &= !scope.bit();
                names.push(scope.as_str());
            }
        }
        names.extend(left.iter().map(Scope::as_str));
        names
    }
}

impl From<Scope> for ScopeSet {
    fn from(scope: Scope) -> Self {
        Self(scope.bit())
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.to_wire()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> ScopeSet {
        ScopeSet::from_wire(names)
    }

    #[test]
    fn names_round_trip() {
        for scope in Scope::ALL {
            assert_eq!(Scope::from_wire(scope.as_str()), Some(*scope));
        }
        for unknown in ["", "banana", "operator.Admin", "operator.admin ", "admin"] {
            assert_eq!(Scope::from_wire(unknown), None);
        }
        assert_eq!(Role::from_wire("Operator"), None);
    }

    #[test]
    fn admin_implies_all_write_implies_read_and_talk_and_nothing_else_implies() {
        for scope in Scope::ALL {
            assert!(set(&["operator.admin"]).allows(*scope));
        }
        let write = set(&["operator.write"]);
        assert!(write.allows(Scope::Read) && write.allows(Scope::Talk));
        assert!(!write.allows(Scope::Admin) && !write.allows(Scope::Pairing));
        for holder in Scope::ALL.iter().skip(3) {
            let alone: ScopeSet = [*holder].into_iter().collect();
            assert_eq!(alone.meet(ScopeSet::all()), alone);
        }
    }

    #[test]
    fn s2_unknown_scopes_are_never_granted() {
        assert_eq!(
            set(&["banana", "operator.read", "operator.everything"]).to_wire(),
            ["operator.read"]
        );
    }

    #[test]
    fn s8_an_empty_list_is_none() {
        assert_eq!(ScopeSet::all().meet(set(&[])), ScopeSet::NONE);
        assert!(set(&[]).is_empty());
    }

    #[test]
    fn meet_narrows_and_never_widens() {
        for (asked, granted, got) in [
            (
                &["operator.admin"][..],
                &["operator.read"][..],
                &["operator.read"][..],
            ),
            (
                &["operator.admin"],
                &["operator.admin", "operator.read"],
                &["operator.admin"],
            ),
            (
                &["operator.pairing"],
                &["operator.admin"],
                &["operator.pairing"],
            ),
            (
                &["operator.write"],
                &["operator.read", "operator.pairing"],
                &["operator.read"],
            ),
            (&["operator.read"], &[], &[]),
        ] {
            assert_eq!(set(asked).meet(set(granted)).to_wire(), got);
        }
        for a in 0..=u8::MAX {
            for b in 0..=u8::MAX {
                let (a, b) = (ScopeSet(a), ScopeSet(b));
                let both = a.meet(b);
                for scope in Scope::ALL.iter().copied() {
                    assert_eq!(both.allows(scope), a.allows(scope) && b.allows(scope));
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_request_is_echoed() {
        let granted = set(&["operator.admin", "operator.pairing"]);
        let asked = [
            "operator.pairing",
            "x",
            "operator.admin",
            "operator.pairing",
        ];
        assert_eq!(
            granted.to_wire_as_asked(&asked),
            ["operator.pairing", "operator.admin"]
        );
    }
}
