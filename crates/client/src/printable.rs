//! Text that others wrote, made fit to be shown to people.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a terminal acts on it instead of showing it, or it makes text look like another.
fn acts(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// One line that does nothing to a terminal: line feeds, escape sequences, marks of writing direction and the like are written as
/// JSON escapes them. So JSON stays the same JSON.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if acts(c) => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_shown_instead() {
        for (text, shown) in [
            ("plain, ünïcode → 漢字 👩‍🚀 \\n", "plain, ünïcode → 漢字 👩‍🚀 \\n"),
            ("\u{1b}[2J\u{7}\u{7f}\u{9b}31m", "\\u001b[2J\\u0007\\u007f\\u009b31m"),
            ("two\r\nlines\tand\u{2028}more\0", "two\\r\\nlines\\tand\\u2028more\\u0000"),
            ("\u{202e}gpj.exe\u{2066}\u{200f}\u{61c}", "\\u202egpj.exe\\u2066\\u200f\\u061c"),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert!(matches!(printable("as it is"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({ "a\u{202e}": ["\u{9b}", "\n", "\u{2029}", "\\u202e"] });
        let text = serde_json::to_string(&value).expect("JSON");
        let shown = printable(&text);
        assert_ne!(shown, text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), value);
    }
}
