//! Disks that a kernel mounts, and that lose or refuse what real ones do.
#![allow(dead_code, reason = "each kind of disk is used by some tests")]

pub mod ext4;
mod fuse;
pub mod lossy;
pub mod recorder;
