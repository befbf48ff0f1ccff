//! Processes that `mpirun` started.

use std::fmt;

use mpi::{collective::SystemOperation, topology::SimpleCommunicator, traits::*};

use super::Ranks;

/// The processes of an MPI communicator.
///
/// An error inside MPI ends all processes, as is MPI's custom.
pub struct MpiRanks(SimpleCommunicator);

impl MpiRanks {
    /// All processes of `communicator` share a run.
    #[must_use]
    pub const fn new(communicator: SimpleCommunicator) -> Self {
        Self(communicator)
    }
}

impl fmt::Debug for MpiRanks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "rank {} of {}", self.rank(), self.count())
    }
}

impl Ranks for MpiRanks {
    fn rank(&self) -> usize {
        self.0.rank() as usize
    }

    fn count(&self) -> usize {
        self.0.size() as usize
    }

    fn sum_modulo(&self, values: &mut [u32], bits: u8) {
        let mask = u32::MAX >> (32 - u32::from(bits));
        // Half the bytes, where no sum can exceed 32 bits: MPI promises nothing about wrapping.
        if self.count() as u64 <= 1 << (32 - u32::from(bits)) {
            let own = values.to_vec();
            self.0.all_reduce_into(&own[..], values, SystemOperation::sum());
            values.iter_mut().for_each(|value| *value &= mask);
        } else {
            let own: Vec<u64> = values.iter().map(|&value| value.into()).collect();
            let mut total = vec![0_u64; own.len()];
            self.0.all_reduce_into(&own[..], &mut total[..], SystemOperation::sum());
            values.iter_mut().zip(total).for_each(|(value, sum)| *value = sum as u32 & mask);
        }
    }

    fn gather(&self, values: &mut [f64]) {
        let own = values.to_vec();
        self.0.all_reduce_into(&own[..], values, SystemOperation::sum());
    }

    fn any(&self, flag: bool) -> bool {
        let mut any = 0_u32;
        self.0.all_reduce_into(&u32::from(flag), &mut any, SystemOperation::max());
        any > 0
    }
}
