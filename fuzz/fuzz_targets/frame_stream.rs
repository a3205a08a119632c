//! For any byte stream in any split our codec and tungstenite accept the same messages, or both refuse, but for the
//! list in `tests/ws_peer/peer.rs`. Our own reading does not depend on the split.
//!
//! Input: a byte that chooses the role, a byte of split size for each codec, the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::ws::Role;

#[path = "../../tests/ws_peer/peer.rs"]
mod peer;

fuzz_target!(|input: &[u8]| {
    let [role, ours, theirs, bytes @ ..] = input else {
        return;
    };
    let role = if role % 2 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let (our_cuts, their_cuts) = ([usize::from(*ours)], [usize::from(*theirs)]);
    peer::compare(role, bytes, &our_cuts, &their_cuts);
    assert_eq!(
        peer::ours(role, bytes, &our_cuts),
        peer::ours(role, bytes, &[])
    );
});
