//! The machine under us: clock, randomness, host name, addresses, facts, private files, and processes.
//!
//! In: nothing, a path, or a program. Out: values that the pure layers take as arguments, and files that only our user can read.
//! Attacker controls: nothing here; a local user may have prepared paths, which `files` refuses.
//! Bounds: every read names its largest size.
//! Errors: `files::FileError`, each naming the path, what is wrong and the right value.

pub mod addresses;
pub mod facts;
pub mod files;
pub mod process;

use std::time::{SystemTime, UNIX_EPOCH};

pub use addresses::{OwnAddresses, own_addresses};
pub use facts::{Platform, host_name, host_stats, platform, resident_bytes};

/// Wall time in Unix milliseconds; 0 if the clock stands before 1970.
pub fn now_ms() -> u64 {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
    #[cfg(test)]
    let now_ms = now_ms.saturating_add_signed(CLOCK_STEP_MS.get());
    now_ms
}

#[cfg(test)]
thread_local! {
    /// By how much the clock of this test was set forward or back.
    pub static CLOCK_STEP_MS: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

/// How long this machine has slept since it was started; the clock of waiting (`Instant`) stood still meanwhile.
#[cfg(target_os = "linux")]
pub fn slept_ms() -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    let ms = |clock| {
        let time = clock_gettime(clock);
        u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or(0)
    };
    // Read in this order, so that the little time in between is no sleep.
    let since_boot = ms(ClockId::Boottime);
    since_boot.saturating_sub(ms(ClockId::Monotonic))
}

/// Not known on other systems.
#[cfg(not(target_os = "linux"))]
pub fn slept_ms() -> u64 {
    0
}

/// Bytes from the operating system's generator.
///
/// A machine without randomness cannot make a nonce or a token that anyone should trust, so the process
/// ends instead of going on with a weak one.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if let Err(error) = getrandom::fill(&mut bytes) {
        eprintln!("portcullis: the operating system gives no random bytes ({error}); stopping");
        std::process::abort();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_differs() {
        assert_ne!(random::<16>(), random::<16>());
        assert_ne!(random::<32>(), [0; 32]);
    }

    #[test]
    fn the_clock_is_in_milliseconds() {
        // 2024-01-01 and 2200-01-01.
        assert!((1_704_067_200_000..7_258_118_400_000).contains(&now_ms()));
    }
}
