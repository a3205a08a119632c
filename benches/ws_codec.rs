//! The codec alone, in memory, beside `memcpy` in the same run: masking, reading and writing of frames, in GiB/s.
//!
//! `cargo bench --bench ws_codec`

use std::hint::black_box;
use std::time::{Duration, Instant};

use portcullis::ws::frame::Opcode;
use portcullis::ws::{Connection, Limits, mask};

const ROUND: Duration = Duration::from_millis(150);
const KEY: mask::Key = [0x37, 0xfa, 0x21, 0x3d];

fn main() {
    println!(
        "{:>9}  {:>9} {:>9} {:>11} {:>11} {:>11} {:>9}   GiB/s, best of 3",
        "bytes", "memcpy", "mask", "read bin", "read ascii", "read utf-8", "write"
    );
    for bytes in [16, 1 << 10, 64 << 10, 1 << 20] {
        let binary = vec![0xa5; bytes];
        let ascii = vec![b'x'; bytes];
        let text = "é".repeat(bytes / 2).into_bytes();
        let mut copy = vec![0; bytes];
        let mut masked = binary.clone();
        let figures = [
            measure(bytes, || copy.copy_from_slice(black_box(&binary))),
            measure(bytes, || {
                mask::apply(black_box(&mut masked), KEY);
            }),
            read(Opcode::Binary, &binary),
            read(Opcode::Text, &ascii),
            read(Opcode::Text, &text),
            write(&binary),
        ];
        let [a, b, c, d, e, f] = figures;
        println!("{bytes:>9}  {a:>9.2} {b:>9.2} {c:>11.2} {d:>11.2} {e:>11.2} {f:>9.2}");
    }
}

/// Reads masked messages, 64 KiB of input at a time as the driver does, the copy into the input included.
fn read(opcode: Opcode, payload: &[u8]) -> f64 {
    let client = Connection::client(Limits::new(0));
    let mut wire = Vec::new();
    client.encode(opcode, payload, KEY, &mut wire);
    let count = (65_536 / wire.len()).max(1);
    let stream = wire.repeat(count);
    let mut input = vec![0; stream.len()];
    let mut server = Connection::server(Limits::new(payload.len()));
    measure(payload.len() * count, || {
        input.copy_from_slice(&stream);
        let mut rest = input.as_mut_slice();
        while !rest.is_empty() {
            let progress = server.receive(rest).expect("our own frames");
            black_box(progress.event);
            rest = &mut rest[progress.consumed..];
        }
    })
}

fn write(payload: &[u8]) -> f64 {
    let server = Connection::server(Limits::new(0));
    let mut out = Vec::new();
    measure(payload.len(), || {
        out.clear();
        server.encode(Opcode::Binary, black_box(payload), KEY, &mut out);
        black_box(&out);
    })
}

/// The best of three rounds, in GiB/s.
fn measure(bytes: usize, mut work: impl FnMut()) -> f64 {
    let mut best: f64 = 0.0;
    for _ in 0..3 {
        let (began, mut turns) = (Instant::now(), 0u64);
        while began.elapsed() < ROUND {
            for _ in 0..16 {
                work();
            }
            turns += 16;
        }
        let rate = turns as f64 * bytes as f64 / began.elapsed().as_secs_f64();
        best = best.max(rate / (1u64 << 30) as f64);
    }
    best
}
