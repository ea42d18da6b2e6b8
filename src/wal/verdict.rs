//! What follows when a part of the log does not hold: the decision table of `wal-format.md`, section 6, as a function.

use super::format::Kind;
use std::fmt;

/// A part of a data directory that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The file `identity`.
    Identity,
    /// A segment of the write-ahead log that another data directory has made.
    Volume,
    /// A copy of a segment header, or both.
    Header,
    /// A segment under the name of another one.
    Name,
    /// A segment that should be there.
    Missing,
    /// The end of a file.
    Cut,
    /// A group header, or what lies where one should.
    GroupHeader,
    /// The head or the tables of a record.
    RecordHead,
    /// The body of a record whose head holds, or a record that does not decode.
    Record(Kind),
    /// The same, of a type that this program does not know and may skip.
    UnknownRecord,
}

impl Part {
    /// All there are.
    pub fn all() -> impl Iterator<Item = Self> {
        let parts = [Self::Identity, Self::Volume, Self::Header, Self::Name, Self::Missing, Self::Cut];
        let inside = [Self::GroupHeader, Self::RecordHead, Self::UnknownRecord];
        let records = (0..=u8::MAX).filter_map(Kind::from_u8).map(Self::Record);
        parts.into_iter().chain(inside).chain(records)
    }

    /// The part that a record of this kind is.
    pub fn record(kind: Option<Kind>) -> Self {
        kind.map_or(Self::UnknownRecord, Self::Record)
    }
}

/// As in the table and in reports.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Volume => f.write_str("segment of another volume"),
            Self::Header => f.write_str("segment header"),
            Self::Name => f.write_str("segment under the name of another one"),
            Self::Missing => f.write_str("the segment is missing"),
            Self::Cut => f.write_str("end of the file is missing"),
            Self::GroupHeader => f.write_str("group header"),
            Self::RecordHead => f.write_str("record head"),
            Self::Record(kind) => write!(f, "record body ({})", kind.name()),
            Self::UnknownRecord => f.write_str("record body (unknown)"),
        }
    }
}

/// Where the part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind the end that the next Open tells.
    Void,
    /// It was synced, as a later group, an Open or a BlocksSynced proves; or it is a whole file.
    Durable,
    /// In what was written last, which nothing behind it proves to have been synced.
    Last,
    /// In a block segment that no record names.
    Unnamed,
}

impl Place {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Void, Self::Durable, Self::Last, Self::Unnamed];
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Bytes that nobody asks for.
    Nothing,
    /// A write that was cut before it was acknowledged, or cannot be told from one.
    Torn,
    /// Damage: it is told until somebody has acknowledged it, and with `on_damage: refuse` the log does not start.
    Damage,
}

/// What it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Nothing that was acknowledged.
    Nothing,
    /// The lines that it held, counted.
    Lines,
    /// The labels of the streams that it named: their lines are kept, and counted as unattributed.
    Labels,
    /// A chunk that is in the object store counts as not flushed: its lines may be seen twice.
    Twice,
}

/// How reading goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// As if nothing were there.
    Skip,
    /// At the next place where something proves itself: by 8 bytes inside a group, else by 4096.
    Resynchronise,
    /// With the other place that holds the same.
    UseOther,
    /// With the records of the block segment in place of its footer.
    ReadSegment,
    /// Not at all: the program does not start, and changes nothing.
    Refuse,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is.
    pub finding: Finding,
    /// What it costs.
    pub cost: Cost,
    /// How reading goes on.
    pub then: Then,
    /// Decisions may be lost, so every file of the block log that no Retiring names counts.
    pub every_file: bool,
}

/// Judges a part that does not hold. `elsewhere`: does what it told survive in another place? For a header, in the other
/// copy; for lines, in a block, in the object store or in another record; for the labels of a Series, in another definition;
/// for everything that can hold decisions about files, in a newer Open. `refuse` is `ingester.wal.on_damage`.
pub fn verdict(part: Part, place: Place, elsewhere: bool, refuse: bool) -> Verdict {
    use Part::{Cut, GroupHeader, Header, Identity, Missing, Name, Record, RecordHead, UnknownRecord, Volume};
    let whole_file = matches!(part, Identity | Volume | Header | Name | Missing | Cut);
    let finding = match place {
        _ if matches!(part, Identity | Volume) => Finding::Damage,
        Place::Void => Finding::Nothing,
        // Files are filled before they are used, and their headers synced.
        Place::Last | Place::Unnamed if !whole_file => Finding::Torn,
        Place::Durable | Place::Last | Place::Unnamed => Finding::Damage,
    };
    let cost = match part {
        _ if elsewhere && !matches!(part, Name | Missing | Cut | GroupHeader | RecordHead) => Cost::Nothing,
        Header | Name | Missing | Cut | GroupHeader | RecordHead => Cost::Lines,
        Record(Kind::Entries | Kind::Gap | Kind::Block) => Cost::Lines,
        Record(Kind::Series) => Cost::Labels,
        Record(Kind::ChunkFlushed) => Cost::Twice,
        Identity | Volume | Record(_) | UnknownRecord => Cost::Nothing,
    };
    let then = match part {
        Identity | Volume => Then::Refuse,
        _ if refuse && finding == Finding::Damage => Then::Refuse,
        GroupHeader | RecordHead if finding != Finding::Nothing => Then::Resynchronise,
        Header | Record(Kind::Block) if elsewhere && finding == Finding::Damage => Then::UseOther,
        Record(Kind::Footer) if finding == Finding::Damage => Then::ReadSegment,
        _ => Then::Skip,
    };
    let decides = matches!(part, Record(Kind::Open | Kind::BlocksSynced | Kind::Retiring) | GroupHeader | RecordHead);
    let decides = decides || matches!(part, Header | Name | Missing | Cut);
    let damage = finding == Finding::Damage;
    let cost = if damage { cost } else { Cost::Nothing };
    Verdict { finding, cost, then, every_file: damage && decides && !elsewhere }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of the table in the specification.
    struct Row<'a> {
        line: &'a str,
        part: &'a str,
        places: Vec<Place>,
        elsewhere: Option<bool>,
        follows: Verdict,
    }

    fn row(line: &str) -> Row<'_> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [part, places, elsewhere, finding, cost, then, files] = cells[..] else { panic!("{line}") };
        let place = |name: &str| match name.trim() {
            "void" => Place::Void,
            "durable" => Place::Durable,
            "last" => Place::Last,
            "unnamed" => Place::Unnamed,
            other => panic!("place {other}: {line}"),
        };
        let places = if places == "any" { Place::ALL.to_vec() } else { places.split(',').map(place).collect() };
        let elsewhere = match elsewhere {
            "any" => None,
            "yes" | "no" => Some(elsewhere == "yes"),
            other => panic!("elsewhere {other}: {line}"),
        };
        let finding = match finding {
            "–" => Finding::Nothing,
            "torn" => Finding::Torn,
            "damage" => Finding::Damage,
            other => panic!("{other}: {line}"),
        };
        let cost = match cost {
            "–" => Cost::Nothing,
            "lines" => Cost::Lines,
            "labels" => Cost::Labels,
            "twice" => Cost::Twice,
            other => panic!("{other}: {line}"),
        };
        let then = match then {
            "skip" => Then::Skip,
            "resynchronise" => Then::Resynchronise,
            "use the other" => Then::UseOther,
            "read the segment" => Then::ReadSegment,
            "refuse" => Then::Refuse,
            other => panic!("{other}: {line}"),
        };
        let every_file = match files {
            "as told" => false,
            "every file" => true,
            other => panic!("{other}: {line}"),
        };
        Row { line, part, places, elsewhere, follows: Verdict { finding, cost, then, every_file } }
    }

    impl Row<'_> {
        fn is_about(&self, part: Part, place: Place, elsewhere: bool) -> bool {
            let named = self.part == "any" || self.part.split(", ").any(|p| p == part.to_string());
            named && self.places.contains(&place) && self.elsewhere.is_none_or(|e| e == elsewhere)
        }
    }

    /// The table says what the function says, for all there is: every input has a row, and every row is used.
    #[test]
    fn the_table_of_the_specification_is_the_function() {
        let text = include_str!("../../wal-format.md");
        let table = text.split("<!-- verdicts -->").nth(1).expect("the table is marked");
        let rows: Vec<Row<'_>> = table.lines().filter(|l| l.starts_with('|')).skip(2).map(row).collect();
        let mut used = vec![0; rows.len()];
        let mut inputs = 0;
        for part in Part::all() {
            for (place, elsewhere) in Place::ALL.into_iter().flat_map(|p| [(p, true), (p, false)]) {
                let input = format!("{part}, {place:?}, elsewhere: {elsewhere}");
                let first = rows.iter().position(|r| r.is_about(part, place, elsewhere));
                let i = first.unwrap_or_else(|| panic!("no row: {input}"));
                used[i] += 1;
                assert_eq!(verdict(part, place, elsewhere, false), rows[i].follows, "{input}: {}", rows[i].line);
                let refused = verdict(part, place, elsewhere, true);
                let then = if refused.finding == Finding::Damage { Then::Refuse } else { rows[i].follows.then };
                assert_eq!(refused, Verdict { then, ..rows[i].follows }, "{input}, refused");
                inputs += 2;
            }
        }
        for (row, used) in rows.iter().zip(used) {
            assert!(used > 0, "nothing is judged by {}", row.line);
        }
        assert_eq!(inputs, 19 * 8 * 2);
    }
}
