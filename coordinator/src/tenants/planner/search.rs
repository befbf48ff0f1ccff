//! The search for the cheapest levels of one resource.

use super::{LEVELS, ResourceCosts};

/// Up to so many combinations are all tried.
const COMBINATIONS_MAX: usize = 100_000;

/// One resource of all tenants.
pub(super) struct Problem<'a> {
    pub(super) costs: &'a ResourceCosts,
    /// By tenant, one number a period.
    pub(super) demands: Vec<&'a [f64]>,
    /// The lowest level of each tenant.
    pub(super) floors: Vec<usize>,
}

/// The levels that were found.
pub(super) struct Solution {
    pub(super) levels: Vec<usize>,
    pub(super) overhead: f64,
    pub(super) conflict: f64,
    pub(super) at_floors: f64,
    pub(super) at_top: f64,
    pub(super) exhaustive: bool,
}

impl Problem<'_> {
    pub(super) fn solve(&self) -> Solution {
        let top = vec![LEVELS - 1; self.floors.len()];
        let choices = self.floors.iter().map(|&floor| LEVELS - floor);
        let combinations = choices.fold(1, |product: usize, many| product.saturating_mul(many));
        let exhaustive = combinations <= COMBINATIONS_MAX;
        let levels = if exhaustive {
            self.best_of_all()
        } else {
            let found = [self.floors.clone(), top.clone()].map(|start| self.descend(start));
            let [low, high] = found;
            if self.cost(&low) <= self.cost(&high) { low } else { high }
        };
        Solution {
            overhead: self.overhead(&levels),
            conflict: self.conflict(&levels),
            levels,
            at_floors: self.cost(&self.floors),
            at_top: self.cost(&top),
            exhaustive,
        }
    }

    fn best_of_all(&self) -> Vec<usize> {
        let mut levels = self.floors.clone();
        let mut best = (self.cost(&levels), levels.clone());
        // Counts through the combinations, each tenant a digit between its floor and the top.
        while let Some(digit) = levels.iter().position(|&level| level + 1 < LEVELS) {
            levels[digit] += 1;
            levels[..digit].copy_from_slice(&self.floors[..digit]);
            let cost = self.cost(&levels);
            // Of equal costs the first, which has the lower levels.
            if cost < best.0 {
                best = (cost, levels.clone());
            }
        }
        best.1
    }

    /// Changes one or two tenants at a time for as long as that makes it cheaper.
    fn descend(&self, mut levels: Vec<usize>) -> Vec<usize> {
        let mut cost = self.cost(&levels);
        loop {
            let single = self.best_change(&levels, cost, false);
            let Some((cheaper, changed)) = single.or_else(|| self.best_change(&levels, cost, true))
            else {
                return levels;
            };
            (cost, levels) = (cheaper, changed);
        }
    }

    fn best_change(&self, levels: &[usize], cost: f64, pairs: bool) -> Option<(f64, Vec<usize>)> {
        let mut best: Option<(f64, Vec<usize>)> = None;
        let mut offer = |levels: &[usize]| {
            let offered = self.cost(levels);
            // A change that gains nothing but rounding would go on for ever.
            let gains = offered < cost * (1.0 - 1e-12);
            if gains && best.as_ref().is_none_or(|(best, _)| offered < *best) {
                best = Some((offered, levels.to_vec()));
            }
        };
        let mut trial = levels.to_vec();
        for one in 0..levels.len() {
            for level in self.floors[one]..LEVELS {
                trial[one] = level;
                if !pairs {
                    offer(&trial);
                    continue;
                }
                for two in one + 1..levels.len() {
                    for level in self.floors[two]..LEVELS {
                        trial[two] = level;
                        offer(&trial);
                    }
                    trial[two] = levels[two];
                }
            }
            trial[one] = levels[one];
        }
        best
    }

    fn cost(&self, levels: &[usize]) -> f64 {
        self.overhead(levels) + self.conflict(levels)
    }

    fn periods(&self) -> usize {
        self.demands.first().map_or(0, |demand| demand.len())
    }

    fn overhead(&self, levels: &[usize]) -> f64 {
        let each: f64 = levels.iter().map(|&level| self.costs.overhead[level]).sum();
        each * self.periods() as f64
    }

    fn conflict(&self, levels: &[usize]) -> f64 {
        let shared = |period: usize| {
            let parts = levels.iter().zip(&self.demands);
            parts.map(|(&level, demand)| self.costs.share[level] * demand[period]).sum::<f64>()
        };
        let excess = |period| (shared(period) - self.costs.capacity).max(0.0);
        self.costs.conflict * (0..self.periods()).map(excess).sum::<f64>()
    }

    /// The cost of the cheapest combination, and the one that descent finds.
    #[cfg(test)]
    pub(super) fn compare(&self) -> (f64, f64) {
        let top = vec![LEVELS - 1; self.floors.len()];
        let descended = [self.floors.clone(), top].map(|start| self.cost(&self.descend(start)));
        (self.cost(&self.best_of_all()), descended[0].min(descended[1]))
    }
}
