//! Which commands carry a shell text or a script inside.
//!
//! In: argv. Out: the inner text of a plain `sh -c TEXT`, or the name of an interpreter. Attacker controls: argv.
//! Bounds: none beyond argv's own. Errors: none; a wrapper that is not recognised has no inner text, and whoever needs
//! one asks (decision 25: longer chains are refused, not resolved).

const SHELLS: &[&str] = &["ash", "bash", "dash", "fish", "ksh", "sh", "zsh"];
/// Programs that run what a file says, by how their names begin: versions, flavours and targets follow
/// (`perl5.36-x86_64-linux-gnu`, `vim.basic`, `lua5.4`). A name too many costs a question, one too few an approval.
const INTERPRETERS: &[&str] = &[
    "Rscript",
    "bun",
    "cmake",
    "ctest",
    "deno",
    "emacs",
    "erl",
    "escript",
    "expect",
    "ghci",
    "gimp",
    "guile",
    "julia",
    "lua",
    "node",
    "octave",
    "perl",
    "php",
    "powershell",
    "pypy",
    "python",
    "raku",
    "ruby",
    "runghc",
    "scheme",
    "sqlite",
    "tcl",
    "tsx",
    "vi",
];
/// The same by how they end, once a version is off: `mawk`, `tcsh`, `pwsh`, `nvim`, `ipython`, `texlua`.
const INTERPRETER_ENDS: &[&str] = &["awk", "lua", "php", "python", "ruby", "sh", "vim"];
/// Short names that say nothing as a part of others.
const INTERPRETERS_EXACT: &[&str] = &[
    "R", "bc", "clisp", "dc", "ed", "elixir", "ex", "gdb", "groovy", "iex", "irb", "m4", "ocaml",
    "sbcl", "scala", "swipl", "wish",
];

pub(super) fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Whether a program is a shell whose words are POSIX's.
pub(super) fn is_posix(program: &str) -> bool {
    let name = base_name(program);
    SHELLS.contains(&name) && !matches!(name, "fish" | "zsh")
}

/// The text in `sh -c TEXT` and `sh -lc TEXT`, when nothing else is in argv.
pub fn inline_text(argv: &[String]) -> Option<&str> {
    let [program, flag, text] = argv else {
        return None;
    };
    let inline = SHELLS.contains(&base_name(program)) && matches!(flag.as_str(), "-c" | "-lc");
    inline.then_some(text.as_str())
}

/// Whether the program runs a file named among its arguments (`python3.12 a.py`, `sh a.sh`), as far as names tell.
pub fn runs_files(program: &str) -> bool {
    let name = base_name(program);
    // `x86_64-linux-gnu-python3.12` and `bash-static` have it between others.
    name.split(['-', '_', '.']).any(|part| {
        let plain = part.trim_end_matches(|c: char| c.is_ascii_digit());
        INTERPRETERS.iter().any(|begin| part.starts_with(begin))
            || INTERPRETER_ENDS.iter().any(|end| plain.ends_with(end))
            || INTERPRETERS_EXACT.contains(&plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn only_the_plain_wrapper_has_an_inner_text() {
        assert_eq!(inline_text(&argv("/bin/sh|-lc|echo hi")), Some("echo hi"));
        assert_eq!(inline_text(&argv("bash|-c|x")), Some("x"));
        for other in [
            "sh|-c",
            "sh|-x|-c|y",
            "sh|-c|x|y",
            "env|-c|x",
            "sh|-e|x",
            "busybox|sh|-c|x",
        ] {
            assert_eq!(inline_text(&argv(other)), None, "{other}");
        }
    }

    #[test]
    fn versions_do_not_hide_an_interpreter() {
        for name in [
            "python3",
            "/usr/bin/python3.12",
            "perl5.36",
            "node-22",
            "sh",
        ] {
            assert!(runs_files(name), "{name}");
        }
        for name in [
            "echo",
            "ls",
            "cat",
            "id",
            "uname",
            "grep",
            "curl",
            "mv",
            "systemctl",
        ] {
            assert!(!runs_files(&format!("/usr/bin/{name}")), "{name}");
        }
    }

    #[test]
    fn x4_interpreters_are_known_by_family() {
        for name in [
            "mawk",
            "original-awk",
            "perl5.36-x86_64-linux-gnu",
            "x86_64-linux-gnu-python3",
            "tcsh",
            "csh",
            "mksh",
            "ksh93",
            "bash-static",
            "expect",
            "luajit",
            "pwsh",
            "guile-3.0",
            "vim.basic",
            "vimdiff",
            "nvim",
            "sqlite3",
            "cmake",
            "ruby3.1",
            "php8.2",
            "nodejs",
            "tclsh8.6",
            "ed",
        ] {
            assert!(runs_files(&format!("/usr/bin/{name}")), "{name}");
        }
    }
}
