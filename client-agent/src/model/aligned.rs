use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;
/// Values that an allocation may begin before a line.
const SLACK: usize = LINE / size_of::<f32>() - 1;

/// Values of which the first begins a cache line: vectors of the widest kind then touch one line
/// each and not two.
#[derive(Default)]
pub(super) struct Aligned {
    values: Vec<f32>,
    /// Position of the first.
    start: usize,
    length: usize,
}

impl Aligned {
    /// Makes it exactly so long, with any values.
    pub(super) fn sized(&mut self, length: usize) -> &mut [f32] {
        if self.values.len() < length + SLACK {
            self.values.resize(length + SLACK, 0.0);
            // Where alignment cannot be told, unaligned values serve as well.
            self.start = self.values.as_ptr().align_offset(LINE).min(SLACK);
        }
        self.length = length;
        self
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..][..self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_begins_a_line() {
        let mut aligned = Aligned::default();
        assert!(aligned.is_empty());
        for length in [0, 1, 16, 1000, 3, 1001] {
            aligned.sized(length).fill(1.0);
            assert_eq!((aligned.len(), aligned.as_ptr().align_offset(LINE)), (length, 0));
        }
    }
}
