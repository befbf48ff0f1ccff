use super::*;
use crate::tenants::{ComputeIsolation, DataIsolation, Isolation, ModelIsolation};

const COSTS: &str = "
data = { overhead = [0, 1, 5], share = [1, 0.5, 0], capacity = 100, conflict = 1 }
model = { overhead = [0, 1, 5], share = [1, 1, 0], capacity = 100, conflict = 1 }
compute = { overhead = [0, 2, 8], share = [1, 0.2, 0], capacity = 10, conflict = 3 }
";

fn document(tenants: &[(&str, &str, [f64; 4])]) -> PlanDocument {
    let mut text = COSTS.to_owned();
    for (name, floors, compute) in tenants {
        text += &format!(
            "[[tenant]]
            name = '{name}'
            {floors}
            demand = {{ data = [0, 0, 0, 0], model = [0, 0, 0, 0], compute = {compute:?} }}
            "
        );
    }
    toml::from_str(&text.replace("NaN", "nan")).expect("a document")
}

fn nothing_recorded(_: &tributary_protocol::id::TenantId) -> Isolation {
    Isolation::default()
}

#[test]
fn tenants_whose_peaks_do_not_meet_share_and_others_are_kept_apart() {
    let apart = [("a", "", [9.0, 1.0, 9.0, 1.0]), ("b", "", [1.0, 9.0, 1.0, 9.0])];
    let shared = plan(&document(&apart), nothing_recorded).expect("plans");
    assert!(shared.tenants.iter().all(|it| it.isolation == Isolation::default()), "{shared:?}");
    assert_eq!((shared.cost, shared.exhaustive), (0.0, true));
    let meeting = [("a", "", [9.0, 1.0, 9.0, 1.0]), ("b", "", [9.0, 1.0, 9.0, 1.0])];
    let kept = plan(&document(&meeting), nothing_recorded).expect("plans");
    let levels: Vec<_> = kept.tenants.iter().map(|it| it.isolation.compute).collect();
    // 16 units of excess would cost 48; one worker costs 8 and leaves 0.8 units in two periods.
    assert!(levels.contains(&ComputeIsolation::DedicatedWorker), "{kept:?}");
    assert!(levels.contains(&ComputeIsolation::SharedQueue), "{kept:?}");
    assert!((kept.cost - (8.0 + 3.0 * 2.0 * 0.8)).abs() < 1e-9, "{kept:?}");
    assert_eq!((kept.cost_at_floors, kept.cost_at_top), (48.0, 4.0 * 2.0 * (5.0 + 5.0 + 8.0)));
}

#[test]
fn no_level_is_below_its_floor_from_the_file_or_the_record() {
    let floors = "floors = { data = 'own-database', compute = 'dedicated-device' }";
    let tenants = [("a", floors, [0.0; 4]), ("b", "", [0.0; 4])];
    let recorded = |_: &_| Isolation { model: ModelIsolation::Adapter, ..Isolation::default() };
    let plan = plan(&document(&tenants), recorded).expect("plans");
    let [a, b] = &plan.tenants[..] else { panic!("{plan:?}") };
    assert_eq!(a.isolation.data, DataIsolation::OwnDatabase);
    assert_eq!(a.isolation.compute, ComputeIsolation::DedicatedDevice);
    assert_eq!(
        a.isolation.model,
        ModelIsolation::BaseOnly,
        "the file's floors replace the record's"
    );
    assert_eq!(b.isolation, Isolation { model: ModelIsolation::Adapter, ..Isolation::default() });
}

#[test]
fn descent_is_as_good_as_trying_everything_on_random_problems() {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    let mut draw = StdRng::seed_from_u64(5);
    let (mut worse, trials) = (0, 60);
    for _ in 0..trials {
        let tenants = draw.random_range(2..8);
        let costs = ResourceCosts {
            overhead: [0.0, draw.random_range(0.5..3.0), draw.random_range(3.0..9.0)],
            share: [1.0, draw.random_range(0.1..0.9), 0.0],
            capacity: draw.random_range(5.0..15.0),
            conflict: draw.random_range(0.5..4.0),
        };
        let demands: Vec<Vec<f64>> =
            (0..tenants).map(|_| (0..6).map(|_| draw.random_range(0.0..10.0)).collect()).collect();
        let problem = search::Problem {
            costs: &costs,
            demands: demands.iter().map(Vec::as_slice).collect(),
            floors: (0..tenants).map(|_| draw.random_range(0..LEVELS)).collect(),
        };
        let (best, found) = problem.compare();
        assert!(found >= best - 1e-9);
        // A local optimum may cost a little more, but rarely and never much.
        assert!(found <= best * 1.1 + 1e-9, "{found} is far from {best}");
        worse += u32::from(found > best + 1e-9);
    }
    assert!(worse * 10 <= trials, "{worse} of {trials} were not the cheapest");
}

#[test]
fn what_does_not_fit_is_named() {
    let mut bad = document(&[("a", "", [0.0; 4]), ("b", "", [0.0; 4])]);
    bad.tenants[1].demand.compute.pop();
    let error = plan(&bad, nothing_recorded).expect_err("periods").to_string();
    assert!(error.contains("tenant b") && error.contains("compute"), "{error}");
    let mut bad = document(&[("a", "", [0.0, f64::NAN, 0.0, 0.0])]);
    let error = plan(&bad, nothing_recorded).expect_err("not a number").to_string();
    assert!(error.contains("tenant.a.demand.compute"), "{error}");
    bad.tenants[0].demand.compute = vec![0.0; 4];
    bad.data.share[1] = 1.5;
    let error = plan(&bad, nothing_recorded).expect_err("share").to_string();
    assert!(error.contains("data.share") && error.contains("0 to 1"), "{error}");
    bad.tenants.clear();
    assert_eq!(plan(&bad, nothing_recorded), Err(PlanError::Empty));
    let twice = document(&[("a", "", [0.0; 4]), ("a", "", [0.0; 4])]);
    assert!(matches!(plan(&twice, nothing_recorded), Err(PlanError::Twice { .. })));
}
