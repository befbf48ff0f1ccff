//! Krum and multi-Krum: the updates that are closest to their nearest others.

use super::Rows;

/// The squared distances between all pairs of updates, in squared grid units: exact.
pub(super) struct Distances {
    count: usize,
    /// Of the pair (i, j) with i < j at `j (j - 1) / 2 + i`.
    squares: Vec<u128>,
}

impl Distances {
    pub(super) fn new(count: usize) -> Self {
        Self { count, squares: vec![0; count * count.saturating_sub(1) / 2] }
    }

    /// Adds what some more coordinates contribute.
    pub(super) fn add(&mut self, rows: &Rows) {
        let mut squares = self.squares.iter_mut();
        for later in 1..self.count {
            for earlier in 0..later {
                let square = squares.next().expect("one for each pair");
                *square += squared_distance(rows.row(earlier), rows.row(later));
            }
        }
    }

    fn between(&self, one: usize, other: usize) -> u128 {
        let (earlier, later) = (one.min(other), one.max(other));
        self.squares[later * (later - 1) / 2 + earlier]
    }

    /// The `selected` updates with the smallest scores, in their order; of equal ones the first.
    ///
    /// An update's score is the sum of the squared distances to its `n - byzantine_max - 2` nearest
    /// others.
    ///
    /// Source: Blanchard et al. 2017, arXiv:1703.02757.
    pub(super) fn nearest(&self, byzantine_max: usize, selected: usize) -> Vec<usize> {
        let neighbours = self.count.saturating_sub(byzantine_max + 2).max(1);
        let score = |update: usize| -> u128 {
            let others = (0..self.count).filter(|&other| other != update);
            let mut squares: Vec<u128> = others.map(|other| self.between(update, other)).collect();
            squares.sort_unstable();
            squares.iter().take(neighbours).sum()
        };
        let mut scores: Vec<(u128, usize)> =
            (0..self.count).map(|update| (score(update), update)).collect();
        scores.sort_unstable();
        let mut chosen: Vec<usize> =
            scores.into_iter().take(selected.max(1)).map(|(_, update)| update).collect();
        chosen.sort_unstable();
        chosen
    }
}

fn squared_distance(one: &[i32], other: &[i32]) -> u128 {
    let square = |(&a, &b): (&i32, &i32)| u128::from(a.abs_diff(b)).pow(2);
    one.iter().zip(other).map(square).sum()
}
