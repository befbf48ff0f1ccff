//! The device's steps on the processor: the tensor library runs the same program on both.

use std::{collections::BTreeMap, ops::Range};

use proptest::prelude::*;

use super::*;
use crate::{
    compute::{ComputeDevice, Precision},
    engine::generation::{
        Limits,
        backend::backend,
        blocks::BlockId,
        tests::{Fixture, greedy, limits, load, run, submit},
    },
    model::decoder::{
        DecoderAdapter, LowRankFactors,
        tests::{FAMILIES, assert_close, expected},
    },
};

const BLOCK_TOKENS: usize = 4;
const BLOCKS: usize = 128;

fn accelerator(model: &Fixture) -> Accelerator {
    Accelerator::new(model.decoder.clone(), BLOCKS, BLOCK_TOKENS).unwrap()
}

/// An adapter of every layer, its factors from a small range.
fn adapter(model: &Fixture, rank: usize, seed: u32, scale: f32) -> Arc<DecoderAdapter> {
    let config = model.decoder.config();
    let mut state = seed;
    let mut values = |count: usize| -> Vec<f32> {
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * scale
        })
        .take(count)
        .collect()
    };
    // Odd seeds leave every other layer alone.
    let chosen =
        config.sites().enumerate().filter(|(at, _)| seed.is_multiple_of(2) || at.is_multiple_of(2));
    let sites = chosen.map(|(_, site)| {
        let (inputs, outputs) = config.sizes(site.projection);
        (site, LowRankFactors::new(values(rank * inputs), values(rank * outputs), rank))
    });
    Arc::new(DecoderAdapter::new(rank, 8.0, sites.collect()))
}

/// A sequence with blocks of its own, computed in the given pieces.
struct Case {
    tokens: Vec<u32>,
    adapter: Option<Arc<DecoderAdapter>>,
    table: Vec<BlockId>,
}

/// Sequences with blocks dealt out so that neighbours in a sequence are far apart in the cache.
fn cases(of: Vec<(Vec<u32>, Option<Arc<DecoderAdapter>>)>) -> Vec<Case> {
    let mut next = 0_u32;
    of.into_iter()
        .map(|(tokens, adapter)| {
            let table = (0..tokens.len().div_ceil(BLOCK_TOKENS))
                .map(|_| {
                    next += 1;
                    // 37 has no factor in common with the number of blocks.
                    BlockId(next * 37 % BLOCKS as u32)
                })
                .collect();
            Case { tokens, adapter, table }
        })
        .collect()
}

/// One batch: of each sequence the tokens in the range.
fn batch(
    backend: &mut dyn Backend,
    cases: &[Case],
    pieces: &[Range<usize>],
    wanted: Wanted,
) -> Computed {
    let mut order: Vec<usize> = (0..cases.len()).filter(|&at| !pieces[at].is_empty()).collect();
    order.sort_by_key(|&at| cases[at].adapter.as_ref().map(|of| *of.digest().as_bytes()));
    let (mut tokens, mut sequences) = (Vec::new(), Vec::new());
    for at in order {
        let (case, piece) = (&cases[at], pieces[at].clone());
        let start = tokens.len();
        tokens.extend_from_slice(&case.tokens[piece.clone()]);
        sequences.push(SequenceRows {
            rows: start..tokens.len(),
            position: piece.start,
            table: case.table.clone(),
            adapter: case.adapter.clone(),
            wanted,
        });
    }
    backend.run(&tokens, &sequences).unwrap()
}

#[test]
fn batches_of_all_adapters_answer_as_transformers_and_peft_do() {
    for family in FAMILIES {
        let model = load(family);
        let expected = expected(family);
        // Whole prompts, and pieces of them beside answers with a cache that is too small for all.
        for bounds in [limits(400), Limits { prompt_rows_max: 3, batch_rows_max: 9, ..limits(24) }]
        {
            let blocks = bounds.cache_bytes / 1024;
            let device = Accelerator::new(model.decoder.clone(), 2 * blocks, bounds.block_tokens);
            let scheduler = model.scheduler(bounds, Default::default());
            let mut scheduler = scheduler.computing_with(Box::new(device.unwrap()));
            let mut wanted = BTreeMap::new();
            let of = [
                ("base", &expected.base),
                ("all", &expected.all),
                ("attention", &expected.attention),
            ];
            for (name, cases) in of {
                for case in cases {
                    let id = wanted.len() as u64;
                    let mut request = greedy(id, name, &case.prompt, case.greedy.len());
                    request.adapter = model.adapters.get(name).cloned();
                    submit(&mut scheduler, request).unwrap();
                    wanted.insert(id, case.greedy.clone());
                }
            }
            for (id, finished) in run(&mut scheduler) {
                assert_eq!(finished.answer, wanted[&id], "{family} {id}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Ragged rows, split at any place, with adapters of several ranks: the processor's numbers.
    #[test]
    fn rows_are_those_of_the_processor(
        sequences in prop::collection::vec(
            (prop::collection::vec(0_u32..280, 1..24), 0_usize..4, 0.0..1.0), 1..7,
        ),
        family in 0..FAMILIES.len(),
    ) {
        let model = load(FAMILIES[family]);
        let adapters = [3, 8, 5].map(|rank| adapter(&model, rank, rank as u32, 0.3));
        let cut = |length: usize, part: f64| ((length as f64 * part) as usize).min(length - 1);
        let first: Vec<_> = sequences.iter().map(|(t, _, part)| 0..cut(t.len(), *part)).collect();
        let second: Vec<_> =
            sequences.iter().map(|(t, _, part)| cut(t.len(), *part)..t.len()).collect();
        let cases = cases(
            sequences.into_iter().map(|(t, of, _)| (t, adapters.get(of).cloned())).collect(),
        );
        let mut processor = backend(model.decoder.clone(), BLOCKS, BLOCK_TOKENS).unwrap();
        let mut device = accelerator(&model);
        for (pieces, wanted) in [(&first, Wanted::Hidden), (&second, Wanted::Logits)] {
            if pieces.iter().all(Range::is_empty) {
                continue;
            }
            let exact = batch(processor.as_mut(), &cases, pieces, wanted);
            let found = batch(&mut device, &cases, pieces, wanted);
            assert_close(&found.hidden, &exact.hidden, "hidden");
            assert_close(&found.logits, &exact.logits, "logits");
        }
    }
}

/// Adapters come and go, also larger ones than there was room for; nothing stays behind in the
/// columns that the next one gets.
#[test]
fn columns_of_a_former_adapter_change_nothing() {
    let model = load("llama");
    let mut processor = backend(model.decoder.clone(), BLOCKS, BLOCK_TOKENS).unwrap();
    let mut device = accelerator(&model);
    for (seed, rank) in [4, 12, 7, 16, 3, 40, 2].into_iter().enumerate() {
        let (one, two) = (adapter(&model, rank, seed as u32, 0.3), adapter(&model, 2, 90, 0.2));
        let tokens: Vec<u32> = (seed as u32..seed as u32 + 9).collect();
        let cases = cases(vec![
            (tokens.clone(), Some(one)),
            (tokens.clone(), Some(two)),
            (tokens.clone(), None),
        ]);
        let pieces = [0..9, 0..9, 0..9];
        let exact = batch(processor.as_mut(), &cases, &pieces, Wanted::Logits);
        let found = batch(&mut device, &cases, &pieces, Wanted::Logits);
        assert_close(&found.logits, &exact.logits, &format!("rank {rank}"));
    }
    assert!(device.adapters.num_columns() <= 64, "{} columns", device.adapters.num_columns());
}

/// Numbers that overflow for one tenant do not reach the rows of another.
#[test]
fn an_overflowing_neighbour_changes_nothing() {
    let model = load("smollm");
    let wild = adapter(&model, 4, 2, f32::MAX);
    let calm = adapter(&model, 4, 6, 0.3);
    let tokens: Vec<u32> = (3..16).collect();
    let of = |neighbour: Option<Arc<DecoderAdapter>>| {
        let mut device = accelerator(&model);
        // The neighbour first: it is there, in the cache and in the table, when the others come.
        let cases = cases(vec![
            (tokens.clone(), neighbour),
            (tokens[..7].to_vec(), Some(calm.clone())),
            (tokens[..13].to_vec(), None),
        ]);
        batch(&mut device, &cases, &[0..13, 0..0, 0..0], Wanted::Hidden);
        let alone = batch(&mut device, &cases, &[0..0, 0..7, 0..12], Wanted::Hidden);
        (alone.hidden, batch(&mut device, &cases, &[12..13, 6..7, 12..13], Wanted::Hidden))
    };
    let width = model.decoder.config().hidden_size;
    let others = |neighbour: Arc<DecoderAdapter>| {
        let digest = *neighbour.digest().as_bytes();
        let before_calm = digest < *calm.digest().as_bytes();
        let (alone, mixed) = of(Some(neighbour));
        // Rows are in the order: no adapter, then by digest.
        let rows: Vec<f32> = mixed.hidden[..width]
            .iter()
            .chain(&mixed.hidden[if before_calm { 2 * width } else { width }..][..width])
            .copied()
            .collect();
        (alone, rows)
    };
    let (wild, tame) = (others(wild), others(adapter(&model, 4, 8, 0.3)));
    assert!(wild.1.iter().all(|value| value.is_finite()));
    assert_eq!(wild, tame);
}

#[test]
fn sixteen_bits_are_close() {
    let model = load("llama");
    let checkpoint = load("llama");
    let Ok(decoder) = Arc::try_unwrap(checkpoint.decoder) else { panic!("held once") };
    let cpu = ComputeDevice { precision: Precision::Bf16, ..ComputeDevice::cpu() };
    let decoder = Arc::new(decoder.on(&cpu).unwrap());
    let mut half = Accelerator::new(decoder, BLOCKS, BLOCK_TOKENS).unwrap();
    let mut whole = accelerator(&model);
    let all = model.adapters["all"].clone();
    let cases = cases(vec![((7..30).collect(), Some(all)), ((50..61).collect(), None)]);
    for pieces in [[0..20, 0..11], [20..23, 0..0]] {
        let exact = batch(&mut whole, &cases, &pieces, Wanted::Logits).logits;
        let found = batch(&mut half, &cases, &pieces, Wanted::Logits).logits;
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let difference = norm(&mut exact.iter().zip(&found).map(|(a, b)| a - b));
        let size = norm(&mut exact.iter().copied());
        // PyTorch's own difference is up to 0.018 here.
        assert!(difference < 0.05 * size && difference > 0.0, "{difference} of {size}");
    }
}
