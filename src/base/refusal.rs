//! What every refusal can say about itself.

use std::borrow::Cow;

/// A decision against a request, with its reason.
///
/// The error frame, the HTTP answer, the log, the audit record, `doctor` and `nodes explain` all print the same
/// value, so they cannot disagree. Public sentences hold no secret and no raw peer bytes.
pub trait Refusal {
    /// The wire's `error.code`, the reference's code where it has one.
    fn code(&self) -> &'static str;

    /// The wire's `error.details.code`, when the reference sends one.
    fn detail_code(&self) -> Option<&'static str> {
        None
    }

    /// The status that answers the same refusal over HTTP, where a request can meet it.
    fn http_status(&self) -> u16 {
        403
    }

    /// A stable, lower-case name for logs, metrics and the audit log.
    fn log_field(&self) -> &'static str;

    /// The sentence that anyone may read.
    fn public(&self) -> Cow<'static, str>;

    /// What the operator should change, for those who may know.
    fn remedy(&self) -> Cow<'static, str>;
}
