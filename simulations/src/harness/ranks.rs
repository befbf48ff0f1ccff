//! Processes that share the cohorts of a run.

use std::fmt;

/// The processes of a run, as one of them sees them.
///
/// Every process loads the same records and knows the same schedule; each trains its part of every
/// cohort. Only whole numbers modulo `2^bits` and values that a single process has are added up, so
/// the result is the same to the bit for any number of processes. All of them call the same
/// functions in the same order.
pub trait Ranks: fmt::Debug {
    /// The number of this process, from 0. Process 0 writes the results.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn count(&self) -> usize;

    /// Replaces `values` by the sum over all processes, modulo `2^bits`.
    ///
    /// - `values`: shape `[n]`, each below `2^bits`; the same n everywhere
    fn sum_modulo(&self, values: &mut [u32], bits: u8);

    /// Fills in what other processes found: each position is zero but in one process.
    fn gather(&self, values: &mut [f64]);

    /// Whether any process says so; all wait for each other here.
    fn any(&self, flag: bool) -> bool;

    /// Which of so many jobs this process does.
    fn own(&self, jobs: usize) -> Vec<usize> {
        (self.rank()..jobs).step_by(self.count()).collect()
    }
}

/// One process, with all work to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn sum_modulo(&self, _: &mut [u32], _: u8) {}

    fn gather(&self, _: &mut [f64]) {}

    fn any(&self, flag: bool) -> bool {
        flag
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Barrier, Mutex};

    use super::*;

    /// Processes played by threads.
    #[derive(Debug)]
    pub(crate) struct Threads {
        rank: usize,
        shared: Arc<Shared>,
    }

    #[derive(Debug)]
    struct Shared {
        barrier: Barrier,
        count: usize,
        numbers: Mutex<Vec<u64>>,
        floats: Mutex<Vec<f64>>,
    }

    impl Threads {
        pub(crate) fn new(count: usize) -> Vec<Self> {
            let shared = Arc::new(Shared {
                barrier: Barrier::new(count),
                count,
                numbers: Mutex::default(),
                floats: Mutex::default(),
            });
            (0..count).map(|rank| Self { rank, shared: shared.clone() }).collect()
        }

        /// Adds up `own` in `total`, and clears `total` when everybody has seen it.
        fn all_sum<T: Copy + Default + std::ops::AddAssign>(
            &self,
            total: &Mutex<Vec<T>>,
            own: &[T],
        ) -> Vec<T> {
            {
                let mut total = total.lock().expect("no panic");
                total.resize(own.len(), T::default());
                total.iter_mut().zip(own).for_each(|(total, own)| *total += *own);
            }
            self.shared.barrier.wait();
            let result = total.lock().expect("no panic").clone();
            self.shared.barrier.wait();
            total.lock().expect("no panic").clear();
            self.shared.barrier.wait();
            result
        }
    }

    impl Ranks for Threads {
        fn rank(&self) -> usize {
            self.rank
        }

        fn count(&self) -> usize {
            self.shared.count
        }

        fn sum_modulo(&self, values: &mut [u32], bits: u8) {
            let own: Vec<u64> = values.iter().map(|&value| value.into()).collect();
            let total = self.all_sum(&self.shared.numbers, &own);
            let mask = u32::MAX >> (32 - u32::from(bits));
            values.iter_mut().zip(total).for_each(|(value, sum)| *value = sum as u32 & mask);
        }

        fn gather(&self, values: &mut [f64]) {
            values.copy_from_slice(&self.all_sum(&self.shared.floats, values));
        }

        fn any(&self, flag: bool) -> bool {
            self.all_sum(&self.shared.numbers, &[u64::from(flag)])[0] > 0
        }
    }

    #[test]
    fn jobs_are_shared_without_rest() {
        let all = Threads::new(3);
        let mut jobs: Vec<usize> = all.iter().flat_map(|ranks| ranks.own(8)).collect();
        jobs.sort_unstable();
        assert_eq!(jobs, (0..8).collect::<Vec<_>>());
        assert_eq!(Alone.own(2), [0, 1]);
    }
}
