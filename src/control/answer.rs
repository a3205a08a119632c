//! Results and refusals as response frames.

use std::future::Future;
use std::pin::Pin;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::base::{Refusal, limits};
use crate::hub::{Caller, Denied, Outbox};
use crate::nodes::{Category, Dispatched, Refused};
use crate::pairing;
use crate::rpc::{ErrorShape, encode};

/// The answer to a request: a response frame.
pub enum Answer {
    Now(String),
    /// The caller may not call this; sessions count such answers.
    Unauthorized(String),
    Later(Later),
}

/// A call that is under way, and ends when its response frame is in the caller's outbox.
pub struct Later(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Later {
    pub async fn run(self) {
        self.0.await;
    }
}

/// Room for one more call under way on the caller's connection. Nothing answers later without it.
pub(super) struct Room(Outbox);

impl Room {
    pub(super) fn beside(under_way: usize, caller: &Caller) -> Result<Self, ErrorShape> {
        let limit = limits::CALLS_PER_CONNECTION_MAX;
        if under_way < limit {
            return Ok(Self(caller.outbox.clone()));
        }
        let sentence = format!("{limit} calls of this connection are under way");
        Err(ErrorShape::unavailable(sentence).with_retryable(true))
    }

    pub(super) fn later(self, call: impl Future<Output = String> + Send + 'static) -> Answer {
        self.later_holding(async { (call.await, ()) })
    }

    /// The same with something that is held until the answer is in the outbox.
    pub(super) fn later_holding<T: Send>(
        self,
        call: impl Future<Output = (String, T)> + Send + 'static,
    ) -> Answer {
        Answer::Later(Later(Box::pin(async move {
            let (frame, held) = call.await;
            self.0.send(frame);
            drop(held);
        })))
    }
}

/// A finished call.
pub(super) fn now(id: &str, result: Result<impl Serialize, ErrorShape>) -> Answer {
    Answer::Now(frame(id, result))
}

pub(super) fn frame(id: &str, result: Result<impl Serialize, ErrorShape>) -> String {
    match result {
        Ok(payload) => encode::response(id, &payload),
        Err(error) => encode::refusal(id, &error),
    }
}

/// A pairing decision that was not taken.
impl From<Denied> for ErrorShape {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Refused(pairing::Refused::SurfaceApproverLacks { scope }) => {
                Self::missing_scope(scope.as_str())
            }
            Denied::Refused(refused) => Self::new(refused.code(), refused.public())
                .with_details(json!({"remediationHint": refused.remedy()})),
            Denied::Fault(fault) => {
                tracing::error!(%fault, "a decision could not be carried out");
                Self::unavailable("the gateway cannot record this decision now")
                    .with_retryable(true)
            }
        }
    }
}

/// A refusal of `node.invoke` before any node was looked at, with what such a refusal says besides: nothing was sent.
pub(super) fn unsent(error: ErrorShape, category: Category) -> ErrorShape {
    let mut details = match error.details.clone() {
        Some(Value::Object(details)) => details,
        _ => Map::new(),
    };
    details.insert("dispatched".to_owned(), Dispatched::No.as_str().into());
    details.insert("category".to_owned(), category.as_str().into());
    error.with_details(Value::Object(details))
}

/// An invocation that was refused or has no result, where no node is known.
pub(super) fn error_of(refused: &Refused) -> ErrorShape {
    error_on(refused, "")
}

/// The same of a node, by its full id. `dispatched`, `category` and `remediationHint` are ours, in `details`.
pub(super) fn error_on(refused: &Refused, node: &str) -> ErrorShape {
    let mut details = Map::new();
    let remedy = refused.remedy_on(node);
    if let Some(code) = refused.detail_code() {
        details.insert("code".to_owned(), code.into());
    }
    if let Some(reason) = refused.reason() {
        details.insert("reason".to_owned(), reason.into());
    }
    if let Some(command) = refused.command() {
        details.insert("command".to_owned(), command.into());
    }
    match refused {
        Refused::SurfacePending {
            request_id: Some(request),
        } => {
            details.insert("requestId".to_owned(), request.as_str().into());
            details.insert("stage".to_owned(), "surface".into());
        }
        Refused::ApprovalRequired { run_id: Some(run) } => {
            details.insert("runId".to_owned(), run.as_str().into());
        }
        Refused::Decision(_) => {
            details.insert("remediation".to_owned(), remedy.as_str().into());
        }
        _ => {}
    }
    if let Some((code, message)) = refused.node_error() {
        details.insert(
            "nodeError".to_owned(),
            json!({"code": code, "message": message}),
        );
        let dispatched = refused.dispatched() != Dispatched::No;
        details.insert("nodeCommandDispatched".to_owned(), dispatched.into());
    }
    details.insert(
        "dispatched".to_owned(),
        refused.dispatched().as_str().into(),
    );
    details.insert("category".to_owned(), refused.category().as_str().into());
    details.insert("remediationHint".to_owned(), remedy.into());
    let error = ErrorShape::new(refused.code(), refused.public_on(node))
        .with_details(Value::Object(details));
    match refused {
        // Nothing was sent, or its outcome is kept, and it passes by itself.
        Refused::AuditUnavailable
        | Refused::Busy { .. }
        | Refused::NodeBehind
        | Refused::CallerBehind => error.with_retryable(true),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Failure;
    use crate::nodes::refused::tests::every;

    #[test]
    fn every_refusal_tells_the_command_line_what_to_do_about_it() {
        let node = "ab".repeat(32);
        for refused in every() {
            let error = error_on(&refused, &node);
            let hint = error.details.as_ref().unwrap()["remediationHint"].clone();
            assert_eq!(hint, refused.remedy_on(&node), "{refused:?}");
            assert_eq!(error.message, refused.public_on(&node), "{refused:?}");
            let shown = Failure::of_refusal(&error);
            let known = refused == Refused::NotConnected;
            assert!(known || shown.remedy.as_deref() == hint.as_str(), "{shown}");
            assert!(shown.remedy.is_some(), "{shown}");
        }
    }
}
