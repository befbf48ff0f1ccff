//! A few threads that share a list of independent jobs.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Does `work` for every index below `jobs`, each worker taking the next one when it is free.
///
/// # Errors
/// That of the first failing index; jobs not yet begun are then left out.
pub(super) fn share<W: Send, E: Send>(
    workers: &mut [W],
    jobs: usize,
    work: impl Fn(&mut W, usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let run = |worker: &mut W| {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs {
                return;
            }
            if let Err(error) = work(worker, job) {
                next.store(jobs, Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(first, _)| job < *first) {
                    *failed = Some((job, error));
                }
                return;
            }
        }
    };
    let count = workers.len().min(jobs);
    std::thread::scope(|scope| {
        // The caller's own thread is the first worker.
        let (first, others) = workers[..count].split_first_mut().into_iter().next().unzip();
        for worker in others.into_iter().flatten() {
            scope.spawn(|| run(worker));
        }
        first.into_iter().for_each(run);
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_is_done_once() {
        for count in [1, 2, 5] {
            let mut workers = vec![Vec::new(); count];
            let done: Result<(), ()> = share(&mut workers, 100, |worker, job| {
                worker.push(job);
                Ok(())
            });
            assert_eq!(done, Ok(()));
            let mut all = workers.concat();
            all.sort_unstable();
            assert_eq!(all, (0..100).collect::<Vec<_>>());
        }
        assert_eq!(share(&mut [(); 2], 0, |(), _| Err(1)), Ok(()));
    }

    #[test]
    fn a_failure_stops_the_rest() {
        let mut workers = vec![0; 1];
        let result = share(&mut workers, 100, |worker, job| {
            *worker += 1;
            if job == 3 { Err(job) } else { Ok(()) }
        });
        assert_eq!((result, workers[0]), (Err(3), 4));
    }
}
