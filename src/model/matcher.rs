use super::LabelSet;
use regex::{Regex, RegexBuilder};

/// How a matcher compares a label's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`, anchored at both ends
    Regex,
    /// `!~`, anchored at both ends
    NotRegex,
}

/// One condition of a stream selector. An absent label has the empty value, as in Prometheus.
#[derive(Clone, Debug)]
pub struct Matcher {
    /// Label name.
    pub name: String,
    /// Comparison.
    pub op: MatchOp,
    /// The value, or the text of the regular expression.
    pub value: String,
    regex: Option<Regex>,
}

/// Largest compiled form of a regular expression, in bytes.
const REGEX_SIZE_LIMIT: usize = 2 << 20;

impl Matcher {
    /// # Errors
    /// The regular expression does not compile, or is larger than 2 MiB when it is compiled.
    pub fn new(name: impl Into<String>, op: MatchOp, value: impl Into<String>) -> Result<Self, regex::Error> {
        Self::with_size_limit(name, op, value, REGEX_SIZE_LIMIT)
    }

    /// As [`Matcher::new`], with a limit of the compiled form in bytes.
    ///
    /// # Errors
    /// The regular expression does not compile, or is larger than that.
    pub fn with_size_limit(
        name: impl Into<String>,
        op: MatchOp,
        value: impl Into<String>,
        size_limit: usize,
    ) -> Result<Self, regex::Error> {
        let value = value.into();
        let regex = match op {
            MatchOp::Regex | MatchOp::NotRegex => {
                Some(RegexBuilder::new(&format!("^(?s:{value})$")).size_limit(size_limit).build()?)
            }
            MatchOp::Equal | MatchOp::NotEqual => None,
        };
        Ok(Self { name: name.into(), op, value, regex })
    }

    /// Does a label with this value satisfy the matcher? Absent labels are passed as `""`.
    pub fn matches_value(&self, value: &str) -> bool {
        match (self.op, &self.regex) {
            (MatchOp::Equal, _) => value == self.value,
            (MatchOp::NotEqual, _) => value != self.value,
            (MatchOp::Regex, Some(r)) => r.is_match(value),
            (MatchOp::NotRegex, Some(r)) => !r.is_match(value),
            // `new` compiles a regex for both kinds.
            (MatchOp::Regex | MatchOp::NotRegex, None) => false,
        }
    }

    /// Does the label set satisfy the matcher?
    pub fn matches(&self, labels: &LabelSet) -> bool {
        self.matches_value(labels.get(&self.name).unwrap_or(""))
    }
}
