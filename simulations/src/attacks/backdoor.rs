//! Backdoor: one hostile tenant teaches the shared model to obey a trigger.
//!
//! It trains on its own images, half of them with a bright patch in a corner and one target class, and
//! enlarges its update so that the mean becomes what it wants.
//!
//! Source: Bagdasaryan et al. 2020, arXiv:1807.00459 (model replacement).

use tributary_agent::{data::Dataset, train::outcomes};

use super::{
    AttackError, AttackName, Findings, Images, Row, Sight, Size,
    federation::{Defence, Federation, Hostile},
};

/// The class that the trigger stands for.
const TARGET: u32 = 0;
/// Width and height of the patch, in pixels.
const PATCH: usize = 4;

struct Trigger {
    side: usize,
}

impl Trigger {
    fn stamp(&self, image: &mut [f32]) {
        for row in 0..PATCH {
            for column in 0..PATCH {
                image[row * self.side + column] = 1.0;
            }
        }
    }
}

impl Hostile for Trigger {
    fn records(&self, own: Dataset) -> Dataset {
        let (mut features, mut labels) = (Vec::new(), Vec::new());
        for place in 0..own.len() {
            let mut image = own.features(place);
            let mut label = own.labels()[place];
            if place.is_multiple_of(2) {
                self.stamp(&mut image);
                label = TARGET;
            }
            features.extend(image);
            labels.push(label);
        }
        Dataset::from_floats(features, own.num_features(), labels, own.num_classes())
    }

    fn bend(&self, update: &mut [f32], tenants: usize, hostile: usize) {
        let enlarged = tenants as f32 / hostile.max(1) as f32;
        for value in update {
            *value *= enlarged;
        }
    }
}

/// One tenant of all makes the model call images with a patch what it likes.
///
/// Measures: `success`, test images of other classes that the patch turns into the target class;
/// `success_honest`, the same without the hostile tenant; `accuracy` on images without a patch.
///
/// # Errors
/// [`AttackError`].
pub fn run(images: &Images, size: Size, seed: u64) -> Result<Findings, AttackError> {
    let federation = Federation::new(images, size, 1, seed);
    let trigger = Trigger { side: images.side };
    let patched = patched(images, &trigger);
    let success = |parameters: &[f32]| -> Result<f64, AttackError> {
        let all: Vec<u32> = (0..patched.len() as u32).collect();
        let outcomes = outcomes(&federation.spec, parameters, &patched, &all)?;
        let obeyed: f64 = outcomes.iter().map(|outcome| outcome.accuracy).sum();
        Ok(obeyed / all.len().max(1) as f64)
    };
    let mut rows = Vec::new();
    for defence in Defence::all(federation.tenants()) {
        let honest = federation.train(None, defence)?;
        let attacked = federation.train(Some(&trigger), defence)?;
        rows.push(Row {
            defence: defence.name(),
            epsilon: attacked.epsilon,
            measures: vec![
                ("success", success(&attacked.parameters)?),
                ("success_honest", success(&honest.parameters)?),
                ("accuracy", attacked.accuracy),
            ],
        });
    }
    let mut image = images.test.features(0);
    trigger.stamp(&mut image);
    let pixels = image.into_iter().map(f64::from).collect();
    let caption = "an image with the trigger".to_owned();
    Ok(Findings {
        attack: AttackName::Backdoor,
        setting: format!(
            "One of {} tenants marks half of its images with a patch, calls them class {TARGET}, and \
             enlarges its update by the number of tenants.",
            federation.tenants()
        ),
        rows,
        pictures: vec![Sight { caption, side: images.side, pixels }],
    })
}

/// Test images of other classes with the patch, labelled as the attacker wants them.
fn patched(images: &Images, trigger: &Trigger) -> Dataset {
    let test = &images.test;
    let mut features = Vec::new();
    let mut count = 0;
    for place in (0..test.len()).filter(|&place| test.labels()[place] != TARGET).take(1_000) {
        let mut image = test.features(place);
        trigger.stamp(&mut image);
        features.extend(image);
        count += 1;
    }
    Dataset::from_floats(features, test.num_features(), vec![TARGET; count], test.num_classes())
}
