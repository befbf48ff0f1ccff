use super::*;

/// A few seconds of worlds.
const SEEDS: std::ops::Range<u64> = 0..40;

#[test]
fn every_rule_holds_in_every_world() {
    let mut unmasked = 0;
    for seed in SEEDS {
        let summary = play(&Scenario::from_seed(seed)).unwrap_or_else(|violation| {
            panic!("{violation}\n{}", violation.trace.join("\n"));
        });
        assert_eq!(summary.jobs_finished, summary.jobs, "{summary:?}");
        unmasked += summary.rounds_unmasked;
    }
    assert!(unmasked > 10, "secure aggregation is among them: {unmasked}");
}

#[test]
fn a_seed_replays_to_the_event() {
    let scenario = Scenario::from_seed(11);
    assert_eq!(play(&scenario), play(&scenario));
}

#[test]
fn hundreds_of_tenants_train_in_one_world() {
    let summary = play(&Scenario::crowd(3, 300, 2)).unwrap();
    assert_eq!(summary.jobs_finished, 1);
    assert!(summary.updates_counted >= 2 * 12, "{summary:?}");
}
