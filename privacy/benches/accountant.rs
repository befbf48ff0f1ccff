//! CPU seconds of the tight accountant over a sweep of Poisson-subsampled runs.
//!
//! `cargo bench -p tributary-privacy --bench accountant` prints the slowest answers;
//! `... -- --rows` prints every answer as `q,sigma,steps,delta,epsilon,seconds`, for comparison
//! with an independent implementation.

#![expect(clippy::print_stdout, reason = "a benchmark")]

use nix::time::{ClockId, clock_gettime};
use tributary_privacy::{
    accountant::{Delta, epsilon},
    mechanism::PrivacyEvent,
};

const RATES: [f64; 9] = [1e-6, 1e-4, 1e-3, 0.01, 0.05, 0.3, 0.5, 0.9, 1.0];
const SIGMAS: [f64; 9] = [0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 2.0, 5.0, 30.0];
const STEPS: [u64; 6] = [1, 10, 100, 1000, 10_000, 100_000];
const DELTAS: [f64; 3] = [1e-3, 1e-5, 1e-9];
/// Slowest answers that are printed.
const SLOWEST: usize = 10;

struct Answer {
    events: Vec<PrivacyEvent>,
    delta: f64,
    epsilon: f64,
    seconds: f64,
}

/// Every combination of rate, noise and steps on Poisson samples.
fn poisson() -> impl Iterator<Item = PrivacyEvent> {
    let noises = RATES.into_iter().flat_map(|rate| SIGMAS.map(|sigma| (rate, sigma)));
    noises.flat_map(|(sampling_rate, noise_multiplier)| {
        STEPS.map(|steps| PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps })
    })
}

/// Some of everything else: other relations, integer noise, and runs of several kinds.
fn others() -> Vec<Vec<PrivacyEvent>> {
    let mut questions = Vec::new();
    for (steps, noise_multiplier) in
        [1, 1000, 100_000].into_iter().flat_map(|steps| [0.1, 1.0, 30.0].map(|s| (steps, s)))
    {
        for sampling_rate in [1e-4, 0.01, 0.5] {
            questions.push(vec![PrivacyEvent::PoissonGaussianReplaceOne {
                sampling_rate,
                noise_multiplier,
                steps,
            }]);
            questions.push(vec![PrivacyEvent::WithoutReplacementGaussian {
                batch_size: (1e6 * sampling_rate) as u64,
                num_examples: 1_000_000,
                noise_multiplier,
                steps,
            }]);
        }
    }
    for count in [1, 1000, 100_000] {
        for sigma in [0.5, 3.0, 100.0, 10_000.0] {
            questions.push(vec![PrivacyEvent::DiscreteGaussian { sigma, sensitivity: 1, count }]);
            let variance = sigma * sigma;
            questions.push(vec![PrivacyEvent::Skellam { variance, sensitivity: 1, count }]);
        }
    }
    for kinds in [2, 8, 32] {
        let kind = |index: u32| PrivacyEvent::PoissonGaussian {
            sampling_rate: 0.002 * f64::from(index + 1),
            noise_multiplier: 0.7 + 0.05 * f64::from(index),
            steps: 100,
        };
        questions.push((0..kinds).map(kind).collect());
    }
    questions
}

/// CPU time of this thread: the machine may be busy with other things.
fn seconds() -> f64 {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let time = clock_gettime(clock).expect("every thread has a clock");
    time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9
}

fn main() {
    let rows = std::env::args().any(|argument| argument == "--rows");
    let mut answers = Vec::new();
    let singles = poisson().map(|event| vec![event]);
    for events in singles.chain(others()) {
        for at in DELTAS {
            let delta = Delta::new(at).expect("valid");
            let start = seconds();
            let epsilon = epsilon(&events, delta).expect("valid");
            let seconds = seconds() - start;
            let answer = Answer { events: events.clone(), delta: at, epsilon, seconds };
            if rows {
                print_row(&answer);
            }
            answers.push(answer);
        }
    }
    let total: f64 = answers.iter().map(|answer| answer.seconds).sum();
    answers.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    println!("# {} answers, {:.4} CPU s on average", answers.len(), total / answers.len() as f64);
    for Answer { events, delta, epsilon, seconds } in &answers[..SLOWEST] {
        let (first, more) = (&events[0], events.len() - 1);
        println!("# {seconds:.3} CPU s: {first:?} and {more} more at {delta:e}: {epsilon}");
    }
}

fn print_row(answer: &Answer) {
    let Answer { events, delta, epsilon, seconds } = answer;
    match events[..] {
        [PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps }] => {
            println!("{sampling_rate},{noise_multiplier},{steps},{delta},{epsilon},{seconds:.4}");
        }
        _ => println!("# {events:?},{delta},{epsilon},{seconds:.4}"),
    }
}
