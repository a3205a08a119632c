//! Guessing costs: wrong secrets are counted, answered late, and locked out.
//!
//! In: attempts with their client, class and time. Out: whether a secret may be compared at all, and how late a wrong
//! one is answered.
//! Attacker controls: how many addresses try, and when. Bounds: `limits::{LIMITER_ENTRIES_MAX, LATE_ANSWERS_MAX,
//! LATE_ANSWERS_PER_CLIENT_MAX}`; IPv6 counts by /64.
//! Errors: none at run time; a limit of zero is refused when the settings are made.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::base::{DeviceId, limits};
use crate::ingress::Client;

/// How late the first, second, … consecutive wrong secret is answered; the last holds for all that follow.
const DELAYS_MS: [u64; 6] = [250, 500, 1000, 2000, 4000, 5000];
/// The most that distributed guessing slows an unpaired caller down, and everybody's wrong secret.
const SLOW_MAX: Duration = Duration::from_secs(5);

/// Kinds of credential. A success with one says nothing about guesses at another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    SharedSecret,
    DeviceToken,
    SignInLink,
}

/// Who is counted. A device token is guessed at by whoever holds the device's key, so it is counted by device: a
/// stranger at the same address cannot lock a device out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LimitKey {
    V4(Ipv4Addr),
    /// The upper 64 bits of an IPv6 address: one customer's network.
    V6Net(u64),
    /// A peer of a Unix socket.
    Local,
    Device(DeviceId),
}

impl From<Client> for LimitKey {
    fn from(client: Client) -> Self {
        match client {
            Client::Local => Self::Local,
            // A program of this host has all of 127.0.0.0/8 to come from, and is one guesser.
            Client::Ip(address) if address.to_canonical().is_loopback() => {
                Self::V4(Ipv4Addr::LOCALHOST)
            }
            Client::Ip(address) => Self::of(address),
        }
    }
}

impl LimitKey {
    /// Where an address belongs, loopback addresses each on their own.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments().map(u64::from);
                Self::V6Net(a << 48 | b << 32 | c << 16 | d)
            }
        }
    }
}

/// `gateway.auth.rateLimit`.
#[derive(Clone, Copy, Debug)]
pub struct LimiterSettings {
    attempts_max: u32,
    window: Duration,
    lockout: Duration,
}

/// A limit that would switch the limiter off.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LimiterSettingsError {
    pub setting: &'static str,
    pub got: f64,
}

impl Default for LimiterSettings {
    fn default() -> Self {
        Self {
            attempts_max: 10,
            window: Duration::from_secs(60),
            lockout: Duration::from_secs(300),
        }
    }
}

impl LimiterSettings {
    /// Accepts positive whole numbers only (R4): a zero must not mean "off".
    pub fn new(
        attempts_max: f64,
        window_ms: f64,
        lockout_ms: f64,
    ) -> Result<Self, LimiterSettingsError> {
        Ok(Self {
            attempts_max: whole("maxAttempts", attempts_max)?,
            window: Duration::from_millis(whole("windowMs", window_ms)?.into()),
            lockout: Duration::from_millis(whole("lockoutMs", lockout_ms)?.into()),
        })
    }
}

fn whole(setting: &'static str, got: f64) -> Result<u32, LimiterSettingsError> {
    // NaN fails the range check too.
    let fits = (1.0..=f64::from(u32::MAX)).contains(&got) && got.fract() == 0.0;
    if !fits {
        return Err(LimiterSettingsError { setting, got });
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked just above"
    )]
    Ok(got as u32)
}

/// Whether an attempt may be judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Judge it; an unpaired caller's answer is held back by `slow`, zero in ordinary times (R6).
    Open { slow: Duration },
    /// Do not even compare.
    Locked { retry_after: Duration },
}

#[derive(Debug)]
struct Entry {
    /// Since the last success.
    consecutive: u32,
    window_start: Instant,
    in_window: u32,
    locked_until: Option<Instant>,
    last: Instant,
    waiting: u32,
}

/// The failed attempts of everybody. The clock is the caller's.
#[derive(Debug)]
pub struct Limiter {
    settings: LimiterSettings,
    entries: BTreeMap<(LimitKey, Class), Entry>,
    /// Keys in the order in which they first failed.
    order: VecDeque<(LimitKey, Class)>,
    /// Of each class.
    waiting: [u32; 3],
    global_start: Option<Instant>,
    global_failures: u32,
    global_failures_before: u32,
}

impl Limiter {
    pub fn new(settings: LimiterSettings) -> Self {
        Self {
            settings,
            entries: BTreeMap::new(),
            order: VecDeque::new(),
            waiting: [0; 3],
            global_start: None,
            global_failures: 0,
            global_failures_before: 0,
        }
    }

    /// Limits that hold from now on.
    pub fn set_settings(&mut self, settings: LimiterSettings) {
        self.settings = settings;
    }

    /// Asks before a secret is compared. `exempt` callers (`Attributed::is_direct_local`) are never locked out.
    pub fn check(&mut self, now: Instant, key: &LimitKey, class: Class, exempt: bool) -> Limit {
        self.turn_global_window(now);
        let entry = self.entries.get(&(key.clone(), class));
        if let Some(until) = entry.and_then(|entry| entry.locked_until)
            && until > now
            && !exempt
        {
            return Limit::Locked {
                retry_after: until - now,
            };
        }
        let waiting = entry.map_or(0, |entry| entry.waiting);
        // Devices that have a record and programs of this host are few, so the bound of each is enough; strangers together
        // must not use up their turn.
        let stranger = !exempt && !matches!(key, LimitKey::Device(_));
        let crowded = stranger && self.waiting[class as usize] >= limits::LATE_ANSWERS_MAX;
        if crowded || waiting >= limits::LATE_ANSWERS_PER_CLIENT_MAX {
            return Limit::Locked {
                retry_after: delay(u32::MAX),
            };
        }
        Limit::Open { slow: self.slow() }
    }

    /// Counts a wrong secret and says how late to answer it: never earlier than a right one would be (R6). `answered` must
    /// follow when that time is over.
    #[must_use]
    pub fn failure(
        &mut self,
        now: Instant,
        key: &LimitKey,
        class: Class,
        exempt: bool,
    ) -> Duration {
        self.turn_global_window(now);
        self.global_failures = self.global_failures.saturating_add(1);
        let waiting = &mut self.waiting[class as usize];
        *waiting = waiting.saturating_add(1);
        let (settings, slow) = (self.settings, self.slow());
        let entry = self.entry(now, key, class);
        if now.saturating_duration_since(entry.window_start) > settings.window {
            entry.window_start = now;
            entry.in_window = 0;
        }
        entry.last = now;
        entry.consecutive = entry.consecutive.saturating_add(1);
        entry.in_window = entry.in_window.saturating_add(1);
        entry.waiting = entry.waiting.saturating_add(1);
        if entry.in_window >= settings.attempts_max && !exempt {
            entry.locked_until = Some(now + settings.lockout);
        }
        delay(entry.consecutive).max(slow)
    }

    /// The late answer to a failure has gone out, or its socket is gone.
    pub fn answered(&mut self, key: &LimitKey, class: Class) {
        let waiting = &mut self.waiting[class as usize];
        *waiting = waiting.saturating_sub(1);
        if let Some(entry) = self.entries.get_mut(&(key.clone(), class)) {
            entry.waiting = entry.waiting.saturating_sub(1);
        }
    }

    /// A right secret clears this client's failures of the same class, and of no other (R3).
    pub fn success(&mut self, key: &LimitKey, class: Class) {
        let id = (key.clone(), class);
        match self.entries.get_mut(&id) {
            Some(entry) if entry.waiting > 0 => {
                entry.consecutive = 0;
                entry.in_window = 0;
            }
            Some(_) => {
                self.entries.remove(&id);
            }
            None => {}
        }
    }

    fn entry(&mut self, now: Instant, key: &LimitKey, class: Class) -> &mut Entry {
        let id = (key.clone(), class);
        if !self.entries.contains_key(&id) {
            self.make_room();
            self.order.push_back(id.clone());
        }
        let keep = self.settings.window.max(self.settings.lockout);
        let entry = self.entries.entry(id).or_insert(Entry {
            consecutive: 0,
            window_start: now,
            in_window: 0,
            locked_until: None,
            last: now,
            waiting: 0,
        });
        if now.saturating_duration_since(entry.last) > keep {
            entry.consecutive = 0;
        }
        entry
    }

    /// Forgets the client that failed first. Both tables stay bounded: `order` also holds keys that succeeded since.
    fn make_room(&mut self) {
        while self.entries.len() >= limits::LIMITER_ENTRIES_MAX {
            match self.order.pop_front() {
                Some(oldest) => self.entries.remove(&oldest),
                None => self.entries.pop_first().map(|(_, entry)| entry),
            };
        }
        if self.order.len() >= 2 * limits::LIMITER_ENTRIES_MAX {
            self.order.retain(|id| self.entries.contains_key(id));
            self.order.truncate(limits::LIMITER_ENTRIES_MAX);
        }
    }

    fn turn_global_window(&mut self, now: Instant) {
        let start = *self.global_start.get_or_insert(now);
        let elapsed = now.saturating_duration_since(start);
        if elapsed > self.settings.window {
            let adjacent = elapsed <= 2 * self.settings.window;
            self.global_failures_before = if adjacent { self.global_failures } else { 0 };
            self.global_failures = 0;
            self.global_start = Some(now);
        }
    }

    fn slow(&self) -> Duration {
        let failures = self.global_failures.max(self.global_failures_before);
        let steps = failures / limits::GLOBAL_FAILURES_SLOW;
        (Duration::from_millis(DELAYS_MS[0]) * steps).min(SLOW_MAX)
    }
}

fn delay(consecutive: u32) -> Duration {
    let index = usize::try_from(consecutive.saturating_sub(1)).unwrap_or(usize::MAX);
    let last = DELAYS_MS[DELAYS_MS.len() - 1];
    Duration::from_millis(DELAYS_MS.get(index).copied().unwrap_or(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> LimitKey {
        Client::Ip(text.parse().unwrap()).into()
    }

    fn limiter() -> (Limiter, Instant) {
        (Limiter::new(LimiterSettings::default()), Instant::now())
    }

    /// A wrong secret whose answer has gone out.
    fn fail(it: &mut Limiter, now: Instant, key: &LimitKey, class: Class, exempt: bool) -> u128 {
        let late = it.failure(now, key, class, exempt);
        it.answered(key, class);
        late.as_millis()
    }

    fn locked(it: &mut Limiter, now: Instant, key: &LimitKey, class: Class) -> bool {
        matches!(it.check(now, key, class, false), Limit::Locked { .. })
    }

    #[test]
    fn r1_ten_wrong_secrets_lock_for_five_minutes() {
        let (mut it, now) = limiter();
        let key = client("203.0.113.9");
        for _ in 0..10 {
            assert!(!locked(&mut it, now, &key, Class::SharedSecret));
            fail(&mut it, now, &key, Class::SharedSecret, false);
        }
        let retry_after = Duration::from_millis(300_000);
        assert_eq!(
            it.check(now, &key, Class::SharedSecret, false),
            Limit::Locked { retry_after }
        );
        assert!(!locked(
            &mut it,
            now,
            &client("203.0.113.10"),
            Class::SharedSecret
        ));
        assert!(!locked(
            &mut it,
            now + retry_after,
            &key,
            Class::SharedSecret
        ));
    }

    #[test]
    fn r1_slow_guessing_is_not_locked() {
        let (mut it, now) = limiter();
        let key = client("203.0.113.9");
        for minute in 0..50 {
            fail(
                &mut it,
                now + Duration::from_secs(61 * minute),
                &key,
                Class::SharedSecret,
                false,
            );
        }
        assert!(!locked(
            &mut it,
            now + Duration::from_secs(61 * 50),
            &key,
            Class::SharedSecret
        ));
    }

    #[test]
    fn r2_only_exempt_callers_are_never_locked() {
        let (mut it, now) = limiter();
        let key = client("127.0.0.1");
        for _ in 0..50 {
            fail(&mut it, now, &key, Class::SharedSecret, true);
        }
        assert!(matches!(
            it.check(now, &key, Class::SharedSecret, true),
            Limit::Open { .. }
        ));
        for _ in 0..10 {
            fail(&mut it, now, &key, Class::SharedSecret, false);
        }
        assert!(
            locked(&mut it, now, &key, Class::SharedSecret),
            "a browser on loopback"
        );
        assert!(
            matches!(
                it.check(now, &key, Class::SharedSecret, true),
                Limit::Open { .. }
            ),
            "the operator's own programs at the same address go on"
        );
    }

    #[test]
    fn r3_a_success_of_one_class_leaves_the_other_class_counted() {
        let (mut it, now) = limiter();
        let key = client("203.0.113.9");
        for _ in 0..9 {
            fail(&mut it, now, &key, Class::SharedSecret, false);
        }
        it.success(&key, Class::DeviceToken);
        fail(&mut it, now, &key, Class::SharedSecret, false);
        assert!(locked(&mut it, now, &key, Class::SharedSecret));
        assert!(!locked(&mut it, now, &key, Class::DeviceToken));
    }

    #[test]
    fn r4_limits_that_switch_it_off_are_refused() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 0.5, 1e12] {
            assert!(LimiterSettings::new(bad, 1.0, 1.0).is_err());
            assert!(LimiterSettings::new(1.0, bad, 1.0).is_err());
            assert!(LimiterSettings::new(1.0, 1.0, bad).is_err());
        }
        assert!(LimiterSettings::new(10.0, 60_000.0, 300_000.0).is_ok());
    }

    #[test]
    fn r5_memory_is_bounded_and_ipv6_counts_by_64() {
        let (mut it, now) = limiter();
        for n in 0..100_000_u32 {
            let key = Client::Ip(IpAddr::V4(n.into())).into();
            fail(&mut it, now, &key, Class::SharedSecret, false);
            if n % 3 == 0 {
                it.success(&key, Class::SharedSecret);
            }
        }
        assert!(it.entries.len() <= limits::LIMITER_ENTRIES_MAX);
        assert!(it.order.len() <= 2 * limits::LIMITER_ENTRIES_MAX);
        let (mut it, now) = limiter();
        for n in 0..1024_u128 {
            let address = (0x2001_0db8_u128 << 96) | n;
            let key = Client::Ip(IpAddr::V6(address.into())).into();
            fail(&mut it, now, &key, Class::SharedSecret, false);
        }
        assert_eq!(it.entries.len(), 1);
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:10.0.0.1"), client("10.0.0.1"), "P8");
    }

    #[test]
    fn r6_distributed_guessing_slows_everybody_unpaired() {
        let (mut it, now) = limiter();
        let stranger = client("198.51.100.1");
        assert_eq!(
            it.check(now, &stranger, Class::SharedSecret, false),
            Limit::Open {
                slow: Duration::ZERO
            }
        );
        for n in 0..1000_u32 {
            for _ in 0..9 {
                fail(
                    &mut it,
                    now,
                    &Client::Ip(IpAddr::V4(n.into())).into(),
                    Class::SharedSecret,
                    false,
                );
            }
        }
        assert_eq!(
            it.check(now, &stranger, Class::SharedSecret, false),
            Limit::Open { slow: SLOW_MAX }
        );
        // Whoever guesses waits at least as long as whoever knows.
        for key in [&stranger, &client("198.51.100.2")] {
            let late = fail(&mut it, now, key, Class::SharedSecret, false);
            assert_eq!(late, SLOW_MAX.as_millis());
        }
        let later = now + Duration::from_secs(200);
        assert_eq!(
            it.check(later, &stranger, Class::SharedSecret, false),
            Limit::Open {
                slow: Duration::ZERO
            }
        );
        let other = client("198.51.100.3");
        assert_eq!(
            fail(&mut it, later, &other, Class::SharedSecret, false),
            250
        );
    }

    #[test]
    fn r8_wrong_secrets_are_answered_ever_later_until_one_is_right() {
        let (mut it, now) = limiter();
        let key = client("127.0.0.1");
        let series: Vec<_> = (0..7)
            .map(|_| fail(&mut it, now, &key, Class::SharedSecret, true))
            .collect();
        assert_eq!(series, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        it.success(&key, Class::SharedSecret);
        assert_eq!(fail(&mut it, now, &key, Class::SharedSecret, true), 250);
    }

    #[test]
    fn r8_waiting_answers_are_bounded() {
        let (mut it, now) = limiter();
        let key = client("127.0.0.1");
        for _ in 0..limits::LATE_ANSWERS_PER_CLIENT_MAX {
            assert!(matches!(
                it.check(now, &key, Class::SharedSecret, true),
                Limit::Open { .. }
            ));
            let _ = it.failure(now, &key, Class::SharedSecret, true);
        }
        assert!(matches!(
            it.check(now, &key, Class::SharedSecret, true),
            Limit::Locked { .. }
        ));
        assert!(matches!(
            it.check(now, &key, Class::DeviceToken, true),
            Limit::Open { .. }
        ));
        it.answered(&key, Class::SharedSecret);
        assert!(matches!(
            it.check(now, &key, Class::SharedSecret, true),
            Limit::Open { .. }
        ));
    }

    #[test]
    fn r8_strangers_whose_answers_wait_hold_up_no_device_and_no_program_of_this_host() {
        let (mut it, now) = limiter();
        let open = |it: &mut Limiter, key: &LimitKey, class, exempt| {
            matches!(it.check(now, key, class, exempt), Limit::Open { .. })
        };
        for class in [Class::SharedSecret, Class::DeviceToken] {
            for n in 0..limits::LATE_ANSWERS_MAX {
                let _ = it.failure(now, &LimitKey::V4(n.into()), class, false);
            }
        }
        let stranger = client("203.0.113.9");
        assert!(!open(&mut it, &stranger, Class::SharedSecret, false));
        assert!(!open(&mut it, &stranger, Class::DeviceToken, false));
        assert!(open(&mut it, &stranger, Class::SignInLink, false));
        let device = LimitKey::Device(DeviceId::from_digest([7; 32]));
        assert!(open(&mut it, &device, Class::DeviceToken, false));
        let local = client("127.0.0.1");
        assert!(open(&mut it, &local, Class::SharedSecret, true));
        assert!(!open(&mut it, &local, Class::SharedSecret, false), "a page");
        it.answered(&LimitKey::V4(0.into()), Class::SharedSecret);
        assert!(open(&mut it, &stranger, Class::SharedSecret, false));
        // Each of them has its own bound.
        for _ in 0..limits::LATE_ANSWERS_PER_CLIENT_MAX {
            let _ = it.failure(now, &device, Class::DeviceToken, true);
            let _ = it.failure(now, &local, Class::SharedSecret, true);
        }
        assert!(!open(&mut it, &device, Class::DeviceToken, true));
        assert!(!open(&mut it, &local, Class::SharedSecret, true));
    }
}
