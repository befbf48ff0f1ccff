//! A table of vectors, looked up by id.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{
    super::{kernels::elements, tape::Record},
    Recording,
};

/// Looks up the row of each id.
///
/// - `ids`: `[n, time]` (u32); `weight`: `[rows, width]`; returns `[n, time, width]`
///
/// # Errors
/// The tensor library's, for an id without a row.
pub fn embedding(ids: &Tensor, weight: &Tensor, recording: Option<Recording>) -> Result<Tensor> {
    let (examples, time) = ids.dims2()?;
    let ids = ids.flatten_all()?.to_vec1::<u32>()?;
    let op = Embedding { ids, examples, time, recording };
    if op.recording.is_some() { weight.apply_op1(op) } else { weight.apply_op1_no_bwd(&op) }
}

struct Embedding {
    ids: Vec<u32>,
    examples: usize,
    time: usize,
    recording: Option<Recording>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let table = elements(table, layout)?;
        let mut values = Vec::with_capacity(self.ids.len() * width);
        for &id in &self.ids {
            let id = id as usize;
            if id >= rows {
                bail!("id {id} has no row in a table of {rows}")
            }
            values.extend_from_slice(&table[id * width..(id + 1) * width]);
        }
        let shape = (self.examples, self.time, width);
        Ok((CpuStorage::F32(values), Shape::from(shape)))
    }

    fn bwd(&self, _table: &Tensor, _rows: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        if let Some(Recording { tape, spans }) = &self.recording {
            tape.push(Record::Rows {
                table: spans.weight.clone(),
                ids: self.ids.clone(),
                gradient: gradient.contiguous()?.detach(),
            });
        }
        Ok(None)
    }
}
