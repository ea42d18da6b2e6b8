use super::{QueryError, parse_selector};
use crate::model::Matcher;
use jiff::Timestamp;

/// Entries of an answer when `limit` is not given; Loki's default.
pub const DEFAULT_LIMIT: usize = 100;
/// Largest `limit`, also for tenants whose `max_entries_limit_per_query` is 0 (no limit).
pub const MAX_LIMIT: usize = 1_000_000;

const HOUR: i64 = 3_600_000_000_000;

/// In which order, and from which end of the range, entries are returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forward,
    /// Newest first; Loki's default.
    Backward,
}

/// Parameters of `query_range`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeParams {
    /// The LogQL text.
    pub query: String,
    /// First nanosecond of the range.
    pub start: i64,
    /// End of the range in nanoseconds, exclusive.
    pub end: i64,
    /// Most entries in the answer, 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// Order of the entries.
    pub direction: Direction,
}

/// Parameters of `query`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstantParams {
    /// The LogQL text.
    pub query: String,
    /// Time of evaluation in nanoseconds.
    pub time: i64,
    /// How far back a log query reads, in nanoseconds.
    pub since: i64,
    /// Most entries in the answer, 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// Order of the entries.
    pub direction: Direction,
}

/// Parameters of `labels` and `label/<name>/values`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelParams {
    /// First nanosecond of the range.
    pub start: i64,
    /// End of the range in nanoseconds, exclusive.
    pub end: i64,
    /// A selector, if given.
    pub query: Option<String>,
}

/// Parameters of `series`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesParams {
    /// First nanosecond of the range.
    pub start: i64,
    /// End of the range in nanoseconds, exclusive.
    pub end: i64,
    /// Selectors of `match` and `match[]`; none means every stream.
    pub selectors: Vec<String>,
}

impl RangeParams {
    /// Decodes name and value pairs of a query string or form; of a repeated name the first counts.
    ///
    /// `start` and `end` are integers (seconds up to 10 characters, else nanoseconds), seconds with a fraction, or
    /// RFC 3339. `end` is now by default; `start` is `since` (one hour by default) before `end`, or before now if
    /// `end` lies in the future. All as in Loki.
    ///
    /// # Errors
    /// 400 for a parameter that is missing or malformed, for `end` before `start`, and for `interval`, which is not
    /// supported.
    pub fn decode(pairs: &[(String, String)], now: i64) -> Result<Self, QueryError> {
        let (start, end) = range(pairs, now)?;
        if present(pairs, "interval").is_some_and(|v| duration(v) != Some(0)) {
            return Err(QueryError::bad_request("parameter 'interval' is not supported: leave it out"));
        }
        Ok(Self { query: query(pairs)?, start, end, limit: limit(pairs)?, direction: direction(pairs)? })
    }
}

impl InstantParams {
    /// Decodes name and value pairs, as [`RangeParams::decode`]; `time` is now by default.
    ///
    /// # Errors
    /// 400 for a parameter that is missing or malformed.
    pub fn decode(pairs: &[(String, String)], now: i64) -> Result<Self, QueryError> {
        Ok(Self {
            query: query(pairs)?,
            time: time(pairs, "time")?.unwrap_or(now),
            since: since(pairs)?,
            limit: limit(pairs)?,
            direction: direction(pairs)?,
        })
    }

    /// The range that a log query reads: `since` back from `time`, with `time` itself.
    pub(super) fn as_range(&self) -> RangeParams {
        RangeParams {
            query: self.query.clone(),
            start: self.time.saturating_sub(self.since),
            end: self.time.saturating_add(1),
            limit: self.limit,
            direction: self.direction,
        }
    }
}

impl LabelParams {
    /// Decodes name and value pairs; the range as in [`RangeParams::decode`].
    ///
    /// # Errors
    /// 400 for a malformed time and for `end` before `start`.
    pub fn decode(pairs: &[(String, String)], now: i64) -> Result<Self, QueryError> {
        let (start, end) = range(pairs, now)?;
        Ok(Self { start, end, query: present(pairs, "query").map(str::to_string) })
    }

    /// The matchers of `query`; none if it is not given or `{}`.
    pub(super) fn matchers(&self) -> Result<Vec<Matcher>, QueryError> {
        match &self.query {
            Some(text) => Ok(parse_selector(text)?),
            None => Ok(Vec::new()),
        }
    }
}

impl SeriesParams {
    /// Most selectors in one request.
    pub const MAX_SELECTORS: usize = 100;

    /// Decodes name and value pairs; the range as in [`RangeParams::decode`].
    ///
    /// # Errors
    /// 400 for a malformed time, for `end` before `start`, and for more than [`Self::MAX_SELECTORS`] selectors.
    pub fn decode(pairs: &[(String, String)], now: i64) -> Result<Self, QueryError> {
        let (start, end) = range(pairs, now)?;
        let mut selectors: Vec<String> =
            pairs.iter().filter(|(n, _)| n == "match" || n == "match[]").map(|(_, v)| v.clone()).collect();
        selectors.sort();
        selectors.dedup();
        if selectors.len() > Self::MAX_SELECTORS {
            let max = Self::MAX_SELECTORS;
            return Err(QueryError::bad_request(format!("more than {max} selectors in 'match': use fewer")));
        }
        Ok(Self { start, end, selectors })
    }

    /// The matchers of each selector. A single `{}`, or none at all, selects every stream; beside others `{}` is an
    /// error, as in Loki.
    pub(super) fn groups(&self) -> Result<Vec<Vec<Matcher>>, QueryError> {
        if self.selectors.is_empty() {
            return Ok(vec![Vec::new()]);
        }
        let mut groups = Vec::with_capacity(self.selectors.len());
        for text in &self.selectors {
            let matchers = parse_selector(text)?;
            if matchers.is_empty() && self.selectors.len() > 1 {
                return Err(QueryError::bad_request(format!("0 matchers in group: {text}")));
            }
            groups.push(matchers);
        }
        Ok(groups)
    }
}

/// The first value of a parameter, if it is there and not empty.
fn present<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
}

fn query(pairs: &[(String, String)]) -> Result<String, QueryError> {
    let missing =
        || QueryError::bad_request("parameter 'query' is missing: give a stream selector, such as {app=\"x\"}");
    present(pairs, "query").map(str::to_string).ok_or_else(missing)
}

fn limit(pairs: &[(String, String)]) -> Result<usize, QueryError> {
    let Some(text) = present(pairs, "limit") else { return Ok(DEFAULT_LIMIT) };
    let limit: i64 = text
        .parse()
        .map_err(|_| QueryError::bad_request(format!("could not parse 'limit' parameter: {text:?} is no number")))?;
    if limit <= 0 {
        return Err(QueryError::bad_request("limit must be a positive value"));
    }
    match usize::try_from(limit) {
        Ok(limit) if limit <= MAX_LIMIT => Ok(limit),
        _ => Err(QueryError::bad_request(format!("limit {limit} is above {MAX_LIMIT}: read in several requests"))),
    }
}

fn direction(pairs: &[(String, String)]) -> Result<Direction, QueryError> {
    match present(pairs, "direction") {
        None => Ok(Direction::Backward),
        Some(v) if v.eq_ignore_ascii_case("backward") => Ok(Direction::Backward),
        Some(v) if v.eq_ignore_ascii_case("forward") => Ok(Direction::Forward),
        Some(v) => Err(QueryError::bad_request(format!("invalid direction '{v}': use forward or backward"))),
    }
}

fn range(pairs: &[(String, String)], now: i64) -> Result<(i64, i64), QueryError> {
    let since = since(pairs)?;
    let end = time(pairs, "end")?.unwrap_or(now);
    let start = time(pairs, "start")?.unwrap_or_else(|| end.min(now).saturating_sub(since));
    if end < start {
        return Err(QueryError::bad_request("end timestamp must not be before or equal to start time"));
    }
    Ok((start, end))
}

fn since(pairs: &[(String, String)]) -> Result<i64, QueryError> {
    let Some(text) = present(pairs, "since") else { return Ok(HOUR) };
    duration(text).ok_or_else(|| {
        let reason = format!("could not parse 'since' parameter: {text:?} is no duration, such as 1h30m or 7d");
        QueryError::bad_request(reason)
    })
}

fn time(pairs: &[(String, String)], name: &str) -> Result<Option<i64>, QueryError> {
    let Some(text) = present(pairs, name) else { return Ok(None) };
    let malformed = || {
        QueryError::bad_request(format!(
            "could not parse '{name}' parameter: {text:?} is no Unix time (seconds or nanoseconds) and no RFC 3339 time"
        ))
    };
    timestamp(text).map(Some).ok_or_else(malformed)
}

/// Nanoseconds of a time parameter.
fn timestamp(text: &str) -> Option<i64> {
    if text.contains('.')
        && let Ok(seconds) = text.parse::<f64>()
    {
        return float_seconds(seconds);
    }
    match text.parse::<i64>() {
        Ok(seconds) if text.len() <= 10 => seconds.checked_mul(1_000_000_000),
        Ok(nanoseconds) => Some(nanoseconds),
        Err(_) => i64::try_from(text.parse::<Timestamp>().ok()?.as_nanosecond()).ok(),
    }
}

/// Milliseconds are as fine as a float of today's seconds is trusted, as in Loki.
fn float_seconds(seconds: f64) -> Option<i64> {
    let whole = seconds.trunc();
    if !(-9.2e9..=9.2e9).contains(&whole) {
        return None;
    }
    let milliseconds = ((seconds - whole) * 1000.0).round();
    (whole as i64).checked_mul(1_000_000_000)?.checked_add(milliseconds as i64 * 1_000_000)
}

/// Nanoseconds of a duration in Prometheus' or Go's form: `1h30m`, `7d`, `1.5s`, `250ms`.
fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (name, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let unit = unit(name)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        total = total.checked_add(whole.parse::<i64>().ok()?.checked_mul(unit)?)?;
        if !fraction.is_empty() {
            let fraction: f64 = format!("0.{fraction}").parse().ok()?;
            total = total.checked_add((fraction * unit as f64) as i64)?;
        }
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

fn unit(name: &str) -> Option<i64> {
    Some(match name {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => HOUR,
        "d" => 24 * HOUR,
        "w" => 7 * 24 * HOUR,
        "y" => 365 * 24 * HOUR,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_795_366_372_717_561_080;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(n, v)| ((*n).to_string(), (*v).to_string())).collect()
    }

    fn range_of(list: &[(&str, &str)]) -> Result<RangeParams, String> {
        let mut list = pairs(list);
        list.push(("query".into(), "{a=\"b\"}".into()));
        RangeParams::decode(&list, NOW).map_err(|e| {
            assert_eq!(e.status, 400);
            e.message
        })
    }

    #[test]
    fn times_are_decoded_as_loki_does() {
        let cases = [
            ("4000000000", Some(4_000_000_000_000_000_000)),
            ("1795364845127005532", Some(1_795_364_845_127_005_532)),
            ("1795364845.127", Some(1_795_364_845_127_000_000)),
            ("1.5", Some(1_500_000_000)),
            ("-1.5", Some(-1_500_000_000)),
            ("0", Some(0)),
            ("12345678901", Some(12_345_678_901)),
            ("2026-11-22T16:27:25Z", Some(1_795_364_845_000_000_000)),
            ("2026-11-22T17:27:25.127005532+01:00", Some(1_795_364_845_127_005_532)),
            ("9999999999", None),
            ("1e300.0", None),
            ("99999999999999999999", None),
            ("yesterday", None),
            ("inf.", None),
            ("9999-01-01T00:00:00Z", None),
        ];
        for (text, expected) in cases {
            assert_eq!(timestamp(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_decoded() {
        let cases = [
            ("1h30m", Some(5_400_000_000_000)),
            ("7d", Some(7 * 24 * HOUR)),
            ("1w", Some(7 * 24 * HOUR)),
            ("1.5s", Some(1_500_000_000)),
            ("250ms", Some(250_000_000)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("h", None),
            ("-1h", None),
            ("1x", None),
            ("1..5s", None),
            ("999999999y", None),
            ("99999999999999999999s", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text), expected, "{text}");
        }
    }

    #[test]
    fn defaults_are_lokis() {
        let p = range_of(&[]).unwrap();
        assert_eq!((p.start, p.end, p.limit, p.direction), (NOW - HOUR, NOW, 100, Direction::Backward));
        let p = range_of(&[("since", "5m")]).unwrap();
        assert_eq!((p.start, p.end), (NOW - 300_000_000_000, NOW));
        let p = range_of(&[("end", "2000")]).unwrap();
        assert_eq!((p.start, p.end), (2_000_000_000_000 - HOUR, 2_000_000_000_000));
        // An end in the future: `since` counts from now.
        let p = range_of(&[("end", "4000000000")]).unwrap();
        assert_eq!((p.start, p.end), (NOW - HOUR, 4_000_000_000_000_000_000));
        // Empty values count as absent, and the first value of a name counts.
        let p = range_of(&[("start", ""), ("limit", "3"), ("limit", "4"), ("direction", "FORWARD")]).unwrap();
        assert_eq!((p.start, p.limit, p.direction), (NOW - HOUR, 3, Direction::Forward));
    }

    #[test]
    fn bad_parameters_are_named() {
        let cases: [(&[(&str, &str)], &str); 9] = [
            (&[("start", "x")], "could not parse 'start' parameter: \"x\""),
            (&[("end", "now")], "could not parse 'end' parameter"),
            (&[("start", "2"), ("end", "1")], "end timestamp must not be before or equal to start time"),
            (&[("limit", "0")], "limit must be a positive value"),
            (&[("limit", "-1")], "limit must be a positive value"),
            (&[("limit", "many")], "could not parse 'limit' parameter"),
            (&[("limit", "1000001")], "limit 1000001 is above 1000000"),
            (&[("direction", "up")], "invalid direction 'up'"),
            (&[("interval", "5s")], "parameter 'interval' is not supported"),
        ];
        for (list, text) in cases {
            let message = range_of(list).expect_err(text);
            assert!(message.starts_with(text), "{message}");
        }
        let missing = RangeParams::decode(&[], NOW).unwrap_err();
        assert_eq!((missing.status, missing.message.contains("'query' is missing")), (400, true));
        assert!(range_of(&[("start", "5"), ("end", "5"), ("interval", "0s")]).is_ok());
    }

    #[test]
    fn series_selectors_are_united() {
        let decode = |list: &[(&str, &str)]| SeriesParams::decode(&pairs(list), NOW).unwrap();
        let p = decode(&[("match[]", "{a=\"b\"}"), ("match", "{c=\"d\"}"), ("match", "{a=\"b\"}")]);
        assert_eq!(p.groups().unwrap().len(), 2);
        for all in [decode(&[]), decode(&[("match", "{}")])] {
            let groups = all.groups().unwrap();
            assert_eq!((groups.len(), groups[0].len()), (1, 0));
        }
        let mixed = decode(&[("match", "{}"), ("match", "{a=\"b\"}")]).groups().unwrap_err();
        assert_eq!(mixed, QueryError::bad_request("0 matchers in group: {}"));
        assert!(decode(&[("match", "")]).groups().is_err());
        let many: Vec<_> = (0..101).map(|i| ("match".to_string(), format!("{{a=\"{i}\"}}"))).collect();
        assert!(SeriesParams::decode(&many, NOW).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_decoders_panic(text in "[0-9a-zT:.+µé-]{0,30}") {
            let _ = timestamp(&text);
            let _ = duration(&text);
        }
    }
}
