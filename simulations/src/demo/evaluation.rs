//! Measures each new base on the public test images, with the agent's own code.

use thiserror::Error;
use tributary_agent::{
    data::{DataError, DataSource, Dataset, IdxSource},
    train::{TrainError, evaluate},
};
use tributary_protocol::{
    model::ModelSpec,
    tensor_file::{self, TensorFileError},
};

use crate::data::fashion_mnist::{CLASSES, FashionMnist};

/// Says why a base cannot be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// The test images cannot be read.
    #[error("the test images cannot be read")]
    Data(#[from] DataError),
    /// The model file does not hold the job's model.
    #[error("the model file does not fit the job")]
    Model(#[from] TensorFileError),
    /// The model does not fit the images.
    #[error("the model does not fit the test images")]
    Train(#[from] TrainError),
}

/// The public test images and the model that is measured on them.
#[derive(Debug)]
pub struct PublicTest {
    spec: ModelSpec,
    images: Dataset,
    indices: Vec<u32>,
}

impl PublicTest {
    /// Loads the 10,000 test images.
    ///
    /// # Errors
    /// [`EvaluationError::Data`] naming the file.
    pub fn load(dataset: &FashionMnist, spec: ModelSpec) -> Result<Self, EvaluationError> {
        let source = DataSource::Idx(IdxSource {
            images: dataset.test_images(),
            labels: dataset.test_labels(),
            classes: CLASSES as u32,
        });
        let images = Dataset::load(&source, None)?;
        let indices = (0..images.len() as u32).collect();
        Ok(Self { spec, images, indices })
    }

    /// The features of one image, as a prediction request takes them.
    ///
    /// # Panics
    /// If there are not that many images: the caller's bug.
    #[must_use]
    pub fn image(&self, index: usize) -> Vec<f32> {
        self.images.features(index)
    }

    /// The accuracy of the model in a safetensors file.
    ///
    /// # Errors
    /// [`EvaluationError`] if the file holds another model.
    pub fn accuracy(&self, model_file: &[u8]) -> Result<f64, EvaluationError> {
        let parameters = tensor_file::read(&self.spec, model_file)?;
        Ok(evaluate(&self.spec, &parameters, None, &self.images, &self.indices)?.accuracy)
    }
}
