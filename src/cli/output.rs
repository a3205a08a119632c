//! Printing: short tables for people, the payload for programs.

use std::io::Write;

use serde_json::value::RawValue;

use crate::client::call::{is_obeyed, shown};

/// Prints a line. A reader that went away is not an error of ours.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{}", unobeyed(text));
}

/// Prints a line to the operator, apart from the output.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", unobeyed(text));
}

/// Prints a payload as it came, indented.
pub fn json(payload: &RawValue) {
    let pretty = serde_json::from_str::<serde_json::Value>(payload.get())
        .and_then(|value| serde_json::to_string_pretty(&value));
    line(pretty.as_deref().unwrap_or(payload.get()));
}

/// The same text without a character that a terminal obeys: RFC 8259 section 7 leaves those from U+007F on as they are
/// in JSON, and some terminals take U+009B for ESC [. JSON stays JSON with the same value.
fn unobeyed(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for c in line.chars() {
        if is_obeyed(c) && !matches!(c, '\n' | '\t') {
            // They are all in the basic plane, and in JSON they stand only in strings.
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

/// A table whose columns are as wide as their widest cell. Cells are the peer's, so they are escaped.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| shown(cell)).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain(headings.get(column).map(|text| text.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let render = |cells: &[&str]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(cell);
            let gap = width.saturating_sub(cell.chars().count()) + 2;
            text.extend(std::iter::repeat_n(' ', gap));
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![render(headings)];
    for row in &rows {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        lines.push(render(&cells));
    }
    lines.join("\n")
}

/// How long ago, in the largest unit that fits.
pub fn ago(now_ms: u64, then_ms: u64) -> String {
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// The beginning of a long id, enough to recognise it.
pub fn short_id(id: &str) -> String {
    id.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_escaped() {
        let rows = vec![
            vec!["a".to_owned(), "long cell".to_owned()],
            vec!["b\u{1b}[0m".to_owned(), String::new()],
        ];
        let text = table(&["ID", "NAME"], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(!text.contains('\u{1b}'));
        assert_eq!(lines[1].find("long"), lines[0].find("NAME"));
    }

    #[test]
    fn json_keeps_its_value_and_holds_nothing_that_a_terminal_obeys() {
        let value = serde_json::json!({"a": "\u{9b}31m\u{7f}\u{202e}é😀\u{1b}", "b": [1, 2]});
        let text = unobeyed(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || !is_obeyed(c)), "{text}");
        assert!(text.contains('é') && text.lines().count() > 4);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn times_are_rough() {
        assert_eq!(ago(10_000, 4_000), "6 s ago");
        assert_eq!(ago(7_200_000, 0), "2 h ago");
        assert_eq!(ago(0, 5), "0 s ago");
    }
}
