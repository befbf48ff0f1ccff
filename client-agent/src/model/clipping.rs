//! From a tape to the sum of clipped per-example gradients.

use std::{collections::BTreeMap, ops::Range};

use candle_core::{Result, Tensor};
use thiserror::Error;

use super::{
    kernels::{add_assign, add_scaled_assign, sum_of_squares, with_elements},
    layer::Spans,
    tape::{Record, Tape},
};

/// Says why no clipped sum exists.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClippingError {
    /// The gradient of an example is NaN, infinite or so large that f32 clips it wrongly.
    #[error(
        "the gradient of example {example} of the batch is not finite or absurdly large; lower the learning rate or check its features"
    )]
    NonFinite {
        /// Position in the batch, from 0.
        example: usize,
    },
    /// Two layers share parameters, so the norm is not the sum of their norms.
    #[error("parameter {parameter} is used by two layers; per-example clipping needs one use each")]
    Shared {
        /// Position in the flat parameter vector.
        parameter: usize,
    },
    /// An operation's parameters do not lie in one layer.
    #[error("the operation on parameter {parameter} belongs to no single layer; clip flat instead")]
    Straddling {
        /// Position in the flat parameter vector.
        parameter: usize,
    },
    /// The tensor library failed.
    #[error("the tensor library failed while clipping")]
    Tensor(#[from] candle_core::Error),
}

/// The largest activation, and the largest gradient norm in clipping norms, that is clipped.
///
/// Beyond, a clip factor or a scaled gradient may fall among the denormal f32 numbers, whose
/// rounding error is not relative, and the bound on a contribution would no longer hold.
const MAGNITUDE_MAX: f64 = (1_u64 << 40) as f64;

/// Elements of per-example gradients of one layer that are kept between norm and sum; a layer with
/// more computes them twice.
const KEPT_ELEMENTS_MAX: usize = 1 << 26;

impl Tape {
    /// Adds the sum of the per-example gradients, each scaled to at most `norm_max`, to `sum`.
    ///
    /// Flat clipping over all recorded layers jointly. The norms are exact to f64 for the recorded
    /// f32 values, so a clipped contribution exceeds `norm_max` by no more than the rounding of its
    /// own f32 factor (2⁻²³ relative). Every example adds one term to each coordinate, also in
    /// layers with a time axis, whose per-example gradients are formed first: the float error of
    /// the sum grows with the number of examples only.
    ///
    /// - `sum`: `[num_parameters]`, model units; untouched by a gradient that is not finite
    /// - returns: the norm of each example before clipping
    ///
    /// # Errors
    /// [`ClippingError::NonFinite`] naming the example; [`ClippingError::Shared`] for parameters
    /// that two layers use.
    ///
    /// Source: Abadi et al. 2016, arXiv:1607.00133 (clipping); Bu et al. 2022, arXiv:2210.00038
    /// (norms and sum from activations and output gradients).
    pub fn add_clipped_sum(
        &self,
        examples: usize,
        norm_max: f64,
        sum: &mut [f32],
    ) -> std::result::Result<Vec<f64>, ClippingError> {
        self.add_clipped_sum_keeping(KEPT_ELEMENTS_MAX, examples, norm_max, sum)
    }

    /// The same, keeping at most so many elements of a layer's per-example gradients.
    pub(super) fn add_clipped_sum_keeping(
        &self,
        kept_elements_max: usize,
        examples: usize,
        norm_max: f64,
        sum: &mut [f32],
    ) -> std::result::Result<Vec<f64>, ClippingError> {
        let records = self.take();
        check_disjoint(&records)?;
        let clipped = clip(records, kept_elements_max, examples, norm_max)?;
        clipped.add_to(sum)?;
        Ok(clipped.norms)
    }

    /// Adds the sum of the per-example gradients, each layer of each scaled to at most `norm_max`,
    /// to `sum`.
    ///
    /// As [`add_clipped_sum`](Self::add_clipped_sum) on every layer by itself: a contribution of n
    /// layers has norm at most `norm_max · sqrt(n)`.
    ///
    /// - `layers`: number of parameters of each layer, in the flat order
    /// - `norm_max`: of one layer, model units
    /// - `sum`: `[num_parameters]`; untouched by a gradient that is not finite
    ///
    /// # Errors
    /// As for [`add_clipped_sum`](Self::add_clipped_sum), and [`ClippingError::Straddling`] for a
    /// recorded operation that belongs to several layers or none.
    ///
    /// Source: McMahan et al. 2018, arXiv:1710.06963 (per-layer clipping).
    pub fn add_layer_clipped_sum(
        &self,
        examples: usize,
        layers: &[usize],
        norm_max: f64,
        sum: &mut [f32],
    ) -> std::result::Result<(), ClippingError> {
        let records = self.take();
        check_disjoint(&records)?;
        let mut of_layers: Vec<Vec<Record>> = layers.iter().map(|_| Vec::new()).collect();
        for record in records {
            let layer = layer_of(&record, layers)?;
            of_layers[layer].push(record);
        }
        // All factors are known before the sum changes.
        let clipped = of_layers
            .into_iter()
            .map(|records| clip(records, KEPT_ELEMENTS_MAX, examples, norm_max))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        clipped.iter().try_for_each(|layer| layer.add_to(sum))?;
        Ok(())
    }

    /// Adds the plain sum of the per-example gradients to `sum`.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn add_sum(&self, sum: &mut [f32]) -> Result<()> {
        self.take().into_iter().try_for_each(|record| record.add_sum(sum))
    }
}

/// Records that are clipped jointly, with the factor of each example.
struct Clipped {
    prepared: Vec<Prepared>,
    factors: Vec<f32>,
    /// Before clipping.
    norms: Vec<f64>,
}

impl Clipped {
    fn add_to(&self, sum: &mut [f32]) -> Result<()> {
        self.prepared.iter().try_for_each(|part| part.add_sum(&self.factors, sum))
    }
}

fn clip(
    records: Vec<Record>,
    kept_elements_max: usize,
    examples: usize,
    norm_max: f64,
) -> std::result::Result<Clipped, ClippingError> {
    let mut norms = vec![0.0; examples];
    let mut prepared = Vec::with_capacity(records.len());
    for record in records {
        record.prepare(kept_elements_max, &mut norms, &mut prepared)?;
    }
    let mut factors = Vec::with_capacity(examples);
    for (example, norm) in norms.iter_mut().enumerate() {
        *norm = norm.sqrt();
        if norm.is_nan() || *norm > norm_max * MAGNITUDE_MAX {
            return Err(ClippingError::NonFinite { example });
        }
        factors.push(if *norm > norm_max { (norm_max / *norm) as f32 } else { 1.0 });
    }
    Ok(Clipped { prepared, factors, norms })
}

/// The one layer that holds all parameters of a record.
fn layer_of(record: &Record, layers: &[usize]) -> std::result::Result<usize, ClippingError> {
    let spans = record.spans();
    let (mut start, mut found) = (0, None);
    for (layer, length) in layers.iter().enumerate() {
        let end = start + length;
        if spans.iter().all(|span| start <= span.start && span.end <= end) {
            found = Some(layer);
        }
        start = end;
    }
    let parameter = spans.first().map_or(0, |span| span.start);
    found.ok_or(ClippingError::Straddling { parameter })
}

fn check_disjoint(records: &[Record]) -> std::result::Result<(), ClippingError> {
    let mut spans: Vec<Range<usize>> = records.iter().flat_map(Record::spans).collect();
    spans.sort_by_key(|span| span.start);
    match spans.windows(2).find(|pair| pair[1].start < pair[0].end) {
        Some(pair) => Err(ClippingError::Shared { parameter: pair[1].start }),
        None => Ok(()),
    }
}

/// A layer whose share of the norms is known, ready for the clipped sum.
enum Prepared {
    /// Rank-one gradients, never formed: `[n, k]` and `[n, m]`.
    Outer { spans: Spans, activation: Tensor, gradient: Tensor },
    /// The gradients themselves, `[n, len]`.
    PerExample { span: Range<usize>, gradients: Tensor },
    /// Gradients with a time axis, too large to keep: formed again example by example.
    Time { span: Range<usize>, activation: Tensor, gradient: Tensor },
    /// The touched rows of a table, an entry an example.
    Rows { table: Range<usize>, touched: Vec<BTreeMap<u32, Vec<f32>>> },
}

impl Record {
    /// Adds the layer's squared norms to `squares` and keeps what the sum needs.
    fn prepare(
        self,
        kept_elements_max: usize,
        squares: &mut [f64],
        prepared: &mut Vec<Prepared>,
    ) -> Result<()> {
        match self {
            Self::Linear { spans, activation, gradient } if gradient.rank() == 2 => {
                let bias = if spans.bias.is_some() { 1.0 } else { 0.0 };
                let activations = row_squares(&activation, squares.len())?;
                let gradients = row_squares(&gradient, squares.len())?;
                for ((square, a), g) in squares.iter_mut().zip(activations).zip(gradients) {
                    let usable = a <= MAGNITUDE_MAX * MAGNITUDE_MAX;
                    *square += if usable { g * (a + bias) } else { f64::NAN };
                }
                prepared.push(Prepared::Outer { spans, activation, gradient });
            }
            Self::Linear { spans, activation, gradient } => {
                if let Some(span) = spans.bias {
                    let gradients = time_sums(&gradient)?;
                    Self::PerExample { span, gradients }.prepare(
                        kept_elements_max,
                        squares,
                        prepared,
                    )?;
                }
                let span = spans.weight;
                if span.len() * squares.len() <= kept_elements_max {
                    let gradients = time_products(&activation, &gradient)?;
                    return Self::PerExample { span, gradients }.prepare(
                        kept_elements_max,
                        squares,
                        prepared,
                    );
                }
                for (example, square) in squares.iter_mut().enumerate() {
                    let gradient = example_product(&activation, &gradient, example)?;
                    *square += with_elements(&gradient, sum_of_squares)?;
                }
                prepared.push(Prepared::Time { span, activation, gradient });
            }
            Self::Rows { table, ids, gradient } => {
                let touched = touched_rows(&ids, &gradient)?;
                for (square, rows) in squares.iter_mut().zip(&touched) {
                    *square += rows.values().map(|row| sum_of_squares(row)).sum::<f64>();
                }
                prepared.push(Prepared::Rows { table, touched });
            }
            Self::PerExample { span, gradients } => {
                let of_examples = row_squares(&gradients, squares.len())?;
                for (square, of_example) in squares.iter_mut().zip(of_examples) {
                    *square += of_example;
                }
                prepared.push(Prepared::PerExample { span, gradients });
            }
        }
        Ok(())
    }

    fn add_sum(self, sum: &mut [f32]) -> Result<()> {
        match self {
            Self::Linear { spans, activation, gradient } => {
                let (outputs, inputs) = (last(&gradient), last(&activation));
                let gradient = gradient.reshape(((), outputs))?;
                add_linear(&spans, &activation.reshape(((), inputs))?, &gradient, sum)
            }
            Self::Rows { table, ids, gradient } => {
                let (width, sum) = (last(&gradient), &mut sum[table]);
                with_elements(&gradient, |rows| {
                    for (&id, row) in ids.iter().zip(rows.chunks_exact(width)) {
                        let start = id as usize * width;
                        add_assign(&mut sum[start..start + width], row);
                    }
                })
            }
            Self::PerExample { span, gradients } => with_elements(&gradients, |rows| {
                for row in rows.chunks_exact(span.len()) {
                    add_assign(&mut sum[span.clone()], row);
                }
            }),
        }
    }
}

impl Prepared {
    fn add_sum(&self, factors: &[f32], sum: &mut [f32]) -> Result<()> {
        match self {
            Self::Outer { spans, activation, gradient } => {
                add_linear(spans, activation, &scale_rows(gradient, factors)?, sum)
            }
            Self::PerExample { span, gradients } => with_elements(gradients, |rows| {
                add_scaled_rows(rows, factors, &mut sum[span.clone()]);
            }),
            Self::Time { span, activation, gradient } => {
                for (example, &factor) in factors.iter().enumerate() {
                    let gradient = example_product(activation, gradient, example)?;
                    with_elements(&gradient, |gradient| {
                        add_scaled_assign(&mut sum[span.clone()], gradient, factor);
                    })?;
                }
                Ok(())
            }
            Self::Rows { table, touched } => {
                let sum = &mut sum[table.clone()];
                for (rows, &factor) in touched.iter().zip(factors) {
                    for (&id, row) in rows {
                        let start = id as usize * row.len();
                        add_scaled_assign(&mut sum[start..start + row.len()], row, factor);
                    }
                }
                Ok(())
            }
        }
    }
}

/// Adds `gradientᵀ · activation` and the column sums of `gradient` to the layer's spans.
fn add_linear(
    spans: &Spans,
    activation: &Tensor,
    gradient: &Tensor,
    sum: &mut [f32],
) -> Result<()> {
    if let Some(bias) = &spans.bias {
        let width = bias.len();
        with_elements(gradient, |rows| {
            for row in rows.chunks_exact(width) {
                add_assign(&mut sum[bias.clone()], row);
            }
        })?;
    }
    let weight_gradient = gradient.t()?.matmul(activation)?;
    with_elements(&weight_gradient, |values| add_assign(&mut sum[spans.weight.clone()], values))
}

/// `sum += Σᵢ factors[i] · rows[i]`, in blocks of columns that stay in the fast cache.
fn add_scaled_rows(rows: &[f32], factors: &[f32], sum: &mut [f32]) {
    const BLOCK: usize = 4096;
    let width = sum.len();
    for (start, sum) in (0..).step_by(BLOCK).zip(sum.chunks_mut(BLOCK)) {
        for (row, &factor) in rows.chunks_exact(width).zip(factors) {
            add_scaled_assign(sum, &row[start..start + sum.len()], factor);
        }
    }
}

/// Per-example weight gradients of a layer with a time axis, `[n, m · k]`.
fn time_products(activation: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    gradient.transpose(1, 2)?.matmul(activation)?.flatten_from(1)
}

/// The weight gradient of one example, `[m, k]`.
fn example_product(activation: &Tensor, gradient: &Tensor, example: usize) -> Result<Tensor> {
    gradient.get(example)?.t()?.matmul(&activation.get(example)?)
}

/// Per-example bias gradients of a layer with a time axis, `[n, m]`.
fn time_sums(gradient: &Tensor) -> Result<Tensor> {
    let (examples, time, width) = gradient.dims3()?;
    let mut sums = vec![0.0; examples * width];
    with_elements(gradient, |values| {
        for (sum, rows) in sums.chunks_exact_mut(width).zip(values.chunks_exact(time * width)) {
            for row in rows.chunks_exact(width) {
                add_assign(sum, row);
            }
        }
    })?;
    Tensor::from_vec(sums, (examples, width), gradient.device())
}

/// For each example, the gradient of every row that its ids name.
fn touched_rows(ids: &[u32], gradient: &Tensor) -> Result<Vec<BTreeMap<u32, Vec<f32>>>> {
    let (examples, time, width) = gradient.dims3()?;
    with_elements(gradient, |values| {
        let mut rows = ids.iter().zip(values.chunks_exact(width));
        (0..examples)
            .map(|_| {
                let mut touched = BTreeMap::<u32, Vec<f32>>::new();
                for (&id, row) in rows.by_ref().take(time) {
                    match touched.get_mut(&id) {
                        Some(sum) => add_assign(sum, row),
                        None => drop(touched.insert(id, row.to_vec())),
                    }
                }
                touched
            })
            .collect()
    })
}

/// Squared norm of each of `rows` equal parts.
fn row_squares(tensor: &Tensor, rows: usize) -> Result<Vec<f64>> {
    let width = tensor.elem_count() / rows.max(1);
    with_elements(tensor, |values| values.chunks_exact(width).map(sum_of_squares).collect())
}

/// Multiplies each of the first dimension's parts by its factor.
fn scale_rows(tensor: &Tensor, factors: &[f32]) -> Result<Tensor> {
    let width = tensor.elem_count() / factors.len().max(1);
    let mut scaled = Vec::with_capacity(tensor.elem_count());
    with_elements(tensor, |values| {
        for (row, &factor) in values.chunks_exact(width).zip(factors) {
            scaled.extend(row.iter().map(|value| value * factor));
        }
    })?;
    Tensor::from_vec(scaled, tensor.shape(), tensor.device())
}

/// Size of the last dimension; records have at least two.
fn last(tensor: &Tensor) -> usize {
    *tensor.dims().last().expect("a record's tensors have dimensions")
}
