//! Queries: selectors and line filters, and the selectors of `wal-inspect`.

use super::allocation::bounded_beside;
use std::str::FromStr;
use timberline::inspect::Selector;
use timberline::model::{LabelSet, MatchOp, Matcher};
use timberline::querier::{parse, parse_selector};

/// What the regular expressions of a query may hold while they are compiled, all together; and one of `wal-inspect`'s. Several
/// forms of each are made.
const EXPRESSIONS: usize = 64 << 20;
const EXPRESSION: usize = 8 << 20;

/// A query.
pub fn selectors(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let count = text.matches('~').count();
    let fixed = if count > 0 { EXPRESSIONS } else { 0 };
    let query = bounded_beside(fixed, input.len(), || parse(text));
    let selector = bounded_beside(fixed, input.len(), || parse_selector(text));
    let inspected = bounded_beside(count * EXPRESSION, input.len(), || Selector::from_str(text));
    if let Ok(query) = &query {
        query.keeps(b"level=error a line");
        same(&query.matchers, &parse(&rendered(&query.matchers)).expect("a query that was parsed").matchers);
    }
    if let Ok(matchers) = &selector {
        same(matchers, &parse_selector(&rendered(matchers)).expect("a selector that was parsed"));
    }
    let labels = LabelSet::new([("app", "web"), ("env", "prod")]);
    // Where both take a text, they mean the same.
    if let (Ok(matchers), Ok(inspected)) = (&selector, &inspected) {
        assert_eq!(matchers.iter().all(|m| m.matches(&labels)), inspected.matches(&labels));
    }
    if let Ok(inspected) = inspected {
        bounded_beside(count * EXPRESSION, input.len(), || {
            inspected.matches(&labels) && inspected.matches(&LabelSet::new([("é", "")]))
        });
    }
}

fn same(a: &[Matcher], b: &[Matcher]) {
    let shown = |m: &[Matcher]| m.iter().map(|m| (m.name.clone(), m.op, m.value.clone())).collect::<Vec<_>>();
    assert_eq!(shown(a), shown(b));
}

fn rendered(matchers: &[Matcher]) -> String {
    let op = |op| match op {
        MatchOp::Equal => "=",
        MatchOp::NotEqual => "!=",
        MatchOp::Regex => "=~",
        MatchOp::NotRegex => "!~",
    };
    let quoted = |value: &str| -> String { value.bytes().map(|b| format!("\\x{b:02x}")).collect() };
    let all: Vec<String> = matchers.iter().map(|m| format!("{}{}\"{}\"", m.name, op(m.op), quoted(&m.value))).collect();
    format!("{{{}}}", all.join(","))
}
