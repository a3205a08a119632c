//! The whole way of a stranger: HTTP head, upgrade, frames, `connect`. Whatever it sends, nobody gets in, nothing is
//! paired, no answer is a 5xx, and the connection ends.
//!
//! An input that does not begin with a letter is put behind a good upgrade, so that frames are reached, too.
#![no_main]

#[path = "../house.rs"]
mod house;

use libfuzzer_sys::fuzz_target;

const UPGRADE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:18789\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

fuzz_target!(|input: &[u8]| {
    let behind_upgrade = !input.first().is_some_and(u8::is_ascii_alphabetic);
    let upgrade = if behind_upgrade { UPGRADE } else { b"" };
    let answer = house::exchange(&[upgrade, &input[..input.len().min(200_000)]]);
    assert!(
        !answer.starts_with(b"HTTP/1.1 5"),
        "a stranger's bytes made a 5xx"
    );
    let hub = &house::HOUSE.1.hub;
    assert_eq!(hub.session_counts(), (0, 0), "a stranger got in");
    assert_eq!(hub.node_list().len(), 0, "a stranger was paired");
});
