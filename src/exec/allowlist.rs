//! Allowlists: which program a command really runs, and whether a rule names it (X6, X7, X8).
//!
//! In: argv, and rules in the reference's form. Out: the inner argv of a short list of plain wrappers, or nothing; whether
//! a rule matches. Attacker controls: argv, and whoever may set a node's file its rules.
//! Bounds: `WRAPPERS_MAX`, `EXEC_RULE_BYTES_MAX`; matching takes at most pattern × path steps.
//! Errors: none; what is not understood is on no list and needs an approval every time.

use ring::digest::{Context, SHA256};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::base::{ids::hex_lower, limits::EXEC_RULE_BYTES_MAX};
use crate::exec::shell;

/// Wrappers around wrappers that are followed. A longer chain is no plain command.
const WRAPPERS_MAX: usize = 3;
/// A wrapper is trusted to be one only in the system's own directories.
const SYSTEM_DIRS: &[&str] = &["/bin/", "/usr/bin/"];
/// Programs whose arguments or files are programs themselves. Beside every shell and interpreter, no rule covers them.
const LAUNCHERS: &[&str] = &[
    "ansible",
    "ansible-playbook",
    "ant",
    "apt",
    "apt-get",
    "ar",
    "at",
    "batch",
    "bazel",
    "bmake",
    "bundle",
    "busybox",
    "bwrap",
    "c++",
    "cabal",
    "cargo",
    "cc",
    "chroot",
    "chrt",
    "clang",
    "clang++",
    "composer",
    "crontab",
    "direnv",
    "doas",
    "docker",
    "dotnet",
    "dpkg",
    "entr",
    "env",
    "fakeroot",
    "faketime",
    "ffmpeg",
    "find",
    "firejail",
    "flock",
    "g++",
    "gcc",
    "git",
    "gmake",
    "gnuplot",
    "go",
    "gradle",
    "gradlew",
    "groff",
    "grunt",
    "gulp",
    "invoke",
    "ionice",
    "ip",
    "java",
    "jest",
    "just",
    "ld",
    "ld.so",
    "less",
    "ltrace",
    "make",
    "man",
    "meson",
    "mix",
    "mocha",
    "mutt",
    "mvn",
    "nice",
    "ninja",
    "nix",
    "nmap",
    "nohup",
    "nox",
    "npm",
    "npx",
    "nsenter",
    "openssl",
    "parallel",
    "pdm",
    "perf",
    "phpunit",
    "pip",
    "pip3",
    "pipx",
    "pkexec",
    "pnpm",
    "podman",
    "poetry",
    "pre-commit",
    "psql",
    "pytest",
    "rake",
    "rspec",
    "rsync",
    "run-parts",
    "runuser",
    "sbt",
    "scons",
    "screen",
    "script",
    "sed",
    "setarch",
    "setpriv",
    "setsid",
    "socat",
    "ssh",
    "stack",
    "start-stop-daemon",
    "stdbuf",
    "strace",
    "su",
    "sudo",
    "systemd-run",
    "tar",
    "task",
    "taskset",
    "terraform",
    "time",
    "timeout",
    "tmux",
    "tofu",
    "tox",
    "toybox",
    "troff",
    "turbo",
    "unshare",
    "uv",
    "uvx",
    "vagrant",
    "valgrind",
    "vitest",
    "watch",
    "xargs",
    "yarn",
    "zip",
];
/// Programs of the system that never run what their arguments name, so that a growing log can be looked at.
const DATA_ONLY: &[&str] = &[
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "df",
    "du",
    "grep",
    "head",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mv",
    "nl",
    "od",
    "realpath",
    "rm",
    "rmdir",
    "sha256sum",
    "stat",
    "tac",
    "tail",
    "touch",
    "uniq",
    "wc",
];
/// What this Gateway's own rules say of arguments, directory and content.
const EXACT: &str = "sha256:cwd-name-argv-files:v3:";

/// One rule, in the reference's form.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "WrittenRule")]
pub struct Rule {
    /// A program's absolute path, or a glob of such.
    pub pattern: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arg_pattern: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A rule as a file has it. A field that is not known could be a misspelt `argPattern`, without which any arguments go;
/// the reference's own that restrict nothing are known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenRule {
    pattern: String,
    arg_pattern: Option<String>,
    source: Option<String>,
    #[serde(default, rename = "id")]
    _id: IgnoredAny,
    #[serde(default, rename = "commandText")]
    _command_text: IgnoredAny,
    #[serde(default, rename = "lastUsedAt")]
    _last_used_at: IgnoredAny,
    #[serde(default, rename = "lastUsedCommand")]
    _last_used_command: IgnoredAny,
    #[serde(default, rename = "lastResolvedPath")]
    _last_resolved_path: IgnoredAny,
}

impl From<WrittenRule> for Rule {
    fn from(it: WrittenRule) -> Self {
        Self {
            pattern: it.pattern,
            arg_pattern: it.arg_pattern,
            source: it.source,
        }
    }
}

impl Rule {
    /// What an `allow-always` keeps: this program, called by this name, with these arguments, in this directory, it and
    /// the files that they name with this content, and nothing else. `inner` begins with the name: one file may be `systemctl` and `reboot`.
    pub fn exact(program: &str, files: &str, inner: &[String], cwd: &str) -> Self {
        let mut digest = Context::new(&SHA256);
        let (name, args) = inner
            .split_first()
            .map_or(("", inner), |(name, args)| (shell::base_name(name), args));
        for field in [files, cwd, name]
            .into_iter()
            .chain(args.iter().map(String::as_str))
        {
            digest.update(&(field.len() as u64).to_be_bytes());
            digest.update(field.as_bytes());
        }
        Self {
            pattern: program.to_owned(),
            arg_pattern: Some(format!("{EXACT}{}", hex_lower(digest.finish().as_ref()))),
            source: Some("allow-always".to_owned()),
        }
    }

    /// Whether this rule allows what `exact` describes, when it is called `name`. A rule without arguments that somebody
    /// wrote by hand allows the program with any, by its own name only; expressions over arguments are not understood
    /// and match nothing.
    pub fn allows(&self, exact: &Self, name: &str) -> bool {
        match &self.arg_pattern {
            Some(_) => self.arg_pattern == exact.arg_pattern && self.pattern == exact.pattern,
            None => {
                self.source.is_none()
                    && shell::base_name(name) == shell::base_name(&exact.pattern)
                    && glob(&self.pattern, &exact.pattern)
            }
        }
    }
}

/// What a command really runs: argv without its plain wrappers. `None` if that cannot be said for certain.
///
/// The first program may still be a bare name; whoever executes it looks it up. Inside a wrapper only an absolute path
/// is certain, since the wrapper would do the looking.
pub fn inner(argv: &[String]) -> Option<Vec<String>> {
    let mut argv = argv.to_vec();
    for _ in 0..=WRAPPERS_MAX {
        let (program, args) = argv.split_first()?;
        let next: Vec<String> = match shell::base_name(program) {
            "env" | "nohup" => args.to_vec(),
            "nice" => match args {
                [flag, level, rest @ ..] if flag == "-n" && is_number(level) => rest.to_vec(),
                _ => args.to_vec(),
            },
            "timeout" => {
                let (limit, rest) = args.split_first()?;
                is_number(limit.trim_end_matches(['s', 'm', 'h', 'd'])).then(|| rest.to_vec())?
            }
            _ => match shell::inline_text(&argv) {
                Some(text) => plain_words(text)?,
                None => return is_plain(program).then_some(argv),
            },
        };
        // A flag, an assignment and a bare name all fail here.
        if !is_system(program) || !next.first()?.starts_with('/') {
            return None;
        }
        argv = next;
    }
    None
}

/// The words in which a command names its program and its files: without plain wrappers and the system's own shell, as
/// far as they are followed.
pub fn words(argv: &[String]) -> Vec<String> {
    let of_shell = || {
        let text = shell::inline_text(argv).filter(|_| is_system(&argv[0]))?;
        Some(plain_words(text).unwrap_or_else(|| vec![text.to_owned()]))
    };
    inner(argv)
        .or_else(of_shell)
        .unwrap_or_else(|| argv.to_vec())
}

/// Whether a program's arguments are nothing that runs.
pub fn takes_data_only(program: &str) -> bool {
    is_system(program) && DATA_ONLY.contains(&shell::base_name(program))
}

/// Whether a name is that of such a program.
pub(super) fn names_data_only(name: &str) -> bool {
    DATA_ONLY.contains(&name) || takes_data_only(name)
}

/// Whether a program stands in one of the system's own directories.
pub fn is_system(program: &str) -> bool {
    let name = SYSTEM_DIRS.iter().find_map(|dir| program.strip_prefix(dir));
    name.is_some_and(|name| !name.contains('/'))
}

/// Whether a program runs only itself, as far as its name tells.
pub fn is_plain(program: &str) -> bool {
    let name = shell::base_name(program);
    // `gcc-13`, `pytest-3` and `x86_64-linux-gnu-gcc` are what they are called after.
    let is_version = |part: &str| part.bytes().all(|it| it.is_ascii_digit() || it == b'.');
    let family = match name.rsplit_once('-') {
        Some((family, version)) if is_version(version) => family,
        _ => name,
    };
    let launches = LAUNCHERS.contains(&family)
        || family.ends_with("-gcc")
        || family.ends_with("-g++")
        || name.starts_with("ld-linux")
        || shell::runs_files(program);
    !launches && program.split('/').all(|part| part != "..")
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The words of a shell's text in which nothing but spaces means anything to a shell.
pub(super) fn plain_words(text: &str) -> Option<Vec<String>> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " _@%+=:,./-".contains(c);
    let words: Vec<String> = text
        .split(' ')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    (text.chars().all(is_plain) && !words.is_empty()).then_some(words)
}

/// Matches a whole absolute path, case and all: `?` is one character and `*` any number, neither of them a slash; `**` is
/// anything.
pub fn glob(pattern: &str, path: &str) -> bool {
    if !pattern.starts_with('/')
        || pattern.len() > EXEC_RULE_BYTES_MAX
        || path.len() > EXEC_RULE_BYTES_MAX
    {
        return false;
    }
    let tokens: Vec<Token> = pattern
        .replace("**", "\0")
        .chars()
        .map(|c| match c {
            '\0' => Token::Deep,
            '*' => Token::Star,
            '?' => Token::One,
            c => Token::Char(c),
        })
        .collect();
    matches(&tokens, path)
}

/// One piece of a pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    /// Anything.
    Deep,
    /// Anything but a slash.
    Star,
    /// One character that is no slash.
    One,
    Char(char),
}

/// Whether all of a text matches, in pattern × text steps.
pub fn matches(tokens: &[Token], text: &str) -> bool {
    // Every place in the pattern at which the text so far can stand.
    let mut at = vec![false; tokens.len() + 1];
    at[0] = true;
    let skip_stars = |at: &mut Vec<bool>| {
        for (index, token) in tokens.iter().enumerate() {
            if at[index] && matches!(token, Token::Star | Token::Deep) {
                at[index + 1] = true;
            }
        }
    };
    skip_stars(&mut at);
    for c in text.chars() {
        let mut next = vec![false; tokens.len() + 1];
        for (index, token) in tokens.iter().enumerate().filter(|(index, _)| at[*index]) {
            match token {
                Token::Deep => next[index] = true,
                Token::Star if c != '/' => next[index] = true,
                Token::One if c != '/' => next[index + 1] = true,
                Token::Char(literal) if *literal == c => next[index + 1] = true,
                _ => {}
            }
        }
        skip_stars(&mut next);
        at = next;
    }
    at[tokens.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn argv(text: &str) -> Vec<String> {
        text.split('|').map(str::to_owned).collect()
    }

    #[test]
    fn x6_only_plain_chains_are_followed() {
        for (chain, real) in [
            ("/usr/bin/id|-u", "/usr/bin/id|-u"),
            ("id", "id"),
            ("/usr/bin/env|/usr/bin/id", "/usr/bin/id"),
            ("/bin/nice|-n|5|/usr/bin/id", "/usr/bin/id"),
            ("/usr/bin/timeout|5s|/usr/bin/id|x y", "/usr/bin/id|x y"),
            ("/bin/zsh|-lc|/usr/bin/uname -a", "/usr/bin/uname|-a"),
            (
                "/usr/bin/nohup|/usr/bin/env|/bin/sh|-c|/usr/bin/id",
                "/usr/bin/id",
            ),
        ] {
            assert_eq!(inner(&argv(chain)), Some(argv(real)), "{chain}");
        }
        for unclear in [
            "/usr/bin/env|-S|sh -c x",
            "/usr/bin/env|A=b|/usr/bin/id",
            "/usr/bin/env|id",
            "/usr/bin/env",
            "env|/usr/bin/id",
            "/tmp/env|/usr/bin/id",
            "/usr/bin/../../tmp/env|/usr/bin/id",
            "/usr/bin/nice|/usr/bin/nohup|/usr/bin/timeout|1|/usr/bin/env|/bin/sh|-c|/usr/bin/id",
            "/usr/bin/nice|-5|/usr/bin/id",
            "/usr/bin/timeout|-k|1|1|/usr/bin/id",
            "/usr/bin/timeout|x|/usr/bin/id",
            "/bin/sh|-c|id",
            "/bin/sh|-c|/usr/bin/id; /usr/bin/id",
            "/bin/sh|-c|/usr/bin/id $(id)",
            "/bin/sh|-c|'/usr/bin/id'",
            "/bin/sh|-c|/usr/bin/id *",
            "/bin/sh|-c|/usr/bin/id\n/usr/bin/id",
            "/bin/sh|-c|A=b /usr/bin/id",
            "/bin/sh|-c|",
            "/bin/sh|-xc|/usr/bin/id",
            "/bin/busybox|sh|-c|/usr/bin/id",
            "/usr/bin/script|-c|/usr/bin/id",
            "/usr/bin/time|/usr/bin/id",
            "/usr/bin/xargs|/usr/bin/id",
            "/usr/bin/find|/|-exec|/usr/bin/id",
        ] {
            assert_eq!(inner(&argv(unclear)), None, "{unclear}");
        }
    }

    #[test]
    fn x4_interpreters_and_loaders_are_on_no_list() {
        for chain in [
            "/usr/bin/python3|-c|x",
            "/usr/bin/python3.12|a.py",
            "/usr/bin/perl|-Mx",
            "/usr/bin/node|--require|x",
            "/usr/bin/ruby|-r|x",
            "/usr/bin/npx|x",
            "/bin/bash|a.sh",
            "/usr/bin/mawk|-f|a.awk",
            "/usr/bin/perl5.36-x86_64-linux-gnu|a.pl",
            "/bin/tcsh|a.csh",
            "/usr/bin/vim.basic|-S|a.vim",
            "/usr/bin/env|/usr/bin/python3|a.py",
            "/lib64/ld-linux-x86-64.so.2|/usr/bin/id",
            "/usr/bin/pytest-3|a.py",
            "/usr/bin/ansible-playbook|a.yml",
            "/usr/bin/psql|-f|a.sql",
            "/usr/bin/x86_64-linux-gnu-gcc-13|-wrapper|/tmp/x",
            "/usr/sbin/ip|netns|exec|n|/tmp/x",
            "/usr/bin/tmux|new|/tmp/x",
        ] {
            assert_eq!(inner(&argv(chain)), None, "{chain}");
        }
    }

    #[test]
    fn x7_a_rule_is_for_one_program_with_its_arguments() {
        let exact = |program: &str, sha: &str, args: &str, cwd: &str| {
            Rule::exact(program, sha, &argv(&format!("id|{args}")), cwd)
        };
        let rule = exact("/usr/bin/id", "00", "-u", "/w");
        assert!(rule.allows(&exact("/usr/bin/id", "00", "-u", "/w"), "id"));
        for other in [
            exact("/tmp/id", "00", "-u", "/w"),
            exact("/usr/bin/id", "01", "-u", "/w"),
            exact("/usr/bin/id", "00", "-g", "/w"),
            exact("/usr/bin/id", "00", "-u", "/v"),
            exact("/usr/bin/id", "00", "-u|", "/w"),
        ] {
            assert!(!rule.allows(&other, "id"), "{other:?}");
        }
        let by_hand = |pattern: &str, args: Option<&str>, source: Option<&str>| Rule {
            pattern: pattern.to_owned(),
            arg_pattern: args.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        assert!(by_hand("/usr/bin/*", None, None).allows(&rule, "/x/id"));
        assert!(
            !by_hand("id", None, None).allows(&rule, "id"),
            "a bare name"
        );
        assert!(!by_hand("/usr/bin/id", Some(".*"), None).allows(&rule, "id"));
        assert!(!by_hand("/usr/bin/id", None, Some("allow-always")).allows(&rule, "id"));
    }

    #[test]
    fn x7_one_name_of_a_file_with_many_is_one_program() {
        let called = |name: &str| {
            Rule::exact(
                "/usr/bin/systemctl",
                "00",
                &argv(&format!("{name}|-f")),
                "/",
            )
        };
        let status = called("/usr/bin/systemctl");
        assert!(status.allows(&called("systemctl"), "systemctl"));
        assert!(!status.allows(&called("/usr/sbin/reboot"), "/usr/sbin/reboot"));
        let by_hand = Rule {
            pattern: "/usr/bin/systemctl".to_owned(),
            arg_pattern: None,
            source: None,
        };
        assert!(by_hand.allows(&status, "/bin/systemctl"));
        assert!(!by_hand.allows(&called("reboot"), "/usr/sbin/reboot"));
    }

    #[test]
    fn x8_globs_know_case_and_slashes() {
        for (pattern, path, matches) in [
            ("/usr/bin/gi?", "/usr/bin/git", true),
            ("/usr/bin/gi?", "/usr/bin/gi/x", false),
            ("/usr/bin/gi?", "/usr/bin/gi/", false),
            ("/usr/bin/git", "/usr/bin/GIT", false),
            ("/usr/*/git", "/usr/bin/git", true),
            ("/usr/*/git", "/usr/local/bin/git", false),
            ("/usr/**/git", "/usr/local/bin/git", true),
            ("/usr/bin/*", "/usr/bin/", true),
            ("/usr/bin/*", "/usr/bin/a/b", false),
            ("*", "/usr/bin/git", false),
            ("git", "git", false),
            ("", "", false),
        ] {
            assert_eq!(glob(pattern, path), matches, "{pattern} {path}");
        }
        let many = format!("/{}x", "*".repeat(1000));
        assert!(!glob(&many, &format!("/{}", "a".repeat(3000))));
    }

    /// The plain definition, slow on purpose.
    fn slow_glob(pattern: &[char], path: &[char]) -> bool {
        match (pattern, path) {
            ([], path) => path.is_empty(),
            (['*', '*', rest @ ..], _) => {
                slow_glob(rest, path) || (!path.is_empty() && slow_glob(pattern, &path[1..]))
            }
            (['*', rest @ ..], _) => {
                slow_glob(rest, path)
                    || path.first().is_some_and(|c| *c != '/') && slow_glob(pattern, &path[1..])
            }
            (['?', rest @ ..], [c, tail @ ..]) => *c != '/' && slow_glob(rest, tail),
            ([p, rest @ ..], [c, tail @ ..]) => p == c && slow_glob(rest, tail),
            (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn x8_globs_match_by_their_definition(pattern in "/[ab*?/]{0,8}", path in "/[abA/]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<char>>();
            prop_assert_eq!(glob(&pattern, &path), slow_glob(&chars(&pattern), &chars(&path)));
        }

        #[test]
        fn x6_what_is_followed_is_absolute_and_plain(words in proptest::collection::vec(
            "(/usr/bin/)?(env|nice|nohup|timeout|sh|id|-c|-n|5|A=b|/usr/bin/id|-S|busybox)", 1..6)) {
            if let Some(real) = inner(&words) {
                prop_assert!(is_plain(&real[0]));
                prop_assert!(real == words || real[0].starts_with('/'));
                prop_assert!(words.ends_with(&real) || words.last().is_some_and(|it| it.contains(&real[0])));
            }
        }
    }
}
