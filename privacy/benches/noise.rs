//! Nanoseconds a draw of the discrete Gaussian samplers, beside opendp's exact one.
//!
//! `cargo bench -p tributary-privacy --bench noise`

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark on a clock")]

use std::{hint::black_box, time::Instant};

use opendp::traits::samplers::sample_discrete_gaussian;
use tributary_privacy::noise::{DiscreteGaussian, ExactDiscreteGaussian, SecureNoise};

/// The least of several runs: the machine may be busy with other things.
fn nanoseconds(draws: usize, mut run: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e9 / draws as f64
    };
    (0..9).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut noise = SecureNoise::new().expect("entropy");
    let mut values = vec![0i64; 1 << 20];
    println!("{:>14} {:>10} {:>10} {:>10}", "deviation", "fast", "exact", "opendp");
    for sigma in [0.5, 1.0, 64.0, 169.0, 1000.0, 4096.0, 65_536.0, 1_048_576.0, 1e8, 1e9] {
        let fast = DiscreteGaussian::new(sigma).expect("in range");
        let exact = ExactDiscreteGaussian::new(sigma).expect("in range");
        let fast_ns = nanoseconds(values.len(), || fast.add_to(&mut noise, &mut values));
        let exact_ns = nanoseconds(1 << 14, || exact.add_to(&mut noise, &mut values[..1 << 14]));
        let opendp_ns = nanoseconds(1 << 10, || {
            for _ in 0..1 << 10 {
                let scale = sigma.try_into().expect("finite");
                black_box(sample_discrete_gaussian(scale).expect("entropy"));
            }
        });
        println!("{sigma:>14} {fast_ns:>10.2} {exact_ns:>10.1} {opendp_ns:>10.0}");
        values.fill(0);
    }
    let build = nanoseconds(1, || {
        black_box(DiscreteGaussian::new(black_box(4096.0)).expect("in range"));
    });
    println!("building a table: {:.2} ms", build / 1e6);
}
