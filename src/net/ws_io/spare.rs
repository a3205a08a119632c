//! One spare buffer of each kind a thread, lent to whichever connection is busy, so that a busy connection allocates
//! nothing and an idle one holds nothing.

use std::cell::Cell;

/// Bytes asked of a stream at once: a 64 KiB message arrives in one read.
pub(super) const READ_BYTES: usize = 64 * 1024 + 512;
/// Small frames are gathered in buffers of this size.
pub(super) const GATHER_BYTES: usize = 64 * 1024 + 512;

thread_local! {
    static READ: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static GATHER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A buffer of `READ_BYTES` to read into; what stands in it means nothing.
pub(super) fn take_read() -> Vec<u8> {
    let spare = READ.take();
    if spare.len() == READ_BYTES {
        spare
    } else {
        vec![0; READ_BYTES]
    }
}

pub(super) fn give_read(buffer: Vec<u8>) {
    // The rest of a handshake is no buffer of ours.
    if buffer.len() == READ_BYTES {
        READ.set(buffer);
    }
}

/// An empty buffer with room for `GATHER_BYTES`.
pub(super) fn take_gather() -> Vec<u8> {
    let spare = GATHER.take();
    if spare.capacity() >= GATHER_BYTES {
        spare
    } else {
        Vec::with_capacity(GATHER_BYTES)
    }
}

pub(super) fn give_gather(mut buffer: Vec<u8>) {
    // A large payload's buffer is not kept in its stead.
    if (GATHER_BYTES..=2 * GATHER_BYTES).contains(&buffer.capacity()) {
        buffer.clear();
        GATHER.set(buffer);
    }
}
