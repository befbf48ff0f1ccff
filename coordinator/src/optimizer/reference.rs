//! The adaptive optimizers against vectors of an independent implementation.
//!
//! Origin: `FedAdagrad`, `FedAdam`, `FedYogi` of Flower 1.41.0 (`flwr.server.strategy`, NumPy
//! float64), driven for three rounds with one client; the second moment set to `tau²` as algorithm 2
//! has it, and the round number to 10⁹ so that Flower's bias correction of Adam is 1.

use ndarray::{Array1, ArrayView1};
use tributary_protocol::job::ServerOptimizerSpec;

use super::{build, descend, num_moments};

const BASE: [f32; 4] = [0.5, -1.25, 2.0, 0.0];
const CLIENT_UPDATES: [[f64; 4]; 3] =
    [[0.2, -0.03, 0.0, 1.5], [-0.1, -0.03, 0.4, -2.0], [0.05, 0.7, -0.4, 0.001]];
const FIRST: [f64; 4] = [0.0122, 0.06487, -0.004, -0.0584];

/// Plays the three rounds; each builds its optimizer from what the last one left.
fn check(spec: &ServerOptimizerSpec, models: [[f64; 4]; 3], moments: &[[f64; 4]]) {
    let mut parameters = BASE;
    let mut kept: Vec<Array1<f64>> = Vec::new();
    for (update, model) in CLIENT_UPDATES.iter().zip(models) {
        // Two tenants that sum to twice the update, so that the denominator counts.
        let mut optimizer = build(spec, BASE.len(), kept);
        descend(&mut *optimizer, &mut parameters, 2, |range, sum| {
            sum.iter_mut().zip(&update[range]).for_each(|(sum, value)| *sum = value * 2.0);
        });
        kept = optimizer.moments().into_iter().map(|moment| moment.to_owned()).collect();
        for (ours, theirs) in parameters.iter().zip(model) {
            // The base model is float32.
            assert!((f64::from(*ours) - theirs).abs() < 5e-7, "{spec:?}: {parameters:?} {model:?}");
        }
    }
    assert_eq!(kept.len(), num_moments(spec));
    for (ours, theirs) in kept.iter().zip(moments) {
        let distance = (ours - &ArrayView1::from(theirs)).mapv(f64::abs);
        assert!(distance.iter().all(|&by| by < 1e-12), "{spec:?}: {ours} {theirs:?}");
    }
}

#[test]
fn adagrad_agrees_with_flower() {
    let spec = ServerOptimizerSpec::Adagrad { server_learning_rate: 0.1, tau: 1e-3 };
    let models = [
        [0.5995012499921876, -1.3467222067986908, 2.0, 0.0999333555555531],
        [0.5549794432308324, -1.4157858573784339, 2.099750312499512, 0.019965349155553355],
        [0.5767062019847661, -1.3161112591539665, 2.029164523895509, 0.020005333155555916],
    ];
    check(&spec, models, &[[0.052501, 0.491801, 0.320001, 6.250002]]);
}

#[test]
fn adam_agrees_with_flower() {
    let spec =
        ServerOptimizerSpec::Adam { server_learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 };
    let models = [
        [0.5951260516755887, -1.3221033189940763, 2.0, 0.09933557745827934],
        [0.6294710594477033, -1.4287196225322678, 2.0975318364882423, 0.07339281321487434],
        [0.6808657502734795, -1.3375248365858898, 2.0905675075665564, 0.049967285948536694],
    ];
    let second = [0.000517010299, 0.004918701199, 0.003184970299, 0.061653230299];
    let first_negated = FIRST.map(|moment| -moment);
    check(&spec, models, &[first_negated, second]);
}

#[test]
fn yogi_agrees_with_flower() {
    let spec =
        ServerOptimizerSpec::Yogi { server_learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 };
    let models = [
        [0.5951249219725039, -1.3220759220056126, 2.0, 0.09933555553086468],
        [0.6293377688294629, -1.428441055217734, 2.097531245118713, 0.07343934753169669],
        [0.6803098100798981, -1.3372490001559552, 2.090584072538805, 0.05017259879854955],
    ];
    let second = [0.000526, 0.004919, 0.003201, 0.06250099];
    let first_negated = FIRST.map(|moment| -moment);
    check(&spec, models, &[first_negated, second]);
}
