//! A server's wall clock, by libfaketime.
#![allow(dead_code, reason = "each target uses a part of it")]

use crate::server::skip;
use std::path::{Path, PathBuf};

/// A wall clock that is set while the server runs. The monotonic one goes on as it should.
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    pub fn new(dir: &Path) -> Option<Self> {
        let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
        let mut libraries = dirs.iter().map(|d| Path::new(d).join("faketime/libfaketime.so.1"));
        let Some(library) = libraries.find(|library| library.exists()) else {
            skip("libfaketime is not installed");
            return None;
        };
        Some(Self { library, file: dir.join("clock") })
    }

    /// Sets it; it runs from there.
    pub fn set(&self, time: &str) {
        self.write(&format!("@{time}\n"));
    }

    /// Lets it be ahead of the machine's clock by these seconds, or behind it.
    pub fn shift(&self, seconds: i64) {
        self.write(&format!("{seconds:+}\n"));
    }

    /// At once: a server that looks meanwhile sees no empty file.
    fn write(&self, text: &str) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
    }

    pub fn env(&self) -> [(&str, &str); 5] {
        [
            ("LD_PRELOAD", self.library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("TZ", "UTC"),
        ]
    }
}
