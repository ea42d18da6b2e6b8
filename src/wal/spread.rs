//! Work of a start that is spread over the processors.

use super::writer::{Critical, spawn_critical};
use parking_lot::Mutex;
use rustix::process::{getpriority_process, setpriority_process};
use std::sync::mpsc::channel;

/// How many do something at a time that is worth spreading if it is `wide`: one more than there are processors, because one waits for the
/// disk while the others work. Each may hold a whole segment in memory, so no more than four.
pub(super) fn workers(wide: bool) -> usize {
    const MOST: usize = 4;
    if wide { std::thread::available_parallelism().map_or(1, |n| 1 + usize::from(n)).min(MOST) } else { 1 }
}

/// Does `work` for each item, several at a time, and gives the results in the order of the items. Each worker has a state of
/// its own, such as a buffer. `done` is called for each result, in any order.
pub(super) fn spread<T: Send, S, R: Send>(
    items: Vec<T>,
    workers: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> R + Sync,
    mut done: impl FnMut(&R),
) -> Vec<R> {
    let workers = workers.min(items.len());
    spreading(workers, state, work, |spread| spread(items, &mut done))
}

/// Spreads items, and calls the other for each result.
type Spread<'a, T, R> = dyn FnMut(Vec<T>, &mut dyn FnMut(&R)) -> Vec<R> + 'a;

/// As [`spread`], as often as `main` wants by what it gets, by the same workers.
pub(super) fn spreading<T: Send, S, R: Send, A>(
    workers: usize,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> R + Sync,
    main: impl FnOnce(&mut Spread<'_, T, R>) -> A,
) -> A {
    if workers <= 1 {
        let mut state = state();
        let mut one = |item, done: &mut dyn FnMut(&R)| {
            let result = work(&mut state, item);
            done(&result);
            result
        };
        return main(&mut |items, done| items.into_iter().map(|item| one(item, done)).collect());
    }
    let (ask, asked) = channel::<(usize, T)>();
    let (sender, receiver) = channel();
    let asked = Mutex::new(asked);
    std::thread::scope(|scope| {
        let worker = |sender: std::sync::mpsc::Sender<(usize, R)>| {
            let (asked, state, work) = (&asked, &state, &work);
            move || {
                // A panic while recovering must not pass as a shorter log, and `main` waits for each result.
                let _critical = Critical;
                let mut state = state();
                loop {
                    let next = asked.lock().recv();
                    let Ok((at, item)) = next else { return };
                    // The receiver outlives the workers.
                    let _ = sender.send((at, work(&mut state, item)));
                }
            }
        };
        (0..workers).for_each(|_| drop(scope.spawn(worker(sender.clone()))));
        drop(sender);
        let all = main(&mut |items, done| {
            let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
            // The workers wait for more.
            items.into_iter().enumerate().for_each(|item| drop(ask.send(item)));
            for (at, result) in receiver.iter().take(results.len()) {
                done(&result);
                if let Some(slot) = results.get_mut(at) {
                    *slot = Some(result);
                }
            }
            results.into_iter().flatten().collect()
        });
        drop(ask);
        all
    })
}

/// Does two things and gives both results: the first on a thread beside the second if it is `wide`, else after it.
pub(super) fn beside<A: Send, B>(wide: bool, aside: impl FnOnce() -> A + Send, main: impl FnOnce() -> B) -> (A, B) {
    if !wide {
        let main = main();
        return (aside(), main);
    }
    std::thread::scope(|scope| {
        let aside = scope.spawn(aside);
        let main = main();
        // A panic while recovering must not pass as a shorter log.
        (aside.join().unwrap_or_else(|_| std::process::abort()), main)
    })
}

/// Does something for which there is time while the disk is read: `work` runs on threads of rayon that let all others go first, those
/// above all that ask the disk for more.
pub(super) fn yielding<A: Send>(work: impl FnOnce() -> A + Send) -> A {
    match rayon::ThreadPoolBuilder::new().start_handler(|_| let_others_go_first()).build() {
        Ok(pool) => pool.install(work),
        // It only takes longer.
        Err(_) => work(),
    }
}

/// The nice value of threads that let all others go first: a tenth of the weight of the usual 0.
const NICE: i32 = 10;

/// Lowers the priority of this thread for good.
fn let_others_go_first() {
    // To Linux, none means this thread, and not the process. If it fails, all take their turns.
    if getpriority_process(None).is_ok_and(|nice| nice < NICE) {
        let _ = setpriority_process(None, NICE);
    }
}

/// Drops what is made of hundreds of thousands of pieces, while the caller goes on.
pub(crate) fn drop_aside<T: Send + 'static>(value: T) {
    let drop_value = move || {
        let_others_go_first();
        drop(value);
    };
    drop(spawn_critical("drop", drop_value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn two_things_run_beside_each_other_if_they_are_wide_and_one_after_the_other_if_not() {
        // The first needs what the second hands it; the second, if wide, that the first has begun.
        for wide in [false, true] {
            let ((hand, handed), (begin, begun)) = (channel(), channel());
            let aside = move || {
                begin.send(()).unwrap();
                handed.recv().unwrap()
            };
            let results = beside(wide, aside, || {
                if wide {
                    begun.recv().unwrap();
                } else {
                    assert!(begun.try_recv().is_err());
                }
                hand.send(1).unwrap();
                2
            });
            assert_eq!(results, (1, 2));
        }
    }

    #[test]
    fn what_yields_runs_at_a_lower_priority_and_nothing_else_does() {
        let priority = || getpriority_process(None).unwrap();
        let before = priority();
        let of_rayon = || (0..8).into_par_iter().map(|_| priority()).collect::<Vec<_>>();
        // That of the whole process may be low already.
        assert_eq!(yielding(of_rayon), [NICE.max(before); 8]);
        assert_eq!((priority(), of_rayon()), (before, vec![before; 8]));
    }

    #[test]
    fn what_is_dropped_aside_is_dropped_at_a_lower_priority() {
        struct Tells(std::sync::mpsc::Sender<i32>);
        impl Drop for Tells {
            fn drop(&mut self) {
                self.0.send(getpriority_process(None).unwrap()).unwrap();
            }
        }
        let before = getpriority_process(None).unwrap();
        let (tell, told) = channel();
        drop_aside(Tells(tell));
        assert_eq!((told.recv().unwrap(), getpriority_process(None).unwrap()), (NICE.max(before), before));
    }

    #[test]
    fn the_same_workers_do_all_that_is_spread() {
        for workers in [1, 3] {
            let states = std::sync::atomic::AtomicUsize::new(0);
            let state = || {
                states.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            };
            let add = |(): &mut (), n: u64| n + 1;
            let sums = spreading(workers, state, add, |spread| {
                let sum = |count| spread((0..count).collect(), &mut |_| {}).iter().sum();
                (0..50).map(sum).collect::<Vec<u64>>()
            });
            assert_eq!(sums, (0..50).map(|count| count * (count + 1) / 2).collect::<Vec<_>>());
            assert_eq!(states.into_inner(), workers);
        }
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for workers in [1, 4] {
            let mut seen = 0;
            let work = |n: &mut u64, item: u64| {
                *n += 1;
                std::thread::sleep(std::time::Duration::from_micros(item * 7 % 50));
                item * 2
            };
            let results = spread((0..200).collect(), workers, || 0, work, |_| seen += 1);
            assert_eq!(results, (0..200).map(|n| n * 2).collect::<Vec<_>>());
            assert_eq!(seen, 200);
        }
    }
}
