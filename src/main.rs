//! The `portcullis` program. Everything is in the library; see `cli`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    portcullis::cli::main()
}
