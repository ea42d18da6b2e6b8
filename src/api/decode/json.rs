//! JSON pushes, parsed in place: strings are unescaped where they lie, and spans point to them.
//!
//! Loki's parsers take more than the JSON crates do (lines that are no UTF-8, bytes after the value), so this is one of
//! its own. Where a key comes twice the last one counts. The value's shape is one of
//!
//! ```text
//! v1      {"streams": [{"stream": {name: value, ..}, "values": [["<nanoseconds>", "<line>", {name: value, ..}], ..]}]}
//! legacy  {"streams": [{"labels": "{a=\"b\"}", "entries": [{"ts": "<RFC 3339>", "line": "<line>"}, ..]}]}
//! ```
//!
//! Both are taken on both paths. A stream object that has keys of both shapes is read in the shape of its path.

use super::builder::{Builder, Mark, check_labels_size};
use super::{DecodeLimits, Lease};
use crate::model::{MetadataPair, PushError, PushRequest, Span};
use memchr::memchr2;

/// Nesting of values that are skipped.
const MAX_DEPTH: u8 = 64;
/// `="", ` around a name and a value in a label text.
const LABEL_OVERHEAD: usize = 5;

/// Decodes a JSON text that is not compressed any more. It becomes the arena of the push; the caller's lease covers it.
pub(super) fn decode(
    text: Vec<u8>,
    v1: bool,
    limits: &DecodeLimits,
    lease: &mut Lease,
) -> Result<PushRequest, PushError> {
    let path = if v1 { Shape::V1 } else { Shape::Legacy };
    lease.bound(text.len());
    let builder = Builder::new(limits, lease);
    let mut decoder = Decoder { text, at: 0, path, builder, pairs: Vec::new(), rendered: Vec::new() };
    decoder.push()?;
    decoder.finish()
}

type Result<T, E = PushError> = std::result::Result<T, E>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    V1,
    Legacy,
}

/// What a key of a stream object means.
enum StreamKey {
    Labels(Shape),
    Entries(Shape),
    Unknown,
}

struct Decoder<'a> {
    text: Vec<u8>,
    /// The next byte.
    at: usize,
    path: Shape,
    builder: Builder<'a>,
    /// Labels of the stream that is being read.
    pairs: Vec<MetadataPair>,
    /// Label texts made from v1 label maps. They are put behind `text` at the end; their spans say so already.
    rendered: Vec<u8>,
}

impl Decoder<'_> {
    fn push(&mut self) -> Result<()> {
        self.skip_space();
        if self.at == self.text.len() {
            return Err(PushError::bad_request("EOF"));
        }
        if self.null() {
            return Ok(());
        }
        let start = self.builder.mark();
        self.object(|d, key| if d.is_key(key, "streams") { d.streams(start) } else { d.skip(MAX_DEPTH) })
    }

    fn finish(mut self) -> Result<PushRequest> {
        let len = self.text.len() + self.rendered.len();
        self.builder.lease.grow(&mut self.text, len)?;
        self.text.extend_from_slice(&self.rendered);
        self.builder.lease.give_back(self.rendered.capacity());
        self.builder.lease.give_back(self.pairs.capacity() * size_of::<MetadataPair>());
        Ok(self.builder.finish(self.text))
    }

    fn streams(&mut self, start: Mark) -> Result<()> {
        self.builder.rewind(start);
        self.array_or_null(|d| if d.null() { Ok(()) } else { d.stream() })
    }

    fn stream(&mut self) -> Result<()> {
        let mark = self.builder.mark();
        let mut labels = Span::default();
        // Where the values of the other shape's keys begin. They count only if there is no key of the path's shape.
        let (mut other_labels, mut other_entries) = (None, None);
        let mut in_shape = false;
        self.object(|d, key| {
            match d.stream_key(key) {
                StreamKey::Labels(shape) if shape == d.path => {
                    in_shape = true;
                    labels = d.labels(shape)?;
                    return Ok(());
                }
                StreamKey::Entries(shape) if shape == d.path => {
                    in_shape = true;
                    return d.entries(shape, mark);
                }
                StreamKey::Labels(shape) => other_labels = Some((shape, d.at)),
                StreamKey::Entries(shape) => other_entries = Some((shape, d.at)),
                StreamKey::Unknown => {}
            }
            d.skip(MAX_DEPTH)
        })?;
        let end = self.at;
        if let (Some((shape, at)), false) = (other_labels, in_shape) {
            self.at = at;
            labels = self.labels(shape)?;
        }
        if let (Some((shape, at)), false) = (other_entries, in_shape) {
            self.at = at;
            self.entries(shape, mark)?;
        }
        self.at = end;
        self.builder.add_stream(labels, mark)
    }

    fn stream_key(&self, key: Span) -> StreamKey {
        match key.of(&self.text) {
            b"stream" => StreamKey::Labels(Shape::V1),
            b"values" => StreamKey::Entries(Shape::V1),
            key if key.eq_ignore_ascii_case(b"labels") => StreamKey::Labels(Shape::Legacy),
            key if key.eq_ignore_ascii_case(b"entries") => StreamKey::Entries(Shape::Legacy),
            _ => StreamKey::Unknown,
        }
    }

    /// Loki's reader of the outer objects does not look at case.
    fn is_key(&self, key: Span, name: &str) -> bool {
        key.of(&self.text).eq_ignore_ascii_case(name.as_bytes())
    }

    fn labels(&mut self, shape: Shape) -> Result<Span> {
        match shape {
            Shape::V1 => self.label_map(),
            Shape::Legacy => self.utf8_string("labels"),
        }
    }

    fn entries(&mut self, shape: Shape, mark: Mark) -> Result<()> {
        self.builder.rewind(mark);
        match shape {
            Shape::V1 => self.array_or_null(|d| if d.null() { Ok(()) } else { d.entry() }),
            Shape::Legacy => self.array_or_null(|d| if d.null() { Ok(()) } else { d.legacy_entry() }),
        }
    }

    fn entry(&mut self) -> Result<()> {
        let first_metadata = self.builder.metadata.len();
        let (mut timestamp, mut line) = (None, Span::default());
        let mut element = 0_usize;
        self.array(|d| {
            match element {
                0 => timestamp = Some(d.nanoseconds()?),
                1 => line = d.string("the line of an entry")?,
                2 => d.metadata_object()?,
                _ => d.skip(MAX_DEPTH)?,
            }
            element += 1;
            Ok(())
        })?;
        let timestamp = timestamp.ok_or_else(|| self.error("an entry has no timestamp"))?;
        self.builder.add_entry(timestamp, line, first_metadata)
    }

    fn metadata_object(&mut self) -> Result<()> {
        self.object(|d, name| {
            d.check_utf8(name, "a name of structured metadata")?;
            let value = d.utf8_string("a value of structured metadata")?;
            d.builder.add_metadata(MetadataPair { name, value })
        })
    }

    fn legacy_entry(&mut self) -> Result<()> {
        let first_metadata = self.builder.metadata.len();
        let (mut timestamp, mut line) = (None, Span::default());
        self.object(|d, key| {
            if d.null() {
                Ok(())
            } else if d.is_key(key, "ts") {
                timestamp = Some(d.rfc3339()?);
                Ok(())
            } else if d.is_key(key, "line") {
                line = d.string("the line of an entry")?;
                Ok(())
            } else {
                d.skip(MAX_DEPTH)
            }
        })?;
        let timestamp = timestamp.ok_or_else(|| self.error("an entry has no timestamp"))?;
        self.builder.add_entry(timestamp, line, first_metadata)
    }

    fn nanoseconds(&mut self) -> Result<i64> {
        let text = self.string("a timestamp")?;
        parse_integer(text.of(&self.text))
            .ok_or_else(|| self.error("a timestamp is not the decimal number of nanoseconds since 1970 in 64 bits"))
    }

    fn rfc3339(&mut self) -> Result<i64> {
        let span = self.string("a timestamp")?;
        let time = std::str::from_utf8(span.of(&self.text)).ok().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        time.and_then(|t| i64::try_from(t.as_nanosecond()).ok())
            .ok_or_else(|| self.error("a timestamp is not in the format of RFC 3339 or not between 1677 and 2262"))
    }

    /// A v1 label map, rendered as a label text. Values that are no strings count as their JSON text.
    fn label_map(&mut self) -> Result<Span> {
        self.pairs.clear();
        let mut size = 0;
        self.object(|d, name| {
            d.check_label_name(name)?;
            let value = if d.peek() == Some(b'"') { d.string("a label's value")? } else { d.raw_value()? };
            d.check_utf8(value, "a label's value")?;
            size += LABEL_OVERHEAD + name.len as usize + quoted_len(value.of(&d.text));
            check_labels_size(size)?;
            Ok(d.builder.lease.push(&mut d.pairs, MetadataPair { name, value })?)
        })?;
        self.render_labels(size)
    }

    /// `=` would let one name smuggle in a second label; the grammar's other rules are checked with the label text.
    fn check_label_name(&self, name: Span) -> Result<()> {
        self.check_utf8(name, "a label's name")?;
        if memchr::memchr(b'=', name.of(&self.text)).is_some() {
            return Err(self.error("a label's name contains \"=\""));
        }
        Ok(())
    }

    fn render_labels(&mut self, size: usize) -> Result<Span> {
        let text = &self.text;
        // Stable, so that of equal names the last one stays last.
        self.pairs.sort_by(|a, b| a.name.of(text).cmp(b.name.of(text)));
        let needed = self.rendered.len() + size + 2;
        if needed > self.rendered.capacity() {
            let capacity = needed.max(self.rendered.capacity() * 2);
            self.builder.lease.grow(&mut self.rendered, capacity)?;
        }
        let start = self.rendered.len();
        self.rendered.push(b'{');
        for (i, pair) in self.pairs.iter().enumerate() {
            let name = pair.name.of(text);
            if self.pairs.get(i + 1).is_some_and(|next| next.name.of(text) == name) {
                continue;
            }
            if self.rendered.len() > start + 1 {
                self.rendered.extend_from_slice(b", ");
            }
            self.rendered.extend_from_slice(name);
            self.rendered.push(b'=');
            quote(pair.value.of(text), &mut self.rendered);
        }
        self.rendered.push(b'}');
        Ok(Span::new(text.len() + start, self.rendered.len() - start))
    }
}

/// Bytes of a value between its quotes.
fn quoted_len(value: &[u8]) -> usize {
    let more = |byte: &u8| match byte {
        b'"' | b'\\' => 1,
        0..0x20 => 3,
        _ => 0,
    };
    value.len() + value.iter().map(more).sum::<usize>()
}

/// A quoted label value as the label grammar reads it. It is parsed again and made canonical with the labels.
fn quote(value: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for &byte in value {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => {
                let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
                out.extend_from_slice(&[b'\\', b'x', high, low]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', digits) => (true, digits),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_i64, |sum, byte| {
        let digit = i64::from(byte.wrapping_sub(b'0'));
        let sum = sum.checked_mul(10).filter(|_| digit < 10)?;
        if negative { sum.checked_sub(digit) } else { sum.checked_add(digit) }
    })
}

/// The grammar of JSON.
impl Decoder<'_> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(what))
    }

    /// Takes `null`, if it is there.
    fn null(&mut self) -> bool {
        self.literal(b"null")
    }

    #[inline]
    fn literal(&mut self, word: &[u8]) -> bool {
        let found = self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word));
        self.at += if found { word.len() } else { 0 };
        found
    }

    /// An object; `member` is called behind the colon and reads the value.
    fn object(&mut self, mut member: impl FnMut(&mut Self, Span) -> Result<()>) -> Result<()> {
        self.expect(b'{', "an object")?;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            let key = self.string("a key")?;
            self.skip_space();
            self.expect(b':', "\":\"")?;
            self.skip_space();
            member(self, key)?;
            if self.last(b'}', "\",\" or \"}\"")? {
                return Ok(());
            }
        }
    }

    fn array_or_null(&mut self, element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if self.null() { Ok(()) } else { self.array(element) }
    }

    fn array(&mut self, mut element: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(b'[', "an array")?;
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            element(self)?;
            if self.last(b']', "\",\" or \"]\"")? {
                return Ok(());
            }
        }
    }

    /// After a value: takes the comma, or the end of the object or array.
    #[inline]
    fn last(&mut self, end: u8, what: &str) -> Result<bool> {
        self.skip_space();
        match self.peek() {
            Some(byte) if byte == b',' || byte == end => {
                self.at += 1;
                Ok(byte == end)
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn utf8_string(&mut self, what: &str) -> Result<Span> {
        let span = self.string(what)?;
        self.check_utf8(span, what)?;
        Ok(span)
    }

    fn check_utf8(&self, span: Span, what: &str) -> Result<()> {
        match std::str::from_utf8(span.of(&self.text)) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.error(&format!("{what} is not valid UTF-8"))),
        }
    }

    /// A string, unescaped in place: its escaped form is never shorter.
    fn string(&mut self, what: &str) -> Result<Span> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected(&format!("{what} (a string)")));
        }
        let start = self.at + 1;
        self.at = start;
        self.plain_run()?;
        let mut end = self.at;
        while self.peek() == Some(b'\\') {
            end = self.escape(end)?;
            let run = self.at;
            self.plain_run()?;
            self.text.copy_within(run..self.at, end);
            end += self.at - run;
        }
        self.at += 1;
        Ok(Span::new(start, end - start))
    }

    /// Goes to the next quote or backslash.
    #[inline]
    fn plain_run(&mut self) -> Result<()> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(len) = memchr2(b'"', b'\\', rest) else {
            self.at = self.text.len();
            return Err(self.unexpected("the end of a string"));
        };
        if has_control(rest.get(..len).unwrap_or_default()) {
            return Err(self.error("a control character in a string is not escaped"));
        }
        self.at += len;
        Ok(())
    }

    /// Replaces the escape at `self.at` by what it means, at `to`, and gives the end of that.
    fn escape(&mut self, to: usize) -> Result<usize> {
        let byte = match self.text.get(self.at + 1) {
            Some(b'u') => return self.unicode_escape(to),
            Some(&byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 8,
            Some(b'f') => 12,
            _ => return Err(self.error("a string has an invalid escape")),
        };
        self.at += 2;
        Ok(self.put(&[byte], to))
    }

    fn unicode_escape(&mut self, to: usize) -> Result<usize> {
        let first = self.code_unit()?;
        let code = match first {
            0xd800..0xdc00 => {
                let second = self.code_unit()?;
                if !(0xdc00..0xe000).contains(&second) {
                    return Err(self.error("a string has a lone surrogate"));
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            _ => first,
        };
        let Some(c) = char::from_u32(code) else {
            return Err(self.error("a string has a lone surrogate"));
        };
        Ok(self.put(c.encode_utf8(&mut [0; 4]).as_bytes(), to))
    }

    /// `\uXXXX`
    fn code_unit(&mut self) -> Result<u32> {
        let digits = match self.text.get(self.at..self.at + 6) {
            Some([b'\\', b'u', digits @ ..]) => digits,
            _ => return Err(self.error("a string has an incomplete \\u escape or a lone surrogate")),
        };
        let unit = digits.iter().try_fold(0, |sum, d| Some(sum << 4 | char::from(*d).to_digit(16)?));
        self.at += 6;
        unit.ok_or_else(|| self.error("a string has an invalid \\u escape"))
    }

    fn put(&mut self, bytes: &[u8], to: usize) -> usize {
        let end = to + bytes.len();
        // An escape is longer than its meaning, so `end` is at most `self.at`.
        if let Some(place) = self.text.get_mut(to..end) {
            place.copy_from_slice(bytes);
        }
        end
    }

    /// A value's own text.
    fn raw_value(&mut self) -> Result<Span> {
        let start = self.at;
        self.skip(MAX_DEPTH)?;
        Ok(Span::new(start, self.at - start))
    }

    /// Goes behind a value without changing it.
    fn skip(&mut self, depth: u8) -> Result<()> {
        match self.peek() {
            Some(b'"') => self.skip_string(),
            Some(b'{' | b'[') if depth == 0 => Err(self.error(&format!("values are nested deeper than {MAX_DEPTH}"))),
            Some(b'{') => self.skip_members(depth - 1),
            Some(b'[') => self.array(|d| d.skip(depth - 1)),
            Some(b'-' | b'0'..=b'9') => self.skip_number(),
            _ if self.literal(b"true") || self.literal(b"false") || self.null() => Ok(()),
            _ => Err(self.unexpected("a value")),
        }
    }

    /// Not `object`, which would unescape the keys.
    fn skip_members(&mut self, depth: u8) -> Result<()> {
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            self.skip_string()?;
            self.skip_space();
            self.expect(b':', "\":\"")?;
            self.skip_space();
            self.skip(depth)?;
            if self.last(b'}', "\",\" or \"}\"")? {
                return Ok(());
            }
        }
    }

    fn skip_string(&mut self) -> Result<()> {
        self.expect(b'"', "a string")?;
        loop {
            self.plain_run()?;
            if self.peek() == Some(b'"') {
                self.at += 1;
                return Ok(());
            }
            // A backslash, and what it escapes.
            self.at = (self.at + 2).min(self.text.len());
        }
    }

    fn skip_number(&mut self) -> Result<()> {
        self.at += usize::from(self.peek() == Some(b'-'));
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.skip_digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.skip_digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(self.unexpected("a digit")) }
    }

    #[cold]
    fn unexpected(&self, what: &str) -> PushError {
        match self.peek() {
            None => PushError::bad_request(format!("unexpected EOF: the JSON push ends where {what} is expected")),
            Some(byte) => self.error(&format!("expected {what}, found \"{}\"", byte.escape_ascii())),
        }
    }

    #[cold]
    fn error(&self, what: &str) -> PushError {
        PushError::bad_request(format!("invalid JSON push at byte {}: {what}", self.at))
    }
}

/// No early exit: the compiler makes this a few vector instructions.
#[inline]
fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |found, byte| found | (*byte < 0x20))
}
