//! What of a command is not shown to those who decide about it: secrets (X13).
//!
//! In: argv. Out: argv with `[redacted]` in the place of secrets, to be rendered and never to be run or compared.
//! Attacker controls: argv. Bounds: one pass over it. Errors: none.
//!
//! Hiding must not help whoever asks: of a shell's text a value is taken out only where nothing expands, where every
//! command is a plain program, and where the value has no `/`, so that nothing that runs disappears behind a name that
//! sounds secret.

use crate::exec::env::Overrides;
use crate::exec::{allowlist, argv_text, shell};

const REDACTED: &str = "[redacted]";
/// A name whose last word is one of these is a secret's.
const SECRET_WORDS: &[&str] = &[
    "apikey",
    "authorization",
    "cookie",
    "credential",
    "credentials",
    "pass",
    "passphrase",
    "passwd",
    "password",
    "secret",
    "token",
];
/// `…-key` is a secret only after one of these.
const KEY_WORDS: &[&str] = &["access", "api", "auth", "private", "secret", "signing"];
/// What stands before the secret in a header.
const SCHEMES: &[&str] = &["apikey", "basic", "bearer", "digest", "token"];

/// Where these stand a shell may run what stands elsewhere in its text.
const EXPANDS: &[char] = &['$', '`', '\\', '\n', '#', '<', '>', '(', ')'];
/// And so it may behind these words.
const RUNS_WORDS: &[&str] = &[
    ".", "!", "alias", "builtin", "case", "command", "coproc", "do", "elif", "else", "eval",
    "exec", "for", "function", "if", "source", "then", "trap", "until", "while",
];
/// curl's flags for `user:secret`.
const LOGIN_FLAGS: &[&str] = &["-u", "--user", "-U", "--proxy-user"];

/// The arguments as they may be shown.
pub fn argv(argv: &[String]) -> Vec<String> {
    if let Some(inline) = shell::inline_text(argv) {
        let [program, flag] = [&argv[0], &argv[1]].map(Clone::clone);
        return vec![program, flag, text(inline)];
    }
    // Any argument of a launcher or interpreter may be what it runs; only what a name within it announces is cut out.
    let by_shell = !argv.iter().all(|argument| allowlist::is_plain(argument));
    let expands = |argument: &String| argument.contains([';', '|', '&']) || may_expand(argument);
    if by_shell && argv.iter().any(expands) {
        return argv.to_vec();
    }
    let is_curl = argv
        .first()
        .is_some_and(|it| shell::base_name(it) == "curl");
    let mut flag = "";
    argv.iter()
        .map(|argument| {
            let before = std::mem::replace(&mut flag, argument);
            if is_curl
                && LOGIN_FLAGS.contains(&before)
                && let Some((user, _)) = argument.split_once(':')
            {
                return format!("{user}:{REDACTED}");
            }
            if !by_shell && is_secret_flag(before) {
                return REDACTED.to_owned();
            }
            match argument.split_once('=') {
                Some((flag, _)) if !by_shell && is_secret_flag(flag) => {
                    format!("{flag}={REDACTED}")
                }
                _ => cut(argument, by_shell, false),
            }
        })
        .collect()
}

/// The text of a shell.
pub fn text(text: &str) -> String {
    if may_expand(text) || !text.split([';', '|', '&']).all(runs_a_plain_program) {
        return text.to_owned();
    }
    cut(text, true, true)
}

/// The variables that a command is given, as they may be shown beside it.
pub fn env(argv: &[String], env: &Overrides) -> Overrides {
    let is_plain = argv.iter().all(|argument| allowlist::is_plain(argument));
    let expands = argv.iter().any(|argument| may_expand(argument));
    let show = |(name, value): (&String, &String)| {
        let runs_nothing = is_plain || !(expands || value.contains('/'));
        let shown = match is_secret_name(name) && runs_nothing {
            true => REDACTED.to_owned(),
            false => argv_text::visible(value),
        };
        (name.clone(), shown)
    };
    env.iter().map(show).collect()
}

fn may_expand(text: &str) -> bool {
    text.contains(EXPANDS)
}

/// Whether one command of a shell's text says plainly that it runs a program that runs no others.
fn runs_a_plain_program(command: &str) -> bool {
    let program = command
        .split_ascii_whitespace()
        .find(|word| !word.contains('='))
        .map(|word| word.replace(['"', '\''], ""));
    program.is_none_or(|program| {
        program
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte))
            && !RUNS_WORDS.contains(&program.as_str())
            && allowlist::is_plain(&program)
    })
}

/// `flags`: whether the word after a flag is its value, and never a program.
fn cut(text: &str, by_shell: bool, flags: bool) -> String {
    let mut quote = None;
    let mut shown = String::with_capacity(text.len());
    let mut kept_to = 0;
    let mut run = Run::default();
    let has_curl = text.contains("curl");
    for (at, c) in text.char_indices() {
        if by_shell && matches!(c, '"' | '\'') && quote.is_none_or(|open| open == c) {
            quote = quote.is_none().then_some(c);
        }
        if at < kept_to {
            continue;
        }
        // Beyond a space that parts words stands another argument, or the program.
        let in_word = !by_shell || quote.is_some();
        let secret = match c {
            '=' | ':' if text[at..].starts_with("://") => userinfo(text, at + 3),
            ' ' if !flags && by_shell => None,
            '=' | ':' | ' ' => {
                let start = value_after(text, at, c, quote, in_word, has_curl);
                let run = start.map(|start| (start, run.find(text, start)));
                // A header in quotes is one word with what announces it.
                let may_run = by_shell && (c != ':' || quote.is_none());
                run.filter(|(start, run)| !(may_run && run.last_slash >= Some(*start)))
                    .map(|(start, run)| (start, run.end))
            }
            _ => None,
        };
        if let Some((start, end)) = secret.filter(|(start, end)| start < end) {
            shown.push_str(&text[kept_to..start]);
            shown.push_str(REDACTED);
            kept_to = end;
        }
    }
    shown.push_str(&text[kept_to..]);
    shown
}

/// Characters in a row on which no shell acts, looked for once: each of them may announce what follows.
#[derive(Default)]
struct Run {
    from: usize,
    end: usize,
    last_slash: Option<usize>,
}

impl Run {
    /// The one from here on.
    fn find(&mut self, text: &str, start: usize) -> &Self {
        if !(self.from..self.end).contains(&start) {
            let end = start + harmless_bytes(&text[start..]);
            let slash = text[start..end].rfind('/');
            *self = Self {
                from: start,
                end,
                last_slash: slash.map(|at| start + at),
            };
        }
        self
    }
}

/// Where the value begins that a secret's name before `at` announces: `NAME=v`, `--name v`, `Name: Scheme v`, `"name": "v"`.
///
/// Only a header's value, inside one word, may stand behind spaces and a scheme: `TOKEN= /tmp/x` runs `/tmp/x`.
fn value_after(
    text: &str,
    at: usize,
    separator: char,
    quote: Option<char>,
    in_word: bool,
    has_curl: bool,
) -> Option<usize> {
    let before = text[..at].trim_end_matches(['"', '\'']);
    let from = before
        .rfind(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-'))
        .map_or(0, |at| {
            at + before[at..].chars().next().map_or(1, char::len_utf8)
        });
    let name = &before[from..];
    if separator == ' ' && LOGIN_FLAGS.contains(&name) && has_curl {
        let word = text[at..].trim_start_matches([' ', '"', '\'']);
        let colon = word[..harmless_bytes(word)].find(':')?;
        return Some(text.len() - word.len() + colon + 1);
    }
    if !is_secret_name(name) || (separator == ' ' && !name.starts_with("--")) {
        return None;
    }
    // What a text begins with is its program, and no secret.
    let is_header = separator == ':' && (in_word || from == 0);
    let mut rest = &text[at + 1..];
    if is_header || separator == ' ' {
        rest = rest.trim_start_matches(' ');
    }
    // The quote that ends the word is no part of it.
    rest = rest.trim_start_matches(|c| matches!(c, '"' | '\'') && Some(c) != quote);
    let behind = |scheme: &&str| {
        let (word, after) = rest.split_at_checked(scheme.len())?;
        let after = after.strip_prefix(' ')?;
        word.eq_ignore_ascii_case(scheme).then_some(after)
    };
    if is_header && let Some(after) = SCHEMES.iter().find_map(behind) {
        rest = after;
    }
    Some(text.len() - rest.len())
}

/// The secret of `user:secret@host`, or `secret@host`.
fn userinfo(text: &str, start: usize) -> Option<(usize, usize)> {
    let authority = text[start..].split('/').next().unwrap_or_default();
    let authority = &authority[..harmless_bytes(authority)];
    let info = &authority[..authority.rfind('@')?];
    let secret_from = info.find(':').map_or(0, |colon| colon + 1);
    Some((start + secret_from, start + info.len()))
}

/// How many bytes from the start no shell acts on.
fn harmless_bytes(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && !"._+/=-@%:,".contains(c))
        .unwrap_or(text.len())
}

fn is_harmless(text: &str) -> bool {
    !text.is_empty() && harmless_bytes(text) == text.len()
}

fn is_secret_flag(argument: &str) -> bool {
    argument.starts_with("--") && is_harmless(argument) && is_secret_name(argument)
}

/// By its last word, so that `--token-file` and `MAX_TOKENS` stay visible.
fn is_secret_name(name: &str) -> bool {
    let mut words: Vec<String> = Vec::new();
    let mut previous = '-';
    for c in name.chars() {
        // `authToken` is two words, `AUTH` is one.
        if !c.is_ascii_alphanumeric()
            || (c.is_ascii_uppercase() && previous.is_ascii_lowercase())
            || words.is_empty()
        {
            words.push(String::new());
        }
        if c.is_ascii_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.push(c.to_ascii_lowercase());
        }
        previous = c;
    }
    words.retain(|word| !word.is_empty());
    match words.as_slice() {
        [.., before, last] if last == "key" => KEY_WORDS.contains(&before.as_str()),
        [.., last] => SECRET_WORDS.contains(&last.as_str()),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(arguments: &[&str]) -> Vec<String> {
        let owned: Vec<String> = arguments.iter().map(|it| (*it).to_owned()).collect();
        argv(&owned)
    }

    #[test]
    fn x13_what_announces_and_hides_nothing_costs_little() {
        for (part, before) in [("token=/", ""), ("-u ", ""), ("authorization:!", "x \"")] {
            let given = format!("{before}{}", part.repeat((1 << 19) / part.len()));
            assert_eq!(shown(&["env", &given])[1], given);
            assert_eq!(text(&given), given);
        }
    }

    #[test]
    fn x13_secrets_are_redacted() {
        for (given, expected) in [
            (
                "Authorization: Bearer abc.def-1",
                "Authorization: Bearer [redacted]",
            ),
            (
                "authorization:Basic dXNlcg==",
                "authorization:Basic [redacted]",
            ),
            ("X-Api-Key: k1", "X-Api-Key: [redacted]"),
            ("--password=hunter2", "--password=[redacted]"),
            ("GITHUB_TOKEN=ghp_x", "GITHUB_TOKEN=[redacted]"),
            (
                "AWS_SECRET_ACCESS_KEY=a/b+c",
                "AWS_SECRET_ACCESS_KEY=[redacted]",
            ),
            ("clientSecret=x", "clientSecret=[redacted]"),
            (
                "https://me:pw@host/p?q=1",
                "https://me:[redacted]@host/p?q=1",
            ),
            ("https://ghp_x@host/p", "https://[redacted]@host/p"),
        ] {
            assert_eq!(shown(&["x", given])[1], expected);
        }
        assert_eq!(
            text(r#"curl -H "Authorization: Bearer abc" --token t2 -d '{"password": "p w"}' x"#),
            r#"curl -H "Authorization: Bearer [redacted]" --token [redacted] -d '{"password": "[redacted] w"}' x"#
        );
        assert_eq!(
            shown(&["timeout", "5", "curl", "-H", "Authorization: Bearer abc"])[4],
            "Authorization: Bearer [redacted]"
        );
        assert_eq!(
            shown(&["mysql", "--password=a b;c$d", "--pass-file=x"]),
            ["mysql", "--password=[redacted]", "--pass-file=x"]
        );
        assert_eq!(
            shown(&["mysql", "--password", "hunter2!"]),
            ["mysql", "--password", "[redacted]"]
        );
        assert_eq!(
            shown(&["curl", "-u", "me:p w/!", "h"]),
            ["curl", "-u", "me:[redacted]", "h"]
        );
        assert_eq!(
            text("curl -u \"me:pw\" h; curl --user me:pw h"),
            "curl -u \"me:[redacted]\" h; curl --user me:[redacted] h"
        );
        assert_eq!(
            shown(&["x", "--token", "t", "t"]),
            ["x", "--token", "[redacted]", "t"]
        );
    }

    #[test]
    fn x13_nothing_that_a_shell_acts_on_is_hidden() {
        for kept in [
            "TOKEN=$(touch /tmp/x)",
            "Authorization: Bearer `id`",
            "--password '; rm -rf x'",
            "PASSWORD=\\x",
            "https://a:$(id)@host/",
        ] {
            assert_eq!(text(kept), kept.to_owned(), "{kept}");
        }
        assert_eq!(
            shown(&["env", "sh", "-c", "--password=x; id"])[3],
            "--password=x; id"
        );
        assert_eq!(text("PASSWORD=a;id"), "PASSWORD=[redacted];id");
        assert_eq!(shown(&["ssh", "--password", "; rm -rf x"])[2], "; rm -rf x");
    }

    #[test]
    fn x13_the_program_that_runs_is_not_hidden() {
        for (given, expected) in [
            ("TOKEN= /tmp/evil --now", "TOKEN= /tmp/evil --now"),
            (
                "API_TOKEN=basic /tmp/evil",
                "API_TOKEN=[redacted] /tmp/evil",
            ),
            ("TOKEN='' /tmp/evil", "TOKEN='' /tmp/evil"),
            ("--token basic /tmp/evil", "--token [redacted] /tmp/evil"),
            ("perl -pass /w/x.pl", "perl -pass /w/x.pl"),
            ("TOKEN=/tmp/evil true", "TOKEN=/tmp/evil true"),
            ("sudo -p token: /tmp/evil", "sudo -p token: /tmp/evil"),
            ("sudo -p 'token': /tmp/evil", "sudo -p 'token': /tmp/evil"),
            (
                "sudo -p \"token: \"basic /tmp/evil",
                "sudo -p \"token: \"basic /tmp/evil",
            ),
            (
                "# '\nsudo -p token: /tmp/evil '",
                "# '\nsudo -p token: /tmp/evil '",
            ),
            (
                "x $'\\'' -p token: /tmp/evil '",
                "x $'\\'' -p token: /tmp/evil '",
            ),
        ] {
            assert_eq!(text(given), expected);
            assert_eq!(shown(&["sh", "-c", given])[2], expected);
        }
        for kept in [
            "TOKEN=/tmp/payload; $TOKEN",
            "set -- --api-key /tmp/payload; \"$2\"",
            "set -- --api-key payload; `echo $2`",
            ": --token /tmp/payload; $_",
            "alias TOKEN=payload\nTOKEN",
            "eval TOKEN=/tmp/payload",
            "echo --token payload | xargs -n1 env",
            "echo --token payload | 's'h",
            "if true; then TOKEN=payload; fi",
            "<f xargs --token payload",
        ] {
            assert_eq!(shown(&["/bin/sh", "-lc", kept])[2], kept);
        }
        for kept in [
            &["perl", "-pass", "/w/x.pl"][..],
            &["sh", "-c", "shift; \"$@\"", "x", "--token", "/tmp/payload"],
            &["sh", "run.sh", "--token", "payload"],
            &["xargs", "-I", "--token", "payload"],
            &["env", "sh", "-c", "xargs -I --token payload"],
        ] {
            assert_eq!(shown(kept), kept);
        }
    }

    #[test]
    fn x13_variables_are_shown_and_secrets_among_them_are_not() {
        let value = |argv: &[&str], name: &str, value: &str| {
            let argv: Vec<String> = argv.iter().map(|it| (*it).to_owned()).collect();
            let given = [(name.to_owned(), value.to_owned())].into();
            env(&argv, &given).remove(name).unwrap()
        };
        assert_eq!(value(&["id"], "LANG", "C\u{202e}"), "C\\u{202e}");
        assert_eq!(value(&["id"], "API_TOKEN", "a/b"), REDACTED);
        assert_eq!(value(&["sh", "x.sh"], "API_TOKEN", "hunter2"), REDACTED);
        assert_eq!(value(&["sh", "-c", "$TOKEN"], "TOKEN", "reboot"), "reboot");
        assert_eq!(value(&["sh", "x.sh"], "TOKEN", "/tmp/x"), "/tmp/x");
    }

    #[test]
    fn names_that_only_sound_secret_stay() {
        for kept in [
            "--token-file=/etc/t",
            "MAX_TOKENS=5",
            "--tokenizer gpt2",
            "PWD=/x",
            "GIT_ASKPASS=/tmp/x",
            "KEY=v",
            "http://host:80/a@b",
            "pass the salt",
            "é: x",
        ] {
            assert_eq!(text(kept), kept.to_owned());
        }
    }
}
