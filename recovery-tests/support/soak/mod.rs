//! The parts of the soak: what is pushed, the ledger, the server and its disk, the faults, the report.

pub mod bombs;
pub mod inflict;
pub mod ledger;
pub mod load;
pub mod push;
pub mod report;
pub mod rig;
pub mod samples;
pub mod slow;
