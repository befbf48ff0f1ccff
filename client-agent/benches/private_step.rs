//! What privacy costs a training step, noise included: a private against a plain step on the same
//! batch, for an MLP, a CNN, a network with a time axis and a transformer block; and what the plain
//! steps cost at all.
//!
//! Plain and private steps are measured in turn, in processor time where the system tells it, and
//! compared pair by pair, so that a busy machine slows both; a harness that measures one after the
//! other cannot give a stable ratio. Processor time is that of the main thread, so on several threads
//! it is the time on the wall: `RAYON_NUM_THREADS=1 cargo bench -p tributary-agent --bench
//! private_step`. `step_comparison.py` beside this file alternates it with PyTorch and Opacus.

use std::{cell::RefCell, sync::LazyLock, time::Instant};

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::ops::softmax;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_agent::{
    data::Dataset,
    model::{
        Tape, cross_entropy_sum,
        layer::{
            ConvGeometry, Recording, Spans, conv2d, embedding, layer_norm, linear, max_pool2d,
            rms_norm,
        },
    },
    train::{LocalTask, Trainer},
};
use tributary_privacy::{clip::ClippingNorm, mechanism::NoisyGradientSum, noise::SecureNoise};
use tributary_protocol::{
    job::{LocalAlgorithm, TrainingPlan},
    model::{MlpSpec, ModelSpec},
};

const PAIRS: usize = 15;
const CLIPPING_NORM: f64 = 1.0;

fn main() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(1);
    for (batch, steps) in [(500, 20), (250, 40), (64, 80), (20, 160)] {
        let name = format!("MLP 784-128-10, batch {batch}");
        let round = mlp(&mut source, batch, steps);
        compare(&name, 1, steps, &round);
    }
    epoch(&mut source);
    compare("CNN 28x28-16-32-10, batch 64", 4, 1, &cnn(&mut source));
    compare("sequence 64 x 128, 5 layers, batch 16", 6, 1, &sequence(&mut source));
    compare("transformer block 64 x 128, batch 16", 4, 1, &transformer(&mut source));
    noise();
}

/// One step with clipping and noise (true) or without, from records to moved parameters.
type Step = Box<dyn Fn(bool)>;

/// Compares private with plain steps; `repeats` calls, of `steps` each, make one measurement, long
/// enough for the system's accounting of processor time.
fn compare(name: &str, repeats: u32, steps: u32, step: &Step) {
    if !is_selected(name) {
        return;
    }
    let (mut plain, mut private, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let count = f64::from(repeats * steps);
    let many = |private| time(|| (0..repeats).for_each(|_| step(private))) / count;
    for _ in 0..PAIRS {
        let (without, with) = (many(false), many(true));
        plain.push(without * 1e3);
        private.push(with * 1e3);
        ratios.push(with / without);
    }
    let best = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let (least, most) = (best(&plain), best(&private));
    let (middle, ratio) = (median(plain), median(ratios));
    report(&format!(
        "{name:40} plain {least:7.3} (median {middle:7.3}) private {most:7.3} ms   ratio {ratio:.3}"
    ));
}

/// Whether every word of the command line, flags aside, is in the name.
fn is_selected(name: &str) -> bool {
    std::env::args().skip(1).all(|word| word.starts_with("--") || name.contains(&word))
}

fn noise() {
    if !is_selected("noise") {
        return;
    }
    const DIMENSION: usize = 101_770;
    let mechanism = mechanism(DIMENSION);
    let mut noise = SecureNoise::new().expect("entropy");
    let times = (0..PAIRS).map(|_| {
        time(|| {
            for _ in 0..20 {
                drop(mechanism.release(mechanism.begin(), &mut noise).expect("in bounds"));
            }
        })
    });
    let release = median(times.collect()) / 20.0 * 1e3;
    report(&format!("grid and noise of {DIMENSION} parameters          {release:8.3} ms a step"));
}

fn images(source: &mut Xoshiro256PlusPlus, count: u32) -> Dataset {
    let pixels = (0..count * 784).map(|_| source.random()).collect();
    Dataset::from_bytes(pixels, 784, (0..count).map(|index| index % 10).collect(), 10)
}

/// The training loops themselves, a round of so many steps on all records: DP-SGD or plain SGD.
fn mlp(source: &mut Xoshiro256PlusPlus, batch: u32, steps: u32) -> Step {
    let spec = ModelSpec::Mlp(MlpSpec { inputs: 784, hidden: vec![128], classes: 10 });
    let data = images(source, batch);
    let base = uniform(source, spec.num_parameters());
    let train: Vec<u32> = (0..batch).collect();
    let mechanism = mechanism(spec.num_parameters());
    let noise = RefCell::new(SecureNoise::new().expect("entropy"));
    let plan = TrainingPlan {
        local_steps: steps,
        sampling_rate: 1.0,
        batch_size_expected: batch,
        client_learning_rate: 1e-4,
        update_norm_max: 16.0,
        algorithm: LocalAlgorithm::Sgd,
    };
    let trainer = RefCell::new(Trainer::new(&spec, threads()).expect("valid"));
    Box::new(move |private| {
        let task = LocalTask { spec: &spec, base: &base, data: &data, train: &train, plan: &plan };
        let (mut trainer, mut noise) = (trainer.borrow_mut(), noise.borrow_mut());
        let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
        let update = if private {
            trainer.dp_sgd(&task, &mechanism, &mut *noise, go_on)
        } else {
            trainer.local_sgd(&task, &mut *noise, go_on)
        };
        drop(update.expect("trains"));
    })
}

/// A tenant's epoch in the simulator: 30 batches of 20, from base to update.
fn epoch(source: &mut Xoshiro256PlusPlus) {
    let name = "MLP 784-200-200-10, 30 steps of 20";
    if !is_selected(name) {
        return;
    }
    let spec = ModelSpec::Mlp(MlpSpec { inputs: 784, hidden: vec![200, 200], classes: 10 });
    let (data, base) = (images(source, 600), uniform(source, spec.num_parameters()));
    let order: Vec<u32> = (0..600).collect();
    let mut trainer = Trainer::new(&spec, 1).expect("valid");
    let times = (0..PAIRS).map(|_| {
        time(|| {
            trainer.load(&base).expect("finite");
            for batch in order.chunks(20) {
                trainer.step(&data, batch, 0.01).expect("finite");
            }
            drop(trainer.update(&base).expect("finite"));
        }) * 1e3
    });
    let times: Vec<f64> = times.collect();
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    report(&format!("{name:40} plain {best:7.3} (median {:7.3}) ms a tenant", median(times)));
}

fn mechanism(parameters: usize) -> NoisyGradientSum {
    let norm = ClippingNorm::new(CLIPPING_NORM).expect("positive");
    NoisyGradientSum::new(norm, 1.0, parameters).expect("valid")
}

fn threads() -> usize {
    tributary_agent::compute::threads()
}

/// Parameters as variables and their places in the flat vector.
struct Parameters {
    variables: Vec<Var>,
    spans: Vec<std::ops::Range<usize>>,
}

impl Parameters {
    fn new(source: &mut Xoshiro256PlusPlus, shapes: &[&[usize]]) -> Self {
        let (mut variables, mut spans, mut end) = (Vec::new(), Vec::new(), 0);
        for &shape in shapes {
            let values = uniform(source, shape.iter().product());
            spans.push(end..end + values.len());
            end += values.len();
            variables.push(Var::from_vec(values, shape, &Device::Cpu).expect("sizes agree"));
        }
        Self { variables, spans }
    }

    fn len(&self) -> usize {
        self.spans.last().map_or(0, |span| span.end)
    }

    fn add_scaled(&self, step: &[f32], scale: f64) {
        for (variable, span) in self.variables.iter().zip(&self.spans) {
            let step = Tensor::from_slice(&step[span.clone()], variable.shape(), &Device::Cpu);
            let moved = step.and_then(|step| variable.as_tensor() + (step * scale)?);
            moved.and_then(|moved| variable.set(&moved)).expect("sizes agree");
        }
    }

    fn record(&self, tape: &Tape, weight: usize, bias: Option<usize>) -> Option<Recording> {
        let bias = bias.map(|bias| self.spans[bias].clone());
        let spans = Spans { weight: self.spans[weight].clone(), bias };
        Some(Recording { tape: tape.clone(), spans })
    }
}

/// A step of a recorded graph: `run` computes the logits.
fn graph(
    p: Parameters,
    labels: Tensor,
    run: impl Fn(&Parameters, &Tape) -> Result<Tensor> + 'static,
) -> Step {
    let (parameters, examples) = (p.len(), labels.elem_count());
    let mechanism = mechanism(parameters);
    let noise = RefCell::new(SecureNoise::new().expect("entropy"));
    let memory = RefCell::new(Vec::new());
    Box::new(move |private| {
        let tape = Tape::default();
        let loss = run(&p, &tape).and_then(|logits| cross_entropy_sum(&logits, &labels));
        loss.and_then(|loss| loss.backward()).expect("runs");
        let mut sum = mechanism.begin_in(memory.take());
        let step = if private {
            let norm = mechanism.float_clipping_norm();
            sum.add_in_place(examples, |sum| {
                tape.add_clipped_sum(examples, norm, sum).expect("finite");
                Ok::<_, tributary_privacy::mechanism::MechanismError>(())
            })
            .expect("small");
            mechanism.release(sum, &mut *noise.borrow_mut()).expect("in bounds")
        } else {
            let mut sum = vec![0.0; parameters];
            tape.add_sum(&mut sum).expect("runs");
            sum
        };
        p.add_scaled(&step, -1e-9);
        memory.replace(step);
    })
}

fn cnn(source: &mut Xoshiro256PlusPlus) -> Step {
    const BATCH: usize = 64;
    let p = Parameters::new(source, &[&[16, 9], &[16], &[32, 144], &[32], &[10, 1568], &[10]]);
    let same = ConvGeometry { kernel: 3, stride: 1, padding: 1 };
    let images = tensor(source, &[BATCH, 28, 28, 1]);
    graph(p, labels(BATCH), move |p, tape| {
        let v = &p.variables;
        let x = conv2d(&images, &v[0], Some(&v[1]), same, true, p.record(tape, 0, Some(1)))?;
        let x = max_pool2d(&x, 2)?;
        let x = conv2d(&x, &v[2], Some(&v[3]), same, true, p.record(tape, 2, Some(3)))?;
        let x = max_pool2d(&x, 2)?.flatten_from(1)?;
        linear(&x, &v[4], Some(&v[5]), false, p.record(tape, 4, Some(5)))
    })
}

fn sequence(source: &mut Xoshiro256PlusPlus) -> Step {
    const BATCH: usize = 16;
    let p = Parameters::new(
        source,
        &[&[500, 128], &[128], &[512, 128], &[512], &[128, 512], &[128], &[10, 128], &[10]],
    );
    let ids = ids(source, BATCH);
    graph(p, labels(BATCH), move |p, tape| {
        let v = &p.variables;
        let x = embedding(&ids, &v[0], p.record(tape, 0, None))?;
        let x = rms_norm(&x, &v[1], 1e-5, p.record(tape, 1, None))?;
        let x = linear(&x, &v[2], Some(&v[3]), true, p.record(tape, 2, Some(3)))?;
        let x = linear(&x, &v[4], Some(&v[5]), true, p.record(tape, 4, Some(5)))?;
        linear(&x.mean(1)?, &v[6], Some(&v[7]), false, p.record(tape, 6, Some(7)))
    })
}

/// One pre-norm block of a transformer encoder: attention over 64 positions of width 128, with a
/// low-rank adapter on the values, and a feed-forward part of width 512.
fn transformer(source: &mut Xoshiro256PlusPlus) -> Step {
    const BATCH: usize = 16;
    const WIDTH: usize = 128;
    let square: &[usize] = &[WIDTH, WIDTH];
    let row: &[usize] = &[WIDTH];
    let shapes: &[&[usize]] = &[
        &[500, WIDTH],
        row,
        row,
        square,
        square,
        square,
        square,
        &[8, WIDTH],
        &[WIDTH, 8],
        row,
        row,
        &[512, WIDTH],
        &[512],
        &[WIDTH, 512],
        row,
        &[10, WIDTH],
        &[10],
    ];
    let p = Parameters::new(source, shapes);
    let ids = ids(source, BATCH);
    graph(p, labels(BATCH), move |p, tape| {
        let v = &p.variables;
        let x = embedding(&ids, &v[0], p.record(tape, 0, None))?;
        let normal = layer_norm(&x, &v[1], &v[2], 1e-5, p.record(tape, 1, Some(2)))?;
        let project = |of: &Tensor, index: usize| {
            linear(of, &v[index], None, false, p.record(tape, index, None))
        };
        let (query, key) = (project(&normal, 3)?, project(&normal, 4)?);
        let low = project(&project(&normal, 7)?, 8)?;
        let value = (project(&normal, 5)? + low)?;
        let scores = (query.matmul(&key.t()?)? * (WIDTH as f64).powf(-0.5))?;
        let x = (x + project(&softmax(&scores, 2)?.matmul(&value)?, 6)?)?;
        let normal = layer_norm(&x, &v[9], &v[10], 1e-5, p.record(tape, 9, Some(10)))?;
        let wide = linear(&normal, &v[11], Some(&v[12]), true, p.record(tape, 11, Some(12)))?;
        let x = (x + linear(&wide, &v[13], Some(&v[14]), false, p.record(tape, 13, Some(14)))?)?;
        linear(&x.mean(1)?, &v[15], Some(&v[16]), false, p.record(tape, 15, Some(16)))
    })
}

fn ids(source: &mut Xoshiro256PlusPlus, batch: usize) -> Tensor {
    let ids = (0..batch * 64).map(|_| source.random_range(0..500)).collect::<Vec<u32>>();
    Tensor::from_vec(ids, (batch, 64), &Device::Cpu).expect("sizes agree")
}

fn uniform(source: &mut Xoshiro256PlusPlus, count: usize) -> Vec<f32> {
    (0..count).map(|_| source.random_range(-0.1..0.1)).collect()
}

fn tensor(source: &mut Xoshiro256PlusPlus, shape: &[usize]) -> Tensor {
    let values = uniform(source, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).expect("sizes agree")
}

fn labels(count: usize) -> Tensor {
    let labels: Vec<u32> = (0..count as u32).map(|index| index % 10).collect();
    Tensor::from_vec(labels, count, &Device::Cpu).expect("sizes agree")
}

/// Seconds that the work kept the processor busy, or lasted where the system does not say or several
/// threads work.
fn time(work: impl FnOnce()) -> f64 {
    let start = seconds();
    work();
    seconds() - start
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn seconds() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let busy = (threads() == 1)
        .then(|| std::fs::read_to_string("/proc/thread-self/schedstat").ok())
        .flatten();
    let nanoseconds = busy.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| START.elapsed().as_secs_f64(), |value| value * 1e-9)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn report(line: &str) {
    println!("{line}");
}
