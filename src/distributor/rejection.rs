//! What was refused and why, in Loki's words.

use crate::model::{Amount, LabelError, PushError};
use ahash::AHashMap;
use std::fmt::Write as _;

/// Why something was discarded: the label `reason` of `loki_discarded_samples_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The label text does not parse.
    InvalidLabels,
    /// No label at all.
    MissingLabels,
    /// The tenant's rate limit.
    RateLimited,
    /// `max_line_size`
    LineTooLong,
    /// `reject_old_samples_max_age`
    TooOld,
    /// `creation_grace_period`
    TooNew,
    /// `max_label_names_per_series`
    TooManyLabels,
    /// `max_label_name_length`
    LabelNameTooLong,
    /// `max_label_value_length`
    LabelValueTooLong,
    /// A label name twice.
    DuplicateLabel,
    /// `allow_structured_metadata`
    MetadataDisallowed,
    /// `max_structured_metadata_size`
    MetadataTooLarge,
    /// `max_structured_metadata_entries_count`
    MetadataTooMany,
}

impl Reason {
    /// How many reasons there are; `reason as usize` is below it.
    pub const COUNT: usize = 13;
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::InvalidLabels,
        Self::MissingLabels,
        Self::RateLimited,
        Self::LineTooLong,
        Self::TooOld,
        Self::TooNew,
        Self::TooManyLabels,
        Self::LabelNameTooLong,
        Self::LabelValueTooLong,
        Self::DuplicateLabel,
        Self::MetadataDisallowed,
        Self::MetadataTooLarge,
        Self::MetadataTooMany,
    ];

    /// Loki's name of the reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidLabels => "invalid_labels",
            Self::MissingLabels => "missing_labels",
            Self::RateLimited => "rate_limited",
            Self::LineTooLong => "line_too_long",
            Self::TooOld => "greater_than_max_sample_age",
            Self::TooNew => "too_far_in_future",
            Self::TooManyLabels => "max_label_names_per_series",
            Self::LabelNameTooLong => "label_name_too_long",
            Self::LabelValueTooLong => "label_value_too_long",
            Self::DuplicateLabel => "duplicate_label_names",
            Self::MetadataDisallowed => "disallowed_structured_metadata",
            Self::MetadataTooLarge => "structured_metadata_too_large",
            Self::MetadataTooMany => "structured_metadata_too_many",
        }
    }
}

/// Why the labels of a stream were refused, whatever its entries are.
#[derive(Clone, Debug, PartialEq)]
pub enum LabelRejection {
    /// They do not parse.
    Syntax(LabelError),
    /// They parse and break a limit.
    Limit(Reason, String),
}

/// Why an entry was refused, with what its text needs. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EntryRejection {
    /// Older than the oldest acceptable time.
    TooOld { timestamp: i64, oldest: i64 },
    /// Newer than now and the grace period.
    TooNew { timestamp: i64 },
    /// Bytes of the line and the limit.
    LineTooLong { len: usize, limit: usize },
    /// There is structured metadata.
    MetadataDisallowed,
    /// Bytes of the metadata and the limit.
    MetadataTooLarge { size: usize, limit: usize },
    /// Pairs and the limit.
    MetadataTooMany { count: usize, limit: usize },
}

impl EntryRejection {
    /// The reason as metrics name it.
    pub fn reason(self) -> Reason {
        match self {
            Self::TooOld { .. } => Reason::TooOld,
            Self::TooNew { .. } => Reason::TooNew,
            Self::LineTooLong { .. } => Reason::LineTooLong,
            Self::MetadataDisallowed => Reason::MetadataDisallowed,
            Self::MetadataTooLarge { .. } => Reason::MetadataTooLarge,
            Self::MetadataTooMany { .. } => Reason::MetadataTooMany,
        }
    }

    /// Loki's text.
    pub fn text(self, labels: &str) -> String {
        match self {
            Self::TooOld { timestamp, oldest } => format!(
                "entry for stream '{labels}' has timestamp too old: {}, oldest acceptable timestamp is: {}",
                rfc3339(timestamp),
                rfc3339(oldest)
            ),
            Self::TooNew { timestamp } => {
                format!("entry for stream '{labels}' has timestamp too new: {}", rfc3339(timestamp))
            }
            Self::LineTooLong { len, limit } => format!(
                "max entry size '{limit}' bytes exceeded for stream '{labels}' while adding an entry with length '{len}' bytes"
            ),
            Self::MetadataDisallowed => format!(
                "stream '{labels}' includes structured metadata, but this feature is disallowed. Please see \
                 `limits_config.allow_structured_metadata` or contact your Loki administrator to enable it."
            ),
            Self::MetadataTooLarge { size, limit } => format!(
                "stream '{labels}' has structured metadata too large: '{size}' bytes, limit: '{limit}' bytes. Please see \
                 `limits_config.max_structured_metadata_size` or contact your Loki administrator to increase it."
            ),
            Self::MetadataTooMany { count, limit } => format!(
                "stream '{labels}' has too many structured metadata labels: '{count}', limit: '{limit}'. Please see \
                 `limits_config.max_structured_metadata_entries_count` or contact your Loki administrator to increase it."
            ),
        }
    }
}

/// Go's `time.RFC3339` of a time in UTC: whole seconds, rounded down.
fn rfc3339(nanoseconds: i64) -> String {
    jiff::Timestamp::from_second(nanoseconds.div_euclid(1_000_000_000))
        .map_or_else(|_| nanoseconds.to_string(), |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Distinct texts told for one stream and reason; further entries count as "like" the last of them.
const MAX_TEXTS_PER_STREAM: u32 = 10;
/// Bytes of texts that one answer carries; further texts are counted.
const MAX_TEXT_BYTES: usize = 256 * 1024;

/// The rejections of one push, grouped by identical text in the order of their first appearance.
#[derive(Debug, Default)]
pub struct Rejections {
    groups: Vec<(String, u64)>,
    by_text: AHashMap<String, usize>,
    bytes: usize,
    /// Errors whose texts found no room.
    hidden: u64,
    /// Entries and their bytes by [`Reason`].
    pub discarded: [(u64, u64); Reason::COUNT],
    /// Of these, what belongs to one stream each: its labels, and why.
    pub streams: Vec<(Box<str>, Reason, Amount)>,
}

/// What was told so far about one stream.
#[derive(Default)]
pub struct StreamRejections {
    told: [(u32, Option<usize>); Reason::COUNT],
    discarded: [Amount; Reason::COUNT],
}

impl Rejections {
    /// Counts entries as discarded.
    pub fn discard(&mut self, reason: Reason, entries: u64, bytes: u64) {
        if let Some(slot) = self.discarded.get_mut(reason as usize) {
            slot.0 += entries;
            slot.1 += bytes;
        }
    }

    /// Was anything refused for its timestamp?
    pub fn by_time(&self) -> bool {
        [Reason::TooOld, Reason::TooNew].iter().any(|r| self.discarded.get(*r as usize).is_some_and(|(n, _)| *n > 0))
    }

    /// Adds an error about a whole stream.
    pub fn add(&mut self, text: String) {
        self.group(text);
    }

    /// Adds an error about an entry of `bytes` bytes.
    pub fn add_entry(&mut self, rejection: EntryRejection, labels: &str, stream: &mut StreamRejections, bytes: u64) {
        self.discard(rejection.reason(), 1, bytes);
        if let Some(discarded) = stream.discarded.get_mut(rejection.reason() as usize) {
            *discarded += Amount { lines: 1, bytes };
        }
        let Some((told, last)) = stream.told.get_mut(rejection.reason() as usize) else { return };
        if *told < MAX_TEXTS_PER_STREAM {
            let groups = self.groups.len();
            *last = self.group(rejection.text(labels));
            *told += u32::from(self.groups.len() > groups || last.is_none());
        } else if let Some((_, count)) = last.and_then(|i| self.groups.get_mut(i)) {
            *count += 1;
        } else {
            self.hidden += 1;
        }
    }

    /// Notes what was discarded of a stream of which all entries are added.
    pub fn end_stream(&mut self, labels: &str, stream: &StreamRejections) {
        for (reason, amount) in Reason::ALL.into_iter().zip(stream.discarded) {
            if amount.lines > 0 {
                self.streams.push((labels.into(), reason, amount));
            }
        }
    }

    fn group(&mut self, text: String) -> Option<usize> {
        if let Some(i) = self.by_text.get(&text) {
            if let Some((_, count)) = self.groups.get_mut(*i) {
                *count += 1;
            }
            return Some(*i);
        }
        if !self.groups.is_empty() && self.bytes + text.len() > MAX_TEXT_BYTES {
            self.hidden += 1;
            return None;
        }
        self.bytes += text.len();
        self.by_text.insert(text.clone(), self.groups.len());
        self.groups.push((text, 1));
        Some(self.groups.len() - 1)
    }

    /// The 400 that tells all of them; `None` if nothing was refused.
    ///
    /// A single error that came once is told bare; otherwise each is counted, as Loki does.
    pub fn into_error(self) -> Option<PushError> {
        if self.groups.is_empty() && self.hidden == 0 {
            return None;
        }
        if let ([(text, 1)], 0) = (&*self.groups, self.hidden) {
            return Some(PushError::bad_request(text));
        }
        let mut message = String::with_capacity(self.bytes + 32 * self.groups.len());
        for (i, (text, count)) in self.groups.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            // Writing to a String does not fail.
            let _ = write!(message, "{separator}{count} errors like: {text}");
        }
        if self.hidden > 0 {
            let _ = write!(
                message,
                "; {} more errors, not told because the answer is limited to {MAX_TEXT_BYTES} bytes",
                self.hidden
            );
        }
        Some(PushError::bad_request(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: i64 = 1_000_000_000;

    #[test]
    fn texts_are_lokis() {
        let t = 1_795_365_462 * NS + 999_999_999;
        let cases = [
            (
                EntryRejection::TooOld { timestamp: -1, oldest: t },
                "entry for stream '{a=\"b\"}' has timestamp too old: 1969-12-31T23:59:59Z, oldest acceptable timestamp is: 2026-11-22T16:37:42Z",
            ),
            (
                EntryRejection::TooNew { timestamp: t },
                "entry for stream '{a=\"b\"}' has timestamp too new: 2026-11-22T16:37:42Z",
            ),
            (
                EntryRejection::LineTooLong { len: 262_145, limit: 262_144 },
                "max entry size '262144' bytes exceeded for stream '{a=\"b\"}' while adding an entry with length '262145' bytes",
            ),
            (
                EntryRejection::MetadataDisallowed,
                "stream '{a=\"b\"}' includes structured metadata, but this feature is disallowed. Please see `limits_config.allow_structured_metadata` or contact your Loki administrator to enable it.",
            ),
            (
                EntryRejection::MetadataTooLarge { size: 65_537, limit: 65_536 },
                "stream '{a=\"b\"}' has structured metadata too large: '65537' bytes, limit: '65536' bytes. Please see `limits_config.max_structured_metadata_size` or contact your Loki administrator to increase it.",
            ),
            (
                EntryRejection::MetadataTooMany { count: 129, limit: 128 },
                "stream '{a=\"b\"}' has too many structured metadata labels: '129', limit: '128'. Please see `limits_config.max_structured_metadata_entries_count` or contact your Loki administrator to increase it.",
            ),
        ];
        for (rejection, expected) in cases {
            assert_eq!(rejection.text("{a=\"b\"}"), expected);
        }
    }

    #[test]
    fn reasons_have_their_numbers() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
    }

    #[test]
    fn errors_are_grouped_by_text() {
        let message = |texts: &[&str]| {
            let mut all = Rejections::default();
            texts.iter().for_each(|t| all.add(t.to_string()));
            all.into_error().map(|e| e.message)
        };
        assert_eq!(message(&[]), None);
        assert_eq!(message(&["x"]).as_deref(), Some("x"));
        assert_eq!(message(&["x", "x"]).as_deref(), Some("2 errors like: x"));
        assert_eq!(message(&["x", "y", "x"]).as_deref(), Some("2 errors like: x; 1 errors like: y"));
    }

    #[test]
    fn texts_are_bounded_and_every_stream_is_told() {
        let mut all = Rejections::default();
        let mut stream = StreamRejections::default();
        for i in 0..1000 {
            all.add_entry(EntryRejection::TooNew { timestamp: i * NS }, "{a=\"1\"}", &mut stream, 7);
        }
        all.add_entry(EntryRejection::TooNew { timestamp: NS }, "{a=\"2\"}", &mut StreamRejections::default(), 7);
        assert_eq!(all.discarded[Reason::TooNew as usize], (1001, 7007));
        let message = all.into_error().expect("errors").message;
        assert_eq!(message.matches(" errors like: ").count(), 11, "{message}");
        assert!(
            message
                .contains("991 errors like: entry for stream '{a=\"1\"}' has timestamp too new: 1970-01-01T00:00:09Z")
        );
        assert!(
            message
                .ends_with("; 1 errors like: entry for stream '{a=\"2\"}' has timestamp too new: 1970-01-01T00:00:01Z")
        );
    }

    #[test]
    fn an_answer_has_a_bound() {
        let mut all = Rejections::default();
        (0..100_000).for_each(|i| all.add(format!("error number {i} of a very long request")));
        let message = all.into_error().expect("errors").message;
        assert!(message.len() < 2 * MAX_TEXT_BYTES, "{}", message.len());
        assert!(message.contains(" more errors, not told"));
    }
}
