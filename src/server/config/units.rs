//! Values as they stand in YAML and behind flags: Go's durations, byte sizes, lists, choices.
//!
//! A codec names how one setting is written; the setting's own type is what the rest of the program wants (`Duration`,
//! `u64` bytes, `f64` bytes per second). So no unit leaves this module.

use super::yaml::{Node, Value};
use std::fmt::Display;
use std::time::Duration;

/// What a codec's values are called in help texts and documentation.
pub trait Kind {
    /// For example `duration`.
    const NAME: &'static str;
}

/// Reads and shows one setting of type `T`.
pub trait Codec<T>: Kind {
    /// Reads a YAML node (a flag's value comes as a scalar). The error says what was expected.
    ///
    /// # Errors
    /// The node is no such value.
    fn parse(node: &Node) -> Result<T, String>;

    /// The value as YAML that `parse` reads back to an equal one.
    fn show(value: &T) -> String;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;
        impl Kind for $name {
            const NAME: &'static str = $text;
        }
    )*};
}

kinds! {
    /// A whole number.
    Int = "number";
    /// A number with a fraction.
    Float = "fraction";
    /// Bytes: `256KB`, `4GB`, or a plain number. As in Loki, 1 KB is 1024 B.
    Bytes = "size";
    /// Bytes, written as a number of megabytes (1 MB is 1048576 B).
    Megabytes = "megabytes";
    /// Go's duration, with Prometheus' days and weeks: `1h30m`, `500ms`, `1w`.
    GoDuration = "duration";
    /// `true` or `false`.
    Bool = "bool";
    /// Any text.
    Text = "text";
    /// A YAML list of texts; one text with commas as a flag.
    Words = "list";
    /// One of a few words.
    Choice = "choice";
}

/// The text of a scalar; `expected` completes the error.
pub(super) fn scalar<'n>(node: &'n Node, expected: &str) -> Result<&'n str, String> {
    match &node.value {
        Value::Scalar(text) => Ok(text),
        Value::Null => Err(format!("is empty, expected {expected}")),
        Value::List(_) => Err(format!("is a list, expected {expected}")),
        Value::Map(_) => Err(format!("is a map, expected {expected}")),
    }
}

impl<T: TryFrom<u64> + Display> Codec<T> for Int {
    fn parse(node: &Node) -> Result<T, String> {
        let text = scalar(node, "a whole number")?;
        let number: u64 = text.trim().parse().map_err(|_| format!("{text:?} is not a whole number of 0 or more"))?;
        T::try_from(number).map_err(|_| format!("{number} is too large"))
    }

    fn show(value: &T) -> String {
        value.to_string()
    }
}

impl Codec<f64> for Float {
    fn parse(node: &Node) -> Result<f64, String> {
        non_negative(scalar(node, "a number")?)
    }

    fn show(value: &f64) -> String {
        value.to_string()
    }
}

fn non_negative(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err(format!("{text:?} is not a number of 0 or more")),
    }
}

impl Codec<f64> for Megabytes {
    fn parse(node: &Node) -> Result<f64, String> {
        Ok(non_negative(scalar(node, "a number of megabytes")?)? * MB)
    }

    fn show(value: &f64) -> String {
        (value / MB).to_string()
    }
}

const MB: f64 = 1_048_576.0;

impl Codec<u64> for Bytes {
    fn parse(node: &Node) -> Result<u64, String> {
        parse_bytes(scalar(node, "a size")?)
    }

    fn show(value: &u64) -> String {
        show_bytes(*value)
    }
}

impl Codec<usize> for Bytes {
    fn parse(node: &Node) -> Result<usize, String> {
        let bytes = parse_bytes(scalar(node, "a size")?)?;
        usize::try_from(bytes).map_err(|_| format!("{bytes} B do not fit in this machine's memory"))
    }

    fn show(value: &usize) -> String {
        show_bytes(*value as u64)
    }
}

/// Rates are whole bytes per second in the configuration and `f64` where tokens are counted.
impl Codec<f64> for Bytes {
    fn parse(node: &Node) -> Result<f64, String> {
        Ok(parse_bytes(scalar(node, "a size")?)? as f64)
    }

    fn show(value: &f64) -> String {
        show_bytes(*value as u64)
    }
}

const SIZES: [(&str, u64); 7] =
    [("E", 1 << 60), ("P", 1 << 50), ("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)];

/// Reads `262144`, `256KB`, `256KiB`, `256k` (case does not matter, 1 KB is 1024 B).
///
/// # Errors
/// Not a whole number, an unknown unit, or above 2^64 - 1.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let bad = || format!("{text:?} is not a size; write whole bytes or a unit of 1024, such as 262144, 256KB or 4GB");
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim().to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
    let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
    number.checked_mul(*factor).ok_or_else(|| format!("{text:?} is too large a size"))
}

/// The shortest exact writing: `256KB`, `64MB`, `1000`.
pub fn show_bytes(bytes: u64) -> String {
    match SIZES.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) if *factor > 1 => format!("{}{unit}B", bytes / factor),
        _ => bytes.to_string(),
    }
}

impl Codec<Duration> for GoDuration {
    fn parse(node: &Node) -> Result<Duration, String> {
        parse_duration(scalar(node, "a duration")?)
    }

    fn show(value: &Duration) -> String {
        show_duration(*value)
    }
}

/// Nanoseconds by unit, largest first; `µs` is Go's other name of `us`.
const UNITS: [(&str, u64); 8] = [
    ("w", 604_800_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads Go's durations (`1h30m`, `1.5s`, `0`) and Prometheus' days and weeks (`30d1h`, `1w`).
///
/// # Errors
/// No number, no or an unknown unit, negative, or above 584 years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("{text:?} is not a duration; write numbers with units (w d h m s ms), such as 30s, 1h30m or 1w");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = split_while(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, tail) = split_while(tail, |c| c.is_alphabetic());
        let unit = if unit == "µs" || unit == "μs" { "us" } else { unit };
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let part = scale(number, *nanos).ok_or_else(bad)?;
        total = total.checked_add(part).ok_or_else(|| format!("{text:?} is too long a duration"))?;
        rest = tail;
    }
    Ok(Duration::from_nanos(total))
}

fn split_while(text: &str, keep: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !keep(c)).unwrap_or(text.len()))
}

/// `number` × `nanos`, exact for whole numbers.
fn scale(number: &str, nanos: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(nanos);
    }
    let product = number.parse::<f64>().ok()? * nanos as f64;
    (product < u64::MAX as f64).then_some(product.round() as u64)
}

/// The shortest exact writing: `1w`, `2h`, `1m30s`, `0s`.
pub fn show_duration(duration: Duration) -> String {
    let Ok(mut nanos) = u64::try_from(duration.as_nanos()) else { return format!("{}s", duration.as_secs()) };
    if nanos == 0 {
        return "0s".to_string();
    }
    let mut text = String::new();
    for (index, (unit, size)) in UNITS.iter().enumerate() {
        let whole_weeks_only = index == 0 && nanos % size != 0;
        if nanos >= *size && !whole_weeks_only {
            text.push_str(&format!("{}{unit}", nanos / size));
            nanos %= size;
        }
    }
    text
}

impl Codec<bool> for Bool {
    fn parse(node: &Node) -> Result<bool, String> {
        let text = scalar(node, "true or false")?;
        // What Go's flags and YAML 1.1 accept; YAML's own spellings arrive here as true and false.
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "1" => Ok(true),
            "false" | "f" | "0" => Ok(false),
            _ => Err(format!("{text:?} is not true or false")),
        }
    }

    fn show(value: &bool) -> String {
        value.to_string()
    }
}

impl Codec<String> for Text {
    fn parse(node: &Node) -> Result<String, String> {
        scalar(node, "a text").map(str::to_string)
    }

    fn show(value: &String) -> String {
        quote(value)
    }
}

/// A YAML scalar that reads back as this text.
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '.') && text.chars().all(plain);
    let reserved = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", ".nan", ".inf", "."];
    if word && !reserved.contains(&text.to_ascii_lowercase().as_str()) && text.parse::<f64>().is_err() {
        return text.to_string();
    }
    // A JSON string is a YAML double-quoted scalar.
    serde_json::Value::from(text).to_string()
}

impl Codec<Vec<String>> for Words {
    fn parse(node: &Node) -> Result<Vec<String>, String> {
        match &node.value {
            Value::List(items) => items.iter().map(|item| scalar(item, "a text").map(str::to_string)).collect(),
            Value::Scalar(text) => {
                Ok(text.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_string).collect())
            }
            Value::Null => Ok(Vec::new()),
            Value::Map(_) => Err("is a map, expected a list".to_string()),
        }
    }

    fn show(value: &Vec<String>) -> String {
        let words: Vec<String> = value.iter().map(|w| quote(w)).collect();
        format!("[{}]", words.join(", "))
    }
}

/// A closed set of words.
pub trait Word: Sized + Copy + PartialEq + 'static {
    /// All of them, in the order in which they are shown.
    const ALL: &'static [Self];

    /// As written in the configuration.
    fn as_str(&self) -> &'static str;

    /// The word that this text is.
    fn find(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|word| word.as_str() == text)
    }

    /// `a, b, c`
    fn list() -> String {
        Self::ALL.iter().map(Self::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl<T: Word> Codec<T> for Choice {
    fn parse(node: &Node) -> Result<T, String> {
        let text = scalar(node, "a word")?;
        T::find(text.trim()).ok_or_else(|| format!("{text:?} is not one of: {}", T::list()))
    }

    fn show(value: &T) -> String {
        quote(value.as_str())
    }
}

/// Defines an enum of words: `words! { /// Doc. pub enum Name { /// Doc. Variant = "word", } }`.
macro_rules! words {
    ($($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
        impl $crate::server::config::units::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];
            fn as_str(&self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    )*};
}
pub(super) use words;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_loki_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("262144", 262_144),
            ("256KB", 262_144),
            ("256kb", 262_144),
            ("256KiB", 262_144),
            ("256 KB", 262_144),
            ("3MB", 3_145_728),
            ("4GB", 4 << 30),
            ("1T", 1 << 40),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "KB", "1.5MB", "-1", "12XB", "1KBB", "99999999999999999999", "16777216TB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_go_and_prometheus_read_them() {
        let minute = 60;
        for (text, seconds) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30),
            ("2m0s", 2 * minute),
            ("1h30m", 90 * minute),
            ("1.5h", 90 * minute),
            ("1w", 7 * 24 * 60 * minute),
            ("30d1h", (30 * 24 + 1) * 60 * minute),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse_duration("1500us"), Ok(Duration::from_micros(1500)));
        assert_eq!(parse_duration("3µs"), Ok(Duration::from_micros(3)));
        for text in ["", "5", "h", "-1s", "1x", "1h 30m", "1..5s", "99999999w", "s1"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_shown_short() {
        for (seconds, text) in [(0, "0s"), (90, "1m30s"), (7200, "2h"), (604_800, "1w"), (2_592_000, "30d")] {
            assert_eq!(show_duration(Duration::from_secs(seconds)), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(nanos: u64, bytes: u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_bytes(&show_bytes(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,12}", unit in "[0-9.]{0,20}[wdhmsu]{0,3}") {
            let _ = (parse_duration(&text), parse_bytes(&text), parse_duration(&unit), parse_bytes(&unit));
        }

        #[test]
        fn quoted_text_reads_back(text in "\\PC{0,12}") {
            let node = super::super::yaml::parse(&format!("a: {}\n", quote(&text))).unwrap();
            let Value::Map(entries) = node.value else { panic!("a map") };
            prop_assert_eq!(&entries[0].node.value, &Value::Scalar(text));
        }
    }
}
