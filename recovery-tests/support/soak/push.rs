//! What is pushed: made from a few numbers, so that these are all that the ledger has to keep.

use crate::support::{message, stream};
use serde_json::{Value, json};
use timberline::api::pb::logproto::PushRequest;

/// Tenants; the last one is for floods of new streams.
pub const TENANTS: [&str; 4] = ["red", "green", "blue", "flood"];
const FLOOD: usize = 3;
/// Each of the other tenants in each format.
pub const WRITERS: u16 = 12;
/// Pushes one line at a time, to find out whether pushes are taken.
pub const PROBE: u16 = WRITERS;
/// Pushes new streams only.
pub const FLOODER: u16 = WRITERS + 1;
const FLOOD_STREAMS: u32 = 200;
/// As long as this all writers of a tenant push into the same new stream.
const FRESH: i64 = 2_000_000_000;

/// How a push travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Snappy,
    Json,
    Gzip,
    Grpc,
}

impl Format {
    pub fn of(writer: u16) -> Self {
        match writer {
            FLOODER => Self::Snappy,
            PROBE => Self::Json,
            _ => [Self::Snappy, Self::Json, Self::Gzip, Self::Grpc][usize::from(writer % 4)],
        }
    }
}

/// A push, whose lines follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Push {
    pub id: u64,
    /// Nanoseconds: the time of its first line.
    pub at: i64,
    /// Part of the run: lines are read back by it.
    pub epoch: u32,
    pub writer: u16,
}

/// The lines of one stream of a push.
pub struct Part {
    pub stream: String,
    pub lines: u32,
}

/// A number that looks like chance.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ b.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ x >> 31).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 29
}

impl Push {
    pub fn tenant(&self) -> usize {
        if self.writer == FLOODER { FLOOD } else { usize::from(self.writer % 3) }
    }

    pub fn parts(&self) -> Vec<Part> {
        let part = |stream: String, lines| Part { stream, lines };
        let own = match mix(self.id, 1) % 100 {
            0..2 => 1000,
            2..22 => 1,
            _ => 20,
        };
        match self.writer {
            PROBE => vec![part("probe".into(), 1)],
            FLOODER => (0..FLOOD_STREAMS).map(|k| part(format!("flood-{}-{k}", self.id), 1)).collect(),
            writer => vec![
                part("shared".into(), 4),
                part(format!("fresh-{}", self.at / FRESH), 2),
                part(format!("own-{writer}"), own),
            ],
        }
    }

    pub fn lines(&self) -> u64 {
        self.parts().iter().map(|p| u64::from(p.lines)).sum()
    }

    /// Metadata of the lines of a part.
    pub fn metadata(&self, part: usize) -> Option<(&'static str, String)> {
        (part == 2 && self.writer < WRITERS).then(|| ("writer", self.writer.to_string()))
    }

    /// Line `n` of a part, and its time: two at a time have the same.
    pub fn line(&self, corpus: &[String], part: usize, n: u32) -> (i64, String) {
        let chance = mix(self.id, (part as u64) << 32 | u64::from(n));
        let text = match chance % 64 {
            0 => "",
            1 => "\"quoted\", {back: \\slash}, tab\tand two\nlines",
            2 => "Grüße, Привет, 你好, 🪵 level=error",
            _ => &corpus[(chance >> 8) as usize % corpus.len()],
        };
        let text = if chance % 512 == 3 { text.repeat(40) } else { text.to_string() };
        (self.at + i64::from(n / 2), format!("p={} k={part} n={n} {text}", self.id))
    }

    fn all(&self, corpus: &[String]) -> Vec<(Part, Vec<(i64, String)>)> {
        let with_lines = |(k, part): (usize, Part)| {
            let lines = (0..part.lines).map(|n| self.line(corpus, k, n)).collect();
            (part, lines)
        };
        self.parts().into_iter().enumerate().map(with_lines).collect()
    }

    pub fn message(&self, corpus: &[String]) -> PushRequest {
        let streams = self.all(corpus).into_iter().enumerate().map(|(k, (part, lines))| {
            let metadata = self.metadata(k);
            let pairs: Vec<(&str, &str)> = metadata.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let entries: Vec<_> = lines.iter().map(|(at, line)| (*at, line.as_str(), &pairs[..])).collect();
            let labels = format!("{{epoch=\"{}\", job=\"soak\", s=\"{}\"}}", self.epoch, part.stream);
            stream(&labels, &entries)
        });
        message(streams.collect())
    }

    pub fn json(&self, corpus: &[String]) -> Value {
        let streams = self.all(corpus).into_iter().enumerate().map(|(k, (part, lines))| {
            let metadata = self.metadata(k);
            let value = |(at, line): (i64, String)| match &metadata {
                Some((name, value)) => json!([at.to_string(), line, {*name: value}]),
                None => json!([at.to_string(), line]),
            };
            let values: Vec<Value> = lines.into_iter().map(value).collect();
            json!({"stream": {"epoch": self.epoch.to_string(), "job": "soak", "s": part.stream}, "values": values})
        });
        json!({"streams": streams.collect::<Vec<_>>()})
    }
}

/// The push, part and line that a line tells of itself.
pub fn told(line: &str) -> Option<(u64, usize, u32)> {
    let mut words = line.splitn(4, ' ');
    let id = words.next()?.strip_prefix("p=")?.parse().ok()?;
    let part = words.next()?.strip_prefix("k=")?.parse().ok()?;
    Some((id, part, words.next()?.strip_prefix("n=")?.parse().ok()?))
}
