use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroU32,
    sync::Arc,
};

use proptest::prelude::*;
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
};

use super::*;
use crate::{
    model::{
        checkpoint::Checkpoint,
        decoder::{
            Decoder, DecoderAdapter,
            tests::{FAMILIES, assert_close, expected, fixture},
        },
    },
    text::Tokenizer,
};

pub(super) struct Fixture {
    pub(super) decoder: Arc<Decoder>,
    tokenizer: Arc<Tokenizer>,
    base: Digest,
    pub(super) adapters: BTreeMap<&'static str, Arc<DecoderAdapter>>,
}

pub(super) fn load(family: &str) -> Fixture {
    let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
    let adapter = |name: &'static str| {
        let folder = fixture(family).join(name);
        let config = checkpoint.decoder.config();
        (name, Arc::new(DecoderAdapter::open(&folder, config, checkpoint.digest).unwrap()))
    };
    let adapters = ["all", "attention"].map(adapter).into();
    Fixture {
        adapters,
        decoder: Arc::new(checkpoint.decoder),
        tokenizer: Arc::new(checkpoint.tokenizer),
        base: checkpoint.digest,
    }
}

impl Fixture {
    pub(super) fn scheduler(
        &self,
        limits: Limits,
        shares: HashMap<TenantId, TenantShare>,
    ) -> Scheduler {
        Scheduler::new(self.decoder.clone(), self.tokenizer.clone(), self.base, limits, shares)
            .unwrap()
    }
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub(super) fn limits(blocks: usize) -> Limits {
    // A block of any fixture with 4 tokens: 2 layers, keys and values, at most 16 wide, f32.
    Limits { cache_bytes: blocks * 1024, block_tokens: 4, ..Limits::default() }
}

pub(super) fn greedy(id: u64, of: &str, prompt: &[u32], tokens_max: usize) -> GenerationRequest {
    GenerationRequest {
        id: RequestId(id),
        tenant: tenant(of),
        adapter: None,
        prompt: prompt.to_vec(),
        work: Work::Generate {
            tokens_max,
            sampling: Sampling::greedy(),
            stops: Vec::new(),
            end_tokens: Vec::new(),
        },
        deadline: None,
    }
}

pub(super) fn submit(scheduler: &mut Scheduler, request: GenerationRequest) -> Result<(), Refusal> {
    scheduler.handle(Timestamp(0), Input::Submit(Box::new(request)))
}

/// Steps to the end; answers by request, with the invariants of the cache checked at each step.
pub(super) fn run(scheduler: &mut Scheduler) -> BTreeMap<u64, Finished> {
    let mut answers = BTreeMap::new();
    for step in 0..20_000 {
        if scheduler.is_idle() {
            return answers;
        }
        scheduler.step(Timestamp(step)).unwrap();
        let (used, total) = scheduler.cache_use();
        assert!(used <= total);
        while let Some(output) = scheduler.poll_output() {
            if let Event::Finished(finished) = output.event {
                answers.insert(output.request.0, finished);
            }
        }
    }
    panic!("no progress")
}

#[test]
fn batches_of_all_adapters_answer_as_transformers_and_peft_do() {
    for family in FAMILIES {
        let model = load(family);
        let expected = expected(family);
        let mut scheduler = model.scheduler(limits(400), HashMap::new());
        let (mut id, mut wanted) = (0, BTreeMap::new());
        let of =
            [("base", &expected.base), ("all", &expected.all), ("attention", &expected.attention)];
        for (name, cases) in of {
            for case in cases {
                let mut request = greedy(id, name, &case.prompt, case.greedy.len());
                request.adapter = model.adapters.get(name).cloned();
                submit(&mut scheduler, request).unwrap();
                wanted.insert(id, case.greedy.clone());
                id += 1;
            }
        }
        for (id, finished) in run(&mut scheduler) {
            assert_eq!(finished.answer, wanted[&id], "{family} {id}");
            assert_eq!(finished.reason, FinishReason::Length);
        }
    }
}

#[test]
fn embeddings_are_the_mean_hidden_state() {
    let model = load("qwen2");
    let mut scheduler =
        model.scheduler(Limits { prompt_rows_max: 5, ..limits(64) }, HashMap::new());
    for (id, case) in expected("qwen2").base.into_iter().enumerate() {
        let request =
            GenerationRequest { work: Work::Embed, ..greedy(id as u64, "ash", &case.prompt, 0) };
        submit(&mut scheduler, request).unwrap();
        while !scheduler.is_idle() {
            scheduler.step(Timestamp(0)).unwrap();
        }
        let Some(Output { event: Event::Embedding(found), .. }) = scheduler.poll_output() else {
            panic!("an embedding comes first")
        };
        assert_close(&found, &case.embedding, "embedding");
        scheduler.poll_output();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever else runs, however small the cache, answers are those of a request alone.
    #[test]
    fn answers_do_not_depend_on_the_batch(
        requests in prop::collection::vec(
            (0_usize..3, 0_usize..3, prop::collection::vec(0_u32..280, 1..30), 1_usize..12), 1..10,
        ),
        blocks in 12_usize..60, rows in 1_usize..40, together in 1_usize..6,
    ) {
        let model = load("smollm");
        let small = Limits {
            batch_rows_max: rows, batch_requests_max: together, prompt_rows_max: rows.min(7),
            ..limits(blocks)
        };
        let adapters = [None, Some("all"), Some("attention")];
        let names = ["ash", "elm", "fir"];
        let make = |id: usize| {
            let (of, adapter, prompt, tokens_max) = &requests[id];
            let mut request = greedy(id as u64, names[*of], prompt, *tokens_max);
            request.adapter = adapters[*adapter].and_then(|name| model.adapters.get(name).cloned());
            request
        };
        let mut shared = model.scheduler(small, HashMap::new());
        for id in 0..requests.len() {
            submit(&mut shared, make(id)).unwrap();
        }
        let answers = run(&mut shared);
        prop_assert_eq!(answers.len(), requests.len());
        prop_assert_eq!(shared.cache_use().0, 0);
        for id in 0..requests.len() {
            let mut alone = model.scheduler(limits(60), HashMap::new());
            submit(&mut alone, make(id)).unwrap();
            let alone = run(&mut alone);
            prop_assert_eq!(&alone[&(id as u64)].answer, &answers[&(id as u64)].answer);
        }
    }
}

#[test]
fn prefixes_are_shared_within_a_tenant_and_adapter_only() {
    let model = load("llama");
    let prompt: Vec<u32> = (10..31).collect();
    let mut scheduler = model.scheduler(limits(200), HashMap::new());
    let mut ask = |id, of, adapter: Option<&str>| {
        let mut request = greedy(id, of, &prompt, 3);
        request.adapter = adapter.map(|name| model.adapters[name].clone());
        submit(&mut scheduler, request).unwrap();
        let finished = run(&mut scheduler).remove(&id).unwrap();
        (finished.cached_tokens, finished.answer)
    };
    let (cached, first) = ask(0, "ash", None);
    assert_eq!(cached, 0);
    let (cached, again) = ask(1, "ash", None);
    assert_eq!((cached, &again), (20, &first));
    let (cached, other) = ask(2, "elm", None);
    assert_eq!((cached, &other), (0, &first));
    assert_eq!(ask(3, "ash", Some("all")).0, 0);
    assert_eq!(ask(4, "ash", Some("attention")).0, 0);
    assert_eq!(ask(5, "ash", Some("all")).0, 20);
}

#[test]
fn running_requests_of_different_tenants_hold_different_blocks() {
    let model = load("qwen2");
    let mut scheduler = model.scheduler(limits(100), HashMap::new());
    let prompt: Vec<u32> = (5..25).collect();
    for (id, of) in ["ash", "elm", "ash", "elm"].into_iter().enumerate() {
        submit(&mut scheduler, greedy(id as u64, of, &prompt, 8)).unwrap();
    }
    for step in 0..6 {
        scheduler.step(Timestamp(step)).unwrap();
        let held = scheduler.blocks_of_tenants();
        let of = |name: &str| held[&tenant(name)].iter().copied().collect::<BTreeSet<_>>();
        assert!(of("ash").is_disjoint(&of("elm")));
        assert!(!of("ash").is_empty());
    }
}

/// Two tenants that always wait are served by weight, within one batch and the lead for blocks.
#[test]
fn rows_are_shared_by_weight() {
    let model = load("smollm");
    let share =
        |weight| TenantShare { weight: NonZeroU32::new(weight).unwrap(), ..TenantShare::default() };
    let shares = HashMap::from([(tenant("ash"), share(3)), (tenant("elm"), share(1))]);
    let small = Limits { batch_rows_max: 8, batch_requests_max: 4, queue_max: 200, ..limits(64) };
    let mut scheduler = model.scheduler(small, shares);
    for id in 0..120 {
        // The light tenant comes with everything at once, before the other.
        let of = if id < 60 { "elm" } else { "ash" };
        let prompt: Vec<u32> = (id as u32..id as u32 + 9).collect();
        submit(&mut scheduler, greedy(id, of, &prompt, 6)).unwrap();
    }
    let mut answered: BTreeMap<bool, u32> = BTreeMap::new();
    while answered.get(&true).copied().unwrap_or(0) < 45 {
        scheduler.step(Timestamp(0)).unwrap();
        while let Some(output) = scheduler.poll_output() {
            if matches!(output.event, Event::Finished(_)) {
                *answered.entry(output.request.0 >= 60).or_default() += 1;
            }
        }
    }
    let light = answered.get(&false).copied().unwrap_or(0);
    assert!((10..=20).contains(&light), "45 answers for weight 3, {light} for weight 1");
}

#[test]
fn a_late_tenant_does_not_wait_for_an_early_one() {
    let model = load("smollm");
    let mut scheduler =
        model.scheduler(Limits { batch_rows_max: 8, queue_max: 99, ..limits(40) }, HashMap::new());
    for id in 0..50 {
        submit(&mut scheduler, greedy(id, "early", &[id as u32; 20], 20)).unwrap();
    }
    for step in 0..100 {
        scheduler.step(Timestamp(step)).unwrap();
    }
    submit(&mut scheduler, greedy(99, "late", &[7; 8], 4)).unwrap();
    let mut steps = 0;
    loop {
        scheduler.step(Timestamp(100)).unwrap();
        steps += 1;
        let mut outputs = std::iter::from_fn(|| scheduler.poll_output());
        if outputs
            .any(|output| output.request.0 == 99 && matches!(output.event, Event::Finished(_)))
        {
            break;
        }
        // 12 rows, half of the 8 a step, and the early tenant's lead of 64 rows.
        assert!(steps < 3 + 12 / 4 + 64 / 4, "still waiting after {steps} steps");
    }
}

#[test]
fn refusals_are_named() {
    let model = load("smollm");
    let quota = TenantShare { tokens_per_minute: NonZeroU32::new(60), ..TenantShare::default() };
    let shares = HashMap::from([(tenant("elm"), quota)]);
    let mut scheduler = model.scheduler(Limits { queue_max: 2, ..limits(10) }, shares);
    let refused = |scheduler: &mut Scheduler, request| submit(scheduler, request).unwrap_err();
    let error = refused(&mut scheduler, greedy(0, "ash", &[], 1));
    assert_eq!(error, Refusal::EmptyPrompt);
    let error = refused(&mut scheduler, greedy(0, "ash", &[288], 1));
    assert_eq!(error, Refusal::Token { token: 288, vocab_size: 288 });
    let error = refused(&mut scheduler, greedy(0, "ash", &[1; 900], usize::MAX));
    assert!(matches!(error, Refusal::TooLong { .. }));
    let mut hot = greedy(0, "ash", &[1], 1);
    if let Work::Generate { sampling, .. } = &mut hot.work {
        sampling.temperature = f32::INFINITY;
    }
    let refusal = refused(&mut scheduler, hot);
    assert!(matches!(&refusal, Refusal::Sampling { name, .. } if name == "temperature"));
    let late = GenerationRequest { deadline: Some(Timestamp(0)), ..greedy(0, "ash", &[1], 1) };
    assert_eq!(refused(&mut scheduler, late), Refusal::Late);
    for id in 0..2 {
        submit(&mut scheduler, greedy(id, "ash", &[1], 1)).unwrap();
    }
    let error = refused(&mut scheduler, greedy(2, "ash", &[1], 1));
    assert!(matches!(error, Refusal::QueueFull { waiting: 2, .. }));
    let error = refused(&mut scheduler, greedy(3, "elm", &[1; 10], 60));
    assert!(matches!(error, Refusal::TooLong { .. } | Refusal::AboveQuota { .. }));
    submit(&mut scheduler, greedy(4, "elm", &[1; 10], 20)).unwrap();
    submit(&mut scheduler, greedy(5, "elm", &[1; 10], 20)).unwrap();
    run(&mut scheduler);
    let error = refused(&mut scheduler, greedy(6, "elm", &[1; 10], 20));
    assert_eq!(error, Refusal::Quota { per_minute: 60, retry_after_ms: 30_000 });
    let request = Input::Submit(Box::new(greedy(6, "elm", &[1; 10], 20)));
    scheduler.handle(Timestamp(30_000), request).unwrap();
    scheduler.handle(Timestamp(30_000), Input::Drain).unwrap();
    assert_eq!(refused(&mut scheduler, greedy(7, "ash", &[1], 1)), Refusal::Draining);
    assert_eq!(run(&mut scheduler)[&6].answer.len(), 20);
}

#[test]
fn cancelled_and_late_requests_end_and_free_their_blocks() {
    let model = load("smollm");
    let mut scheduler = model.scheduler(limits(60), HashMap::new());
    let deadline = Some(Timestamp(50));
    submit(&mut scheduler, GenerationRequest { deadline, ..greedy(0, "ash", &[1; 9], 60) })
        .unwrap();
    submit(&mut scheduler, greedy(1, "elm", &[2; 9], 60)).unwrap();
    for step in 0..5 {
        scheduler.step(Timestamp(step)).unwrap();
    }
    scheduler.handle(Timestamp(5), Input::Cancel(RequestId(1))).unwrap();
    scheduler.step(Timestamp(50)).unwrap();
    let reasons: BTreeMap<u64, FinishReason> = std::iter::from_fn(|| scheduler.poll_output())
        .filter_map(|output| match output.event {
            Event::Finished(finished) => Some((output.request.0, finished.reason)),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [(0, FinishReason::Deadline), (1, FinishReason::Cancelled)].into());
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.cache_use().0, 0);
}

#[test]
fn stop_strings_and_end_tokens_end_an_answer() {
    let model = load("smollm");
    let case = &expected("smollm").base[0];
    let whole = model.tokenizer.decode(&case.greedy);
    let text = |stops: Vec<String>, end_tokens: Vec<u32>| {
        let mut scheduler = model.scheduler(limits(100), HashMap::new());
        let mut request = greedy(0, "ash", &case.prompt, case.greedy.len());
        request.work = Work::Generate {
            tokens_max: case.greedy.len(),
            sampling: Sampling::greedy(),
            stops,
            end_tokens,
        };
        submit(&mut scheduler, request).unwrap();
        let (mut text, mut reason) = (String::new(), None);
        while reason.is_none() {
            scheduler.step(Timestamp(0)).unwrap();
            while let Some(output) = scheduler.poll_output() {
                match output.event {
                    Event::Text(piece) => text += &piece,
                    Event::Finished(finished) => reason = Some(finished.reason),
                    Event::Embedding(_) => panic!("not asked for"),
                }
            }
        }
        (text, reason.unwrap())
    };
    assert_eq!(text(Vec::new(), Vec::new()), (whole.clone(), FinishReason::Length));
    let middle: String = whole.chars().skip(5).take(3).collect();
    let before = whole.split(&middle).next().unwrap().to_owned();
    assert_eq!(text(vec![middle], Vec::new()), (before, FinishReason::Stop));
    let end = case.greedy[6];
    let first = case.greedy.iter().position(|&token| token == end).unwrap();
    let (shown, reason) = text(Vec::new(), vec![end]);
    assert_eq!(reason, FinishReason::Stop);
    assert_eq!(shown, model.tokenizer.decode(&case.greedy[..first]));
}

#[tokio::test]
async fn the_thread_answers_cancels_and_drains() {
    let model = load("smollm");
    let generator =
        Generator::start(model.scheduler(limits(200), HashMap::new()), None).expect("a thread");
    let case = &expected("smollm").base[2];
    let mut gone = generator.submit(greedy(0, "ash", &case.prompt, 300)).await.unwrap();
    assert!(matches!(gone.event().await, Event::Text(_)));
    drop(gone);
    let request = greedy(0, "ash", &case.prompt, case.greedy.len());
    let mut ticket = generator.submit(request).await.unwrap();
    let finished = loop {
        if let Event::Finished(finished) = ticket.event().await {
            break finished;
        }
    };
    assert_eq!(finished.answer, case.greedy);
    generator.drain().await;
    let error = generator.submit(greedy(0, "ash", &[1], 1)).await.unwrap_err();
    assert!(matches!(error, SubmitError::Refused(Refusal::Draining)));
    assert!(generator.is_alive());
}
