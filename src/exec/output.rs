//! A command's output, kept up to a bound.
//!
//! In: pieces of stdout and stderr as they come. Out: the head of both as text, and how much more there was.
//! Attacker controls: every byte and their number. Bounds: one budget in bytes for both streams; a gigabyte costs no more
//! than the budget. Errors: none; bytes that are not UTF-8 become U+FFFD.

/// The reference's words for output that was cut.
const TRUNCATED: &str = "... (truncated)";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Keeps the head of two streams and counts the rest.
#[derive(Debug)]
pub struct Capture {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    bytes_left: usize,
    bytes_dropped: u64,
    /// How much of each stream `next_piece` has given.
    told: [usize; 2],
}

/// What is reported of the output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub bytes_dropped: u64,
}

impl Capture {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            stdout: Vec::new(),
            stderr: Vec::new(),
            bytes_left: bytes_max,
            bytes_dropped: 0,
            told: [0; 2],
        }
    }

    /// Takes a piece, or as much of it as there is room for. Once something was dropped nothing more is kept, so that
    /// the text has no hole in it.
    pub fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let room = if self.bytes_dropped == 0 {
            self.bytes_left
        } else {
            0
        };
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        match stream {
            Stream::Stdout => self.stdout.extend_from_slice(kept),
            Stream::Stderr => self.stderr.extend_from_slice(kept),
        }
        self.bytes_left -= kept.len();
        self.bytes_dropped += dropped.len() as u64;
    }

    /// What has come since the last piece, at most `bytes_max` of it, stdout's first; empty if there is nothing. The
    /// pieces of a stream put together are the beginning of its text in the result: what may be the first half of a
    /// character waits for the other.
    pub fn next_piece(&mut self, bytes_max: usize) -> String {
        let mut piece = String::new();
        for (kept, told) in [&self.stdout, &self.stderr].into_iter().zip(&mut self.told) {
            for chunk in kept[*told..whole_chars(kept)].utf8_chunks() {
                let room = bytes_max.saturating_sub(piece.len());
                let fits = &chunk.valid()[..chunk.valid().floor_char_boundary(room)];
                piece.push_str(fits);
                *told += fits.len();
                let is_full = piece.len() + char::REPLACEMENT_CHARACTER.len_utf8() > bytes_max;
                if fits.len() < chunk.valid().len() || is_full {
                    return piece;
                }
                if !chunk.invalid().is_empty() {
                    piece.push(char::REPLACEMENT_CHARACTER);
                    *told += chunk.invalid().len();
                }
            }
        }
        piece
    }

    /// The text of both. A cut is told at the end of stderr if there is any, otherwise of stdout, where the reference
    /// tells it.
    pub fn finish(mut self) -> Output {
        if self.bytes_dropped > 0 {
            drop_partial_char(&mut self.stdout);
            drop_partial_char(&mut self.stderr);
        }
        let mut stdout = lossy(self.stdout);
        let mut stderr = lossy(self.stderr);
        if self.bytes_dropped > 0 {
            let noted = if stderr.trim().is_empty() {
                &mut stdout
            } else {
                &mut stderr
            };
            noted.push_str(&format!(
                "\n... {} bytes more {TRUNCATED}",
                self.bytes_dropped
            ));
        }
        Output {
            stdout,
            stderr,
            bytes_dropped: self.bytes_dropped,
        }
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// How many bytes there are before an unfinished character at the end.
fn whole_chars(bytes: &[u8]) -> usize {
    let is_unfinished = |from: &usize| {
        let error = std::str::from_utf8(&bytes[*from..]).err();
        error.is_some_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    let unfinished = (bytes.len().saturating_sub(3)..bytes.len()).find(is_unfinished);
    unfinished.unwrap_or(bytes.len())
}

/// Takes off a character that the cut went through.
fn drop_partial_char(bytes: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_output_is_whole() {
        let mut capture = Capture::new(10);
        capture.push(Stream::Stdout, b"hel");
        capture.push(Stream::Stderr, b"err");
        capture.push(Stream::Stdout, b"lo!\n");
        let output = capture.finish();
        assert_eq!(
            (
                output.stdout.as_str(),
                output.stderr.as_str(),
                output.bytes_dropped
            ),
            ("hello!\n", "err", 0)
        );
    }

    #[test]
    fn the_head_stays_and_the_loss_is_told() {
        let mut capture = Capture::new(5);
        capture.push(Stream::Stdout, "abcdé".as_bytes());
        capture.push(Stream::Stdout, b"xyz");
        let output = capture.finish();
        assert_eq!(output.stdout, "abcd\n... 4 bytes more ... (truncated)");
        assert_eq!(output.bytes_dropped, 4);
    }

    #[test]
    fn both_streams_share_the_budget() {
        let mut capture = Capture::new(4);
        capture.push(Stream::Stdout, b"abc");
        capture.push(Stream::Stderr, b"defg");
        capture.push(Stream::Stdout, b"h");
        let output = capture.finish();
        assert_eq!(output.stdout, "abc");
        assert_eq!(output.stderr, "d\n... 4 bytes more ... (truncated)");
    }

    proptest::proptest! {
        #[test]
        fn pieces_are_bounded_and_begin_the_result(
            bytes in proptest::collection::vec(
                proptest::prop_oneof![0u8..=255, 0xc2u8..=0xf4, 0x80u8..=0xbf, 97u8..=122], 0..200),
            cuts in proptest::collection::vec((1usize..20, 4usize..12), 1..50),
        ) {
            let mut capture = Capture::new(150);
            let (mut rest, mut told) = (bytes.as_slice(), String::new());
            for (cut, bytes_max) in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                capture.push(Stream::Stderr, now);
                rest = later;
                let piece = capture.next_piece(bytes_max);
                proptest::prop_assert!(piece.len() <= bytes_max);
                told.push_str(&piece);
            }
            let stderr = lossy(capture.stderr);
            proptest::prop_assert!(stderr.starts_with(&told), "{stderr:?} {told:?}");
        }
    }

    #[test]
    fn pieces_give_everything_once_and_wait_for_a_whole_character() {
        let mut capture = Capture::new(100);
        capture.push(Stream::Stdout, b"a\xff\xe2\x82");
        capture.push(Stream::Stderr, b"no");
        assert_eq!(capture.next_piece(100), "a\u{fffd}no");
        assert_eq!(capture.next_piece(100), "");
        capture.push(Stream::Stdout, b"\xac!");
        assert_eq!(capture.next_piece(3), "\u{20ac}");
        assert_eq!(capture.next_piece(3), "!");
        assert_eq!(capture.finish().stdout, "a\u{fffd}\u{20ac}!");
    }

    #[test]
    fn memory_is_bounded() {
        let mut capture = Capture::new(1000);
        for _ in 0..10_000 {
            capture.push(Stream::Stdout, &[0xff; 4096]);
        }
        assert!(capture.stdout.capacity() < 5000);
        let output = capture.finish();
        assert!(output.stdout.len() < 3100);
        assert_eq!(output.bytes_dropped, 10_000 * 4096 - 1000);
    }
}
