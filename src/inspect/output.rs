//! What the commands print, in four formats. Commands hand rows of named cells to a [`Printer`]; it alone knows the
//! formats, so every command can be read by people and by programs.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Version of the names and types in `json`, `jsonl` and `logfmt` output. A name is never given another meaning
/// without a new version; new names may come at any time.
pub const SCHEMA_VERSION: u32 = 1;

/// How output is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: tables, sizes rounded.
    #[default]
    Table,
    /// One JSON document, exact numbers.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// One line of key=value pairs a row.
    Logfmt,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Not known or not applicable: `null`, left out of logfmt, `-` in tables.
    None,
    /// Text.
    Text(String),
    /// A number as it is.
    Count(u64),
    /// Bytes: rounded in tables, exact elsewhere.
    Size(u64),
    /// Nanoseconds since the Unix epoch; RFC 3339 everywhere.
    Time(i64),
    /// A log line: bytes that may not be UTF-8 (then `<name>_hex` in JSON).
    Line(Vec<u8>),
    /// Name and value pairs; a JSON object.
    Pairs(Vec<(String, String)>),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Cell {
    fn from(n: u64) -> Self {
        Self::Count(n)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

/// Named cells in the order of their columns. Names are lower case with underscores.
pub type Row = Vec<(&'static str, Cell)>;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Exactly one row: a JSON object, a table with a line for each cell.
    One,
    /// Any number of rows: a JSON array, a table with a line for each row. Tables are held in memory until they end.
    Many,
    /// Any number of rows, written as they come: a JSON array, plain lines instead of a table.
    Stream,
}

/// Writes sections of rows in one of the formats.
pub struct Printer<W: Write> {
    out: W,
    format: Format,
    color: bool,
    section: Option<(&'static str, Shape)>,
    /// Rows of the section that is being written.
    rows: usize,
    table: Option<comfy_table::Table>,
}

impl<W: Write> Printer<W> {
    /// `color` marks the verdict in tables; only for terminals.
    ///
    /// # Errors
    /// As the writer.
    pub fn new(mut out: W, format: Format, color: bool, command: &str) -> io::Result<Self> {
        if format == Format::Json {
            write!(out, "{{\"schema_version\":{SCHEMA_VERSION},\"command\":\"{command}\"")?;
        }
        Ok(Self { out, format, color, section: None, rows: 0, table: None })
    }

    /// Begins a section; ends the one before.
    ///
    /// # Errors
    /// As the writer.
    pub fn section(&mut self, name: &'static str, shape: Shape) -> io::Result<()> {
        self.end_section()?;
        self.section = Some((name, shape));
        if self.format == Format::Json {
            let open = if shape == Shape::One { "" } else { "[" };
            write!(self.out, ",\n\"{name}\":{open}")?;
        }
        Ok(())
    }

    /// Writes a row of the section.
    ///
    /// # Errors
    /// As the writer.
    pub fn row(&mut self, row: &Row) -> io::Result<()> {
        let Some((name, shape)) = self.section else { return Ok(()) };
        match self.format {
            Format::Json => {
                if self.rows > 0 {
                    self.out.write_all(b",\n")?;
                }
                self.out.write_all(b"{")?;
                self.json_cells(row, "")?;
                self.out.write_all(b"}")?;
            }
            Format::Jsonl => {
                write!(self.out, "{{\"schema_version\":{SCHEMA_VERSION},\"type\":\"{name}\"")?;
                self.json_cells(row, ",")?;
                self.out.write_all(b"}\n")?;
            }
            Format::Logfmt => self.logfmt(name, row)?,
            Format::Table if shape == Shape::Stream => self.plain(row)?,
            Format::Table => self.table_row(row, shape),
        }
        self.rows += 1;
        Ok(())
    }

    /// Hands on what was written.
    ///
    /// # Errors
    /// As the writer.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the output.
    ///
    /// # Errors
    /// As the writer.
    pub fn finish(mut self) -> io::Result<()> {
        self.end_section()?;
        if self.format == Format::Json {
            self.out.write_all(b"}\n")?;
        }
        self.out.flush()
    }

    fn end_section(&mut self) -> io::Result<()> {
        let Some((name, shape)) = self.section.take() else { return Ok(()) };
        self.rows = 0;
        match self.format {
            Format::Json if shape != Shape::One => self.out.write_all(b"]"),
            Format::Table => match self.table.take() {
                Some(table) if shape == Shape::Many => {
                    writeln!(self.out, "{}\n{}", name.replace('_', " "), table.trim_fmt())
                }
                Some(table) => writeln!(self.out, "{}", table.trim_fmt()),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn json_cells(&mut self, row: &Row, before: &str) -> io::Result<()> {
        for (i, (name, cell)) in row.iter().enumerate() {
            self.out.write_all(if i == 0 { before.as_bytes() } else { b"," })?;
            match cell {
                Cell::Line(bytes) if std::str::from_utf8(bytes).is_err() => {
                    write!(self.out, "\"{name}_hex\":\"{}\"", hex(bytes))?;
                }
                cell => {
                    write!(self.out, "\"{name}\":")?;
                    serde_json::to_writer(&mut self.out, &json(cell))?;
                }
            }
        }
        Ok(())
    }

    fn logfmt(&mut self, section: &str, row: &Row) -> io::Result<()> {
        write!(self.out, "type={section}")?;
        for (name, cell) in row {
            match cell {
                Cell::None => {}
                Cell::Count(n) | Cell::Size(n) => write!(self.out, " {name}={n}")?,
                Cell::Time(ns) => write!(self.out, " {name}={}", rfc3339(*ns))?,
                Cell::Text(text) => write!(self.out, " {name}={}", logfmt_value(text))?,
                Cell::Line(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => write!(self.out, " {name}={}", logfmt_value(text))?,
                    Err(_) => write!(self.out, " {name}_hex={}", hex(bytes))?,
                },
                Cell::Pairs(pairs) if pairs.is_empty() => {}
                Cell::Pairs(pairs) => write!(self.out, " {name}={}", logfmt_value(&pairs_text(pairs)))?,
            }
        }
        self.out.write_all(b"\n")
    }

    fn plain(&mut self, row: &Row) -> io::Result<()> {
        let mut first = true;
        for (_, cell) in row.iter().filter(|(_, c)| !matches!(c, Cell::None)) {
            if matches!(cell, Cell::Pairs(p) if p.is_empty()) {
                continue;
            }
            let gap = if first { "" } else { "  " };
            write!(self.out, "{gap}{}", human(cell))?;
            first = false;
        }
        self.out.write_all(b"\n")
    }

    fn table_row(&mut self, row: &Row, shape: Shape) {
        let table = self.table.get_or_insert_with(|| new_table(row, shape));
        if shape == Shape::Many {
            table.add_row(row.iter().map(|(_, cell)| human(cell)).collect::<Vec<_>>());
            return;
        }
        for (name, cell) in row {
            let mut text = human(cell);
            if self.color && *name == "verdict" {
                let code = if text == "sound" { 32 } else { 31 };
                text = format!("\x1b[{code}m{text}\x1b[0m");
            }
            table.add_row(vec![name.replace('_', " "), text]);
        }
    }
}

fn new_table(row: &Row, shape: Shape) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if shape == Shape::Many {
        table.set_header(row.iter().map(|(name, _)| name.replace('_', " ").to_uppercase()).collect::<Vec<_>>());
        for (i, (_, cell)) in row.iter().enumerate() {
            if let (Cell::Count(_) | Cell::Size(_), Some(column)) = (cell, table.column_mut(i)) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
    }
    table
}

fn json(cell: &Cell) -> serde_json::Value {
    match cell {
        Cell::None => serde_json::Value::Null,
        Cell::Text(text) => text.as_str().into(),
        Cell::Count(n) | Cell::Size(n) => (*n).into(),
        Cell::Time(ns) => rfc3339(*ns).into(),
        Cell::Line(bytes) => String::from_utf8_lossy(bytes).into(),
        Cell::Pairs(pairs) => {
            pairs.iter().map(|(n, v)| (n.clone(), v.as_str().into())).collect::<serde_json::Map<_, _>>().into()
        }
    }
}

fn human(cell: &Cell) -> String {
    match cell {
        Cell::None => "-".to_string(),
        Cell::Text(text) => visible(text).into_owned(),
        Cell::Count(n) => n.to_string(),
        Cell::Size(n) => human_size(*n),
        Cell::Time(ns) => rfc3339(*ns),
        Cell::Line(bytes) => visible_bytes(bytes),
        Cell::Pairs(pairs) => visible(&pairs_text(pairs)).into_owned(),
    }
}

fn pairs_text(pairs: &[(String, String)]) -> String {
    let texts: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={}", logfmt_value(v))).collect();
    texts.join(" ")
}

/// Nanoseconds since the Unix epoch as RFC 3339, in UTC.
pub fn rfc3339(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| format!("{ns} ns"), |t| t.to_string())
}

/// Bytes with a binary unit and three digits, such as `63.9 MiB`.
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = "KiB";
    for next in UNITS.iter().skip(1) {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Does a terminal act on this character, or show the text around it in another order?
fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_visible(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if is_hidden(c) && u32::from(c) < 0x100 => {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        }
        c if is_hidden(c) => {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// Text that a terminal shows and does not act on: control and direction characters become escapes.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    text.chars().for_each(|c| push_visible(&mut out, c));
    Cow::Owned(out)
}

/// As [`visible`], for bytes: those that are not UTF-8 become `\xNN`.
fn visible_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push_visible(&mut out, c));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn logfmt_value(text: &str) -> Cow<'_, str> {
    let plain = |c: char| !is_hidden(c) && !c.is_whitespace() && !matches!(c, '"' | '=' | '\\');
    if !text.is_empty() && text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        push_visible(&mut out, c);
    }
    out.push('"');
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: Format, shape: Shape, rows: &[Row]) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, format, false, "test").unwrap();
        printer.section("things", shape).unwrap();
        rows.iter().for_each(|row| printer.row(row).unwrap());
        printer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    fn row(line: &[u8]) -> Row {
        vec![
            ("position", "1:8192".into()),
            ("size", Cell::Size(1536)),
            ("at", Cell::Time(1_500_000_000)),
            ("none", Cell::None),
            ("metadata", Cell::Pairs(vec![("a".into(), "b c".into())])),
            ("line", Cell::Line(line.to_vec())),
        ]
    }

    #[test]
    fn json_is_one_document_and_jsonl_one_object_a_line() {
        let rows = [row(b"plain"), row(b"\xff\x1b[31m"), row(b"\x1b]0;x\x07")];
        let document: serde_json::Value = serde_json::from_str(&print(Format::Json, Shape::Many, &rows)).unwrap();
        assert_eq!(document["schema_version"], 1);
        assert_eq!(document["things"][0]["size"], 1536);
        assert_eq!(document["things"][0]["at"], "1970-01-01T00:00:01.5Z");
        assert_eq!(document["things"][0]["metadata"]["a"], "b c");
        assert_eq!(document["things"][1]["line_hex"], "ff1b5b33316d");
        let lines = print(Format::Jsonl, Shape::Stream, &rows);
        assert_eq!(lines.lines().count(), 3);
        for line in lines.lines() {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&object["schema_version"], &object["type"]), (&1.into(), &"things".into()));
        }
        for shape in [Shape::Many, Shape::Stream, Shape::One] {
            let rows: &[Row] = if shape == Shape::One { &rows[..1] } else { &[] };
            serde_json::from_str::<serde_json::Value>(&print(Format::Json, shape, rows)).unwrap();
        }
    }

    #[test]
    fn no_control_character_reaches_a_terminal() {
        let rows = [row(b"\x1b[2J\x07\xc2\x9b31m \xe2\x80\xae \xff tab\t")];
        for format in [Format::Table, Format::Logfmt, Format::Json, Format::Jsonl] {
            for shape in [Shape::Many, Shape::Stream, Shape::One] {
                let text = print(format, shape, &rows);
                assert!(!text.chars().any(|c| is_hidden(c) && c != '\n'), "{format:?} {shape:?}: {text:?}");
            }
        }
        assert_eq!(visible("a\x1bb\u{202e}"), "a\\x1bb\\u202e");
    }

    #[test]
    fn logfmt_quotes_what_needs_it() {
        let text = print(Format::Logfmt, Shape::Many, &[row(b"say \"hi\" \\ =\n")]);
        assert_eq!(
            text,
            "type=things position=1:8192 size=1536 at=1970-01-01T00:00:01.5Z metadata=\"a=\\\"b c\\\"\" \
             line=\"say \\\"hi\\\" \\\\ =\\n\"\n"
        );
    }

    #[test]
    fn sizes_are_rounded_with_a_unit() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (67_108_864, "64.0 MiB"), (1_048_575, "1.0 MiB")];
        for (bytes, text) in cases {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(human_size(u64::MAX), "16.0 EiB");
    }
}
