//! The adapters of a batch, side by side in one table for each layer.
//!
//! All factors A of a layer lie under each other, and so do all factors B: two products serve every
//! adapter of the batch. Between them, a row keeps only the columns of its own adapter and has zeros
//! for the rest, so another's numbers, even infinite ones, never reach it.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Weak},
};

use candle_core::{DType, Device, Result, Tensor};
use tributary_protocol::id::Digest;

use super::SequenceRows;
use crate::model::decoder::{DecoderAdapter, DecoderConfig, Site};

/// Columns to begin with.
const COLUMNS_MIN: usize = 16;

/// Adapters on the device; those that nobody holds any more make room for others.
pub(super) struct AdapterTable {
    dtype: DType,
    device: Device,
    columns: usize,
    /// Factors A `[columns, inputs]` and, times the scale, B transposed `[columns, outputs]`.
    sites: HashMap<Site, (Tensor, Tensor)>,
    /// In the order of their columns.
    residents: Vec<Resident>,
}

struct Resident {
    digest: Digest,
    columns: Range<usize>,
    adapter: Weak<DecoderAdapter>,
}

impl AdapterTable {
    pub(super) fn new(dtype: DType, device: &Device) -> Self {
        Self {
            dtype,
            device: device.clone(),
            columns: 0,
            sites: HashMap::new(),
            residents: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) const fn num_columns(&self) -> usize {
        self.columns
    }

    /// Brings the adapters of a batch to the device.
    ///
    /// Returns which columns each row keeps, `[rows, columns]`, u8; nothing without adapters. Only
    /// the first columns take part in products, as many as the mask has.
    pub(super) fn load(
        &mut self,
        config: &DecoderConfig,
        sequences: &[SequenceRows],
        rows: usize,
    ) -> Result<Option<Tensor>> {
        let wanted: Vec<Digest> = sequences
            .iter()
            .filter_map(|sequence| sequence.adapter.as_ref().map(|adapter| adapter.digest()))
            .collect();
        let mut kept = Vec::new();
        for sequence in sequences {
            if let Some(adapter) = &sequence.adapter {
                kept.push((sequence.rows.clone(), self.place(config, adapter, &wanted)?));
            }
        }
        let Some(width) = kept.iter().map(|(_, columns)| columns.end).max() else {
            return Ok(None);
        };
        let mut mask = vec![0_u8; rows * width];
        for (rows, columns) in kept {
            for row in rows {
                mask[row * width..][columns.clone()].fill(1);
            }
        }
        Tensor::from_vec(mask, (rows, width), &self.device).map(Some)
    }

    /// Adds each row's `scale · B · A · row` at a site to its outputs.
    pub(super) fn add(
        &self,
        site: Site,
        rows: &Tensor,
        mask: &Tensor,
        outputs: Tensor,
    ) -> Result<Tensor> {
        let Some((a, b)) = self.sites.get(&site) else { return Ok(outputs) };
        let width = mask.dim(1)?;
        let low = rows.matmul(&a.narrow(0, 0, width)?.t()?)?;
        let own = mask.where_cond(&low, &low.zeros_like()?)?;
        outputs + own.matmul(&b.narrow(0, 0, width)?)?
    }

    /// The columns of an adapter, which is brought to the device if it is not there.
    fn place(
        &mut self,
        config: &DecoderConfig,
        adapter: &Arc<DecoderAdapter>,
        wanted: &[Digest],
    ) -> Result<Range<usize>> {
        let digest = adapter.digest();
        if let Some(resident) = self.residents.iter_mut().find(|resident| resident.digest == digest)
        {
            resident.adapter = Arc::downgrade(adapter);
            return Ok(resident.columns.clone());
        }
        self.residents.retain(|resident| {
            wanted.contains(&resident.digest) || resident.adapter.strong_count() > 0
        });
        let rank = adapter.rank();
        let start = match self.gap(rank) {
            Some(start) => start,
            None => {
                self.residents.retain(|resident| wanted.contains(&resident.digest));
                match self.gap(rank) {
                    Some(start) => start,
                    None => self.grow(rank)?,
                }
            }
        };
        let columns = start..start + rank;
        self.upload(config, adapter, columns.clone())?;
        let at = self.residents.partition_point(|resident| resident.columns.start < start);
        let adapter = Arc::downgrade(adapter);
        self.residents.insert(at, Resident { digest, columns: columns.clone(), adapter });
        Ok(columns)
    }

    /// The first run of free columns that is long enough.
    fn gap(&self, rank: usize) -> Option<usize> {
        let mut start = 0;
        for resident in &self.residents {
            if resident.columns.start - start >= rank {
                return Some(start);
            }
            start = resident.columns.end;
        }
        (self.columns - start >= rank).then_some(start)
    }

    /// Makes room at the end; returns where it begins.
    fn grow(&mut self, rank: usize) -> Result<usize> {
        let start = self.residents.last().map_or(0, |resident| resident.columns.end);
        let columns = (start + rank).next_power_of_two().max(COLUMNS_MIN);
        for (a, b) in self.sites.values_mut() {
            for factors in [a, b] {
                let more = (columns - self.columns, factors.dim(1)?);
                let more = Tensor::zeros(more, self.dtype, &self.device)?;
                *factors = Tensor::cat(&[&*factors, &more], 0)?;
            }
        }
        self.columns = columns;
        Ok(start)
    }

    fn upload(
        &mut self,
        config: &DecoderConfig,
        adapter: &DecoderAdapter,
        columns: Range<usize>,
    ) -> Result<()> {
        for site in config.sites() {
            let (inputs, outputs) = config.sizes(site.projection);
            if !self.sites.contains_key(&site) {
                if adapter.factors(site).is_none() {
                    continue;
                }
                let zeros = |width| Tensor::zeros((self.columns, width), self.dtype, &self.device);
                self.sites.insert(site, (zeros(inputs)?, zeros(outputs)?));
            }
            let (a, b) = &self.sites[&site];
            // Zeros where it changes nothing: another adapter may have been here before.
            let new = |values: Option<&[f32]>, scale: f64, width: usize| {
                let shape = (columns.len(), width);
                let new = match values {
                    Some(values) => (Tensor::from_slice(values, shape, &self.device)? * scale)?,
                    None => Tensor::zeros(shape, DType::F32, &self.device)?,
                };
                new.to_dtype(self.dtype)
            };
            let factors = adapter.factors(site);
            let scale = f64::from(adapter.scale());
            a.slice_set(&new(factors.map(|factors| &*factors.a), 1.0, inputs)?, 0, columns.start)?;
            b.slice_set(
                &new(factors.map(|factors| &*factors.b), scale, outputs)?,
                0,
                columns.start,
            )?;
        }
        Ok(())
    }
}
