//! From a tape to the sum of clipped per-example gradients.

use std::{collections::BTreeMap, ops::Range};

use candle_core::{Result, Tensor};
use thiserror::Error;

use super::{
    kernels::{
        add_assign, add_scaled_assign, add_scaled_rows_to_one, scale_rows_in_place,
        squares_of_rows, sum_of_squares, vectorized, with_elements,
    },
    layer::Spans,
    matmul::{Before, Matrix, multiply},
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
pub(crate) const KEPT_ELEMENTS_MAX: usize = 1 << 26;

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
        let mut norms = self.add_clipped(kept_elements_max, &[], examples, norm_max, sum)?;
        Ok(norms.swap_remove(0))
    }

    /// The same with every layer clipped by itself, to an equal share of the norm.
    ///
    /// - `layers`: number of parameters of each layer, in flat order
    ///
    /// # Errors
    /// As there.
    ///
    /// Source: McMahan et al. 2018, arXiv:1710.06963 (per-layer clipping).
    pub(crate) fn add_clipped_sum_by_layer(
        &self,
        layers: &[usize],
        examples: usize,
        norm_max: f64,
        sum: &mut [f32],
    ) -> std::result::Result<(), ClippingError> {
        self.add_clipped(KEPT_ELEMENTS_MAX, layers, examples, norm_max, sum).map(|_| ())
    }

    /// Clips the gradients of each group of layers by itself: of each layer, or of all.
    ///
    /// - returns: the norm of each example in each group, before clipping
    fn add_clipped(
        &self,
        kept_elements_max: usize,
        layers: &[usize],
        examples: usize,
        norm_max: f64,
        sum: &mut [f32],
    ) -> std::result::Result<Vec<Vec<f64>>, ClippingError> {
        let records = join_tied(self.take(), examples)?;
        check_disjoint(&records)?;
        let ends: Vec<usize> = layers
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect();
        let groups = layers.len().max(1);
        let mut norms = vec![vec![0.0; examples]; groups];
        let mut prepared: Vec<Vec<Prepared>> = (0..groups).map(|_| Vec::new()).collect();
        for record in records {
            let start = record.spans().first().map_or(0, |span| span.start);
            let group = ends.partition_point(|end| *end <= start).min(groups - 1);
            record.prepare(kept_elements_max, &mut norms[group], &mut prepared[group])?;
        }
        // All factors are known before the sum changes; the squares of equal shares add up.
        let share = norm_max / (groups as f64).sqrt();
        let factors = norms
            .iter_mut()
            .map(|norms| clip_factors(norms, share))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        for (parts, factors) in prepared.iter().zip(&factors) {
            for part in parts {
                part.add_sum(factors, sum)?;
            }
        }
        Ok(norms)
    }

    /// Adds the plain sum of the per-example gradients to `sum`.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn add_sum(&self, sum: &mut [f32]) -> Result<()> {
        self.take().into_iter().try_for_each(|record| record.add_sum(sum))
    }
}

/// Turns squared norms into norms, and says by which factor each gradient is clipped.
pub(super) fn clip_factors(
    norms: &mut [f64],
    norm_max: f64,
) -> std::result::Result<Vec<f32>, ClippingError> {
    let mut factors = Vec::with_capacity(norms.len());
    for (example, norm) in norms.iter_mut().enumerate() {
        *norm = norm.sqrt();
        if norm.is_nan() || *norm > norm_max * MAGNITUDE_MAX {
            return Err(ClippingError::NonFinite { example });
        }
        factors.push(if *norm > norm_max { (norm_max / *norm) as f32 } else { 1.0 });
    }
    Ok(factors)
}

/// Adds the squared norm of every `gradientᵀ · activation`, and of the gradient if there is a bias.
pub(super) fn add_squares_of_products(
    of_activations: &[f64],
    of_gradients: &[f64],
    bias: bool,
    squares: &mut [f64],
) {
    let bias = if bias { 1.0 } else { 0.0 };
    for ((square, a), g) in squares.iter_mut().zip(of_activations).zip(of_gradients) {
        let usable = *a <= MAGNITUDE_MAX * MAGNITUDE_MAX;
        *square += if usable { g * (a + bias) } else { f64::NAN };
    }
}

/// Joins the two uses of a table that is the head too: their per-example gradients are added before
/// the norm is taken. One whose gradients do not fit in memory stays as it is, and is refused.
fn join_tied(mut records: Vec<Record>, examples: usize) -> Result<Vec<Record>> {
    let Some((rows, head, span)) = tied(&records) else { return Ok(records) };
    if span.len() * examples > KEPT_ELEMENTS_MAX {
        return Ok(records);
    }
    let (first, second) = (rows.max(head), rows.min(head));
    let pair = [records.swap_remove(first), records.swap_remove(second)];
    let mut gradients = Vec::new();
    for record in &pair {
        if let Record::Linear { activation, gradient, .. } = record {
            let products = time_products(activation, gradient, &mut vec![0.0; examples])?;
            gradients = with_elements(&products, <[f32]>::to_vec)?;
        }
    }
    for record in &pair {
        let Record::Rows { ids, gradient, .. } = record else { continue };
        let touched = touched_rows(ids, gradient)?;
        for (gradient, touched) in gradients.chunks_exact_mut(span.len()).zip(touched) {
            for (id, row) in touched {
                add_assign(&mut gradient[id as usize * row.len()..][..row.len()], &row);
            }
        }
    }
    let shape = (examples, span.len());
    let gradients = Tensor::from_vec(gradients, shape, &candle_core::Device::Cpu)?;
    records.push(Record::PerExample { span, gradients });
    Ok(records)
}

/// The positions of a table's lookup and of the linear layer with the same parameters.
fn tied(records: &[Record]) -> Option<(usize, usize, Range<usize>)> {
    let (rows, table) = records.iter().enumerate().find_map(|(index, record)| match record {
        Record::Rows { table, .. } => Some((index, table)),
        _ => None,
    })?;
    let head = records.iter().position(|record| match record {
        Record::Linear { spans, gradient, .. } => {
            spans.weight == *table && spans.bias.is_none() && gradient.rank() == 3
        }
        _ => false,
    })?;
    Some((rows, head, table.clone()))
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
                let activations = row_squares(&activation, squares.len())?;
                let gradients = row_squares(&gradient, squares.len())?;
                let bias = spans.bias.is_some();
                add_squares_of_products(&activations, &gradients, bias, squares);
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
                    let gradients = time_products(&activation, &gradient, squares)?;
                    prepared.push(Prepared::PerExample { span, gradients });
                    return Ok(());
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
    let (rows, outputs) = gradient.dims2()?;
    let inputs = activation.dim(1)?;
    let threads = candle_core::utils::get_num_threads();
    with_elements(gradient, |gradient| {
        if let Some(bias) = &spans.bias {
            add_scaled_rows_to_one(&mut sum[bias.clone()], gradient, 1.0);
        }
        with_elements(activation, |activation| {
            let gradient = Matrix::new(gradient, rows, outputs).t();
            let activation = Matrix::new(activation, rows, inputs);
            let sum = &mut sum[spans.weight.clone()];
            multiply(gradient, activation, 1.0, sum, Before::Added, threads);
        })
    })?
}

vectorized! {
    /// `sum += Σᵢ factors[i] · rows[i]`, in blocks of columns that stay in the fast cache.
    fn add_scaled_rows(rows: &'a [f32], factors: &'a [f32], sum: &'a mut [f32]) {
        const BLOCK: usize = 4096;
        let width = sum.len();
        for (start, sum) in (0..).step_by(BLOCK).zip(sum.chunks_mut(BLOCK)) {
            for (row, &factor) in rows.chunks_exact(width).zip(factors) {
                for (sum, value) in sum.iter_mut().zip(&row[start..]) {
                    *sum += factor * value;
                }
            }
        }
    }
}

/// Per-example weight gradients of a layer with a time axis, `[n, m · k]`; their squared norms,
/// taken while each is in the cache, are added to `squares`.
fn time_products(activation: &Tensor, gradient: &Tensor, squares: &mut [f64]) -> Result<Tensor> {
    let (examples, time, inputs) = activation.dims3()?;
    let outputs = last(gradient);
    let threads = candle_core::utils::get_num_threads();
    let mut products = vec![0.0; examples * outputs * inputs];
    with_elements(activation, |activation| {
        with_elements(gradient, |gradient| {
            let pairs = activation.chunks_exact(time * inputs);
            let pairs = pairs.zip(gradient.chunks_exact(time * outputs));
            let products = products.chunks_exact_mut(outputs * inputs);
            for (((activation, gradient), product), square) in pairs.zip(products).zip(squares) {
                let gradient = Matrix::new(gradient, time, outputs).t();
                let activation = Matrix::new(activation, time, inputs);
                multiply(gradient, activation, 1.0, product, Before::Ignored, threads);
                *square += sum_of_squares(product);
            }
        })
    })??;
    Tensor::from_vec(products, (examples, outputs * inputs), gradient.device())
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
    let mut sums = vec![0.0; rows];
    with_elements(tensor, |values| squares_of_rows(values, width, &mut sums))?;
    Ok(sums)
}

/// Multiplies each of the first dimension's parts by its factor.
fn scale_rows(tensor: &Tensor, factors: &[f32]) -> Result<Tensor> {
    let width = tensor.elem_count() / factors.len().max(1);
    let mut scaled = with_elements(tensor, <[f32]>::to_vec)?;
    scale_rows_in_place(&mut scaled, width, factors);
    Tensor::from_vec(scaled, tensor.shape(), tensor.device())
}

/// Size of the last dimension; records have at least two.
fn last(tensor: &Tensor) -> usize {
    *tensor.dims().last().expect("a record's tensors have dimensions")
}
