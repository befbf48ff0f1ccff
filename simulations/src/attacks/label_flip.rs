//! Label flipping: hostile tenants train honestly on wrong labels, and enlarge what comes out.

use tributary_agent::data::Dataset;

use super::{
    AttackError, AttackName, Findings, Images, Size, federation::Hostile, sign_flip::spoil,
};

/// How much larger the update is than it was.
const ENLARGED: f32 = 6.0;

struct WrongLabels;

impl Hostile for WrongLabels {
    fn records(&self, own: Dataset) -> Dataset {
        let classes = own.num_classes();
        let labels = own.labels().iter().map(|label| (label + 1) % classes).collect();
        own.relabelled(labels)
    }

    fn bend(&self, update: &mut [f32], _tenants: usize, _hostile: usize) {
        for value in update {
            *value *= ENLARGED;
        }
    }
}

/// A fifth of the tenants teach the shared model the next class for every image.
///
/// Measures: `accuracy`, and `accuracy_honest` of the same federation without them.
///
/// # Errors
/// [`AttackError`].
pub fn run(images: &Images, size: Size, seed: u64) -> Result<Findings, AttackError> {
    let setting = format!(
        "A fifth of the tenants train with every label moved to the next class, and send {ENLARGED} \
         times the update."
    );
    spoil(images, size, seed, AttackName::LabelFlip, setting, &WrongLabels)
}
