//! Arguments of the commands that another room runs.

use super::entries::Filter;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What `import` reads.
#[derive(Clone, Debug, clap::Args)]
pub struct ImportArgs {
    /// Directory of Loki's write-ahead log (ingester.wal.dir), with segments and checkpoints; nothing in it is changed
    #[arg(long, value_name = "LOKI_DIR")]
    pub from_loki: PathBuf,
}

/// What `bench` measures.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// How long syncs of each size are measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

/// What `replay` pushes, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayArgs {
    /// The server: http://HOST:PORT or https://HOST:PORT; a path replaces /loki/api/v1/push
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Only what is durable (default)
    #[arg(long, conflicts_with = "all")]
    pub acked: bool,
    /// Also records above the durable end, which may never have been acknowledged
    #[arg(long)]
    pub all: bool,
    /// At most so many lines (5000) or bytes (4MB) a second
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,
    /// Remember here how far the server has everything, and go on from there
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Push the lines of a tenant as another one; may be given several times
    #[arg(long, value_name = "OLD=NEW")]
    pub tenant_map: Vec<Mapping>,
    /// Bytes of lines in a push, at most (a longer line goes alone)
    #[arg(long, value_name = "BYTES", default_value = "1MB")]
    pub batch_size: Bytes,
    /// How long one push is tried again when the server is busy or away
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub give_up_after: Duration,
    /// Authorities that sign the server's certificate, PEM; those of the system if left out
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Which lines
    #[command(flatten)]
    pub filter: Filter,
}

/// A speed limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Lines a second.
    Lines(u64),
    /// Bytes of lines a second.
    Bytes(u64),
}

impl FromStr for Rate {
    type Err = String;

    /// `5000` lines, `4MB`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected lines a second such as 5000, or bytes a second such as 512KB or 4MB".to_string();
        let rate = match text.parse() {
            Ok(lines) => Self::Lines(lines),
            Err(_) => Self::Bytes(text.parse::<Bytes>().map_err(|_| wrong())?.0),
        };
        if matches!(rate, Self::Lines(0) | Self::Bytes(0)) { Err(wrong()) } else { Ok(rate) }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    /// `1048576`, `512KB`, `4MB`, `1GB`: powers of 1024, as in the configuration.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected bytes such as 65536, 512KB or 4MB".to_string();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
        let factor: u64 = match unit {
            "" | "B" => 1,
            "KB" | "KiB" => 1 << 10,
            "MB" | "MiB" => 1 << 20,
            "GB" | "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        bytes.filter(|n| *n > 0).map(Self).ok_or_else(wrong)
    }
}

/// One tenant's name, and the one that it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// In the log.
    pub old: String,
    /// At the server.
    pub new: String,
}

impl FromStr for Mapping {
    type Err = String;

    /// `old=new`. Tenants have no `=` in their names.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((old, new)) if !old.is_empty() => {
                crate::model::Tenant::new(new).map_err(|e| e.to_string())?;
                Ok(Self { old: old.to_string(), new: new.to_string() })
            }
            _ => Err("expected OLD=NEW, two names of tenants".to_string()),
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    parsed.ok_or_else(|| "expected a duration such as 90s or 10m".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_sizes_and_mappings_are_read() {
        assert_eq!("5000".parse(), Ok(Rate::Lines(5000)));
        assert_eq!("4MB".parse(), Ok(Rate::Bytes(4 << 20)));
        for wrong in ["", "0", "0MB", "-1", "4 MB", "4TB", "MB", "99999999999999999999", "99999999999GB"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        assert_eq!("a=b".parse(), Ok(Mapping { old: "a".into(), new: "b".into() }));
        for wrong in ["a", "=b", "a=", "a=b/c"] {
            assert!(wrong.parse::<Mapping>().is_err(), "{wrong}");
        }
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert!(duration("-1s").is_err() && duration("soon").is_err());
    }
}
