//! The attacker's own copy of a model: gradients by parameters and by pixels, in double precision.

/// A perceptron with one hidden layer of ReLU units, in the flat parameter order of the wire: weights
/// and bias of the hidden layer, then of the output.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) inputs: usize,
    pub(super) hidden: usize,
    pub(super) classes: usize,
    pub(super) parameters: Vec<f64>,
}

/// Gradients of the loss of one image.
pub(super) struct Gradients {
    pub(super) parameters: Vec<f64>,
    pub(super) pixels: Vec<f64>,
}

impl Network {
    pub(super) fn new(inputs: usize, hidden: usize, classes: usize, parameters: &[f32]) -> Self {
        let parameters: Vec<f64> = parameters.iter().map(|&value| f64::from(value)).collect();
        assert_eq!(parameters.len(), hidden * (inputs + 1) + classes * (hidden + 1));
        Self { inputs, hidden, classes, parameters }
    }

    /// Where the parts of the flat parameters begin: hidden bias, output weights, output bias.
    pub(super) const fn offsets(&self) -> (usize, usize, usize) {
        let hidden_bias = self.hidden * self.inputs;
        let weights = hidden_bias + self.hidden;
        (hidden_bias, weights, weights + self.classes * self.hidden)
    }

    /// Gradients of the cross-entropy of one image.
    pub(super) fn gradients(&self, image: &[f64], label: usize) -> Gradients {
        let (hidden_bias, weights, bias) = self.offsets();
        let all = &self.parameters;
        let before: Vec<f64> = all[..hidden_bias]
            .chunks_exact(self.inputs)
            .zip(&all[hidden_bias..weights])
            .map(|(row, bias)| dot(row, image) + bias)
            .collect();
        let active: Vec<f64> = before.iter().map(|value| value.max(0.0)).collect();
        let logits: Vec<f64> = all[weights..bias]
            .chunks_exact(self.hidden)
            .zip(&all[bias..])
            .map(|(row, bias)| dot(row, &active) + bias)
            .collect();
        let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exponentials: Vec<f64> = logits.iter().map(|logit| (logit - highest).exp()).collect();
        let total: f64 = exponentials.iter().sum();
        let mut output: Vec<f64> = exponentials.iter().map(|value| value / total).collect();
        output[label] -= 1.0;

        let mut back = vec![0.0; self.hidden];
        for (row, error) in all[weights..bias].chunks_exact(self.hidden).zip(&output) {
            add_scaled(&mut back, row, *error);
        }
        for (error, value) in back.iter_mut().zip(&before) {
            if *value <= 0.0 {
                *error = 0.0;
            }
        }
        let mut pixels = vec![0.0; self.inputs];
        let mut parameters = Vec::with_capacity(all.len());
        for (row, error) in all[..hidden_bias].chunks_exact(self.inputs).zip(&back) {
            add_scaled(&mut pixels, row, *error);
            parameters.extend(image.iter().map(|pixel| pixel * error));
        }
        parameters.extend_from_slice(&back);
        for error in &output {
            parameters.extend(active.iter().map(|value| value * error));
        }
        parameters.extend_from_slice(&output);
        Gradients { parameters, pixels }
    }

    /// The derivative by pixels of ⟨∇ loss by parameters, direction⟩, by a central difference of two
    /// ordinary gradients (Pearlmutter's product, with the two derivatives exchanged).
    pub(super) fn mixed(&self, image: &[f64], label: usize, direction: &[f64]) -> Vec<f64> {
        let length = dot(direction, direction).sqrt();
        if length == 0.0 {
            return vec![0.0; self.inputs];
        }
        let step = 1e-5 / length;
        let at = |step: f64| {
            let mut moved = self.clone();
            add_scaled(&mut moved.parameters, direction, step);
            moved.gradients(image, label).pixels
        };
        at(step).iter().zip(at(-step)).map(|(one, other)| (one - other) / (2.0 * step)).collect()
    }
}

pub(super) fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

pub(super) fn add_scaled(to: &mut [f64], vector: &[f64], scale: f64) {
    for (to, value) in to.iter_mut().zip(vector) {
        *to += scale * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let parameters: Vec<f32> =
            (0..3 * 5 + 2 * 4).map(|n| ((n * 37 % 19) as f32 - 9.0) / 9.0).collect();
        Network::new(4, 3, 2, &parameters)
    }

    fn loss(network: &Network, image: &[f64], label: usize) -> f64 {
        // The output bias gradient of the label is its probability less one.
        let (_, _, bias) = network.offsets();
        -(network.gradients(image, label).parameters[bias + label] + 1.0).ln()
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let (network, image) = (network(), [0.3, 0.9, 0.1, 0.6]);
        let gradients = network.gradients(&image, 1);
        for place in 0..image.len() {
            let slope = |step: f64| {
                let mut moved = image;
                moved[place] += step;
                loss(&network, &moved, 1)
            };
            let expected = (slope(1e-6) - slope(-1e-6)) / 2e-6;
            assert!((gradients.pixels[place] - expected).abs() < 1e-6);
        }
        for place in 0..network.parameters.len() {
            let slope = |step: f64| {
                let mut moved = network.clone();
                moved.parameters[place] += step;
                loss(&moved, &image, 1)
            };
            let expected = (slope(1e-6) - slope(-1e-6)) / 2e-6;
            assert!((gradients.parameters[place] - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn the_mixed_derivative_is_the_slope_of_the_gradient() {
        let (network, image) = (network(), [0.3, 0.9, 0.1, 0.6]);
        let direction: Vec<f64> = (0..23).map(|n| f64::from(n % 5) - 2.0).collect();
        let mixed = network.mixed(&image, 0, &direction);
        for place in 0..image.len() {
            let slope = |step: f64| {
                let mut moved = image;
                moved[place] += step;
                dot(&network.gradients(&moved, 0).parameters, &direction)
            };
            let expected = (slope(1e-5) - slope(-1e-5)) / 2e-5;
            assert!((mixed[place] - expected).abs() < 1e-4, "{} {expected}", mixed[place]);
        }
    }
}
