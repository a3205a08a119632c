//! Bytes on their way to a stream: small frames gathered in one buffer, large payloads as they are.

use std::collections::VecDeque;
use std::io::IoSlice;

/// A gathering buffer is not grown past this; the next frame begins another.
const CHUNK_BYTES_MAX: usize = 128 * 1024;

#[derive(Default)]
pub(super) struct Outgoing {
    /// None is empty, except for one that is kept for its memory while the connection is busy.
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that the stream has taken.
    sent: usize,
    /// Bytes that it has not.
    len: usize,
}

impl Outgoing {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether one chunk holds everything.
    pub(super) fn is_one(&self) -> bool {
        self.chunks.len() == 1
    }

    /// Lets `write` append to a buffer, about `bytes` of payload.
    pub(super) fn append(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let fits = |chunk: &Vec<u8>| {
            chunk.is_empty()
                || chunk.capacity() - chunk.len() >= bytes + 16
                || chunk.len() + bytes <= CHUNK_BYTES_MAX
        };
        if !self.chunks.back().is_some_and(fits) {
            self.chunks.push_back(Vec::with_capacity(bytes + 16));
        }
        if let Some(chunk) = self.chunks.back_mut() {
            let before = chunk.len();
            write(chunk);
            self.len += chunk.len() - before;
        }
    }

    /// Appends a buffer as it is.
    pub(super) fn push(&mut self, chunk: Vec<u8>) {
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// The unsent bytes of the first chunk.
    pub(super) fn first(&self) -> &[u8] {
        self.chunks.front().map_or(&[], |chunk| &chunk[self.sent..])
    }

    /// Fills `slices` with the unsent bytes in order; returns how many it filled.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let rest = self.chunks.iter().skip(1).map(Vec::as_slice);
        let all = std::iter::once(self.first()).chain(rest);
        let mut count = 0;
        for (slot, bytes) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// Forgets bytes that the stream has taken.
    pub(super) fn advance(&mut self, written: usize) {
        self.len = self.len.saturating_sub(written);
        self.sent += written;
        while let Some(first) = self.chunks.front_mut()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            if self.chunks.len() == 1 {
                // The next answer will want a buffer too.
                if let Some(first) = self.chunks.front_mut() {
                    first.clear();
                }
                break;
            }
            self.chunks.pop_front();
        }
    }

    /// Gives back all memory if nothing is waiting.
    pub(super) fn release(&mut self) {
        if self.len == 0 {
            *self = Self::default();
        }
    }
}
