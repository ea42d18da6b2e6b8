//! The level of a log line, which is stored as structured metadata `detected_level`.
//!
//! This runs once for each line of each push, so it allocates nothing and looks at most bytes of a line only with
//! vector instructions.

use crate::model::{LabelSet, Limits};
use aho_corasick::packed;
use memchr::{memchr, memchr_iter, memchr2};
use std::sync::LazyLock;

/// A level in Loki's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `trace`
    Trace,
    /// `debug`
    Debug,
    /// `info`
    Info,
    /// `warn`
    Warn,
    /// `error`
    Error,
    /// `critical`
    Critical,
    /// `fatal`
    Fatal,
    /// `unknown`
    Unknown,
}

impl Level {
    /// How many levels there are; `level as usize` is below it.
    pub const COUNT: usize = 8;

    /// The text that is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Fatal => "fatal",
            Self::Unknown => "unknown",
        }
    }

    /// The level that a field's value names, abbreviations included; `None` for any other value.
    pub fn of_value(value: &[u8]) -> Option<Self> {
        let names: &[(&[u8], Self)] = match value.len() {
            3 => &[(b"trc", Self::Trace), (b"dbg", Self::Debug), (b"inf", Self::Info), (b"wrn", Self::Warn)],
            11 => &[(b"information", Self::Info)],
            _ => &[],
        };
        named(names, value).or_else(|| Self::of_word(value))
    }

    /// The level that a word of a line names.
    fn of_word(word: &[u8]) -> Option<Self> {
        let names: &[(&[u8], Self)] = match word.len() {
            3 => &[(b"err", Self::Error)],
            4 => &[(b"info", Self::Info), (b"warn", Self::Warn)],
            5 => &[(b"error", Self::Error), (b"debug", Self::Debug), (b"trace", Self::Trace), (b"fatal", Self::Fatal)],
            7 => &[(b"warning", Self::Warn)],
            8 => &[(b"critical", Self::Critical)],
            _ => &[],
        };
        named(names, word)
    }

    /// The level of an OTLP severity number, as text.
    pub fn of_severity_number(text: &[u8]) -> Self {
        let number = std::str::from_utf8(text).ok().and_then(|t| t.parse::<i64>().ok());
        match number {
            None => Self::Info,
            Some(0 | 25..) => Self::Unknown,
            Some(..=4) => Self::Trace,
            Some(5..=8) => Self::Debug,
            Some(9..=12) => Self::Info,
            Some(13..=16) => Self::Warn,
            Some(17..=20) => Self::Error,
            Some(21..=24) => Self::Fatal,
        }
    }
}

fn named(names: &[(&[u8], Level)], word: &[u8]) -> Option<Level> {
    names.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, level)| *level)
}

/// Finds levels by the rules of one tenant's limits. Cheap to make: once a push.
#[derive(Clone, Copy, Debug)]
pub struct LevelDetector<'a> {
    /// Names of fields, the preferred first.
    fields: &'a [String],
    /// Bit n is set if a field's name has n bytes (bit 63: 63 or more).
    lengths: u64,
    json_depth: usize,
}

impl<'a> LevelDetector<'a> {
    /// An empty `log_level_fields` stands for the default list, as in Loki.
    pub fn new(limits: &'a Limits) -> Self {
        static DEFAULT: LazyLock<Vec<String>> = LazyLock::new(|| Limits::default().log_level_fields);
        let fields = if limits.log_level_fields.is_empty() { &**DEFAULT } else { &*limits.log_level_fields };
        let lengths = fields.iter().fold(0, |mask, field| mask | length_bit(field.len()));
        Self { fields, lengths, json_depth: limits.log_level_from_json_max_depth }
    }

    /// The value of the first field that is among the labels.
    pub fn of_labels<'l>(&self, labels: &'l LabelSet) -> Option<&'l str> {
        self.fields.iter().find_map(|field| labels.get(field))
    }

    /// The rank of a name among the fields, 0 for the preferred one.
    pub fn rank(&self, name: &[u8]) -> Option<usize> {
        if self.lengths & length_bit(name.len()) == 0 {
            return None;
        }
        self.fields.iter().position(|field| field.as_bytes() == name)
    }

    /// The level of a line: a field of a JSON object or of logfmt, else the first word that names a level.
    pub fn of_line(&self, line: &[u8]) -> Level {
        let field = if is_json_object(line) {
            self.json_field(line)
        } else if memchr(b'=', line).is_some() {
            self.logfmt_field(line)
        } else {
            None
        };
        field.and_then(Level::of_value).or_else(|| first_word(line)).unwrap_or(Level::Unknown)
    }

    fn rank_ignoring_case(&self, name: &[u8]) -> Option<usize> {
        if self.lengths & length_bit(name.len()) == 0 {
            return None;
        }
        self.fields.iter().position(|field| field.as_bytes().eq_ignore_ascii_case(name))
    }

    /// The value of the best ranked field of a logfmt line, up to the first pair that is malformed.
    fn logfmt_field<'l>(&self, line: &'l [u8]) -> Option<&'l [u8]> {
        // Most lines with a `=` hold no such field: look at the keys alone before parsing.
        if !memchr_iter(b'=', line).any(|at| self.rank_ignoring_case(key_before(line, at)).is_some()) {
            return None;
        }
        let (mut best, mut best_rank) = (None, usize::MAX);
        let mut rest = line;
        while let Some((key, value, after)) = logfmt_pair(rest) {
            if let Some(rank) = self.rank_ignoring_case(key).filter(|rank| *rank < best_rank) {
                (best, best_rank) = (value, rank);
                if rank == 0 {
                    break;
                }
            }
            rest = after;
        }
        best
    }

    /// The value of the first string field, in the order of the line, down to the configured depth.
    fn json_field<'l>(&self, line: &'l [u8]) -> Option<&'l [u8]> {
        let mut rest = trim_start(line).strip_prefix(b"{")?;
        let mut depth = 1usize;
        loop {
            rest = trim_start(rest);
            match rest.split_first()? {
                (b'}', after) => {
                    depth -= 1;
                    if depth == 0 {
                        return None;
                    }
                    rest = after;
                }
                (b',', after) => rest = after,
                (b'"', after) => {
                    let (key, after) = json_string(after)?;
                    let value = trim_start(trim_start(after).strip_prefix(b":")?);
                    match value.split_first()? {
                        (b'"', after) => {
                            let (value, after) = json_string(after)?;
                            if self.rank(key).is_some() {
                                return Some(value);
                            }
                            rest = after;
                        }
                        (b'{', after) if self.json_depth == 0 || depth < self.json_depth => {
                            depth += 1;
                            rest = after;
                        }
                        (b'{' | b'[', after) => rest = skip_container(after)?,
                        _ => rest = value.get(memchr2(b',', b'}', value)?..)?,
                    }
                }
                _ => return None,
            }
        }
    }
}

fn length_bit(len: usize) -> u64 {
    1 << len.min(63)
}

fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let len = bytes.iter().take_while(|b| is_space(b)).count();
    bytes.get(len..).unwrap_or(&[])
}

fn is_json_object(line: &[u8]) -> bool {
    line.iter().find(|b| !is_space(b)) == Some(&b'{') && line.iter().rfind(|b| !is_space(b)) == Some(&b'}')
}

/// The content of a string and what follows its closing quote.
fn json_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut from = 0;
    loop {
        let at = from + memchr2(b'"', b'\\', bytes.get(from..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some((bytes.get(..at)?, bytes.get(at + 1..)?));
        }
        from = at + 2;
    }
}

/// What follows the bracket that closes an object or array which is already open.
fn skip_container(mut rest: &[u8]) -> Option<&[u8]> {
    let mut open = 1usize;
    loop {
        let at = rest.iter().position(|b| matches!(b, b'"' | b'{' | b'}' | b'[' | b']'))?;
        let (found, after) = rest.get(at..)?.split_first()?;
        rest = after;
        match found {
            b'"' => rest = json_string(rest)?.1,
            b'{' | b'[' => open += 1,
            _ => open -= 1,
        }
        if open == 0 {
            return Some(rest);
        }
    }
}

/// The key that ends at a `=`.
fn key_before(line: &[u8], equals: usize) -> &[u8] {
    let before = line.get(..equals).unwrap_or(&[]);
    // No field name that is looked for is longer than a few words; a key of a binary line may be.
    let len = before.iter().rev().take(256).take_while(|b| **b > b' ' && **b != b'"' && **b != b'=').count();
    before.get(before.len() - len..).unwrap_or(&[])
}

/// The next `key=value`, `key="quoted value"` or `key` of a logfmt line and what follows it; `None` at the end and at
/// a byte that does not belong there.
#[allow(clippy::type_complexity)]
fn logfmt_pair(line: &[u8]) -> Option<(&[u8], Option<&[u8]>, &[u8])> {
    let start = line.iter().position(|b| *b > b' ')?;
    let line = line.get(start..)?;
    let key_len = line.iter().position(|b| *b <= b' ' || *b == b'=' || *b == b'"').unwrap_or(line.len());
    let (key, rest) = line.split_at(key_len);
    let rest = match rest.split_first() {
        None => return Some((key, None, &[])),
        Some((b'=', rest)) if !key.is_empty() => rest,
        Some((b'=' | b'"', _)) => return None,
        Some(_) => return Some((key, None, rest)),
    };
    if let Some((b'"', quoted)) = rest.split_first() {
        let (value, rest) = json_string(quoted)?;
        return Some((key, Some(value), rest));
    }
    let value_len = rest.iter().position(|b| *b <= b' ' || *b == b'=' || *b == b'"').unwrap_or(rest.len());
    let (value, rest) = rest.split_at(value_len);
    match rest.first() {
        Some(b'=' | b'"') => None,
        _ => Some((key, Some(value), rest)),
    }
}

/// How the words that name a level begin, in small letters.
const BEGINNINGS: [&str; 7] = ["trace", "debug", "info", "warn", "err", "crit", "fatal"];
/// Bytes of a line that are searched at once.
const WINDOW: usize = 256;
/// Windows overlap by the longest beginning less one byte.
const OVERLAP: usize = 4;
/// Shorter windows are padded: the vector search has a least length.
const MIN_WINDOW: usize = 64;

/// Finds beginnings in small letters: with vector instructions where the processor has them.
enum WordSearch {
    Packed(packed::Searcher),
    Automaton(aho_corasick::AhoCorasick),
    /// Neither could be built, which the tests rule out.
    Every,
}

static SEARCH: LazyLock<WordSearch> =
    LazyLock::new(|| packed::Searcher::new(BEGINNINGS).map_or_else(WordSearch::automaton, WordSearch::Packed));

impl WordSearch {
    fn automaton() -> Self {
        aho_corasick::AhoCorasick::new(BEGINNINGS).map_or(Self::Every, Self::Automaton)
    }

    /// Where the next beginning is, at `from` or later.
    fn find(&self, small: &[u8], from: usize) -> Option<usize> {
        let span = from..small.len();
        match self {
            Self::Packed(search) => search.find_in(small, span.into()).map(|m| m.start()),
            Self::Automaton(search) => search.find(aho_corasick::Input::new(small).range(span)).map(|m| m.start()),
            Self::Every => (from < small.len()).then_some(from),
        }
    }

    /// The level that the first level word of the line names.
    fn first_word(&self, line: &[u8]) -> Option<Level> {
        let mut start = 0;
        loop {
            let window = line.get(start..line.len().min(start + WINDOW))?;
            let mut small = [0u8; WINDOW];
            make_small(window, &mut small);
            let small = small.get(..window.len().max(MIN_WINDOW))?;
            if let Some(level) = self.first_word_of_window(line, start, small) {
                return Some(level);
            }
            if start + WINDOW >= line.len() {
                return None;
            }
            start += WINDOW - OVERLAP;
        }
    }

    fn first_word_of_window(&self, line: &[u8], start: usize, small: &[u8]) -> Option<Level> {
        let mut from = 0;
        while let Some(at) = self.find(small, from) {
            if let Some(level) = level_word_at(line, start + at) {
                return Some(level);
            }
            from = at + 1;
        }
        None
    }
}

/// Copies a window with small letters for capital ones; no other byte becomes a letter. Sixteen at a time, and the last
/// ones overlap those before, so that no byte is handled alone.
#[inline(always)]
fn make_small(window: &[u8], small: &mut [u8; WINDOW]) {
    const SMALL: u128 = u128::from_ne_bytes([0x20; 16]);
    let lower = |bytes: &[u8; 16]| (u128::from_ne_bytes(*bytes) | SMALL).to_ne_bytes();
    let (from, to) = (window.as_chunks::<16>().0, small.as_chunks_mut::<16>().0);
    to.iter_mut().zip(from).for_each(|(to, from)| *to = lower(from));
    let place = window.len().checked_sub(16).and_then(|at| small.get_mut(at..)?.first_chunk_mut());
    match (window.last_chunk(), place) {
        (Some(last), Some(place)) => *place = lower(last),
        _ => small.iter_mut().zip(window).for_each(|(to, from)| *to = from | 0x20),
    }
}

/// The level that the word which begins at `at` names.
fn level_word_at(line: &[u8], at: usize) -> Option<Level> {
    if at > 0 && line.get(at - 1).is_some_and(is_word) {
        return None;
    }
    let word = line.get(at..)?;
    let len = word.iter().take(9).take_while(|b| is_word(b)).count();
    Level::of_word(word.get(..len)?)
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_'
}

/// The level that the first level word of the line names.
fn first_word(line: &[u8]) -> Option<Level> {
    SEARCH.first_word(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn level(line: &str) -> &'static str {
        LevelDetector::new(&Limits::default()).of_line(line.as_bytes()).as_str()
    }

    #[test]
    fn words_in_any_place() {
        let words = [
            ("trace", "trace"),
            ("debug", "debug"),
            ("info", "info"),
            ("warn", "warn"),
            ("warning", "warn"),
            ("error", "error"),
            ("err", "error"),
            ("fatal", "fatal"),
            ("critical", "critical"),
            ("unknown", "unknown"),
        ];
        let places = [
            "this is a {} message",
            "{} occurred",
            "an {}",
            "{}: x",
            "{}, x",
            "{}! x",
            "({}) x",
            "[{}] x",
            "2024-01-01T10:00:00Z {}: x",
        ];
        for (word, expected) in words {
            for place in places {
                for spelled in [word.to_string(), word.to_uppercase()] {
                    let line = place.replace("{}", &spelled);
                    assert_eq!(level(&line), expected, "{line}");
                }
            }
        }
    }

    #[test]
    fn parts_of_words_name_no_level() {
        for line in [
            "",
            "this is a terror attack",
            "there were multiple errors",
            "error123 occurred",
            "123error occurred",
            "errorCode is invalid",
            "myError occurred",
            "debugging the issue",
            "information is available",
            "warnings issued",
            "criticality",
            "fatalism",
            "tracer bullet",
            "traced",
            "a regular log message",
            "error_code is 500",
            "log_error called",
            "trace_id is abc",
            "stack_trace",
            "some_error_code",
            "[terror] attack",
            "errorCode=123",
            r#"{"errorCode": 123}"#,
        ] {
            assert_eq!(level(line), "unknown", "{line}");
        }
    }

    #[test]
    fn the_earliest_word_wins() {
        assert_eq!(level("errors: then info, then error"), "info");
        assert_eq!(level("[error] could not log info"), "error");
    }

    #[test]
    fn fields_of_json() {
        let cases = [
            (r#"{"level":"WARN","msg":"error"}"#, "warn"),
            (r#" { "msg" : "an error" , "level" : "dbg" } "#, "debug"),
            (r#"{"a":{"level":"trace"},"level":"info"}"#, "trace"),
            (r#"{"a":{"b":{"level":"wrn"}},"x":1}"#, "unknown"),
            (r#"{"a":[{"level":"fatal"}, "]}\""],"lvl":"critical"}"#, "critical"),
            (r#"{"level":3,"severity":"error"}"#, "error"),
            (r#"{"n":1,"b":true,"z":null,"e":{},"Severity":"Information"}"#, "info"),
            (r#"{"level":"nonsense","msg":"a warning"}"#, "warn"),
            (r#"{"k":"\"level\":\"error","SeverityText":"TRC"}"#, "trace"),
            (r#"{"message": "error occurred"}"#, "error"),
            (r#"{"error": "something"}"#, "error"),
            (r#"{broken "level":"info"}"#, "info"),
            (r#"{"level":"info"#, "info"),
            ("{}", "unknown"),
            ("{", "unknown"),
        ];
        for (line, expected) in cases {
            assert_eq!(level(line), expected, "{line}");
        }
    }

    #[test]
    fn depth_of_json_is_a_limit_and_zero_is_none() {
        let line = br#"{"a":{"b":{"c":{"level":"fatal"}}},"level":"info"}"#;
        for (depth, expected) in [(1, Level::Info), (3, Level::Info), (4, Level::Fatal), (0, Level::Fatal)] {
            let limits = Limits { log_level_from_json_max_depth: depth, ..Limits::default() };
            assert_eq!(LevelDetector::new(&limits).of_line(line), expected, "{depth}");
        }
        let deep = [br#"{"a":"#.repeat(500_000), b"}".to_vec()].concat();
        let limits = Limits { log_level_from_json_max_depth: 0, ..Limits::default() };
        assert_eq!(LevelDetector::new(&limits).of_line(&deep), Level::Unknown);
    }

    #[test]
    fn fields_of_logfmt() {
        let cases = [
            ("ts=1 level=error msg=\"info\"", "error"),
            ("lvl=info LEVEL=debug", "debug"),
            ("lvl=info severity=warn", "warn"),
            ("level=\"WRN\" x=1", "warn"),
            ("level=nonsense fatal", "fatal"),
            ("foo level severity=error", "error"),
            ("a=b=c level=error warn", "error"),
            ("a=b=c warn level=error", "warn"),
            ("say \"x\" level=info error", "info"),
            ("msg=\"level=error\" info", "error"),
            ("msg=\"error occurred\"", "error"),
            ("error=something", "error"),
            ("level= info", "info"),
            ("x=\"unterminated level=debug", "debug"),
            ("=", "unknown"),
            ("=level=", "unknown"),
        ];
        for (line, expected) in cases {
            assert_eq!(level(line), expected, "{line}");
        }
    }

    #[test]
    fn severity_numbers() {
        let cases = [
            ("0", Level::Unknown),
            ("1", Level::Trace),
            ("4", Level::Trace),
            ("5", Level::Debug),
            ("8", Level::Debug),
            ("9", Level::Info),
            ("12", Level::Info),
            ("13", Level::Warn),
            ("16", Level::Warn),
            ("17", Level::Error),
            ("20", Level::Error),
            ("21", Level::Fatal),
            ("24", Level::Fatal),
            ("25", Level::Unknown),
            ("x", Level::Info),
        ];
        for (text, expected) in cases {
            assert_eq!(Level::of_severity_number(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn the_vector_search_is_there_on_x86() {
        if cfg!(target_arch = "x86_64") && std::arch::is_x86_feature_detected!("avx2") {
            assert!(matches!(&*SEARCH, WordSearch::Packed(_)));
        }
        assert!(matches!(WordSearch::automaton(), WordSearch::Automaton(_)));
    }

    proptest! {
        #[test]
        fn every_search_finds_the_same(line in "([a-z_ \\[\\]:=\"{}]{0,9}|error|INFO|Warn|warning| trace|fatal |CRITICAL|dEbug|err){0,12}") {
            let expected = WordSearch::Every.first_word(line.as_bytes());
            prop_assert_eq!(SEARCH.first_word(line.as_bytes()), expected);
            prop_assert_eq!(WordSearch::automaton().first_word(line.as_bytes()), expected);
        }

        #[test]
        fn words_are_found_across_windows(before in 200usize..600, word in "(error|INFO|Warning|critical|err)") {
            let line = format!("{}{word} and on", ". ".repeat(before / 2) + &"-".repeat(before % 2));
            prop_assert_eq!(first_word(line.as_bytes()), Level::of_word(word.as_bytes()));
        }

        #[test]
        fn any_bytes_have_a_level(line in proptest::collection::vec(proptest::sample::select(b"{}[]\",:=\\ lev info1".to_vec()), 0..60)) {
            LevelDetector::new(&Limits::default()).of_line(&line);
        }
    }
}
