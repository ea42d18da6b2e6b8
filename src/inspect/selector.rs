//! Stream selectors: `{app="x", env=~"y.*"}`, as in LogQL.

use crate::model::{LabelSet, MatchOp, Matcher};
use std::str::FromStr;

/// Longest selector, in bytes.
const MAX_LEN: usize = 64 * 1024;

/// The conditions of a selector; a stream is selected if it satisfies all of them. `{}` selects every stream.
#[derive(Clone, Debug)]
pub struct Selector(Vec<Matcher>);

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {reason}; a selector looks like {{app=\"web\", env=~\"prod|test\"}}")]
pub struct SelectorError {
    /// Place in characters, from 1.
    pub at: usize,
    /// What was wrong there.
    pub reason: String,
}

impl Selector {
    /// Does a stream with these labels satisfy all conditions?
    pub fn matches(&self, labels: &LabelSet) -> bool {
        self.0.iter().all(|m| m.matches(labels))
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, rest: text };
        if text.len() > MAX_LEN {
            return Err(parser.error(format!("longer than {MAX_LEN} bytes")));
        }
        parser.expect("{")?;
        let mut matchers = Vec::new();
        while !parser.take("}") {
            if !matchers.is_empty() {
                parser.expect(",")?;
            }
            matchers.push(parser.matcher()?);
        }
        parser.skip_space();
        if parser.rest.is_empty() { Ok(Self(matchers)) } else { Err(parser.error("more text after the selector")) }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn error(&self, reason: impl Into<String>) -> SelectorError {
        let read = self.text.len() - self.rest.len();
        let at = self.text.get(..read).map_or(0, |t| t.chars().count()) + 1;
        SelectorError { at, reason: reason.into() }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: &str) -> Result<(), SelectorError> {
        if self.take(token) { Ok(()) } else { Err(self.error(format!("expected {token}"))) }
    }

    fn matcher(&mut self) -> Result<Matcher, SelectorError> {
        let name = self.name()?;
        // Longer operators first: `=` is the beginning of `=~`.
        let ops = [("=~", MatchOp::Regex), ("!~", MatchOp::NotRegex), ("!=", MatchOp::NotEqual), ("=", MatchOp::Equal)];
        let Some((_, op)) = ops.into_iter().find(|(token, _)| self.take(token)) else {
            return Err(self.error("expected one of = != =~ !~"));
        };
        let value = self.value()?;
        Matcher::new(name, op, value).map_err(|e| self.error(format!("the regular expression does not compile: {e}")))
    }

    fn name(&mut self) -> Result<&'a str, SelectorError> {
        self.skip_space();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        let end = self.rest.find(|c| !fits(c)).unwrap_or(self.rest.len());
        match self.rest.split_at_checked(end) {
            Some((name, rest)) if !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) => {
                self.rest = rest;
                Ok(name)
            }
            _ => Err(self.error("expected a label name")),
        }
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        if self.take("`") {
            let (value, rest) = self.rest.split_once('`').ok_or_else(|| self.error("a ` is missing"))?;
            self.rest = rest;
            // As Go does, and so LogQL.
            return Ok(value.replace('\r', ""));
        }
        if !self.take("\"") {
            return Err(self.error("expected a value in \" or `"));
        }
        let mut value = String::new();
        loop {
            match self.next_char() {
                Some('"') => return Ok(value),
                Some('\\') => {
                    let c = match self.next_char() {
                        Some('n') => '\n',
                        Some('t') => '\t',
                        Some('r') => '\r',
                        Some(c @ ('"' | '\\')) => c,
                        _ => return Err(self.error("unknown escape (known: \\\" \\\\ \\n \\r \\t; ` quotes as it is)")),
                    };
                    value.push(c);
                }
                Some(c) => value.push(c),
                None => return Err(self.error("a \" is missing")),
            }
        }
    }

    fn next_char(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next();
        self.rest = chars.as_str();
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn conditions_hold_together() {
        let labels = LabelSet::new([("app", "web\"1"), ("env", "prod")]);
        let cases = [
            ("{}", true),
            ("{app=\"web\\\"1\"}", true),
            ("{ app = `web\"1` , env=~\"pr.*\" }", true),
            ("{env=~\"pr\"}", false),
            ("{env!~\"t.*\", zone=\"\"}", true),
            ("{env!=\"prod\"}", false),
            ("{env=`pr\rod`}", true),
            ("{zone!=\"\"}", false),
        ];
        for (text, selected) in cases {
            assert_eq!(text.parse::<Selector>().unwrap().matches(&labels), selected, "{text}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        let cases = [
            ("", 1),
            ("{app}", 5),
            ("{é=\"x\"}", 2),
            ("{app=x}", 6),
            ("{app=\"x\" env=\"y\"}", 10),
            ("{app=\"x\"} |= \"y\"", 11),
            ("{app=\"x", 8),
        ];
        for (text, at) in cases {
            assert_eq!(text.parse::<Selector>().unwrap_err().at, at, "{text}");
        }
        assert!("{app=~\"(\"}".parse::<Selector>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Selector>();
            let _ = format!("{{a=\"{text}").parse::<Selector>();
        }
    }
}
