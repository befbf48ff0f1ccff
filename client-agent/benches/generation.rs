//! Tokens a second, time to the first token, what adapters cost a batch, how long one takes to load
//! and how long others wait for it, over a model folder named by `TRIBUTARY_BENCH_MODEL`, on the device
//! of `TRIBUTARY_BENCH_DEVICE` (default `cpu`).
//!
//! With `RAYON_NUM_THREADS=1` times are of the thread's processor, otherwise of the wall. One line a
//! figure, name and value, so that `beside_transformers.py` can read them.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Instant,
};

use tributary_agent::{
    compute::ComputeDevice,
    engine::generation::{GenerationRequest, Input, Limits, RequestId, Sampling, Scheduler, Work},
    model::{
        checkpoint::Checkpoint,
        decoder::{Decoder, DecoderAdapter, LowRankFactors},
    },
    text::Tokenizer,
};
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
};

const RANK: usize = 8;
const BATCHES: [u64; 3] = [1, 8, 32];
const PROMPTS: [usize; 2] = [128, 512];
const PROMPT_MAX: usize = 512;
/// Repetitions, of which the best counts.
const REPEATED: usize = 4;

struct Model {
    decoder: Arc<Decoder>,
    tokenizer: Arc<Tokenizer>,
    base: Digest,
}

fn main() {
    let Ok(folder) = std::env::var("TRIBUTARY_BENCH_MODEL") else {
        println!("skipped: TRIBUTARY_BENCH_MODEL names no model folder");
        return;
    };
    let checkpoint = Checkpoint::open(Path::new(&folder)).expect("a model folder");
    let choice = std::env::var("TRIBUTARY_BENCH_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let choice = choice.parse().expect("a device");
    let device = ComputeDevice::open(choice, None).expect("a usable device");
    println!("device {device}");
    let model = Model {
        decoder: Arc::new(checkpoint.decoder.on(&device).expect("room for the weights")),
        tokenizer: Arc::new(checkpoint.tokenizer),
        base: checkpoint.digest,
    };
    let adapters: Vec<Arc<DecoderAdapter>> =
        (0..32).map(|seed| Arc::new(adapter(&model.decoder, seed))).collect();
    // Figures that are compared alternate, so that a busy neighbour hits both.
    for batch in BATCHES {
        let kinds = [0, 8, 32].map(|count| &adapters[..count.min(batch as usize)]);
        let mut best = [f64::MAX; 3];
        for _ in 0..REPEATED {
            for (best, kind) in best.iter_mut().zip(kinds) {
                *best = best.min(decode(&model, batch, kind));
            }
        }
        println!("decode_tokens_per_second_batch_{batch} {:.1}", batch as f64 / best[0]);
        println!("decode_cost_of_8_adapters_batch_{batch} {:.3}", best[1] / best[0]);
        println!("decode_cost_of_32_adapters_batch_{batch} {:.3}", best[2] / best[0]);
    }
    for prompt in PROMPTS {
        let seconds = (0..REPEATED).map(|_| prefill(&model, prompt)).fold(f64::MAX, f64::min);
        println!("first_token_ms_prompt_{prompt} {:.1}", seconds * 1e3);
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    adapters[0].save(folder.path(), model.base).expect("writes");
    let load = || {
        let start = Instant::now();
        let opened = DecoderAdapter::open(folder.path(), model.decoder.config(), model.base);
        (Arc::new(opened.expect("a PEFT folder")), start.elapsed().as_secs_f64())
    };
    let seconds = (0..REPEATED).map(|_| load().1).fold(f64::MAX, f64::min);
    println!("adapter_load_ms {:.1}", seconds * 1e3);
    let pauses = (0..REPEATED).map(|_| swap_pause(&model, &adapters[1], || load().0));
    println!("swap_pause_in_decode_steps {:.2}", pauses.fold(f64::MAX, f64::min));
}

/// How much longer the longest step is while an adapter is loaded beside a full batch and the first
/// request with it begins, in usual steps.
fn swap_pause(
    model: &Model,
    old: &Arc<DecoderAdapter>,
    load: impl FnOnce() -> Arc<DecoderAdapter> + Send,
) -> f64 {
    const BATCH: u64 = 31;
    let mut scheduler = scheduler(model);
    for id in 0..BATCH {
        submit(&mut scheduler, id, vec![id as u32 + 5; 8], Some(old));
    }
    let step = |scheduler: &mut Scheduler| {
        let start = Instant::now();
        scheduler.step(Timestamp(0)).expect("a step");
        start.elapsed().as_secs_f64()
    };
    // The prompts, and a first step to warm up.
    for _ in 0..2 {
        step(&mut scheduler);
    }
    let mut usual: Vec<f64> = (0..5).map(|_| step(&mut scheduler)).collect();
    usual.sort_by(f64::total_cmp);
    let mut longest = 0.0_f64;
    std::thread::scope(|scope| {
        let loading = scope.spawn(load);
        while !loading.is_finished() {
            longest = longest.max(step(&mut scheduler));
        }
        let new = loading.join().expect("the adapter loads");
        submit(&mut scheduler, BATCH, vec![7; 8], Some(&new));
    });
    (0..2).for_each(|_| longest = longest.max(step(&mut scheduler)));
    longest / usual[2] - 1.0
}

fn adapter(decoder: &Decoder, seed: u64) -> DecoderAdapter {
    let mut state = seed + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 * 0.02 - 0.01
    };
    let config = decoder.config();
    let sites: BTreeMap<_, _> = config
        .sites()
        .map(|site| {
            let (inputs, outputs) = config.sizes(site.projection);
            let mut values = |count: usize| (0..count).map(|_| next()).collect::<Vec<f32>>();
            (site, LowRankFactors::new(values(RANK * inputs), values(RANK * outputs), RANK))
        })
        .collect();
    DecoderAdapter::new(RANK, 16.0, sites)
}

fn scheduler(model: &Model) -> Scheduler {
    let limits =
        Limits { batch_rows_max: PROMPT_MAX, prompt_rows_max: PROMPT_MAX, ..Limits::default() };
    let Model { decoder, tokenizer, base } = model;
    Scheduler::new(decoder.clone(), tokenizer.clone(), *base, limits, HashMap::new())
        .expect("room for the cache")
}

fn submit(
    scheduler: &mut Scheduler,
    id: u64,
    prompt: Vec<u32>,
    adapter: Option<&Arc<DecoderAdapter>>,
) {
    let request = GenerationRequest {
        id: RequestId(id),
        tenant: TenantId::new("bench").expect("a valid name"),
        adapter: adapter.cloned(),
        prompt,
        work: Work::Generate {
            tokens_max: 64,
            sampling: Sampling::greedy(),
            stops: Vec::new(),
            end_tokens: Vec::new(),
        },
        deadline: None,
    };
    scheduler.handle(Timestamp(0), Input::Submit(Box::new(request))).expect("room for it");
}

/// Seconds of one decoding step, adapters dealt out to the requests in turn.
fn decode(model: &Model, batch: u64, adapters: &[Arc<DecoderAdapter>]) -> f64 {
    const STEPS: u32 = 4;
    let mut scheduler = scheduler(model);
    for id in 0..batch {
        submit(
            &mut scheduler,
            id,
            vec![id as u32 + 5; 8],
            adapters.get(id as usize % adapters.len().max(1)),
        );
    }
    // The prompts, and a first step to warm up.
    for _ in 0..2 {
        scheduler.step(Timestamp(0)).expect("a step");
    }
    let start = seconds();
    for _ in 0..STEPS {
        scheduler.step(Timestamp(0)).expect("a step");
    }
    (seconds() - start) / f64::from(STEPS)
}

/// Seconds to the first token behind a prompt.
fn prefill(model: &Model, length: usize) -> f64 {
    let mut scheduler = scheduler(model);
    submit(&mut scheduler, 0, (5..5 + length as u32).collect(), None);
    let start = seconds();
    scheduler.step(Timestamp(0)).expect("a step");
    seconds() - start
}

/// Processor time of this thread where it is the only one, otherwise wall time.
fn seconds() -> f64 {
    thread_local!(static START: Instant = Instant::now());
    let alone = std::env::var("RAYON_NUM_THREADS").is_ok_and(|threads| threads == "1");
    let busy = alone.then(|| std::fs::read_to_string("/proc/thread-self/schedstat").ok()).flatten();
    let busy = busy.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    busy.map_or_else(|| START.with(|start| start.elapsed().as_secs_f64()), |busy| busy * 1e-9)
}
