//! What the daemon's bytes say: an HTTP answer, and in it whose node an address is, or the name of this host.
//!
//! In: all that it sent. Out: status and body, the owner, the name. Pure.
//! Attacker controls: nothing, unless it is the daemon; a tailnet's users choose their display names.
//! Bounds: `limits::TAILNET_ANSWER_BYTES_MAX` before, `rpc::scan`'s for the JSON, a login as long as the header that
//! claims it. Errors: `None`; whoever cannot be understood vouches for nobody.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::auth::whois::Whois;
use crate::base::limits;
use crate::ingress::Host;
use crate::rpc::scan::scan;

/// Header lines that an answer may have. The real daemon sends eight.
const HEADERS_MAX: usize = 32;

/// The status and the whole body of an answer, and nothing behind it. One whose body has no announced end (RFC 9112
/// §6.3) might be cut off, so it is none.
pub fn http(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = head.parse(bytes).ok()? else {
        return None;
    };
    let body = bytes.get(head_bytes..)?;
    let lines = |name: &str| {
        let same = head
            .headers
            .iter()
            .filter(|line| line.name.eq_ignore_ascii_case(name));
        same.map(|line| line.value).collect::<Vec<_>>()
    };
    let body = match (
        &lines("transfer-encoding")[..],
        &lines("content-length")[..],
    ) {
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => dechunked(body)?,
        ([], [length]) if length.iter().all(u8::is_ascii_digit) => {
            let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
            (body.len() == length).then(|| body.to_vec())?
        }
        _ => return None,
    };
    Some((head.code?, body))
}

/// RFC 9112 §7.1, without trailers.
fn dechunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let httparse::Status::Complete((at, size)) = httparse::parse_chunk_size(rest).ok()? else {
            return None;
        };
        rest = rest.get(at..)?;
        if size == 0 {
            return (rest == b"\r\n").then_some(body);
        }
        let (chunk, after) = rest.split_at_checked(usize::try_from(size).ok()?)?;
        body.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n")?;
    }
}

/// `WhoIsResponse`. Both parts are always there; more of them, and more beside them, comes with each release.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WhoIs {
    node: Node,
    user_profile: UserProfile,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    /// A tagged node belongs to the tags and to no user.
    #[serde(default)]
    tags: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UserProfile {
    login_name: String,
}

/// Who owns the node, by the body of a whois that found one.
pub fn whois(body: &[u8]) -> Option<Whois> {
    let it: WhoIs = read(body)?;
    if it.node.tags.is_some_and(|tags| !tags.is_empty()) {
        return Some(Whois::Tagged);
    }
    let login = it.user_profile.login_name;
    let sound = !login.is_empty() && login.len() <= limits::INGRESS_HEADER_BYTES_MAX;
    sound.then_some(Whois::Found { login })
}

/// Of `Status`, what is told about this host.
#[derive(Deserialize)]
struct Status {
    #[serde(rename = "Self")]
    own: Own,
}

#[derive(Deserialize)]
struct Own {
    #[serde(rename = "DNSName")]
    dns_name: String,
}

/// This host's MagicDNS name, by the body of a status. A daemon that is not logged in knows none.
pub fn name(body: &[u8]) -> Option<Host> {
    let it: Status = read(body)?;
    Host::parse(&it.own.dns_name).filter(|host| matches!(host, Host::Name(_)))
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    let text = std::str::from_utf8(body).ok()?;
    // Two answers in one are none: serde would take the last of two keys that are spelled alike.
    scan(text).ok()?;
    serde_json::from_str(text).ok()
}
