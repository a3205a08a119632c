//! The words of a shell's text (POSIX.1-2024, Shell Command Language, sections 2.2, 2.3 and 2.10), as far as they can be
//! known without running it: which files an approval can be bound to, and when that is not all.
//!
//! In: argv, or a plan's. Out: names and patterns of files; whether what runs depends on more than they say. Attacker
//! controls: all of it. Bounds: `EXEC_TEXTS_MAX`; the words come one at a time, and who takes them may stop. Errors: none;
//! what is not understood is unclear, and said to be.

use std::iter::Peekable;
use std::str::Chars;

use crate::base::limits::EXEC_TEXTS_MAX;
use crate::exec::allowlist::{self, Token};
use crate::exec::{Plan, env, shell};

/// How far a pattern is looked through for the ends of its brackets, in characters. What they hold has some tens.
const SETS_CHARS_MAX: usize = 4096;
/// What is said of a command that may run files to which its approval is not bound.
const UNCLEAR: &str =
    "files that its words do not name outright are not bound: they may change until it starts";
/// The same of a plan that is bound to no file.
const UNBOUND: &str = "the node binds no file to it: whatever it runs may change until it starts";
/// Builtins by which a text changes what its other words mean.
const UNSEEN: &[&str] = &[
    "alias", "cd", "chdir", "coproc", "enable", "eval", "function", "popd", "pushd", "trap",
];
/// Builtins that run nothing that their arguments name.
const HARMLESS: &[&str] = &[
    ":", "[", "echo", "exit", "false", "printf", "pwd", "test", "true",
];
/// Words after which a command's name is still to come.
const PREFIXES: &[&str] = &[
    "!", "builtin", "command", "do", "elif", "else", "exec", "if", "then", "time", "until",
    "while", "{",
];

/// One word, without its quotes.
pub struct Word {
    pub text: String,
    /// It as a pattern, if it is one: a backslash takes a character's meaning away.
    pub pattern: Option<String>,
    /// It stands where a command's name stands.
    is_command: bool,
    /// It stands before one.
    is_prefix: bool,
    /// It says where output goes.
    is_output: bool,
    /// The shell makes something else of it, other than by a pattern.
    expands: bool,
}

/// The words of a text, one after the other.
pub struct Words<'a> {
    chars: Peekable<Chars<'a>>,
    wants_command: bool,
    /// `<` or `>`, before a redirection's file.
    redirects: Option<char>,
    /// Whether what was read so far runs, or feeds to a program, what no word says.
    runs: bool,
}

impl<'a> Words<'a> {
    pub fn of(text: &'a str) -> Self {
        Self {
            chars: text.chars().peekable(),
            wants_command: true,
            redirects: None,
            runs: false,
        }
    }

    fn redirection(&mut self, begin: char) {
        let next = self.chars.next_if(|c| "<>&|(".contains(*c));
        // The name of a pipe from another command, or a here-document.
        let is_pipe = next == Some('(');
        self.runs |= is_pipe || (begin == '<' && next == Some('<'));
        self.wants_command |= is_pipe;
        self.redirects = (!is_pipe).then_some(begin);
    }

    /// After a `$`: whether something is put in its place that is not a mere variable's value.
    fn computes(&mut self, is_quoted: bool) -> bool {
        match self.chars.peek() {
            Some('{') => {
                let mut rest = self.chars.clone();
                rest.next();
                rest.find(|c| !c.is_ascii_alphanumeric() && *c != '_') != Some('}')
            }
            Some('(' | '[') => true,
            Some('\'' | '"') => !is_quoted,
            _ => false,
        }
    }

    fn word(&mut self) -> Word {
        let (mut text, mut pattern) = (String::new(), String::new());
        let (mut expands, mut is_pattern, mut braces) = (false, false, false);
        while let Some(c) = self.chars.next_if(|c| !" \t\n;&|()<>`".contains(*c)) {
            let from = text.len();
            match c {
                '\\' => match self.chars.next() {
                    Some('\n') => {}
                    escaped => text.push(escaped.unwrap_or('\\')),
                },
                '\'' => loop {
                    match self.chars.next() {
                        Some('\'') => break,
                        Some(c) => text.push(c),
                        None => {
                            self.runs = true;
                            break;
                        }
                    }
                },
                '"' => loop {
                    match self.chars.next() {
                        Some('"') => break,
                        Some('\\') => match self.chars.next_if(|c| "$`\"\\\n".contains(*c)) {
                            Some('\n') => {}
                            escaped => text.push(escaped.unwrap_or('\\')),
                        },
                        Some(c) => {
                            expands |= c == '$';
                            self.runs |= c == '`' || (c == '$' && self.computes(true));
                            text.push(c);
                        }
                        None => {
                            self.runs = true;
                            break;
                        }
                    }
                },
                _ => {
                    expands |= c == '$';
                    self.runs |= c == '$' && self.computes(false);
                    // `~user`; what `~/` means is known.
                    let is_user = |next: &char| next.is_alphanumeric() || "_+-".contains(*next);
                    expands |=
                        c == '~' && text.is_empty() && self.chars.peek().is_some_and(is_user);
                    is_pattern |= "*?[".contains(c);
                    braces |= "{}".contains(c);
                    text.push(c);
                    pattern.push(c);
                    continue;
                }
            }
            for c in text[from..].chars() {
                pattern.extend(['\\', c]);
            }
        }
        expands |= braces && !matches!(text.as_str(), "{" | "}" | "{}");
        let name = text
            .split_once('=')
            .map(|(name, _)| name.trim_end_matches('+'));
        self.runs |= name.is_some_and(env::is_blocked);
        let assigns =
            name.is_some_and(|it| !it.contains(|c: char| !c.is_alphanumeric() && c != '_'));
        let redirects = self.redirects.take();
        // `2>&1` redirects, and the command's name may follow.
        let is_number = text.bytes().all(|it| it.is_ascii_digit());
        let is_output =
            redirects == Some('>') || (is_number && matches!(self.chars.peek(), Some('<' | '>')));
        let wanted = self.wants_command && redirects.is_none() && !is_output;
        // `exec -a NAME PROGRAM`
        let is_option = text.starts_with('-');
        self.runs |= wanted && is_option && !matches!(text.as_str(), "-p" | "-v" | "-V");
        let is_prefix = assigns || is_option || PREFIXES.contains(&text.as_str());
        let is_command = wanted && !is_prefix;
        self.wants_command &= !is_command;
        Word {
            is_output,
            is_prefix: wanted && !is_command,
            // A bracket without an end is none.
            pattern: (is_pattern && plain_name(&tokens(&pattern)).is_none()).then_some(pattern),
            text,
            is_command,
            expands,
        }
    }
}

impl Iterator for Words<'_> {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        loop {
            match *self.chars.peek()? {
                ' ' | '\t' => {}
                '#' => {
                    while self.chars.next_if(|c| *c != '\n').is_some() {}
                    continue;
                }
                c @ ('\n' | ';' | '&' | '|' | '(' | ')' | '`') => {
                    self.runs |= c == '`';
                    (self.wants_command, self.redirects) = (true, None);
                }
                c @ ('<' | '>') => {
                    self.chars.next();
                    self.redirection(c);
                    continue;
                }
                _ => return Some(self.word()),
            }
            self.chars.next();
        }
    }
}

/// What of a word may be a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name<'a> {
    Literal(&'a str),
    /// A word of a shell, without a slash: it may be looked for in `PATH`.
    Bare(&'a str),
    Pattern(&'a str),
}

/// Everything in a word of argv that may name a file: what stands between spaces, quotes and signs, and the words that
/// a shell would see in it, and one within a shell's. Names come more than once.
pub fn each_name<E>(word: &str, take: &mut impl FnMut(Name<'_>) -> Result<(), E>) -> Result<(), E> {
    within(word, EXEC_TEXTS_MAX, take)
}

fn within<E>(
    word: &str,
    deep: usize,
    take: &mut impl FnMut(Name<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for name in between(word) {
        take(Name::Literal(name))?;
    }
    if deep == 0 {
        return Ok(());
    }
    for part in Words::of(word) {
        if !part.text.contains('/') {
            take(Name::Bare(&part.text))?;
        }
        if let Some(pattern) = &part.pattern {
            take(Name::Pattern(pattern))?;
        }
        if part.text != word {
            within(&part.text, deep - 1, take)?;
        }
    }
    Ok(())
}

/// The word, what signs part in it, and of each of them all, `FILE` in `--name=FILE` and in `-fFILE`.
fn between(word: &str) -> impl Iterator<Item = &str> {
    let parts = word.split(|c: char| c.is_whitespace() || "\"'`;|&<>(){}$,:".contains(c));
    std::iter::once(word)
        .chain(parts)
        .flat_map(|part| {
            let after_equals = part.split_once('=').map(|(_, name)| name);
            let after_letter = part.strip_prefix('-').and_then(|it| {
                let mut letters = it.chars();
                letters.next().map(|_| letters.as_str())
            });
            [Some(part), after_equals, after_letter]
        })
        .flatten()
}

/// What a shell's pattern matches in one directory, or a little more: a set of characters is any character, names that
/// begin with a dot are not left out, and behind `SETS_CHARS_MAX` of brackets follows anything.
pub fn tokens(pattern: &str) -> Vec<Token> {
    let mut chars = pattern.chars();
    let mut tokens = Vec::new();
    let mut left = SETS_CHARS_MAX;
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '\\' => Token::Char(chars.next().unwrap_or(c)),
            '*' => Token::Star,
            '?' => Token::One,
            '[' => match after_set(chars.as_str(), &mut left) {
                Some(rest) => {
                    chars = rest.chars();
                    Token::One
                }
                None if left == 0 => {
                    chars = "".chars();
                    Token::Star
                }
                None => Token::Char(c),
            },
            c => Token::Char(c),
        });
    }
    tokens
}

/// The name, if they match only one.
pub fn plain_name(tokens: &[Token]) -> Option<String> {
    let literal = |token: &Token| match token {
        Token::Char(c) => Some(*c),
        _ => None,
    };
    tokens.iter().map(literal).collect()
}

/// What follows a set of characters (section 2.14.1), if it has an end. `left` goes down to 0 when it is not known.
fn after_set<'a>(set: &'a str, left: &mut usize) -> Option<&'a str> {
    let members = set.strip_prefix(['!', '^']).unwrap_or(set);
    let mut chars = members.chars();
    let mut is_first = true;
    loop {
        *left = left.saturating_sub(1);
        match chars.next().filter(|_| *left > 0)? {
            ']' if !is_first => return Some(chars.as_str()),
            '\\' => drop(chars.next()),
            '[' => {
                // `[:alpha:]`, `[.x.]`, `[=x=]`
                let rest = chars.as_str();
                let kind = rest.chars().next().filter(|c| ":.=".contains(*c));
                if let Some(kind) = kind {
                    let end = rest[1..].split_once(&format!("{kind}]"));
                    *left = left.saturating_sub(end.map_or(rest.len(), |(class, _)| class.len()));
                    chars = end.map_or(chars, |(_, rest)| rest.chars());
                }
            }
            _ => {}
        }
        is_first = false;
    }
}

/// Whether a text only looks at data, or prints: its patterns stand for nothing that runs.
pub fn only_looks(text: &str) -> bool {
    let mut words = Words::of(text);
    let looks = words.by_ref().all(|word| !word.is_command || looks(&word));
    looks && !words.runs
}

fn looks(word: &Word) -> bool {
    let name = word.text.as_str();
    let is_known = HARMLESS.contains(&name) || allowlist::names_data_only(name);
    is_known && !word.expands && word.pattern.is_none()
}

/// What whoever is asked about a plan has to know: that it may run what it is not bound to.
pub fn warning(plan: &Plan) -> Option<&'static str> {
    if plan.mutable_file_operand.is_none() {
        return Some(UNBOUND);
    }
    is_unclear(&plan.argv).then_some(UNCLEAR)
}

/// Whether a command may run files that its words do not name.
fn is_unclear(argv: &[String]) -> bool {
    let Some((program, args)) = argv.split_first() else {
        return true;
    };
    if let Some(text) = shell::inline_text(argv) {
        return text_is_unclear(text, shell::is_posix(program));
    }
    if allowlist::inner(argv).is_some() {
        return false;
    }
    let mut script = Script::of(program);
    for arg in args {
        script.take(arg, true);
    }
    !shell::runs_files(program) || script != Script::Named
}

fn text_is_unclear(text: &str, is_posix: bool) -> bool {
    let mut words = Words::of(text);
    let mut only_looks = false;
    let mut script = Script::Named;
    for word in words.by_ref() {
        let is_outright = !word.expands && word.pattern.is_none();
        if !word.is_command {
            // What only looks at data may be given any.
            if !is_outright && (word.is_prefix || !only_looks) {
                return true;
            }
            if !word.is_output {
                script.take(&word.text, is_outright);
            }
            continue;
        }
        if script != Script::Named {
            return true;
        }
        only_looks = looks(&word);
        let name = shell::base_name(&word.text);
        let is_launcher = !allowlist::is_plain(name) && !shell::runs_files(name);
        if !is_outright || is_launcher || UNSEEN.contains(&name) {
            return true;
        }
        script = Script::of(name);
    }
    let plain = allowlist::plain_words(text).is_some();
    script != Script::Named || words.runs || !(is_posix || plain)
}

/// The file that an interpreter runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Script {
    /// It is still to come, for a shell or for another, which may run a directory or complete a name.
    OfShell,
    OfAnother,
    Named,
    Unclear,
}

impl Script {
    fn of(program: &str) -> Self {
        match shell::runs_files(program) {
            _ if is_script(program) => Self::Named,
            false => Self::Named,
            true if shell::is_posix(program) => Self::OfShell,
            true => Self::OfAnother,
        }
    }

    /// One argument more.
    fn take(&mut self, arg: &str, is_outright: bool) {
        let name = shell::base_name(arg);
        let is_file = is_outright && !arg.starts_with(['-', '+']) && !name.is_empty();
        let has_suffix = name.trim_matches('.').contains('.') && !name.ends_with('.');
        *self = match self {
            Self::OfShell if is_file => Self::Named,
            // `sh -ex a.sh`
            Self::OfShell if is_outright && is_switch(arg) => Self::OfShell,
            Self::OfAnother if is_file && has_suffix => Self::Named,
            Self::OfShell | Self::OfAnother => Self::Unclear,
            Self::Named | Self::Unclear => *self,
        };
    }
}

/// `x.sh` is called after what runs it, and names itself.
fn is_script(program: &str) -> bool {
    let parts = shell::base_name(program).rsplit_once('.');
    parts.is_some_and(|(stem, suffix)| shell::runs_files(suffix) && !shell::runs_files(stem))
}

fn is_switch(arg: &str) -> bool {
    let letters = arg.strip_prefix('-').unwrap_or_default();
    !letters.is_empty() && letters.chars().all(|c| "aefhmnuvx".contains(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::exec::FileOperand;

    fn texts(text: &str) -> Vec<String> {
        Words::of(text).map(|word| word.text).collect()
    }

    fn warned(argv: &[&str]) -> bool {
        is_unclear(&argv.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn x4_words_are_those_that_a_shell_sees() {
        for (text, words) in [
            (r#"sh "a b.sh""#, "sh|a b.sh"),
            (r"sh a\ b.sh;x", "sh|a b.sh|x"),
            (r#"'a'"b"\c"$d\"" "#, r#"abc$d""#),
            (r#""\a\\" '\'"#, r"\a\|\"),
            ("a\\\nb # c 'd\ne#f", "ab|e#f"),
            ("(a)<b>>c 2>&1|d&&e", "a|b|c|2|1|d|e"),
            ("'' \"\"", "|"),
            ("'open", "open"),
            ("\\", "\\"),
        ] {
            assert_eq!(texts(text).join("|"), words, "{text}");
        }
    }

    #[test]
    fn x4_a_pattern_matches_no_less_than_a_shells() {
        for (text, name, is_match) in [
            ("x.s?", "x.sh", true),
            ("*", "x.sh", true),
            ("[x].sh", "x.sh", true),
            ("[!]x].sh", "y.sh", true),
            ("[]].sh", "].sh", true),
            ("[[:alpha:]].sh", "x.sh", true),
            ("[x", "[x", true),
            (r#"'*'*"#, "*x", true),
            (r#"'*'*"#, "xx", false),
            (r"\?*.sh", "?.sh", true),
            (r"\?*.sh", "x.sh", false),
            ("x.s?", "x.shh", false),
        ] {
            let word = Words::of(text).next().unwrap();
            let pattern = tokens(&word.pattern.unwrap_or(word.text));
            assert_eq!(
                allowlist::matches(&pattern, name),
                is_match,
                "{text} {name}"
            );
        }
    }

    #[test]
    fn x4_brackets_without_an_end_cost_little_and_stand_for_anything() {
        for unended in ["[", "[:", "[[:x", r"[\]", "[]"] {
            let brackets = unended.repeat(1 << 18 >> unended.len().ilog2());
            let text = format!("sh {brackets}x.s?");
            assert!(warned(&["/bin/sh", "-c", &text]), "{unended}");
            each_name::<()>(&text, &mut |_| Ok(())).unwrap();
        }
        let pattern = tokens(&format!("a{}x.s?", "[".repeat(2 * SETS_CHARS_MAX)));
        assert!(allowlist::matches(&pattern, "a[x.sh") && !allowlist::matches(&pattern, "b"));
    }

    #[test]
    fn x4_what_is_not_bound_is_warned_about() {
        for text in [
            "sh *.sh",
            "sh x.s?",
            "sh [x].sh",
            r#". "$F""#,
            "$TOOL x",
            "cd sub && sh x.sh",
            "sh ~other/x.sh",
            "bash {a,b}.sh",
            "cat x.sh | sh",
            "echo `x.sh`",
            r#"echo "$(sh x.sh)""#,
            "sh <<EOF\ntrue\nEOF",
            "sh <(cat x.sh)",
            "python3 -m mymod",
            "python3 dir",
            "python3 ./dir/",
            "node .",
            "node index",
            "make",
            "FOO=1 make",
            "PATH=/tmp/x ls",
            "export PATH=/tmp/x; ls",
            ">log make all",
            "2>&1 make",
            "if true; then make; fi",
            "f() { make; }; f",
            "function f { make; }; f",
            "coproc f { make; }",
            "a[0]=1 make",
            "{fd}>log make",
            "true && /usr/bin/make",
            "npm run build",
            "sudo mytool",
            "xargs mytool <list",
            "exec -a sh make",
            "eval 'sh x.sh'",
            "trap 'sh x.sh' 0",
            "bash -c 'sh x.sh'",
            "'mak'e",
            "sh 2>log",
            "ls ${X:=$(sh x.sh)}",
            "ls $'x'",
            "'open",
            "./x.sh *",
            "ls; ./x.sh *",
            "X=$(x) ls",
        ] {
            assert!(warned(&["/bin/sh", "-lc", text]), "{text}");
        }
        for text in [
            "sh x.sh",
            r#"sh "my script.sh""#,
            "sh -ex ./x.sh a $",
            "sh <x.sh",
            "python3 a.py 'b c'",
            "./x.sh && echo 'it''s' done",
            "ls *.log",
            "cat $HOME/x | grep 'x$' >out",
            "FOO=1 ./tool --all",
            "[ -f x.sh ] && ./x.sh",
            "echo \"$HOME\"; uname -a",
            ". ./env.sh; ./tool",
            "command -v tool",
            "grep make x",
        ] {
            let is_shells_own = text.ends_with('$');
            assert_eq!(warned(&["/bin/sh", "-lc", text]), is_shells_own, "{text}");
        }
        for argv in [
            "make",
            "/usr/bin/make|all",
            "/usr/bin/python3|-m|mymod",
            "/usr/bin/python3|dir",
            "/usr/bin/env|tool",
            "/bin/sh|-xc|make",
            "/bin/sh",
            "/bin/zsh|-c|ls *(e:'sh x.sh':)",
            "/bin/fish|-c|sh (ls)",
        ] {
            assert!(warned(&argv.split('|').collect::<Vec<_>>()), "{argv}");
        }
        for argv in [
            "/usr/bin/id|-u",
            "/usr/bin/env|/usr/bin/id|$x",
            "/bin/zsh|-lc|/usr/bin/id -u",
            "/usr/bin/python3|a.py|-m",
            "/bin/bash|-e|a.sh",
            "/tmp/x.sh",
            "/tmp/tool|*",
        ] {
            assert!(!warned(&argv.split('|').collect::<Vec<_>>()), "{argv}");
        }
    }

    #[test]
    fn x4_a_plan_that_binds_no_file_says_so() {
        let plan = r#"{"argv":["/bin/sh","-lc","sh x.sh"],"commandText":""}"#;
        let mut plan: Plan = serde_json::from_str(plan).unwrap();
        assert_eq!(warning(&plan), Some(UNBOUND));
        plan.mutable_file_operand = Some(FileOperand {
            argv_index: 2,
            path: "/x.sh".to_owned(),
            sha256: String::new(),
        });
        assert_eq!(warning(&plan), None);
        plan.argv[2].push_str("; make");
        assert_eq!(warning(&plan), Some(UNCLEAR));
    }

    /// One word as somebody may quote it: each character by itself.
    fn quoted() -> impl Strategy<Value = (String, String)> {
        let part = ("[^\0\n]", 0..3).prop_map(|(c, how)| {
            let is_safe = c.chars().all(|c| c.is_alphanumeric());
            let text = match how {
                0 if is_safe => c.clone(),
                1 if c != "'" => format!("'{c}'"),
                2 if !"$`\"\\".contains(&c) => format!("\"{c}\""),
                _ => format!("\\{c}"),
            };
            (c, text)
        });
        proptest::collection::vec(part, 1..6).prop_map(|parts| parts.into_iter().unzip())
    }

    proptest! {
        #[test]
        fn x4_any_quoting_of_a_word_is_that_word(words in proptest::collection::vec(quoted(), 1..6)) {
            let (plain, text): (Vec<String>, Vec<String>) = words.into_iter().unzip();
            let text = text.join(" ");
            prop_assert_eq!(&texts(&text), &plain);
            let mut named = Vec::new();
            each_name(&text, &mut |name| {
                if let Name::Literal(name) = name {
                    named.push(name.to_owned());
                }
                Ok::<(), ()>(())
            })
            .unwrap();
            prop_assert!(plain.iter().all(|word| named.contains(word)));
        }

        #[test]
        fn x4_no_text_is_too_strange(text in "[\\PC\n]{0,60}", odd in "[]\\[$'\"`\\\\(){}<>&|;*?!~# a=\n-]{0,60}") {
            for text in [text, odd] {
                let _ = each_name::<()>(&text, &mut |name| {
                    if let Name::Pattern(pattern) = name {
                        allowlist::matches(&tokens(pattern), "x.sh");
                    }
                    Ok(())
                });
                let _ = (only_looks(&text), warned(&["/bin/sh", "-c", &text]));
            }
        }
    }
}
