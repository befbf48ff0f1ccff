//! What adapters cost a batch, and tokens a second, over a model folder named by
//! `TRIBUTARY_BENCH_MODEL`. Run with `RAYON_NUM_THREADS=1`: times are of the thread's processor.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Instant,
};

use tributary_agent::{
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
const BATCH: u64 = 32;
const PROMPT: usize = 512;

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
    let model = Model {
        decoder: Arc::new(checkpoint.decoder),
        tokenizer: Arc::new(checkpoint.tokenizer),
        base: checkpoint.digest,
    };
    let adapters: Vec<Arc<DecoderAdapter>> =
        (0..BATCH).map(|seed| Arc::new(adapter(&model.decoder, seed))).collect();
    let (mut one, mut base, mut mixed) = (f64::MAX, f64::MAX, f64::MAX);
    let mut prompt = f64::MAX;
    for _ in 0..4 {
        one = one.min(decode(&model, 1, &[]));
        base = base.min(decode(&model, BATCH, &[]));
        mixed = mixed.min(decode(&model, BATCH, &adapters));
        prompt = prompt.min(prefill(&model));
    }
    println!("decode, batch 1: {:.1} tokens/s", 1.0 / one);
    println!("decode, batch {BATCH}: {:.1} tokens/s", BATCH as f64 / base);
    println!(
        "decode, batch {BATCH} on {BATCH} adapters of rank {RANK}: {:.1} tokens/s, {:.2} of the base",
        BATCH as f64 / mixed,
        base / mixed
    );
    println!("prefill of {PROMPT} tokens: {:.1} tokens/s", PROMPT as f64 / prompt);
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
    let limits = Limits { batch_rows_max: PROMPT, prompt_rows_max: PROMPT, ..Limits::default() };
    let Model { decoder, tokenizer, base } = model;
    Scheduler::new(decoder.clone(), tokenizer.clone(), *base, limits, HashMap::new())
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

/// Seconds of one decoding step.
fn decode(model: &Model, batch: u64, adapters: &[Arc<DecoderAdapter>]) -> f64 {
    const STEPS: u32 = 4;
    let mut scheduler = scheduler(model);
    for id in 0..batch {
        submit(&mut scheduler, id, vec![id as u32 + 5; 8], adapters.get(id as usize));
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

/// Seconds of one prompt.
fn prefill(model: &Model) -> f64 {
    let mut scheduler = scheduler(model);
    submit(&mut scheduler, 0, (5..5 + PROMPT as u32).collect(), None);
    let start = seconds();
    scheduler.step(Timestamp(0)).expect("a step");
    seconds() - start
}

/// Processor time of this thread, or wall time where the system does not tell.
fn seconds() -> f64 {
    thread_local!(static START: Instant = Instant::now());
    let busy = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let busy = busy.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    busy.map_or_else(|| START.with(|start| start.elapsed().as_secs_f64()), |busy| busy * 1e-9)
}
