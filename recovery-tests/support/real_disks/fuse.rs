//! A file system that this process serves, until it is dropped.

use crate::server::{Mounted, skip};
use fuser::{BackgroundSession, Config, Filesystem, MountOption, Session};
use std::path::Path;
use std::time::{Duration, Instant};

pub struct Fuse {
    session: Option<BackgroundSession>,
    mounted: Option<Mounted>,
}

impl Fuse {
    /// `None` where that is not allowed.
    pub fn mount(files: impl Filesystem, at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("timberline-test".into()), MountOption::NoAtime];
        // A sync that takes its time holds nobody else up.
        config.n_threads = Some(3);
        match Session::new(files, at, &config).and_then(Session::spawn) {
            Ok(session) => Some(Self { session: Some(session), mounted: Some(Mounted::there(at)) }),
            Err(e) => {
                skip(&format!("a FUSE file system cannot be mounted here: {e}"));
                None
            }
        }
    }
}

impl Drop for Fuse {
    /// The kernel has forgotten it on return, unless somebody holds it for very long.
    fn drop(&mut self) {
        drop(self.mounted.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.session.as_ref().is_some_and(|s| !s.guard.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        drop(self.session.take());
    }
}
