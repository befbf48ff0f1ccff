//! What privacy costs a training step: the clipped sum of per-example gradients against the plain
//! sum on the same batch, for an MLP, a CNN and a network with a time axis, and the noise on top.
//!
//! Plain and private steps are measured in turn, in processor time where the system tells it, and
//! compared pair by pair, so that a busy machine slows both; a harness that measures one after the
//! other cannot give a stable ratio. Run it on one thread, as processor time is that of the main
//! thread: `RAYON_NUM_THREADS=1 cargo bench -p tributary-agent --bench private_step`.

use std::{cell::RefCell, ops::ControlFlow, sync::LazyLock, time::Instant};

use candle_core::{Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_agent::{
    data::Dataset,
    model::{
        Model, Tape, cross_entropy_sum,
        layer::{ConvGeometry, Recording, Spans, conv2d, embedding, linear, max_pool2d, rms_norm},
    },
    train::{LocalTask, dp_sgd, local_sgd},
};
use tributary_privacy::{clip::ClippingNorm, mechanism::NoisyGradientSum, noise::SecureNoise};
use tributary_protocol::{
    job::TrainingPlan,
    model::{MlpSpec, ModelSpec},
};

const PAIRS: usize = 15;
const CLIPPING_NORM: f64 = 1.0;

fn main() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(1);
    let mlp = mlp(&mut source);
    compare("MLP 784-128-10, batch 250", 40, &mlp);
    let cnn = cnn(&mut source);
    compare("CNN 28x28-16-32-10, batch 64", 4, &cnn);
    let whole = whole(&mut source);
    compare("MLP, batch 500, whole step with noise", 20, &whole);
    let sequence = sequence(&mut source);
    compare("sequence 64 x 128, 5 layers, batch 16", 6, &sequence);
    noise();
}

/// One step with clipping (true) or without, from records to moved parameters.
type Step = Box<dyn Fn(bool)>;

/// Compares private with plain steps; `repeats` of them make one measurement, long enough for the
/// system's accounting of processor time.
fn compare(name: &str, repeats: u32, step: &Step) {
    if !is_selected(name) {
        return;
    }
    let (mut plain, mut ratios) = (Vec::new(), Vec::new());
    let many = |private| time(|| (0..repeats).for_each(|_| step(private)));
    for _ in 0..PAIRS {
        let (without, with) = (many(false), many(true));
        plain.push(without / f64::from(repeats));
        ratios.push(with / without);
    }
    let (plain, ratio) = (median(plain) * 1e3, median(ratios));
    report(&format!("{name:40} plain {plain:8.3} ms   private / plain {ratio:.3}"));
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
    let norm = ClippingNorm::new(CLIPPING_NORM).expect("positive");
    let mechanism = NoisyGradientSum::new(norm, 1.0, DIMENSION).expect("valid");
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

fn mlp_spec() -> ModelSpec {
    ModelSpec::Mlp(MlpSpec { inputs: 784, hidden: vec![128], classes: 10 })
}

fn images(source: &mut Xoshiro256PlusPlus, count: u32) -> Dataset {
    let pixels = (0..count * 784).map(|_| source.random()).collect();
    Dataset::from_bytes(pixels, 784, (0..count).map(|index| index % 10).collect(), 10)
}

/// The training loops themselves, one step: DP-SGD or plain SGD on all of 500 records.
fn whole(source: &mut Xoshiro256PlusPlus) -> Step {
    let (spec, data) = (mlp_spec(), images(source, 500));
    let base = uniform(source, spec.num_parameters());
    let plan = TrainingPlan {
        local_steps: 1,
        sampling_rate: 1.0,
        batch_size_expected: 500,
        client_learning_rate: 0.01,
        update_norm_max: 16.0,
    };
    let train: Vec<u32> = (0..500).collect();
    let norm = ClippingNorm::new(CLIPPING_NORM).expect("positive");
    let mechanism = NoisyGradientSum::new(norm, 1.0, spec.num_parameters()).expect("valid");
    let noise = RefCell::new(SecureNoise::new().expect("entropy"));
    let source = RefCell::new(Xoshiro256PlusPlus::seed_from_u64(2));
    Box::new(move |private| {
        let task = LocalTask { spec: &spec, base: &base, data: &data, train: &train, plan: &plan };
        let update = if private {
            dp_sgd(&task, &mechanism, &mut *noise.borrow_mut(), &mut |_, _| {
                ControlFlow::Continue(())
            })
        } else {
            local_sgd(&task, &mut *source.borrow_mut(), &mut |_, _| ControlFlow::Continue(()))
        };
        drop(update.expect("trains"));
    })
}

fn mlp(source: &mut Xoshiro256PlusPlus) -> Step {
    const BATCH: u32 = 250;
    let (spec, data) = (mlp_spec(), images(source, BATCH));
    let model = Model::new(&spec, &uniform(source, spec.num_parameters())).expect("valid");
    let indices: Vec<u32> = (0..BATCH).collect();
    Box::new(move |clip| {
        let run = || -> Result<()> {
            let (inputs, labels) = data.batch(&indices)?;
            let tape = Tape::default();
            cross_entropy_sum(&model.run(&inputs, Some(&tape))?, &labels)?.backward()?;
            model.add_scaled(&gradient(&tape, clip, indices.len(), spec.num_parameters()), -1e-6)
        };
        run().expect("trains");
    })
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

    fn record(&self, tape: &Tape, weight: usize, bias: Option<usize>) -> Option<Recording> {
        let bias = bias.map(|bias| self.spans[bias].clone());
        let spans = Spans { weight: self.spans[weight].clone(), bias };
        Some(Recording { tape: tape.clone(), spans })
    }
}

fn cnn(source: &mut Xoshiro256PlusPlus) -> Step {
    const BATCH: usize = 64;
    let p = Parameters::new(source, &[&[16, 9], &[16], &[32, 144], &[32], &[10, 1568], &[10]]);
    let same = ConvGeometry { kernel: 3, stride: 1, padding: 1 };
    let images = tensor(source, &[BATCH, 28, 28, 1]);
    let labels = labels(BATCH);
    Box::new(move |clip| {
        let run = || -> Result<()> {
            let (tape, v) = (Tape::default(), &p.variables);
            let x = conv2d(&images, &v[0], Some(&v[1]), same, true, p.record(&tape, 0, Some(1)))?;
            let x = max_pool2d(&x, 2)?;
            let x = conv2d(&x, &v[2], Some(&v[3]), same, true, p.record(&tape, 2, Some(3)))?;
            let x = max_pool2d(&x, 2)?.flatten_from(1)?;
            let x = linear(&x, &v[4], Some(&v[5]), false, p.record(&tape, 4, Some(5)))?;
            cross_entropy_sum(&x, &labels)?.backward()?;
            drop(gradient(&tape, clip, BATCH, p.len()));
            Ok(())
        };
        run().expect("trains");
    })
}

fn sequence(source: &mut Xoshiro256PlusPlus) -> Step {
    const BATCH: usize = 16;
    let p = Parameters::new(
        source,
        &[&[500, 128], &[128], &[512, 128], &[512], &[128, 512], &[128], &[10, 128], &[10]],
    );
    let ids = (0..BATCH * 64).map(|_| source.random_range(0..500)).collect::<Vec<u32>>();
    let ids = Tensor::from_vec(ids, (BATCH, 64), &Device::Cpu).expect("sizes agree");
    let labels = labels(BATCH);
    Box::new(move |clip| {
        let run = || -> Result<()> {
            let (tape, v) = (Tape::default(), &p.variables);
            let x = embedding(&ids, &v[0], p.record(&tape, 0, None))?;
            let x = rms_norm(&x, &v[1], 1e-5, p.record(&tape, 1, None))?;
            let x = linear(&x, &v[2], Some(&v[3]), true, p.record(&tape, 2, Some(3)))?;
            let x = linear(&x, &v[4], Some(&v[5]), true, p.record(&tape, 4, Some(5)))?;
            let x = linear(&x.mean(1)?, &v[6], Some(&v[7]), false, p.record(&tape, 6, Some(7)))?;
            cross_entropy_sum(&x, &labels)?.backward()?;
            drop(gradient(&tape, clip, BATCH, p.len()));
            Ok(())
        };
        run().expect("trains");
    })
}

fn gradient(tape: &Tape, clip: bool, examples: usize, parameters: usize) -> Vec<f32> {
    let mut sum = vec![0.0; parameters];
    if clip {
        tape.add_clipped_sum(examples, CLIPPING_NORM, &mut sum).expect("finite");
    } else {
        tape.add_sum(&mut sum).expect("finite");
    }
    sum
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

/// Seconds that the work kept the processor busy, or lasted where the system does not say.
fn time(work: impl FnOnce()) -> f64 {
    let start = seconds();
    work();
    seconds() - start
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn seconds() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let busy = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
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
