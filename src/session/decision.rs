//! The number of a refusal, and whether the log has a line for it.
//!
//! In: a refusal's log name, of which there are few. Out: an id that stands in the answer and in the log line, and how many
//! lines were left out. Attacker controls: how many refusals there are. Bounds: `limits::REFUSALS_LOGGED_PER_SECOND` for
//! each name (R7). Errors: none.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::{ids, limits};
use crate::machine;

/// One refusal, as both sides may name it (decision 16): the caller reads code, sentence and id, and the operator finds
/// reason, facts and remedy under that id in the log.
pub(crate) struct Decision {
    pub id: String,
    /// `false`: so many of its kind came within this second that it is only counted.
    pub logged: bool,
    /// Lines of its kind that were left out since the last one, if any were.
    pub left_out: Option<u64>,
}

impl Decision {
    pub(crate) fn of(reason: &'static str) -> Self {
        // The log is one for the process, and so is its measure. Counters are whole after every step.
        static LINES: Mutex<Lines> = Mutex::new(Lines(BTreeMap::new()));
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = lines.take(Instant::now(), reason);
        Self {
            id: ids::hex_lower(&machine::random::<6>()),
            logged: left_out.is_some(),
            left_out: left_out.filter(|count| *count > 0),
        }
    }
}

struct Lines(BTreeMap<&'static str, Second>);

struct Second {
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl Lines {
    /// A line for this reason, and how many were left out before it; or `None`.
    fn take(&mut self, now: Instant, reason: &'static str) -> Option<u64> {
        let second = self.0.entry(reason).or_insert(Second {
            began: now,
            lines: 0,
            left_out: 0,
        });
        if now.duration_since(second.began) >= Duration::from_secs(1) {
            second.began = now;
            second.lines = 0;
        }
        if second.lines >= limits::REFUSALS_LOGGED_PER_SECOND {
            second.left_out += 1;
            return None;
        }
        second.lines += 1;
        Some(std::mem::take(&mut second.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_a_guesser_does_not_fill_the_log() {
        let began = Instant::now();
        let mut lines = Lines(BTreeMap::new());
        let most = limits::REFUSALS_LOGGED_PER_SECOND;
        for n in 0..1000 {
            let line = lines.take(began + Duration::from_millis(n / 2), "guess");
            assert_eq!(line.is_some(), n < u64::from(most), "{n}");
        }
        assert_eq!(lines.take(began, "another"), Some(0), "each for itself");
        let later = began + Duration::from_secs(1);
        assert_eq!(lines.take(later, "guess"), Some(1000 - u64::from(most)));
        assert_eq!(lines.take(later, "guess"), Some(0));
    }

    #[test]
    fn ids_differ() {
        let [one, other] = [(); 2].map(|()| Decision::of("test").id);
        assert!(one.len() == 12 && one != other);
    }
}
