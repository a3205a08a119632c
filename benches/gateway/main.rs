//! The Gateway's budgets, measured on the release binary as a process of its own (`DESIGN.md`, Budgets).
//!
//! `cargo bench` runs this and the other benches. `[CASE=TEXT] cargo bench --bench gateway [-- ROUNDS]` runs the parts
//! whose name contains TEXT: "invoke 16 B" and the like, "start", "idle", "memory operator", "memory node", "connects".
//! Every number stands beside its budget and beside what the same machine does without a Gateway in the same run. The
//! load has one thread.

mod invoke;
mod peer;
mod process;
mod sessions;

use portcullis::auth::scope::Role;
use tokio::runtime::{Builder, Runtime};

fn main() {
    let rounds: usize = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .next()
        .unwrap_or(9);
    let only = std::env::var("CASE").unwrap_or_default();
    let wanted = |name: &str| name.contains(&only);
    sessions::raise_descriptors();
    invoke::run(&only, rounds);
    if wanted("start") {
        let empty = tempfile::tempdir().expect("a directory");
        sessions::start(rounds, "empty state", empty);
    }
    if wanted("idle") {
        sessions::idle();
    }
    if wanted("memory operator") {
        sessions::memory(Role::Operator, 8.0);
    }
    if wanted("memory node") {
        let (state, nodes) = sessions::memory(Role::Node, 10.0);
        sessions::start(rounds, &format!("{nodes} paired nodes"), state);
    }
    if wanted("connects") {
        sessions::connects();
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn verdict(figure: f64, budget: Option<f64>) -> String {
    budget.map_or(String::new(), |budget| {
        let word = if figure <= budget { "held" } else { "MISSED" };
        format!("{budget:>7.1} {word}")
    })
}
