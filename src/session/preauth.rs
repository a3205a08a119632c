//! How many connections may stay without authentication, per client and in all.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::auth::rate_limit::LimitKey;
use crate::base::limits;
use crate::ingress::Client;

#[derive(Default)]
struct Waiting {
    /// By arrival; the first is the oldest.
    by_age: BTreeMap<u64, (Option<LimitKey>, Arc<Notify>)>,
    per_client: HashMap<LimitKey, usize>,
    arrivals: u64,
}

/// Counts connections from accept until they authenticate or end.
///
/// When the whole house is full, the oldest silent connection gives way to the newcomer; a single client that is
/// at its own limit is refused instead, so that it cannot push out others.
#[derive(Clone, Default)]
pub struct PreauthGate(Arc<Mutex<Waiting>>);

impl PreauthGate {
    /// `None` refuses: this client already has `limits::PREAUTH_CONNECTIONS_PER_CLIENT_MAX`.
    /// A caller on the admin socket has no address and only counts towards its own listener's budget.
    /// An IPv6 client is its /64 network.
    pub fn enter(&self, client: Option<IpAddr>) -> Option<PreauthPermit> {
        let client = client.map(LimitKey::of);
        let mut waiting = self.waiting();
        if !waiting.has_room_for(client.as_ref()) {
            return None;
        }
        if waiting.by_age.len() >= limits::PREAUTH_CONNECTIONS_MAX
            && let Some((_, (oldest, evict))) = waiting.by_age.pop_first()
        {
            waiting.release(oldest);
            evict.notify_one();
        }
        waiting.count(client.clone());
        waiting.arrivals += 1;
        let arrival = waiting.arrivals;
        let evicted = Arc::new(Notify::new());
        waiting
            .by_age
            .insert(arrival, (client, Arc::clone(&evicted)));
        Some(PreauthPermit {
            gate: self.clone(),
            arrival,
            evicted,
        })
    }

    pub fn len(&self) -> usize {
        self.waiting().by_age.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Counts are whole after every call, so a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn has_room_for(&self, client: Option<&LimitKey>) -> bool {
        let held = client.and_then(|client| self.per_client.get(client));
        held.is_none_or(|held| *held < limits::PREAUTH_CONNECTIONS_PER_CLIENT_MAX)
    }

    fn count(&mut self, client: Option<LimitKey>) {
        if let Some(client) = client {
            *self.per_client.entry(client).or_insert(0) += 1;
        }
    }

    fn release(&mut self, client: Option<LimitKey>) {
        if let Some(client) = client
            && let Some(held) = self.per_client.get_mut(&client)
        {
            *held -= 1;
            if *held == 0 {
                self.per_client.remove(&client);
            }
        }
    }
}

/// One place before authentication; given back when dropped.
pub struct PreauthPermit {
    gate: PreauthGate,
    arrival: u64,
    evicted: Arc<Notify>,
}

impl PreauthPermit {
    /// Counts the connection for the client that its proxy names, from now on. `false`: that client is at its limit.
    pub fn count_as(&self, client: Client) -> bool {
        let Client::Ip(address) = client else {
            return true;
        };
        let client = LimitKey::of(address);
        let mut waiting = self.gate.waiting();
        let counted = match waiting.by_age.get(&self.arrival) {
            // Whoever was evicted learns it elsewhere.
            None => return true,
            Some((counted, _)) => counted.clone(),
        };
        if counted.as_ref() == Some(&client) {
            return true;
        }
        if !waiting.has_room_for(Some(&client)) {
            return false;
        }
        waiting.release(counted);
        waiting.count(Some(client.clone()));
        if let Some((counted, _)) = waiting.by_age.get_mut(&self.arrival) {
            *counted = Some(client);
        }
        true
    }

    /// Ends when this connection must give way to a newer one. Cancel-safe.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// The same for whoever serves the connection while the place itself is on its way into a session.
    pub fn eviction(&self) -> Eviction {
        Eviction(Arc::clone(&self.evicted))
    }
}

/// Tells that a place was given to a newer connection. Only one task may wait for it at a time.
pub struct Eviction(Arc<Notify>);

impl Eviction {
    /// Ends when the connection must give way. Cancel-safe.
    pub async fn happened(&self) {
        self.0.notified().await;
    }
}

impl Drop for PreauthPermit {
    fn drop(&mut self) {
        let mut waiting = self.gate.waiting();
        if let Some((client, _)) = waiting.by_age.remove(&self.arrival) {
            waiting.release(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(n: u32) -> Option<IpAddr> {
        Some(IpAddr::V4(Ipv4Addr::from_bits(n)))
    }

    #[test]
    fn w1_a_client_is_bounded_and_gets_its_places_back() {
        let gate = PreauthGate::default();
        let held: Vec<_> = (0..limits::PREAUTH_CONNECTIONS_PER_CLIENT_MAX)
            .map(|_| gate.enter(client(1)).unwrap())
            .collect();
        assert!(gate.enter(client(1)).is_none());
        assert!(gate.enter(client(2)).is_some());
        drop(held);
        assert!(gate.is_empty());
        assert!(gate.enter(client(1)).is_some());
    }

    #[test]
    fn w1_a_client_is_bounded_behind_its_proxy_and_by_its_network() {
        let gate = PreauthGate::default();
        let named = |text: &str| Client::Ip(text.parse().unwrap());
        let held: Vec<_> = (0..limits::PREAUTH_CONNECTIONS_PER_CLIENT_MAX)
            .map(|_| gate.enter(None).unwrap())
            .collect();
        assert!(
            held.iter()
                .all(|place| place.count_as(named("2001:db8::1")))
        );
        let next = gate.enter(None).unwrap();
        assert!(!next.count_as(named("2001:db8::2")), "the same network");
        assert!(next.count_as(named("203.0.113.9")));
        assert!(gate.enter(Some("2001:db8::3".parse().unwrap())).is_none());
        drop(held);
        assert!(next.count_as(named("2001:db8::2")));
        drop(next);
        assert!(gate.waiting().per_client.is_empty());
    }

    #[tokio::test]
    async fn w1_a_full_house_lets_the_oldest_go() {
        let gate = PreauthGate::default();
        let total = u32::try_from(limits::PREAUTH_CONNECTIONS_MAX).unwrap();
        let mut held: Vec<_> = (0..total).map(|n| gate.enter(client(n)).unwrap()).collect();
        let newcomer = gate.enter(client(total)).unwrap();
        held[0].evicted().await;
        assert_eq!(gate.len(), limits::PREAUTH_CONNECTIONS_MAX);
        held.remove(0);
        assert_eq!(gate.len(), limits::PREAUTH_CONNECTIONS_MAX);
        drop(newcomer);
        assert_eq!(gate.len(), limits::PREAUTH_CONNECTIONS_MAX - 1);
    }
}
