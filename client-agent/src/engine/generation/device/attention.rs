//! Attention of ragged rows over the cache.
//!
//! Sequences with equally many rows and about as long a past are computed together: their keys and
//! values are gathered by slot, shorter ones filled up with their own last token, which the mask
//! hides. So no row ever reads what another sequence wrote.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ops::softmax_last_dim, rotary_emb::rope_thd};

use super::{DeviceCache, SequenceRows};
use crate::model::decoder::{Decoder, DecoderConfig};

/// What attention needs to know of a batch; the same in every layer.
pub(super) struct Attention<'a> {
    cache: &'a DeviceCache,
    /// Cosine and sine of each row's position, `[rows, head_dim / 2]`.
    angles: (Tensor, Tensor),
    /// Where each row's key and value are kept, `[rows, kv_width]`, u32.
    slots: Tensor,
    groups: Vec<Group>,
    /// Where each row's answer is among those of the groups in turn, `[rows]`, u32.
    order: Tensor,
}

/// Sequences that are computed together.
struct Group {
    sequences: usize,
    /// Of each sequence.
    rows: usize,
    /// Tokens that a row sees, at most.
    seen: usize,
    /// Which rows of the batch, `[sequences · rows]`, u32.
    places: Tensor,
    /// The slots of the tokens that they see, `[sequences · seen]`, u32.
    slots: Tensor,
    /// Whether a row sees a token, `[sequences · kv_heads, heads_per_kv · rows, seen]`, u8.
    mask: Tensor,
}

impl<'a> Attention<'a> {
    pub(super) fn new(
        decoder: &Decoder,
        cache: &'a DeviceCache,
        sequences: &[SequenceRows],
    ) -> Result<Self> {
        let (config, device) = (decoder.config(), decoder.device());
        let (mut cosines, mut sines, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        // By rows, then by the size of their past, so that little is filled up.
        let mut alike: BTreeMap<(usize, usize), Vec<&SequenceRows>> = BTreeMap::new();
        for sequence in sequences {
            let end = sequence.position + sequence.rows.len();
            for position in sequence.position..end {
                decoder.rope().angles(position, &mut cosines, &mut sines);
                let slot = cache.slot(sequence, position);
                slots.extend(std::iter::repeat_n(slot, config.kv_width()));
            }
            let key = (sequence.rows.len(), end.next_power_of_two());
            alike.entry(key).or_default().push(sequence);
        }
        let rows = slots.len() / config.kv_width();
        let half = config.head_dim / 2;
        let angles = |values: Vec<f32>| {
            Tensor::from_vec(values, (rows, half), device)?.to_dtype(decoder.dtype())
        };
        let mut order = vec![0; rows];
        let computed = alike.values().flatten().flat_map(|sequence| sequence.rows.clone());
        computed.enumerate().for_each(|(index, row)| order[row] = index as u32);
        let groups = alike.values().map(|alike| Group::new(config, cache, alike, device));
        Ok(Self {
            cache,
            angles: (angles(cosines)?, angles(sines)?),
            slots: Tensor::from_vec(slots, (rows, config.kv_width()), device)?,
            groups: groups.collect::<Result<_>>()?,
            order: Tensor::from_vec(order, rows, device)?,
        })
    }

    /// Keeps the rows' keys and values, and lets each row attend to its sequence up to itself.
    ///
    /// - `query`: `[rows, heads · head_dim]`; `key`, `value`: `[rows, kv_heads · head_dim]`
    pub(super) fn attend(
        &self,
        config: &DecoderConfig,
        layer: usize,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor> {
        let (keys, values) = &self.cache.layers[layer];
        keys.scatter_set(&self.slots, &self.turned(config, key)?, 0)?;
        values.scatter_set(&self.slots, &value.contiguous()?, 0)?;
        let query = self.turned(config, query)?;
        let answers = self.groups.iter().map(|group| group.attend(config, &query, keys, values));
        let answers = answers.collect::<Result<Vec<_>>>()?;
        match answers.as_slice() {
            [answer] => answer.index_select(&self.order, 0),
            answers => Tensor::cat(answers, 0)?.index_select(&self.order, 0),
        }
    }

    /// Rows with every head turned by its position.
    fn turned(&self, config: &DecoderConfig, rows: &Tensor) -> Result<Tensor> {
        let (count, width) = rows.dims2()?;
        let heads = (1, count, width / config.head_dim, config.head_dim);
        let (cosines, sines) = &self.angles;
        rope_thd(&rows.contiguous()?.reshape(heads)?, cosines, sines)?.reshape((count, width))
    }
}

impl Group {
    fn new(
        config: &DecoderConfig,
        cache: &DeviceCache,
        alike: &[&SequenceRows],
        device: &Device,
    ) -> Result<Self> {
        let end = |sequence: &SequenceRows| sequence.position + sequence.rows.len();
        let seen = alike.iter().map(|sequence| end(sequence)).max().unwrap_or(0);
        let rows = alike.first().map_or(0, |sequence| sequence.rows.len());
        let (mut places, mut slots, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for sequence in alike {
            places.extend(sequence.rows.clone().map(|row| row as u32));
            let last = end(sequence) - 1;
            slots.extend((0..seen).map(|token| cache.slot(sequence, token.min(last))));
            for position in sequence.position..=last {
                mask.extend((0..seen).map(|token| u8::from(token <= position)));
            }
        }
        let (sequences, kv_heads) = (alike.len(), config.num_kv_heads);
        let per_kv = config.num_heads / kv_heads;
        let mask = Tensor::from_vec(mask, (sequences, 1, 1, rows, seen), device)?
            .broadcast_as((sequences, kv_heads, per_kv, rows, seen))?
            .contiguous()?
            .reshape((sequences * kv_heads, per_kv * rows, seen))?;
        Ok(Self {
            sequences,
            rows,
            seen,
            places: Tensor::from_vec(places, sequences * rows, device)?,
            slots: Tensor::from_vec(slots, sequences * seen, device)?,
            mask,
        })
    }

    /// Answers `[sequences · rows, heads · head_dim]`.
    fn attend(
        &self,
        config: &DecoderConfig,
        query: &Tensor,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<Tensor> {
        let &Self { sequences, rows, seen, .. } = self;
        let (kv_heads, dim) = (config.num_kv_heads, config.head_dim);
        let per_kv = config.num_heads / kv_heads;
        let past = |cached: &Tensor| {
            cached
                .index_select(&self.slots, 0)?
                .reshape((sequences, seen, kv_heads, dim))?
                .transpose(1, 2)?
                .contiguous()?
                .reshape((sequences * kv_heads, seen, dim))
        };
        let (keys, values) = (past(keys)?, past(values)?);
        let query = (query.index_select(&self.places, 0)? * (dim as f64).sqrt().recip())?
            .reshape((sequences, rows, kv_heads, per_kv, dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((sequences * kv_heads, per_kv * rows, dim))?;
        // Exponentials and their sums have 32 bits whatever the weights have.
        let scores = query.matmul(&keys.t()?)?.to_dtype(DType::F32)?;
        let hidden = Tensor::full(f32::NEG_INFINITY, (), scores.device())?;
        let scores = self.mask.where_cond(&scores, &hidden.broadcast_as(scores.shape())?)?;
        let weights = softmax_last_dim(&scores)?.to_dtype(values.dtype())?;
        weights
            .matmul(&values)?
            .reshape((sequences, kv_heads, per_kv, rows, dim))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((sequences * rows, kv_heads * per_kv * dim))
    }
}
