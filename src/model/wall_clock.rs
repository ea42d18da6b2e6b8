use parking_lot::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The machine's wall clock, and what speaks against it. Lines are refused by their time, and clients drop what is refused: while the
/// clock is in doubt, that must not be the last word.
///
/// A clock is in doubt when it has moved by more than a minute against the monotonic clock, or when it is more than ten minutes behind
/// what the write-ahead log has seen; until it is back where it should be, and at most for an hour: then somebody means it.
#[derive(Default)]
pub struct WallClock(Mutex<Looks>);

/// Somebody has set the clock: it does not drift that far between two looks.
const STEP: i64 = 60 * SECOND;
const BEHIND: i64 = 600 * SECOND;
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);
const SECOND: i64 = 1_000_000_000;

#[derive(Default)]
struct Looks {
    last: Option<(i64, Instant)>,
    doubt: Option<(Doubt, Instant)>,
}

/// Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// How far it was set, forward or back.
    Set(i64),
    /// What the log has seen.
    Behind(i64),
}

impl WallClock {
    /// Nanoseconds since the Unix epoch, held within what fits.
    pub fn now(&self) -> i64 {
        self.glance().0
    }

    fn glance(&self) -> (i64, Option<Doubt>) {
        let mut looks = self.0.lock();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
        looks.look(now, Instant::now());
        (now, looks.doubt.map(|(doubt, _)| doubt))
    }

    /// The time of the newest group that recovery has found, in nanoseconds since the Unix epoch.
    pub fn log_has_seen(&self, newest: i64) {
        self.now();
        self.0.lock().compare(newest);
    }

    /// Why the time should not be relied upon, in words for an operator.
    pub fn doubt(&self) -> Option<String> {
        self.look().1
    }

    /// The time, and what speaks against just this look at it: a moment later the clock may be right again.
    pub fn look(&self) -> (i64, Option<String>) {
        let (now, doubt) = self.glance();
        (now, doubt.map(|doubt| doubt.told(now)))
    }
}

impl Doubt {
    fn told(self, now: i64) -> String {
        let shown = |ns: i64| format!("{:#}", jiff::SignedDuration::from_secs((ns / SECOND).saturating_abs()));
        match self {
            Self::Set(by) if by < 0 => format!("the wall clock was set back by {}: check it", shown(by)),
            Self::Set(by) => format!("the wall clock was set forward by {}: check it", shown(by)),
            Self::Behind(newest) => format!(
                "the wall clock is {} behind the newest lines of the write-ahead log: set it",
                shown(newest.saturating_sub(now))
            ),
        }
    }
}

impl Looks {
    fn look(&mut self, wall: i64, at: Instant) {
        self.doubt.take_if(|(_, since)| at.saturating_duration_since(*since) >= BELIEVED_AFTER);
        let moved = self.last.map_or(0, |(last, then)| {
            let passed = at.saturating_duration_since(then).as_nanos();
            wall.saturating_sub(last).saturating_sub(i64::try_from(passed).unwrap_or(i64::MAX))
        });
        self.last = Some((wall, at));
        match &mut self.doubt {
            // Whatever brought it back: it is no step into the unknown.
            Some((Doubt::Behind(newest), _)) if newest.saturating_sub(wall) <= BEHIND => self.doubt = None,
            Some((Doubt::Behind(_), _)) => {}
            _ if moved.saturating_abs() <= STEP => {}
            Some((Doubt::Set(by), _)) if by.saturating_add(moved).saturating_abs() <= STEP => self.doubt = None,
            Some((Doubt::Set(by), since)) => (*by, *since) = (by.saturating_add(moved), at),
            None => self.doubt = Some((Doubt::Set(moved), at)),
        }
    }

    fn compare(&mut self, newest: i64) {
        let Some((wall, at)) = self.last else { return };
        if newest.saturating_sub(wall) > BEHIND {
            self.doubt = Some((Doubt::Behind(newest), at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000 * SECOND;

    fn looks(steps: &[(i64, u64)]) -> Option<Doubt> {
        let (mut looks, start) = (Looks::default(), Instant::now());
        for (wall, passed) in steps {
            looks.look(NOW + wall * SECOND, start + Duration::from_secs(*passed));
        }
        looks.doubt.map(|(doubt, _)| doubt)
    }

    #[test]
    fn a_clock_that_runs_is_believed_and_one_that_jumps_is_not() {
        assert_eq!(looks(&[(0, 0), (1, 1), (100, 100), (86_500, 86_500)]), None);
        assert_eq!(looks(&[(0, 0), (61, 1)]), None, "by a minute");
        assert_eq!(looks(&[(0, 0), (63, 1)]), Some(Doubt::Set(62 * SECOND)));
        assert_eq!(looks(&[(0, 0), (-3600, 0)]), Some(Doubt::Set(-3600 * SECOND)));
    }

    #[test]
    fn a_doubt_ends_when_the_clock_is_back_or_after_an_hour() {
        assert_eq!(looks(&[(0, 0), (-3600, 0), (10, 10)]), None, "it was set back, and put right");
        assert_eq!(looks(&[(0, 0), (-3600, 0), (-7200, 0)]), Some(Doubt::Set(-7200 * SECOND)));
        assert_eq!(looks(&[(0, 0), (-3600, 0), (-1, 3599)]), Some(Doubt::Set(-3600 * SECOND)));
        assert_eq!(looks(&[(0, 0), (-3600, 0), (0, 3600)]), None);
        // A second step begins the hour anew.
        assert_eq!(looks(&[(0, 0), (500, 0), (3000, 2000), (4700, 3700)]), Some(Doubt::Set(1000 * SECOND)));
    }

    #[test]
    fn a_clock_behind_the_log_is_in_doubt_until_it_has_caught_up() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        looks.look(NOW, start);
        looks.compare(NOW + BEHIND);
        assert_eq!(looks.doubt, None);
        let newest = NOW + BEHIND + 1;
        looks.compare(newest);
        assert_eq!(looks.doubt, Some((Doubt::Behind(newest), start)));
        looks.look(NOW - 3600 * SECOND, start);
        assert_eq!(looks.doubt, Some((Doubt::Behind(newest), start)), "further back is no news");
        looks.look(NOW + 7200 * SECOND, start);
        assert_eq!(looks.doubt, None, "what put it right is no step");
    }

    #[test]
    fn the_real_clock_is_not_in_doubt() {
        let clock = WallClock::default();
        assert!(clock.now() > 1_700_000_000 * SECOND);
        assert_eq!(clock.doubt(), None);
        clock.log_has_seen(clock.now());
        assert_eq!(clock.doubt(), None);
        clock.log_has_seen(clock.now() + 2 * BEHIND);
        let doubt = clock.doubt().unwrap();
        assert!(doubt.contains("19m 59s behind") || doubt.contains("20m behind"), "{doubt}");
    }
}
