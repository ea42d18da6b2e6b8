//! A YAML document as a tree that knows its lines.
//!
//! The configuration is read in two steps, so that every problem in a file can be told at once: this tree first, then
//! the table of keys over it. A derived `Deserialize` would stop at the first problem.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

/// A value and the line on which it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// 1-based; 0 for a value that stands in no file (a flag's).
    pub line: u64,
    /// The value.
    pub value: Value,
}

/// What a node holds. Scalars stay text: only the key that reads one knows its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing, `null` or `~`.
    Null,
    /// A scalar's text; booleans as `true` and `false`.
    Scalar(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the file's order; keys are unique.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The key's line.
    pub line: u64,
    /// The key's value.
    pub node: Node,
}

impl Node {
    /// A value from outside a file.
    pub fn flag(text: &str) -> Self {
        Self { line: 0, value: Value::Scalar(text.to_string()) }
    }

    /// Nothing in it: null, an empty text, list or map.
    pub fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Scalar(text) => text.is_empty(),
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        }
    }
}

/// A document that is no YAML.
#[derive(Debug)]
pub struct Malformed {
    /// 1-based, if known.
    pub line: Option<u64>,
    /// Why, in one line.
    pub reason: String,
}

/// Reads one document. The parser's own budgets bound depth, aliases and nodes; a duplicate key is an error.
///
/// # Errors
/// The text is no YAML, or more than one document.
pub fn parse(text: &str) -> Result<Node, Malformed> {
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return Ok(Node { line: 0, value: Value::Null });
    }
    serde_saphyr::from_str::<Spanned<Value>>(text).map(Node::from).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map(|l| l.line()).filter(|l| *l > 0);
        // The parser's hint is for programmers.
        let reason = first_line(&error.to_string()).replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        Malformed { line, reason }
    })
}

fn first_line(text: &str) -> String {
    text.lines().find(|l| !l.trim().is_empty()).unwrap_or("malformed").trim().to_string()
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self { line: spanned.referenced.line(), value: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Scalar(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Value>>()? {
            items.push(item.into());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Spanned<Value>>()? {
            entries.push(Entry { key: key.value, line: key.referenced.line(), node: value.into() });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<Entry> {
        match parse(text).unwrap().value {
            Value::Map(entries) => entries,
            other => panic!("not a map: {other:?}"),
        }
    }

    #[test]
    fn scalars_keep_their_text_and_line() {
        let tree = entries("a: 3100\nb: '1w'\n\nc: yes\nd:\ne: 4.5\nf: -3\n");
        let shown: Vec<(u64, &str, &Value)> = tree.iter().map(|e| (e.line, e.key.as_str(), &e.node.value)).collect();
        let text = |t: &str| Value::Scalar(t.to_string());
        assert_eq!(
            shown,
            [
                (1, "a", &text("3100")),
                (2, "b", &text("1w")),
                (4, "c", &text("true")),
                (5, "d", &Value::Null),
                (6, "e", &text("4.5")),
                (7, "f", &text("-3")),
            ]
        );
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let tree = entries("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n");
        let Value::Map(inner) = &tree[1].node.value else { panic!("a map") };
        let mut keys: Vec<&str> = inner.iter().map(|e| e.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["x", "y"]);
    }

    #[test]
    fn an_empty_document_is_null() {
        for text in ["", "# only a comment\n", "\n\n"] {
            assert_eq!(parse(text).unwrap().value, Value::Null, "{text:?}");
        }
    }

    #[test]
    fn malformed_documents_tell_their_line() {
        for (text, line) in [("a: 1\na: 2\n", 2), ("a:\n  - b\n c: [\n", 3), ("a: [1, 2\nb: 3\n", 2)] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, Some(line), "{text:?}: {}", error.reason);
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(parse(&bomb).is_err());
    }
}
