//! The images that are attacked.

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_agent::data::Dataset;
use tributary_protocol::model::{MlpSpec, ModelSpec};

use super::AttackError;
use crate::{
    data::{
        fashion_mnist::{CLASSES, IMAGE_SIDE},
        fetch::Locations,
        idx::IdxArray,
    },
    deadline::Stop,
};

/// Square grey images with their classes.
#[derive(Debug, Clone)]
pub struct Images {
    /// Width and height, in pixels.
    pub side: usize,
    /// Images that are trained on.
    pub train: Dataset,
    /// Images that are not.
    pub test: Dataset,
}

impl Images {
    /// Fashion-MNIST, found or downloaded.
    ///
    /// # Errors
    /// [`AttackError::Fetch`] saying how to get it.
    pub fn fashion_mnist() -> Result<Self, AttackError> {
        let contents = Locations::of_this_machine().load(&Stop::default())?;
        let dataset = |(images, labels): (IdxArray, IdxArray)| {
            let labels = labels.values().iter().map(|&label| u32::from(label)).collect();
            let features = (IMAGE_SIDE * IMAGE_SIDE) as usize;
            Dataset::from_bytes(images.into_values(), features, labels, CLASSES as u32)
        };
        let (train, test) = (dataset(contents.train), dataset(contents.test));
        Ok(Self { side: IMAGE_SIDE as usize, train, test })
    }

    /// Smooth blots that a seed draws: each class has three of its own, each image some more.
    #[must_use]
    pub fn synthetic(seed: u64, side: usize, train: usize, test: usize) -> Self {
        const CLASSES: u32 = 4;
        let mut draw = Xoshiro256PlusPlus::seed_from_u64(seed);
        let blots = |draw: &mut Xoshiro256PlusPlus, count: usize| -> Vec<[f64; 4]> {
            let mut within = |low: f64, high: f64| draw.random_range(low..high) * side as f64;
            (0..count)
                .map(|_| [within(0.1, 0.9), within(0.1, 0.9), within(0.06, 0.16), within(0.4, 1.0)])
                .collect()
        };
        let classes: Vec<_> = (0..CLASSES).map(|_| blots(&mut draw, 3)).collect();
        let mut dataset = |count: usize| {
            let labels: Vec<u32> = (0..count as u32).map(|index| index % CLASSES).collect();
            let mut pixels = Vec::with_capacity(count * side * side);
            for &label in &labels {
                let own = blots(&mut draw, 2);
                let all: Vec<_> = classes[label as usize].iter().chain(&own).collect();
                pixels.extend((0..side * side).map(|place| {
                    let (x, y) = ((place % side) as f64, (place / side) as f64);
                    let light: f64 = all
                        .iter()
                        .map(|[left, top, width, height]| {
                            let square = ((x - left).powi(2) + (y - top).powi(2)) / width.powi(2);
                            height / side as f64 * (-square / 2.0).exp()
                        })
                        .sum();
                    (light.min(1.0) * 255.0) as u8
                }));
            }
            Dataset::from_bytes(pixels, side * side, labels, CLASSES)
        };
        let (train, test) = (dataset(train), dataset(test));
        Self { side, train, test }
    }

    /// A classifier of these images with one hidden layer.
    #[must_use]
    pub fn model(&self, hidden: u32) -> ModelSpec {
        let inputs = (self.side * self.side) as u32;
        ModelSpec::Mlp(MlpSpec { inputs, hidden: vec![hidden], classes: self.train.num_classes() })
    }
}
