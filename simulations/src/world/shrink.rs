//! Finds the faults that a failure needs.

use super::{Rule, Scenario, play};

/// Leaves faults out, one after the other, as long as the same rule stays broken.
///
/// - returns: places of the faults that are left, in the scenario's own list
#[must_use]
pub fn shrink(scenario: &Scenario, rule: Rule) -> Vec<usize> {
    let is_broken =
        |kept: &[usize]| play(&scenario.only(kept)).is_err_and(|violation| violation.rule == rule);
    without_needless((0..scenario.faults.len()).collect(), is_broken)
}

/// Removes what is not needed for `holds`; each element is tried until none can go.
fn without_needless(mut kept: Vec<usize>, holds: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    loop {
        let before = kept.len();
        let mut place = kept.len();
        while place > 0 {
            place -= 1;
            let mut fewer = kept.clone();
            fewer.remove(place);
            if holds(&fewer) {
                kept = fewer;
            }
        }
        if kept.len() == before {
            return kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_failure_needs_is_left() {
        let needs_two_and_five = |kept: &[usize]| kept.contains(&2) && kept.contains(&5);
        assert_eq!(without_needless((0..9).collect(), needs_two_and_five), [2, 5]);
    }
}
