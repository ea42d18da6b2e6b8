//! A hunt for one failure: what the layers of the simulator do, stopped at the first one. For tests that plant a bug.

use super::damage::damage;
use super::explore::{Depth, crashes, faults};
use super::node::Script;
use super::node_explore::{node_crashes, node_faults};
use super::report::Layer;
use super::workload::Workload;
use std::time::Duration;

/// What is tried on each workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prey {
    /// Every crash point, and crashes inside recovery.
    Crashes,
    /// Failing calls, one of so many by seed, each with a crash behind it.
    Faults(u64),
    /// Changed bytes; of long records one byte of so many.
    Damage(u64),
}

/// Looks for a state that breaks a rule, on all workloads for one prey after the other; returns the first failure with the line
/// that shows it again, or `None` when there is none or the time is up. Does not panic.
pub fn hunt(prey: &[Prey], list: &[Workload], depth: &Depth, budget: Duration) -> Option<String> {
    let layer = Layer::hunting(budget);
    for prey in prey {
        layer.each(list, 4, |w| match prey {
            Prey::Crashes => crashes(&layer, w, depth),
            Prey::Faults(every) => faults(&layer, w, depth, *every),
            Prey::Damage(every) => damage(&layer, w, *every),
        });
    }
    layer.first_failure()
}

/// As [`hunt`], on scripts of a whole ingester with both logs. There is no damage here.
pub fn hunt_node(prey: &[Prey], list: &[Script], depth: &Depth, budget: Duration) -> Option<String> {
    let layer = Layer::hunting(budget);
    for prey in prey {
        layer.each(list, 4, |s| match prey {
            Prey::Crashes => node_crashes(&layer, s, depth, true),
            Prey::Faults(every) => node_faults(&layer, s, depth, *every),
            Prey::Damage(_) => {}
        });
    }
    layer.first_failure()
}
