//! Work of a start that is spread over the processors.

use super::writer::spawn_critical;
use parking_lot::Mutex;
use std::sync::mpsc::channel;

/// How many do something at a time that is worth spreading if it is `wide`: twice as many as there are processors, because some wait
/// for the disk while the others work. Each may hold a whole segment in memory, so no more than four.
pub(super) fn workers(wide: bool) -> usize {
    const MOST: usize = 4;
    if wide { std::thread::available_parallelism().map_or(1, |n| 2 * usize::from(n)).min(MOST) } else { 1 }
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
    if workers <= 1 {
        let mut state = state();
        let one = |item| {
            let result = work(&mut state, item);
            done(&result);
            result
        };
        return items.into_iter().map(one).collect();
    }
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let queue = Mutex::new(items.into_iter().enumerate());
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        let worker = |sender: std::sync::mpsc::Sender<(usize, R)>| {
            let (queue, state, work) = (&queue, &state, &work);
            move || {
                let mut state = state();
                loop {
                    let next = queue.lock().next();
                    let Some((at, item)) = next else { return };
                    // The receiver outlives the workers.
                    let _ = sender.send((at, work(&mut state, item)));
                }
            }
        };
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(worker(sender.clone()))).collect();
        drop(sender);
        for (at, result) in receiver {
            done(&result);
            if let Some(slot) = results.get_mut(at) {
                *slot = Some(result);
            }
        }
        // A panic while recovering must not pass as a shorter log.
        running.into_iter().for_each(|t| t.join().unwrap_or_else(|_| std::process::abort()));
    });
    results.into_iter().flatten().collect()
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

/// Drops what is made of hundreds of thousands of pieces, while the caller goes on.
pub(super) fn drop_aside<T: Send + 'static>(value: T) {
    drop(spawn_critical("drop", move || drop(value)));
}

#[cfg(test)]
mod tests {
    use super::*;

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
