//! What was pushed and how it was answered, and what the server shows held against it.

use super::push::{FLOODER, Part, Push, TENANTS, told};
use crate::server::{Http, encode};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

/// One push, and what is known of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub push: Push,
    acked: bool,
    /// All of its lines have been shown: they stay, whatever was answered.
    shown: bool,
    in_flight: bool,
    /// Which process has had it last.
    life: u32,
}

type Entries = HashMap<u64, Entry>;

/// Every push by epoch and number.
#[derive(Default)]
pub struct Ledger {
    epochs: BTreeMap<u32, Entries>,
    pub acked_pushes: u64,
    pub acked_lines: u64,
    pub acked_bytes: u64,
    /// Lines of all requests, those that came again included.
    pub sent_lines: u64,
    pub refused: u64,
    pub unanswered: u64,
}

/// How many requests were answered how.
#[derive(Clone, Copy, Default)]
pub struct Answers {
    pub acked: u64,
    pub refused: u64,
    pub unanswered: u64,
}

impl Answers {
    pub fn since(self, before: Self) -> Self {
        Self {
            acked: self.acked - before.acked,
            refused: self.refused - before.refused,
            unanswered: self.unanswered - before.unanswered,
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            acked: self.acked + other.acked,
            refused: self.refused + other.refused,
            unanswered: self.unanswered + other.unanswered,
        }
    }
}

impl Ledger {
    /// A push goes out, for the first time or again.
    pub fn begin(&mut self, push: &Push, life: u32) {
        self.sent_lines += push.lines();
        let new = Entry { push: *push, acked: false, shown: false, in_flight: true, life };
        let entry = self.epochs.entry(push.epoch).or_default().entry(push.id).or_insert(new);
        (entry.in_flight, entry.life) = (true, life);
    }

    /// It was answered so, or not at all.
    pub fn end(&mut self, push: &Push, bytes: u64, status: Option<u16>, life: u32) {
        match status {
            Some(204) => {
                self.acked_pushes += 1;
                self.acked_lines += push.lines();
                self.acked_bytes += bytes;
            }
            Some(_) => self.refused += 1,
            None => self.unanswered += 1,
        }
        if let Some(entry) = self.epochs.get_mut(&push.epoch).and_then(|e| e.get_mut(&push.id)) {
            (entry.in_flight, entry.life) = (false, life);
            entry.acked |= status == Some(204);
        }
    }

    /// How requests were answered so far.
    pub fn answers(&self) -> Answers {
        Answers { acked: self.acked_pushes, refused: self.refused, unanswered: self.unanswered }
    }

    pub fn epochs(&self) -> Vec<u32> {
        self.epochs.keys().copied().collect()
    }

    pub fn pushes(&self) -> usize {
        self.epochs.values().map(HashMap::len).sum()
    }

    pub fn epoch(&self, epoch: u32) -> Entries {
        self.epochs.get(&epoch).cloned().unwrap_or_default()
    }

    /// What queries have shown whole stays.
    pub fn note_shown(&mut self, epoch: u32, ids: &[u64]) {
        for id in ids {
            if let Some(entry) = self.epochs.get_mut(&epoch).and_then(|e| e.get_mut(id)) {
                entry.shown = true;
            }
        }
    }
}

/// Streams of one tenant as an answer has them.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    result: Vec<Shown<'a>>,
}

#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow)]
    stream: HashMap<&'a str, Cow<'a, str>>,
    #[serde(borrow)]
    values: Vec<(&'a str, Text<'a>)>,
}

/// A line: borrowed where nothing in it is escaped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What the server shows of one epoch, tenant by tenant.
pub fn read(http: &mut Http, epoch: u32) -> Result<Vec<Vec<u8>>, String> {
    let target = format!(
        "/loki/api/v1/query_range?query={}&start=0&end=4000000000000000000&limit=1000000&direction=forward",
        encode(&format!("{{epoch=\"{epoch}\"}}"))
    );
    let ask = |tenant: &&str| match http.send("GET", &target, &[("X-Scope-OrgID", tenant)], b"") {
        Ok((200, body)) => Ok(body),
        Ok((status, body)) => Err(format!("a read was answered {status}: {}", String::from_utf8_lossy(&body))),
        Err(e) => Err(format!("a read was not answered: {e}")),
    };
    TENANTS.iter().map(ask).collect()
}

/// What was found out about one epoch.
#[derive(Default)]
pub struct Verdict {
    pub lines: u64,
    pub wrong: Vec<String>,
    /// Pushes that are there as a whole.
    pub whole: Vec<u64>,
}

/// What was asked of the server: the entries before and after the read, and the process that has answered.
pub struct Look<'a> {
    pub before: &'a Entries,
    pub after: &'a Entries,
    pub life: u32,
    pub corpus: &'a [String],
}

impl Look<'_> {
    /// Holds answers against the ledger: what was acknowledged is there, once, unaltered, in order; nothing else is, but what
    /// was sent without success, and that is there as a whole or not at all.
    pub fn judge(&self, answers: &[Vec<u8>]) -> Verdict {
        let mut verdict = Verdict::default();
        let mut seen = HashSet::new();
        let parts: HashMap<u64, Vec<Part>> = self.after.iter().map(|(id, entry)| (*id, entry.push.parts())).collect();
        for (tenant, answer) in answers.iter().enumerate() {
            match serde_json::from_slice::<Answer>(answer) {
                Ok(answer) => answer
                    .data
                    .result
                    .iter()
                    .for_each(|shown| self.judge_stream(tenant, shown, &parts, &mut seen, &mut verdict)),
                Err(e) => verdict.wrong.push(format!("an answer to {}: {e}", TENANTS[tenant])),
            }
        }
        verdict.lines = seen.len() as u64;
        self.judge_pushes(&seen, &mut verdict);
        verdict
    }

    fn judge_stream(
        &self,
        tenant: usize,
        shown: &Shown,
        parts: &HashMap<u64, Vec<Part>>,
        seen: &mut HashSet<(u64, usize, u32)>,
        verdict: &mut Verdict,
    ) {
        let wrong = &mut verdict.wrong;
        let label = |name: &str| shown.stream.get(name).map(Cow::as_ref).unwrap_or_default();
        let (stream, mut last) = (label("s"), i64::MIN);
        // Of lines with equal timestamps, those of one writer come in the order in which it sent them.
        let mut order: HashMap<u16, (i64, u64, u32)> = HashMap::new();
        for (at, Text(line)) in &shown.values {
            let at: i64 = at.parse().unwrap_or(i64::MIN);
            if at < last {
                wrong.push(format!("{stream}: {at} is shown behind {last}"));
            }
            last = at;
            let found =
                told(line).and_then(|(id, k, n)| Some((self.after.get(&id)?.push, parts.get(&id)?.get(k)?, k, n)));
            let Some((push, part, k, n)) = found.filter(|(_, part, _, n)| *n < part.lines) else {
                wrong.push(format!("{stream} of {}: never pushed: {line:.120}", TENANTS[tenant]));
                continue;
            };
            let metadata = push.metadata(k).map_or(String::new(), |(_, value)| value);
            let is_as_sent = push.tenant() == tenant
                && part.stream == stream
                && label("epoch") == push.epoch.to_string()
                && label("job") == "soak"
                && label("writer") == metadata
                && push.line(self.corpus, k, n) == (at, line.to_string());
            if !is_as_sent {
                wrong.push(format!("{stream} of {}: altered: {at} {:?} {line:.120}", TENANTS[tenant], shown.stream));
            }
            if !seen.insert((push.id, k, n)) {
                wrong.push(format!("{stream}: twice: {line:.120}"));
            }
            let place = (at, push.id, n);
            if order.insert(push.writer, place).is_some_and(|before| before > place) {
                wrong.push(format!("{stream}: out of order: {line:.120}"));
            }
        }
    }

    fn judge_pushes(&self, seen: &HashSet<(u64, usize, u32)>, verdict: &mut Verdict) {
        let mut there: HashMap<u64, u64> = HashMap::new();
        seen.iter().for_each(|(id, ..)| *there.entry(*id).or_default() += 1);
        for (id, entry) in self.after {
            let (expected, there) = (entry.push.lines(), there.get(id).copied().unwrap_or(0));
            let before = self.before.get(id);
            let tell = |what: &str| format!("push {id} of writer {}: {what}: {there} of {expected}", entry.push.writer);
            // Floods are refused in part. What is on its way may be seen in part.
            let settled =
                entry.push.writer != FLOODER && before == Some(entry) && !entry.in_flight && entry.life < self.life;
            if there == expected {
                verdict.whole.push(*id);
            } else if before.is_some_and(|b| b.acked) {
                verdict.wrong.push(tell("acknowledged, and lost"));
            } else if before.is_some_and(|b| b.shown) {
                verdict.wrong.push(tell("shown before, and gone"));
            } else if there > 0 && settled {
                verdict.wrong.push(tell("in part"));
            }
        }
    }
}
