//! Fully connected layers in one flat parameter vector, trained without any allocation.
//!
//! The same mathematics as [`Model`](super::Model) with a [`Tape`](super::Tape), for the family in
//! which small batches count: matrix products go straight into memory that is kept from step to
//! step, and a plain step subtracts its gradient from the weights within the product.

use std::ops::Range;

use tributary_protocol::model::MlpSpec;

use super::{
    aligned::Aligned,
    clipping::{ClippingError, add_squares_of_products, clip_factors},
    kernels::{
        add_scaled_assign, add_scaled_rows_to_one, all_finite, finish_rows, mask,
        scale_rows_in_place, squares_of_rows,
    },
    loss::softmax_rows,
    matmul::{Before, Matrix, multiply},
};

/// One layer's sizes and its place in the flat parameter vector.
struct Layer {
    inputs: usize,
    outputs: usize,
    weight: Range<usize>,
    bias: Range<usize>,
}

/// How each example's gradient is clipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExampleClip {
    /// All parameters jointly.
    #[default]
    Flat,
    /// Every layer, weight and bias together, to an equal share of the norm: of n layers, each to
    /// `norm / sqrt(n)`, so the whole gradient stays within the norm. The float slack of the
    /// mechanism holds as for flat clipping: each of its terms is one per coordinate, and adds up
    /// over layers in squares.
    ///
    /// Source: McMahan et al. 2018, arXiv:1710.06963 (per-layer clipping).
    PerLayer,
}

/// A multi-layer perceptron and the memory that its training needs.
pub(crate) struct Dense {
    layers: Vec<Layer>,
    parameters: Aligned,
    threads: usize,
    /// Rows of the current batch.
    rows: usize,
    /// The inputs of each layer, `[rows, inputs]`.
    activations: Vec<Aligned>,
    /// The gradients of each layer's outputs, `[rows, outputs]`.
    gradients: Vec<Vec<f32>>,
    labels: Vec<u32>,
    squares: [Vec<f64>; 2],
}

impl Dense {
    /// - `threads`: at most so many for a product; 1 stays on the calling thread
    pub(crate) fn new(spec: &MlpSpec, threads: usize) -> Self {
        let (mut layers, mut end) = (Vec::new(), 0);
        let mut next = |length: usize| {
            let start = end;
            end += length;
            start..end
        };
        for (inputs, outputs) in spec.layers() {
            let (weight, bias) = (next(inputs * outputs), next(outputs));
            layers.push(Layer { inputs, outputs, weight, bias });
        }
        let mut parameters = Aligned::default();
        parameters.sized(end).fill(0.0);
        Self {
            activations: layers.iter().map(|_| Aligned::default()).collect(),
            gradients: layers.iter().map(|_| Vec::new()).collect(),
            layers,
            parameters,
            threads,
            rows: 0,
            labels: Vec::new(),
            squares: [Vec::new(), Vec::new()],
        }
    }

    /// Into how many parts work may be split.
    pub(crate) const fn threads(&self) -> usize {
        self.threads
    }

    /// The flat parameters.
    pub(crate) fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// The flat parameters, to be set.
    pub(crate) fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    /// Makes room for a batch, which the caller fills in: inputs `[rows, inputs]` and classes.
    ///
    /// Every class must be below the number of outputs.
    pub(crate) fn batch(&mut self, rows: usize) -> (&mut [f32], &mut Vec<u32>) {
        self.rows = rows;
        self.labels.clear();
        let inputs = self.layers[0].inputs;
        (self.activations[0].sized(rows * inputs), &mut self.labels)
    }

    /// Subtracts `rate` times the sum of the batch's gradients from the parameters.
    ///
    /// - returns: whether the gradients are finite; if not, the model is of no use
    pub(crate) fn descend(&mut self, rate: f32) -> bool {
        self.forward();
        let Self { layers, parameters, activations, gradients, rows, threads, .. } = self;
        let mut finite = true;
        for (index, layer) in layers.iter().enumerate().rev() {
            pull_back(layers, parameters, activations, gradients, index, *rows, *threads);
            let (gradient, activation) = (&gradients[index], &activations[index]);
            finite &= all_finite(gradient);
            let into = Target { sum: parameters, scale: -rate, before: Before::Added };
            layer.add_sum(gradient, activation, into, *rows, *threads);
        }
        finite & all_finite(&activations[0])
    }

    /// Adds the sum of the batch's gradients to `sum`.
    pub(crate) fn add_sum(&mut self, sum: &mut [f32]) {
        self.forward();
        self.backward();
        let Self { layers, activations, gradients, rows, threads, .. } = self;
        for (layer, (gradient, activation)) in layers.iter().zip(gradients.iter().zip(activations))
        {
            let into = Target { sum, scale: 1.0, before: Before::Added };
            layer.add_sum(gradient, activation, into, *rows, *threads);
        }
    }

    /// Adds the sum of the batch's gradients, each scaled to at most `norm_max`, to `sum`, or puts it
    /// there: see
    /// [`Tape::add_clipped_sum`](super::Tape::add_clipped_sum), whose promises hold here too.
    ///
    /// # Errors
    /// [`ClippingError::NonFinite`] naming the example; `sum` is then unchanged.
    pub(crate) fn add_clipped_sum(
        &mut self,
        clip: ExampleClip,
        norm_max: f64,
        sum: &mut [f32],
        before: Before,
    ) -> Result<(), ClippingError> {
        self.forward();
        self.backward();
        let Self { layers, activations, gradients, rows, threads, squares, .. } = self;
        let groups = if clip == ExampleClip::PerLayer { layers.len() } else { 1 };
        let mut norms = vec![vec![0.0; *rows]; groups];
        let [of_activations, of_gradients] = squares;
        of_activations.resize(*rows, 0.0);
        of_gradients.resize(*rows, 0.0);
        for (index, (layer, (gradient, activation))) in
            layers.iter().zip(gradients.iter().zip(&*activations)).enumerate()
        {
            squares_of_rows(activation, layer.inputs, of_activations);
            squares_of_rows(gradient, layer.outputs, of_gradients);
            let squares = &mut norms[index.min(groups - 1)];
            add_squares_of_products(of_activations, of_gradients, true, squares);
        }
        // All factors are known before the sum changes; the squares of equal shares add up.
        let share = norm_max / (groups as f64).sqrt();
        let factors = norms
            .iter_mut()
            .map(|norms| clip_factors(norms, share))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, (layer, (gradient, activation))) in
            layers.iter().zip(gradients.iter_mut().zip(&*activations)).enumerate()
        {
            scale_rows_in_place(gradient, layer.outputs, &factors[index.min(groups - 1)]);
            layer.add_sum(
                gradient,
                activation,
                Target { sum, scale: 1.0, before },
                *rows,
                *threads,
            );
        }
        Ok(())
    }

    /// Adds `scale` times `step` to the parameters.
    pub(crate) fn add_scaled(&mut self, step: &[f32], scale: f32) {
        add_scaled_assign(&mut self.parameters, step, scale);
    }

    /// Fills all activations, and the last gradient with that of the summed cross-entropy.
    fn forward(&mut self) {
        let Self { layers, parameters, activations, gradients, rows, threads, labels, .. } = self;
        let last = layers.len() - 1;
        for (index, layer) in layers.iter().enumerate() {
            let (before, after) = activations.split_at_mut(index + 1);
            let length = *rows * layer.outputs;
            let outputs = match after.first_mut() {
                Some(next) => next.sized(length),
                None => sized(&mut gradients[last], length),
            };
            let inputs = Matrix::new(&before[index], *rows, layer.inputs);
            let weight =
                Matrix::new(&parameters[layer.weight.clone()], layer.outputs, layer.inputs);
            multiply(inputs, weight.t(), 1.0, outputs, Before::Ignored, *threads);
            finish_rows(outputs, &parameters[layer.bias.clone()], index < last);
        }
        let classes = layers[last].outputs;
        softmax_rows(&mut gradients[last], classes);
        for (row, &label) in gradients[last].chunks_exact_mut(classes).zip(&*labels) {
            row[label as usize] -= 1.0;
        }
    }

    /// Fills the gradients of all layers but the last.
    fn backward(&mut self) {
        let Self { layers, parameters, activations, gradients, rows, threads, .. } = self;
        for index in (1..layers.len()).rev() {
            pull_back(layers, parameters, activations, gradients, index, *rows, *threads);
        }
    }
}

/// Where a layer's sum of gradients goes.
struct Target<'a> {
    /// The whole flat vector.
    sum: &'a mut [f32],
    scale: f32,
    before: Before,
}

impl Layer {
    /// Adds `scale · gradientᵀ · activation`, and `scale` times the gradient's column sums, or puts
    /// them there.
    fn add_sum(
        &self,
        gradient: &[f32],
        activation: &[f32],
        into: Target<'_>,
        rows: usize,
        threads: usize,
    ) {
        let Target { sum, scale, before } = into;
        let gradients = Matrix::new(gradient, rows, self.outputs);
        let activations = Matrix::new(activation, rows, self.inputs);
        let weight = &mut sum[self.weight.clone()];
        multiply(gradients.t(), activations, scale, weight, before, threads);
        if before == Before::Ignored {
            sum[self.bias.clone()].fill(0.0);
        }
        add_scaled_rows_to_one(&mut sum[self.bias.clone()], gradient, scale);
    }
}

/// Fills the gradient of the layer before `index`, if there is one.
fn pull_back(
    layers: &[Layer],
    parameters: &[f32],
    activations: &[Aligned],
    gradients: &mut [Vec<f32>],
    index: usize,
    rows: usize,
    threads: usize,
) {
    let layer = &layers[index];
    let (before, after) = gradients.split_at_mut(index);
    let Some(inputs_gradient) = before.last_mut() else { return };
    let inputs_gradient = sized(inputs_gradient, rows * layer.inputs);
    let gradient = Matrix::new(&after[0], rows, layer.outputs);
    let weight = Matrix::new(&parameters[layer.weight.clone()], layer.outputs, layer.inputs);
    multiply(gradient, weight, 1.0, inputs_gradient, Before::Ignored, threads);
    mask(inputs_gradient, &activations[index]);
}

/// The vector with exactly so many elements, of any value.
fn sized(values: &mut Vec<f32>, length: usize) -> &mut [f32] {
    values.resize(length, 0.0);
    values
}
