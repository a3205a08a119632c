//! What a node host does after a connection failed: pure decisions.
//!
//! In: how often it failed, a random number, the refusal. Out: how long to wait, or that waiting is no use.

use std::time::Duration;

use crate::client::{ConnectError, DialError};
use crate::rpc::error::{code, detail};

const BACKOFF_LEAST: Duration = Duration::from_secs(1);
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// Somebody is about to approve us; they should not have to wait long.
const PAIRING_POLL_MOST: Duration = Duration::from_secs(5);
/// The longest wait that a Gateway may impose.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(600);

/// The wait before the next attempt: doubled each time from one second to thirty, of which a random half is taken off, so
/// that the nodes of a restarted Gateway do not all come back in the same moment.
pub fn backoff(failures: u32, random: u32) -> Duration {
    let doubled =
        BACKOFF_LEAST.saturating_mul(1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX));
    let whole = doubled.min(BACKOFF_MOST);
    let share = f64::from(random) / f64::from(u32::MAX);
    whole / 2 + (whole / 2).mul_f64(share)
}

/// Which credential the refused attempt carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Used {
    DeviceToken,
    Shared,
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Wait at least this long, and at least the back-off.
    Retry { at_least: Duration },
    /// Somebody must approve this device first.
    Pairing { request_id: Option<String> },
    /// The stored device token is not accepted; use the shared secret.
    UseShared,
    /// The same attempt will always be refused.
    Stop,
}

/// Judges a failed attempt.
pub fn after(error: &ConnectError, used: Used, has_shared: bool) -> Next {
    const NOW: Next = Next::Retry {
        at_least: Duration::ZERO,
    };
    let refusal = match error {
        ConnectError::Dial(
            DialError::Url { .. }
            | DialError::TlsNotBuilt
            // Somebody else answers at that address, and the next attempt would give them another chance.
            | DialError::Pin { .. }
            | DialError::Plaintext { .. }
            | DialError::Request(_),
        ) => return Next::Stop,
        ConnectError::Refused(refusal) => refusal,
        // Whatever answered, it may be another program that holds the port for a while.
        _ => return NOW,
    };
    let at_least = Duration::from_millis(refusal.retry_after_ms.unwrap_or(0)).min(RETRY_AFTER_MOST);
    match (refusal.detail_code(), used) {
        (Some(detail::PAIRING_REQUIRED), _) => Next::Pairing {
            request_id: refusal
                .details
                .as_ref()
                .and_then(|details| details.get("requestId"))
                .and_then(|id| id.as_str())
                .map(str::to_owned),
        },
        (
            Some(detail::AUTH_DEVICE_TOKEN_MISMATCH | detail::AUTH_SCOPE_MISMATCH),
            Used::DeviceToken,
        ) if has_shared => Next::UseShared,
        (Some(detail::AUTH_RATE_LIMITED), _) => Next::Retry {
            at_least: at_least.max(BACKOFF_MOST),
        },
        // The challenge may have aged on the way.
        (Some(detail::DEVICE_AUTH_NONCE_MISMATCH | detail::DEVICE_AUTH_SIGNATURE_EXPIRED), _) => {
            NOW
        }
        (Some(detail::PROTOCOL_MISMATCH | detail::CLIENT_VERSION_MISMATCH), _) => Next::Stop,
        (Some(detail), _) if detail.starts_with("AUTH_") || detail.starts_with("DEVICE_") => {
            Next::Stop
        }
        (None, _) if refusal.code == code::INVALID_REQUEST => Next::Stop,
        _ => Next::Retry { at_least },
    }
}

/// The wait while somebody is to approve us.
pub fn pairing_wait(failures: u32, random: u32) -> Duration {
    backoff(failures, random).min(PAIRING_POLL_MOST)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rpc::ErrorShape;

    #[test]
    fn back_off_grows_from_one_second_to_thirty_with_jitter() {
        for (failures, whole) in [
            (0, 1),
            (1, 2),
            (2, 4),
            (4, 16),
            (5, 30),
            (16, 30),
            (u32::MAX, 30),
        ] {
            let whole = Duration::from_secs(whole);
            assert_eq!(backoff(failures, 0), whole / 2, "{failures}");
            assert_eq!(backoff(failures, u32::MAX), whole, "{failures}");
            let middle = backoff(failures, u32::MAX / 2);
            assert!(middle > whole / 2 && middle < whole);
        }
        assert_eq!(pairing_wait(10, u32::MAX), Duration::from_secs(5));
    }

    fn refused(code: &'static str, details: Option<&str>) -> ConnectError {
        let error = ErrorShape::new(code, "no");
        ConnectError::Refused(Box::new(match details {
            Some(detail) => error.with_details(json!({"code": detail, "requestId": "r1"})),
            None => error,
        }))
    }

    #[test]
    fn refusals_that_a_retry_cannot_cure_stop() {
        for detail in [
            "AUTH_TOKEN_MISSING",
            "AUTH_TOKEN_MISMATCH",
            "AUTH_PASSWORD_MISMATCH",
            "DEVICE_AUTH_SIGNATURE_INVALID",
            "DEVICE_IDENTITY_REQUIRED",
            "PROTOCOL_MISMATCH",
        ] {
            let error = refused("INVALID_REQUEST", Some(detail));
            assert_eq!(after(&error, Used::Shared, true), Next::Stop, "{detail}");
        }
        assert_eq!(
            after(&refused("INVALID_REQUEST", None), Used::Shared, true),
            Next::Stop
        );
        let pin = |text: &[u8]| crate::net::Fingerprint::of(text);
        for error in [
            DialError::TlsNotBuilt,
            DialError::Pin {
                expected: pin(b"one"),
                got: pin(b"other"),
            },
        ] {
            let error = ConnectError::Dial(error);
            assert_eq!(after(&error, Used::Shared, true), Next::Stop);
        }
        // A certificate that has run out will be renewed; until then nothing was sent.
        let why = "expired".to_owned();
        let expired = ConnectError::Dial(DialError::Certificate { why });
        assert!(matches!(
            after(&expired, Used::Shared, true),
            Next::Retry { .. }
        ));
    }

    #[test]
    fn a_device_token_that_is_not_accepted_gives_way_to_the_shared_secret() {
        let error = refused("INVALID_REQUEST", Some("AUTH_DEVICE_TOKEN_MISMATCH"));
        assert_eq!(after(&error, Used::DeviceToken, true), Next::UseShared);
        assert_eq!(after(&error, Used::DeviceToken, false), Next::Stop);
        assert_eq!(after(&error, Used::Shared, true), Next::Stop);
    }

    #[test]
    fn pairing_waits_and_others_retry() {
        let pairing = refused("NOT_PAIRED", Some("PAIRING_REQUIRED"));
        let request_id = Some("r1".to_owned());
        assert_eq!(
            after(&pairing, Used::Shared, true),
            Next::Pairing { request_id }
        );
        let mut starting = ErrorShape::unavailable("starting");
        starting.retry_after_ms = Some(u64::MAX);
        let starting = ConnectError::Refused(Box::new(starting));
        assert_eq!(
            after(&starting, Used::Shared, true),
            Next::Retry {
                at_least: RETRY_AFTER_MOST
            }
        );
        let limited = refused("INVALID_REQUEST", Some("AUTH_RATE_LIMITED"));
        assert!(
            matches!(after(&limited, Used::Shared, true), Next::Retry { at_least } if at_least >= BACKOFF_MOST)
        );
        let lost = ConnectError::Timeout {
            after: Duration::ZERO,
        };
        assert!(matches!(
            after(&lost, Used::Shared, true),
            Next::Retry { .. }
        ));
    }
}
