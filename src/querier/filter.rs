use memchr::memmem::Finder;
use regex::bytes::{Regex, RegexBuilder};

/// One line filter: `|=`, `!=`, `|~` or `!~` with one pattern, or several joined by `or`.
#[derive(Clone, Debug)]
pub struct LineFilter {
    patterns: Vec<Pattern>,
    keep_matching: bool,
}

#[derive(Clone, Debug)]
enum Pattern {
    Substring(Box<Finder<'static>>),
    Regex(Regex),
}

impl LineFilter {
    /// A filter without patterns. If `keep_matching`, lines that match one of the patterns stay; else those that match
    /// none.
    pub(super) fn new(keep_matching: bool) -> Self {
        Self { patterns: Vec::new(), keep_matching }
    }

    /// Adds a pattern of plain bytes. The empty one is in every line.
    pub(super) fn or_substring(&mut self, needle: &[u8]) {
        self.patterns.push(Pattern::Substring(Box::new(Finder::new(needle).into_owned())));
    }

    /// Adds a regular expression, which may match anywhere in the line, of at most `size_limit` bytes when it is compiled.
    pub(super) fn or_regex(&mut self, expression: &str, size_limit: usize) -> Result<(), regex::Error> {
        let regex = RegexBuilder::new(expression).size_limit(size_limit).build()?;
        self.patterns.push(Pattern::Regex(regex));
        Ok(())
    }

    /// Does the line stay?
    pub fn keeps(&self, line: &[u8]) -> bool {
        self.patterns.iter().any(|p| p.is_in(line)) == self.keep_matching
    }
}

impl Pattern {
    fn is_in(&self, line: &[u8]) -> bool {
        match self {
            Pattern::Substring(finder) => finder.find(line).is_some(),
            Pattern::Regex(regex) => regex.is_match(line),
        }
    }
}
