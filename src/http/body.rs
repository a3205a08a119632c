//! A request's body, read whole within a size and a time.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::{Body, Incoming};

use super::respond::{Answer, text};
use crate::base::limits;

/// Reads a body. One that is announced too long is refused before a byte of it is read, and so before `100 Continue`.
pub(super) async fn read(body: Incoming) -> Result<Bytes, Answer> {
    let limit = limits::HTTP_BODY_BYTES_MAX;
    if usize::try_from(body.size_hint().lower()).is_ok_and(|announced| announced <= limit) {
        let whole = Limited::new(body, limit).collect();
        return match tokio::time::timeout(limits::HTTP_BODY_TIMEOUT, whole).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(_)) => Err(text(StatusCode::BAD_REQUEST, "the body could not be read")),
            Err(_) => Err(text(
                StatusCode::REQUEST_TIMEOUT,
                "the body came too slowly",
            )),
        };
    }
    Err(text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"))
}
