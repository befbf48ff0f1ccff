use proptest::prelude::*;

use super::*;

/// Updates in memory.
struct Held(Vec<Vec<u8>>);

impl PackedUpdates for Held {
    type Error = LatticeError;

    fn count(&self) -> usize {
        self.0.len()
    }

    fn read(&self, update: usize, offset: usize, bytes: &mut [u8]) -> Result<(), LatticeError> {
        bytes.copy_from_slice(&self.0[update][offset..offset + bytes.len()]);
        Ok(())
    }
}

fn combined(rule: AggregationRule, bits: u8, updates: &[Vec<i64>]) -> Vec<f64> {
    let lattice = Lattice::new(0.5, bits).expect("valid");
    let dimension = updates.first().map_or(0, Vec::len);
    let held = Held(updates.iter().map(|values| lattice.pack(values)).collect());
    combine(&rule, &held, lattice, dimension).expect("whole")
}

/// Four honest updates near each other and one far away.
fn attacked() -> Vec<Vec<i64>> {
    vec![
        vec![10, -10, 4],
        vec![12, -11, 5],
        vec![-900, 900, -900],
        vec![11, -12, 6],
        vec![13, -9, 7],
    ]
}

#[test]
fn each_rule_gives_what_was_worked_out_by_hand() {
    let updates = attacked();
    let half = |values: &[f64]| -> Vec<f64> { values.iter().map(|value| value * 0.5).collect() };
    assert_eq!(combined(AggregationRule::Median, 20, &updates), half(&[11.0, -10.0, 5.0]));
    assert_eq!(combined(AggregationRule::Median, 20, &updates[..2]), half(&[11.0, -10.5, 4.5]));
    let trimmed = AggregationRule::TrimmedMean { trim: 0.2 };
    assert_eq!(combined(trimmed, 20, &updates), half(&[11.0, -10.0, 5.0]));
    // Squared distances among the honest: 6, 9, 19 from the first, 3 and 9 from the second, 14 from
    // the fourth; with one attacker of five, two neighbours count: 15, 9, 12 and 23.
    let krum = AggregationRule::Krum { byzantine_max: 1 };
    assert_eq!(combined(krum, 20, &updates), half(&[12.0, -11.0, 5.0]));
    let multi = AggregationRule::MultiKrum { byzantine_max: 1, selected: 2 };
    assert_eq!(combined(multi, 20, &updates), half(&[11.5, -11.5, 5.5]));
    assert_eq!(combined(AggregationRule::Mean, 20, &updates)[0], -854.0 / 5.0 * 0.5);
}

#[test]
fn no_updates_give_zero_and_one_gives_itself() {
    for rule in [
        AggregationRule::Mean,
        AggregationRule::Median,
        AggregationRule::TrimmedMean { trim: 0.4 },
        AggregationRule::Krum { byzantine_max: 2 },
        AggregationRule::MultiKrum { byzantine_max: 2, selected: 3 },
    ] {
        let lattice = Lattice::new(0.5, 12).expect("valid");
        let nothing = combine(&rule, &Held(Vec::new()), lattice, 3).expect("whole");
        assert!(nothing.iter().all(|value| value == &0.0), "{rule:?}: {nothing:?}");
        assert_eq!(combined(rule, 12, &[vec![4, -6]]), [2.0, -3.0], "{rule:?}");
    }
}

#[test]
fn a_few_updates_of_any_size_do_not_move_a_robust_rule_far() {
    for rule in [
        AggregationRule::Median,
        AggregationRule::TrimmedMean { trim: 0.25 },
        AggregationRule::Krum { byzantine_max: 2 },
        AggregationRule::MultiKrum { byzantine_max: 2, selected: 5 },
    ] {
        let mut updates: Vec<Vec<i64>> = (0..8).map(|i| vec![100 + i, -50 - i]).collect();
        updates.push(vec![-500_000, 500_000]);
        updates.push(vec![500_000, 400_000]);
        let robust = combined(rule, 20, &updates);
        assert!((50.0..=53.5).contains(&robust[0]), "{rule:?}: {robust:?}");
        assert!((-28.5..=-25.0).contains(&robust[1]), "{rule:?}: {robust:?}");
    }
}

proptest! {
    #[test]
    fn neither_windows_nor_order_nor_width_change_a_coordinate_wise_rule(
        bits in 8_u8..=32,
        count in 1_usize..7,
        dimension in 1_usize..40,
        seed: u64,
    ) {
        let half = 1_i64 << (bits - 1);
        let value = |i: u64| {
            let mixed = (seed ^ (i + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
            (mixed as i64).rem_euclid(2 * half) - half
        };
        let updates: Vec<Vec<i64>> = (0..count as u64)
            .map(|u| (0..dimension as u64).map(|c| value(u * 1000 + c)).collect())
            .collect();
        let mut reversed = updates.clone();
        reversed.reverse();
        for rule in [AggregationRule::Median, AggregationRule::TrimmedMean { trim: 0.3 }] {
            let whole = combined(rule, bits, &updates);
            prop_assert_eq!(&whole, &combined(rule, bits, &reversed));
            for coordinate in 0..dimension {
                let column: Vec<Vec<i64>> =
                    updates.iter().map(|row| vec![row[coordinate]]).collect();
                prop_assert_eq!(&whole[coordinate..=coordinate], &combined(rule, bits, &column));
            }
        }
    }
}
