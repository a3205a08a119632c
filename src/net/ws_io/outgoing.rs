//! Bytes on their way to a stream: small frames gathered in one buffer, large payloads as they are.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::spare::{self, GATHER_BYTES};
use crate::ws::frame::HEADER_BYTES_MAX;

#[derive(Default)]
pub(super) struct Outgoing {
    /// None is empty.
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

    /// Lets `write` append one frame with `bytes` of payload.
    pub(super) fn append(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let frame_bytes = bytes.saturating_add(HEADER_BYTES_MAX);
        let fits = |chunk: &Vec<u8>| {
            chunk.capacity() - chunk.len() >= frame_bytes
                || chunk.len() + frame_bytes <= GATHER_BYTES
        };
        let mut chunk = match self.chunks.pop_back() {
            Some(chunk) if fits(&chunk) => chunk,
            full => {
                self.chunks.extend(full);
                if frame_bytes <= GATHER_BYTES {
                    spare::take_gather()
                } else {
                    Vec::with_capacity(frame_bytes)
                }
            }
        };
        let before = chunk.len();
        write(&mut chunk);
        self.len += chunk.len() - before;
        if chunk.is_empty() {
            spare::give_gather(chunk);
        } else {
            self.chunks.push_back(chunk);
        }
    }

    /// Appends a buffer as it is.
    pub(super) fn push(&mut self, chunk: Vec<u8>) {
        self.len += chunk.len();
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
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
        while let Some(first) = self.chunks.front()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            if let Some(first) = self.chunks.pop_front() {
                spare::give_gather(first);
            }
        }
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
    }

    /// Called when the stream takes no more for now: a buffer is kept only as large as what waits in it.
    pub(super) fn shrink(&mut self) {
        if let Some(last) = self.chunks.back_mut()
            && last.capacity() > 2 * last.len()
        {
            let exact = last.as_slice().to_vec();
            spare::give_gather(std::mem::replace(last, exact));
        }
    }
}
