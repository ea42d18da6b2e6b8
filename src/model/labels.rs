use regex::Regex;
use std::fmt;
use std::hash::Hasher;
use std::sync::LazyLock;

/// The labels of one stream in canonical form: sorted by name, no empty values, no name twice.
///
/// A stream's identity is this text (within its tenant), never the hash.
#[derive(Clone, PartialEq, Eq)]
pub struct LabelSet {
    text: Box<str>,
    pairs: Box<[(Box<str>, Box<str>)]>,
    hash: u64,
}

impl LabelSet {
    /// Sorts the pairs by name and drops empty values. The names must be distinct; the
    /// distributor checks that.
    pub fn new<N: Into<Box<str>>, V: Into<Box<str>>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let given = pairs.into_iter().map(|(n, v)| (n.into(), v.into()));
        let mut pairs: Vec<(Box<str>, Box<str>)> = Vec::with_capacity(given.size_hint().0);
        pairs.extend(given.filter(|(_, v): &(_, Box<str>)| !v.is_empty()));
        pairs.sort();
        let text = render(&pairs).into_boxed_str();
        let hash = fingerprint(&pairs);
        Self { text, pairs: pairs.into_boxed_slice(), hash }
    }

    /// `{a="b", c="d"}`, values quoted as Go's `strconv.Quote` does.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Name and value pairs, sorted by name.
    pub fn pairs(&self) -> &[(Box<str>, Box<str>)] {
        &self.pairs
    }

    /// The value of a label, if it is there.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.pairs.binary_search_by(|(n, _)| (**n).cmp(name)).ok().map(|i| &*self.pairs[i].1)
    }

    /// xxhash64 over `name 0xFF value 0xFF` of the sorted labels: Loki's stream hash and fingerprint.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl fmt::Debug for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn fingerprint(pairs: &[(Box<str>, Box<str>)]) -> u64 {
    let mut h = twox_hash::XxHash64::with_seed(0);
    for (name, value) in pairs {
        h.write(name.as_bytes());
        h.write(&[0xFF]);
        h.write(value.as_bytes());
        h.write(&[0xFF]);
    }
    h.finish()
}

fn render(pairs: &[(Box<str>, Box<str>)]) -> String {
    // Without escapes it is exact: neither grows nor shrinks.
    let len = pairs.iter().map(|(name, value)| name.len() + value.len() + r#"="", "#.len()).sum::<usize>();
    let mut out = String::with_capacity(len.saturating_sub(", ".len()) + "{}".len());
    out.push('{');
    for (i, (name, value)) in pairs.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(name);
        out.push('=');
        quote(value, &mut out);
    }
    out.push('}');
    out
}

/// Go's `strconv.Quote` for text.
fn quote(value: &str, out: &mut String) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            _ => quote_special(c, out),
        }
    }
    out.push('"');
}

/// A character outside printable ASCII, as Go quotes it.
fn quote_special(c: char, out: &mut String) {
    let escaped = match c {
        '\x07' => "\\a".to_string(),
        '\x08' => "\\b".to_string(),
        '\x0c' => "\\f".to_string(),
        '\n' => "\\n".to_string(),
        '\r' => "\\r".to_string(),
        '\t' => "\\t".to_string(),
        '\x0b' => "\\v".to_string(),
        '\0'..='\x1f' | '\x7f' => format!("\\x{:02x}", c as u32),
        c if is_print(c) => return out.push(c),
        c if (c as u32) < 0x1_0000 => format!("\\u{:04x}", c as u32),
        c => format!("\\U{:08x}", c as u32),
    };
    out.push_str(&escaped);
}

/// Go's `unicode.IsPrint`: letters, marks, numbers, punctuation and symbols.
fn is_print(c: char) -> bool {
    static PRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^[\pL\pM\pN\pP\pS]$").ok());
    PRINTABLE.as_ref().is_none_or(|r| r.is_match(c.encode_utf8(&mut [0; 4])))
}

/// Why a label text was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: parse error: {reason}")]
pub struct LabelError {
    /// Line of the text, from 1.
    pub line: usize,
    /// Column in bytes from the line's start, from 1, as Prometheus' parser counts.
    pub column: usize,
    /// What was wrong there.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_is_lokis() {
        // Vector of the Loki write-path reference, section 2.4.
        assert_eq!(LabelSet::new([("job", "foo")]).hash(), 0x8eeb_87f5_eb22_0480);
    }

    #[test]
    fn labels_with_one_fingerprint_stay_two_texts() {
        let a = LabelSet::new([("a", "iK2ZWeqhFWCEPyYngFb51yBMWXaSCrUZoL8g5ubbbPIa84yRnBUbHoWC8FJowoRo")]);
        let b = LabelSet::new([("a", "iK2ZWe4ADBmK93YngFb51yBMWXaSCrUZoL8g5uD7fsyIt3yRnBUbHoWC8FJowoRo")]);
        assert_eq!(a.hash(), 0x6117_5bbd_01d9_082b);
        assert_eq!(a.hash(), b.hash());
        assert_ne!(a.text(), b.text());
    }

    #[test]
    fn values_are_quoted_as_go_does() {
        let cases = [
            ("a\"b\\", r#""a\"b\\""#),
            ("\x07\x08\x0c\n\r\t\x0b\x01\x7f", r#""\a\b\f\n\r\t\v\x01\x7f""#),
            ("é世\u{301}😀€", "\"é世\u{301}😀€\""),
            ("\u{a0}\u{85}\u{200b}\u{feff}\u{e000}", r#""\u00a0\u0085\u200b\ufeff\ue000""#),
            ("\u{e0001}", r#""\U000e0001""#),
            ("\u{fffd}", "\"\u{fffd}\""),
        ];
        for (value, expected) in cases {
            let mut out = String::new();
            quote(value, &mut out);
            assert_eq!(out, expected, "{value:?}");
        }
    }

    #[test]
    fn canonical_text_is_sorted_and_drops_empty_values() {
        let l = LabelSet::new([("b", "x\"y"), ("a", "1"), ("c", "")]);
        assert_eq!(l.text(), "{a=\"1\", b=\"x\\\"y\"}");
        assert_eq!(l.get("b"), Some("x\"y"));
        assert_eq!(l.get("c"), None);
    }
}
