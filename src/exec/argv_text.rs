//! An argument vector as one line of text that hides nothing and loses nothing (invariants X2 and X5).
//!
//! Two argument vectors never have the same text: what `render` writes can be read back, and nothing else can. The text is
//! for people and for comparing; it is never given to a shell.
//!
//! Every character that a reader could not see, or could take for an ASCII one (Cyrillic and Greek letters,
//! full-width forms, fillers, direction marks), is written `\u{…}`.

use std::fmt::Write as _;

/// Renders an argument vector: arguments parted by one space, each bare if that is unambiguous, else in double quotes.
pub fn render(argv: &[String]) -> String {
    let mut text = String::new();
    for (index, argument) in argv.iter().enumerate() {
        if index > 0 {
            text.push(' ');
        }
        if is_bare(argument) {
            text.push_str(argument);
        } else {
            text.push('"');
            for c in argument.chars() {
                push_escaped(&mut text, c);
            }
            text.push('"');
        }
    }
    text
}

/// Makes text of any origin safe to show on one line: invisible and look-alike characters as `\u{…}`.
///
/// A backslash is doubled, so that no text can imitate an escape.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '"' {
            shown.push(c);
        } else {
            push_escaped(&mut shown, c);
        }
    }
    shown
}

/// Whether an argument can stand without quotes. Nothing that a shell or a reader could take for syntax is bare.
fn is_bare(argument: &str) -> bool {
    !argument.is_empty()
        && argument.chars().all(|c| {
            c.is_ascii_alphanumeric()
                || matches!(c, '_' | '@' | '%' | '+' | '=' | ':' | ',' | '.' | '/' | '-')
        })
}

fn push_escaped(text: &mut String, c: char) {
    match c {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        '"' | '\\' => {
            text.push('\\');
            text.push(c);
        }
        c if is_plainly_visible(c) => text.push(c),
        c => {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

/// Whether a character is seen for what it is. A list of what is shown, so that whatever Unicode adds is escaped.
fn is_plainly_visible(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Latin letters with marks, without the multiplication and division signs.
        'À'..='Ö' | 'Ø'..='ö' | 'ø'..='ÿ' => true,
        // Kana, Chinese characters and Hangul syllables look like no ASCII character.
        'ぁ'..='ゖ' | 'ァ'..='ヺ' | '一'..='鿿' | '가'..='힣' => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Why a text is not the rendering of an argument vector.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum ParseError {
        /// Something other than one space follows an argument.
        Separator,
        /// A quote is not closed.
        Unclosed,
        /// A backslash is followed by something that `render` never writes.
        Escape,
        /// The text means an argument vector, but `render` writes that one differently.
        NotCanonical,
    }

    /// Reads what `render` wrote, and nothing else.
    fn parse(text: &str) -> Result<Vec<String>, ParseError> {
        let mut argv = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if !argv.is_empty() {
                rest = rest.strip_prefix(' ').ok_or(ParseError::Separator)?;
            }
            let (argument, after) = if let Some(quoted) = rest.strip_prefix('"') {
                parse_quoted(quoted)?
            } else {
                let (bare, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
                (bare.to_owned(), after)
            };
            argv.push(argument);
            rest = after;
        }
        if render(&argv) == text {
            Ok(argv)
        } else {
            Err(ParseError::NotCanonical)
        }
    }

    /// Reads up to the closing quote; gives the argument and what follows the quote.
    fn parse_quoted(quoted: &str) -> Result<(String, &str), ParseError> {
        let mut argument = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next().ok_or(ParseError::Unclosed)? {
                '"' => return Ok((argument, chars.as_str())),
                '\\' => {
                    let c = match chars.next().ok_or(ParseError::Unclosed)? {
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        c @ ('"' | '\\') => c,
                        'u' => {
                            let (hex, after) = chars
                                .as_str()
                                .strip_prefix('{')
                                .and_then(|rest| rest.split_once('}'))
                                .ok_or(ParseError::Escape)?;
                            chars = after.chars();
                            u32::from_str_radix(hex, 16)
                                .ok()
                                .and_then(char::from_u32)
                                .ok_or(ParseError::Escape)?
                        }
                        _ => return Err(ParseError::Escape),
                    };
                    argument.push(c);
                }
                c => argument.push(c),
            }
        }
    }

    fn argv(arguments: &[&str]) -> Vec<String> {
        arguments.iter().map(|&a| a.to_owned()).collect()
    }

    #[test]
    fn texts_are_those_of_the_recordings() {
        for (arguments, text) in [
            (argv(&["/usr/bin/echo", "hello"]), "/usr/bin/echo hello"),
            (
                argv(&["/usr/bin/echo", "approved hello"]),
                r#"/usr/bin/echo "approved hello""#,
            ),
            (
                argv(&["/bin/sh", "-lc", "echo from-node; uname -s"]),
                r#"/bin/sh -lc "echo from-node; uname -s""#,
            ),
        ] {
            assert_eq!(render(&arguments), text);
            assert_eq!(parse(text), Ok(arguments));
        }
    }

    #[test]
    fn x2_nothing_is_lost() {
        for (arguments, text) in [
            (argv(&["ls", " x"]), r#"ls " x""#),
            (argv(&["ls", "x "]), r#"ls "x ""#),
            (argv(&["ls", "x"]), "ls x"),
            (argv(&["a b"]), r#""a b""#),
            (argv(&["a", "b"]), "a b"),
            (argv(&["", ""]), r#""" """#),
            (argv(&["a\nb"]), r#""a\nb""#),
            (argv(&["a\\nb"]), r#""a\\nb""#),
            (argv(&["\u{202e}cod"]), r#""\u{202e}cod""#),
            (argv(&[r"\u{202e}"]), r#""\\u{202e}""#),
            (
                argv(&["\"", "'", "`", "$x", "~", "*"]),
                r#""\"" "'" "`" "$x" "~" "*""#,
            ),
            (argv(&["\0"]), r#""\u{0}""#),
        ] {
            assert_eq!(render(&arguments), text);
            assert_eq!(parse(text), Ok(arguments));
        }
    }

    #[test]
    fn x5_invisible_and_lookalike_characters_are_shown() {
        for c in [
            '\u{200b}',
            '\u{3164}',
            '\u{115f}',
            '\u{ffa0}',
            '\u{202e}',
            '\u{2066}',
            '\u{feff}',
            '\u{ad}',
            '\u{a0}',
            '\u{85}',
            '\u{2028}',
            '\u{e0041}',
            '\u{fe0f}',
            '\u{301}',
            '\u{430}',
            '\u{ff41}',
            '\u{3b1}',
            '\u{1d41a}',
            '\u{2024}',
            '\u{2215}',
            '\u{7f}',
            '\u{1b}',
            '\u{1160}',
            '\u{180e}',
            '\u{131}',
        ] {
            let escape = format!("\\u{{{:x}}}", u32::from(c));
            let text = render(&argv(&[&format!("a{c}b")]));
            assert_eq!(text, format!("\"a{escape}b\""));
            assert_eq!(visible(&format!("a{c}b")), format!("a{escape}b"));
        }
        assert_eq!(
            render(&argv(&["grün", "日本", "한"])),
            r#""grün" "日本" "한""#
        );
        assert_eq!(visible("say \"a\\b\"\n"), r#"say "a\\b"\n"#);
    }

    #[test]
    fn other_texts_do_not_parse() {
        for (text, error) in [
            ("a  b", ParseError::NotCanonical),
            (" a", ParseError::NotCanonical),
            ("a ", ParseError::NotCanonical),
            (r#""a""#, ParseError::NotCanonical),
            (r#""a"b"#, ParseError::Separator),
            (r#"a"b""#, ParseError::NotCanonical),
            (r#""a b"#, ParseError::Unclosed),
            (r#""a\"#, ParseError::Unclosed),
            (r#""\x41""#, ParseError::Escape),
            (r#""\u{d800}""#, ParseError::Escape),
            (r#""\u{41}""#, ParseError::NotCanonical),
            (r#""\u{200B}""#, ParseError::NotCanonical),
            (r#""\u{+200b}""#, ParseError::NotCanonical),
            ("a;b", ParseError::NotCanonical),
            ("\u{202e}", ParseError::NotCanonical),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
        assert_eq!(parse(""), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn x2_parse_gives_back_what_was_rendered(arguments in prop::collection::vec(any::<String>(), 0..6)) {
            let text = render(&arguments);
            prop_assert_eq!(parse(&text), Ok(arguments));
            prop_assert!(text.chars().all(is_plainly_visible));
        }

        #[test]
        fn a_text_that_parses_is_what_render_writes(text in r#"[ab "\\nu{}0-9;\u{430}]{0,12}"#) {
            if let Ok(arguments) = parse(&text) {
                prop_assert_eq!(render(&arguments), text);
            }
        }
    }
}
