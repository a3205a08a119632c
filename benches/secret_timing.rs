//! Whether the time of a comparison of secrets tells anything (row A3), in the manner of dudect (Reparaz, Balasch and
//! Verbauwhede, 2017): two classes of input in random order, Welch's t-test over their times, also with the slow tail cut
//! off at a hundred places. A |t| over 4.5 is a leak.
//!
//! `cargo bench --bench secret_timing`; it fails on a leak, and if it does not find the one that is put in on purpose.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use portcullis::auth::secret_eq::ConfiguredSecret;
use portcullis::base::Secret;

const SAMPLES: usize = 1_000_000;
const CROPS: i32 = 100;
const LEAK: f64 = 4.5;

const SECRET: &[u8; 48] = b"correct horse battery staple, and then some more";

/// One question: which of two inputs was it?
struct Question<'a> {
    name: &'a str,
    candidates: [&'a [u8]; 2],
    secrets: [&'a [u8]; 2],
}

fn main() -> ExitCode {
    let mut first = *SECRET;
    first[0] ^= 1;
    let mut last = *SECRET;
    last[47] ^= 1;
    let prefix = &SECRET[..20];
    let questions = [
        Question {
            name: "wrong in its first byte, or in its last",
            candidates: [&first, &last],
            secrets: [SECRET, SECRET],
        },
        Question {
            name: "wrong in its first byte, or right",
            candidates: [&first, SECRET],
            secrets: [SECRET, SECRET],
        },
        Question {
            name: "of the secret's length, or of another",
            candidates: [&last, &last],
            secrets: [SECRET, b"short"],
        },
        Question {
            name: "a prefix of the secret, or of nothing",
            candidates: [prefix, &first[..20]],
            secrets: [SECRET, SECRET],
        },
    ];
    println!("{SAMPLES} samples a question, {CROPS} crops, |t| over {LEAK} is a leak");
    let mut sound = true;
    for question in &questions {
        let configured = question
            .secrets
            .map(|secret| ConfiguredSecret::new(&Secret::new(secret)).expect("not blank"));
        let ask = || {
            measure(question, |class, candidate| {
                configured[class].matches(Some(candidate))
            })
        };
        let mut t = ask();
        if t > LEAK {
            // A leak is there every time; an interrupt in the wrong places is not.
            println!("|t| {t:6.2}  {}: once more", question.name);
            t = t.min(ask());
        }
        sound &= t <= LEAK;
        println!("|t| {t:6.2}  {}", question.name);
    }
    let t = measure(&questions[0], |_, candidate| leaky(SECRET, candidate));
    let found = t > LEAK;
    println!("|t| {t:6.2}  the first question to a comparison that leaks on purpose");
    match (sound, found) {
        (true, true) => return ExitCode::SUCCESS,
        (false, _) => println!("LEAK"),
        (true, false) => println!("BLIND: the leak on purpose was not found"),
    }
    ExitCode::FAILURE
}

/// What a comparison must not be: it stops at the first difference.
fn leaky(secret: &[u8], candidate: &[u8]) -> bool {
    secret.len() == candidate.len() && secret.iter().zip(candidate).all(|(a, b)| black_box(a) == b)
}

/// The largest |t| over all crops.
fn measure(question: &Question<'_>, compare: impl Fn(usize, &[u8]) -> bool) -> f64 {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut buffer = [0; 48];
    let mut samples = Vec::with_capacity(SAMPLES);
    // The first ones warm caches and clocks up.
    for number in 0..SAMPLES + SAMPLES / 10 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let class = usize::from(random & 1 == 1);
        let length = question.candidates[class].len();
        buffer[..length].copy_from_slice(question.candidates[class]);
        let candidate = black_box(&buffer[..length]);
        let began = Instant::now();
        black_box(compare(black_box(class), candidate));
        let nanos = began.elapsed().as_nanos();
        if number >= SAMPLES / 10 {
            samples.push((class, u32::try_from(nanos).unwrap_or(u32::MAX)));
        }
    }
    let mut sorted: Vec<u32> = samples.iter().map(|(_, nanos)| *nanos).collect();
    sorted.sort_unstable();
    let mut largest = welch(&samples, u32::MAX);
    for crop in 1..=CROPS {
        // dudect's percentiles: dense towards the fast end, where comparisons are that nothing disturbed.
        let kept = 1.0 - 0.5_f64.powf(10.0 * f64::from(crop) / f64::from(CROPS));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below a million"
        )]
        let index = (kept * SAMPLES as f64) as usize;
        largest = largest.max(welch(&samples, sorted[index.min(SAMPLES - 1)]));
    }
    largest
}

/// |t| of Welch's test over the samples that took at most `limit`.
fn welch(samples: &[(usize, u32)], limit: u32) -> f64 {
    let (mut n, mut mean, mut m2) = ([0.0_f64; 2], [0.0_f64; 2], [0.0_f64; 2]);
    for &(class, nanos) in samples {
        if nanos <= limit {
            let x = f64::from(nanos);
            n[class] += 1.0;
            let delta = x - mean[class];
            mean[class] += delta / n[class];
            m2[class] += delta * (x - mean[class]);
        }
    }
    if n[0] < 1000.0 || n[1] < 1000.0 {
        return 0.0;
    }
    let error = |class: usize| m2[class] / (n[class] - 1.0) / n[class];
    let spread = (error(0) + error(1)).sqrt();
    if spread == 0.0 {
        0.0
    } else {
        ((mean[0] - mean[1]) / spread).abs()
    }
}
