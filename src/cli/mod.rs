//! The command line.

pub mod serve;

pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
