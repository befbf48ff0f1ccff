//! A decoder's steps over ragged rows of many requests, on the processor.

use std::{ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp2, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{attend::Line, backend::SequenceRows, cache::KvCache};
use crate::model::{
    add_scaled_assign,
    decoder::{
        DecoderAdapter, DecoderConfig, Linear, LowRankFactors, Pass, Rope, Site, panel_product,
        product, row_of_panels, turn_head,
    },
    gate as gate_rows, with_elements,
};

/// Elements above which element-wise work is split between threads.
const PARALLEL_MIN: usize = 1 << 14;
/// Rows of a prompt whose attention is one piece of work.
const PROMPT_ROWS: usize = 8;

/// A batch over the cache. Sequences with the same adapter lie next to each other.
pub(super) struct Cached<'a> {
    pub(super) config: &'a DecoderConfig,
    pub(super) cache: &'a mut KvCache,
    pub(super) tokens: &'a [u32],
    pub(super) sequences: &'a [SequenceRows],
    /// Cosines and sines of every row's position, each `[rows, head_dim / 2]`, once they are known.
    pub(super) angles: (Vec<f32>, Vec<f32>),
}

impl<'a> Cached<'a> {
    /// Runs of rows with one adapter that changes the layer.
    fn groups(&self, site: Site) -> Vec<RowGroup<'a>> {
        let mut groups: Vec<(&'a Arc<DecoderAdapter>, Range<usize>)> = Vec::new();
        let sequences: &'a [SequenceRows] = self.sequences;
        for sequence in sequences {
            let Some(adapter) = &sequence.adapter else { continue };
            match groups.last_mut() {
                Some((last, rows)) if Arc::ptr_eq(last, adapter) => rows.end = sequence.rows.end,
                _ => groups.push((adapter, sequence.rows.clone())),
            }
        }
        groups
            .into_iter()
            .filter_map(|(adapter, rows)| {
                let factors = adapter.factors(site)?;
                Some(RowGroup { rows, scale: adapter.scale(), factors })
            })
            .collect()
    }
}

impl Pass for Cached<'_> {
    fn embed(&mut self, table: &Tensor) -> Result<Tensor> {
        let width = self.config.hidden_size;
        let mut rows = vec![0.0; self.tokens.len() * width];
        with_elements(table, |panels| {
            for (row, &token) in rows.chunks_exact_mut(width).zip(self.tokens) {
                row_of_panels(panels, token as usize, row);
            }
        })?;
        Tensor::from_vec(rows, (1, self.tokens.len(), width), table.device())
    }

    fn linear(&mut self, site: Site, linear: &Linear, rows: &Tensor) -> Result<Tensor> {
        let (_, outputs) = self.config.sizes(site.projection);
        let outputs = rows.apply_op2_no_bwd(&linear.weight, &FixedOrder { outputs })?;
        let outputs = match &linear.bias {
            Some(bias) => outputs.broadcast_add(bias)?,
            None => outputs,
        };
        let groups = self.groups(site);
        if !groups.is_empty() {
            outputs.inplace_op2(rows, &GroupedLowRank { groups })?;
        }
        Ok(outputs)
    }

    fn attend(
        &mut self,
        layer: usize,
        rope: &Rope,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor> {
        let (query_width, kv_width) = (self.config.query_width(), self.config.kv_width());
        let dim = self.config.head_dim;
        let mut queries = with_elements(query, <[f32]>::to_vec)?;
        let mut keys = with_elements(key, <[f32]>::to_vec)?;
        let mut places = Vec::with_capacity(self.tokens.len());
        for sequence in self.sequences {
            let positions = sequence.position..sequence.position + sequence.rows.len();
            places.extend(positions.map(|position| (sequence.table.as_slice(), position)));
        }
        let (cosines, sines) = &mut self.angles;
        if cosines.is_empty() {
            // The same in every layer.
            places.iter().for_each(|(_, position)| rope.angles(*position, cosines, sines));
        }
        let angles = cosines.chunks_exact(dim / 2).zip(sines.chunks_exact(dim / 2));
        let cache = &mut *self.cache;
        with_elements(value, |values| {
            let rows = queries
                .chunks_exact_mut(query_width)
                .zip(keys.chunks_exact_mut(kv_width))
                .zip(values.chunks_exact(kv_width));
            for ((((query, key), value), &(table, position)), (cosines, sines)) in
                rows.zip(&places).zip(angles)
            {
                for head in query.chunks_exact_mut(dim).chain(key.chunks_exact_mut(dim)) {
                    turn_head(head, cosines, sines);
                }
                cache.write(layer, table, position, key, value);
            }
        })?;
        let mut answers = vec![0.0; queries.len()];
        let attention = Attention {
            cache: &*self.cache,
            layer,
            group: self.config.num_heads / self.config.num_kv_heads,
            queries: &queries,
            query_width,
        };
        attention
            .pieces(self.sequences, &mut answers)
            .into_par_iter()
            .for_each_init(Vec::new, |scores, piece| attention.answer(piece, scores));
        Tensor::from_vec(answers, query.shape(), query.device())
    }

    fn gate(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let mut gated = vec![0.0; gate.elem_count()];
        with_elements(gate, |gates| {
            with_elements(up, |ups| {
                let piece = if gates.len() < PARALLEL_MIN { gates.len() } else { PARALLEL_MIN / 4 };
                let pieces = gates.par_chunks(piece).zip(ups.par_chunks(piece));
                gated
                    .par_chunks_mut(piece)
                    .zip(pieces)
                    .for_each(|(values, (gates, ups))| gate_rows(gates, ups, values));
            })
        })??;
        Tensor::from_vec(gated, gate.shape(), gate.device())
    }
}

/// One layer's attention over the cache.
struct Attention<'a> {
    cache: &'a KvCache,
    layer: usize,
    /// Query heads of one key head.
    group: usize,
    /// `[rows, query_width]`.
    queries: &'a [f32],
    query_width: usize,
}

/// What one thread answers at a time.
struct AttentionPiece<'a> {
    sequence: &'a SequenceRows,
    /// Rows of the batch.
    rows: Range<usize>,
    /// Key heads.
    heads: Range<usize>,
    /// `[rows, query heads of the key heads, head_dim]`.
    answers: &'a mut [f32],
}

impl Attention<'_> {
    /// Cuts the answers into pieces: some rows of a prompt, or one key head of a single row, so that
    /// it too uses every core.
    fn pieces<'p>(
        &self,
        sequences: &'p [SequenceRows],
        mut answers: &'p mut [f32],
    ) -> Vec<AttentionPiece<'p>> {
        let kv_heads = self.query_width / (self.group * self.cache.head_dim());
        let mut pieces = Vec::new();
        for sequence in sequences {
            let heads_together = if sequence.rows.len() == 1 { 1 } else { kv_heads };
            for start in sequence.rows.clone().step_by(PROMPT_ROWS) {
                let rows = start..sequence.rows.end.min(start + PROMPT_ROWS);
                for head in (0..kv_heads).step_by(heads_together) {
                    let heads = head..head + heads_together;
                    let length = rows.len() * self.query_width / kv_heads * heads_together;
                    let (own, rest) = answers.split_at_mut(length);
                    answers = rest;
                    pieces.push(AttentionPiece {
                        sequence,
                        rows: rows.clone(),
                        heads,
                        answers: own,
                    });
                }
            }
        }
        pieces
    }

    fn answer(&self, piece: AttentionPiece<'_>, scores: &mut Vec<f32>) {
        let AttentionPiece { sequence, rows, heads, answers } = piece;
        let dim = self.cache.head_dim();
        let (wide, row_width) = (self.group * dim, heads.len() * self.group * dim);
        for (head, at) in heads.zip((0..).step_by(wide)) {
            let rows = rows.clone().zip(answers.chunks_exact_mut(row_width));
            let mut lines: Vec<Line<'_>> = rows
                .flat_map(|(row, answers)| {
                    let position = sequence.position + row - sequence.rows.start;
                    let queries = &self.queries[row * self.query_width + head * wide..][..wide];
                    answers[at..at + wide]
                        .chunks_exact_mut(dim)
                        .zip(queries.chunks_exact(dim))
                        .map(move |(answer, query)| Line { query, position, answer })
                })
                .collect();
            self.cache.attend((self.layer, head), &sequence.table, &mut lines, scores);
        }
    }
}

/// `inputs · weightᵀ` with each element summed in one fixed order, the weight being in panels.
struct FixedOrder {
    outputs: usize,
}

impl CustomOp2 for FixedOrder {
    fn name(&self) -> &'static str {
        "fixed-order-linear"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width, _) = weight_layout.shape().dims3()?;
        let mut dims = inputs_layout.dims().to_vec();
        if dims.pop() != Some(width) {
            bail!("a layer of width {width} got rows of shape {:?}", inputs_layout.shape())
        }
        dims.push(self.outputs);
        let (inputs, panels) = (elements(inputs, inputs_layout)?, elements(weight, weight_layout)?);
        let values = panel_product(inputs, panels, width, self.outputs);
        Ok((CpuStorage::F32(values), Shape::from(dims)))
    }
}

/// Adds each row group's `scale · B · A · row` to its outputs in place.
struct GroupedLowRank<'a> {
    groups: Vec<RowGroup<'a>>,
}

/// Rows with one adapter.
struct RowGroup<'a> {
    rows: Range<usize>,
    scale: f32,
    factors: &'a LowRankFactors,
}

impl InplaceOp2 for GroupedLowRank<'_> {
    fn name(&self) -> &'static str {
        "grouped-low-rank"
    }

    fn cpu_fwd(
        &self,
        outputs: &mut CpuStorage,
        outputs_layout: &Layout,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
    ) -> Result<()> {
        let inputs = elements(inputs, inputs_layout)?;
        let CpuStorage::F32(outputs) = outputs else { bail!("only f32 rows are supported") };
        let (Some((start, end)), Some(&wide), Some(&width)) = (
            outputs_layout.contiguous_offsets(),
            outputs_layout.dims().last(),
            inputs_layout.dims().last(),
        ) else {
            bail!("only contiguous rows are supported")
        };
        let mut rest = &mut outputs[start..end];
        let (mut pieces, mut passed) = (Vec::with_capacity(self.groups.len()), 0);
        for group in &self.groups {
            let (_, tail) = rest.split_at_mut((group.rows.start - passed) * wide);
            let (rows, tail) = tail.split_at_mut(group.rows.len() * wide);
            pieces.push((group, rows));
            (rest, passed) = (tail, group.rows.end);
        }
        pieces.into_par_iter().for_each(|(group, outputs)| {
            let factors = group.factors;
            let inputs = &inputs[group.rows.start * width..group.rows.end * width];
            let low = product(inputs, &factors.a, width);
            for (outputs, low) in outputs.chunks_exact_mut(wide).zip(low.chunks_exact(factors.rank))
            {
                for (&low, row) in low.iter().zip(factors.b.chunks_exact(wide)) {
                    add_scaled_assign(outputs, row, group.scale * low);
                }
            }
        });
        Ok(())
    }
}

fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("only contiguous f32 rows are supported"),
    }
}
