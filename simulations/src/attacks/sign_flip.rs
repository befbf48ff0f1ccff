//! Sign flipping: hostile tenants send the opposite of what they learned, enlarged.

use super::{
    AttackError, AttackName, Findings, Images, Row, Size,
    federation::{Defence, Federation, Hostile},
};

/// How much larger the opposite is.
const ENLARGED: f32 = 6.0;

struct Opposite;

impl Hostile for Opposite {
    fn bend(&self, update: &mut [f32], _tenants: usize, _hostile: usize) {
        for value in update {
            *value *= -ENLARGED;
        }
    }
}

/// A fifth of the tenants push the shared model away from what it should learn.
///
/// Measures: `accuracy`, and `accuracy_honest` of the same federation without them.
///
/// # Errors
/// [`AttackError`].
pub fn run(images: &Images, size: Size, seed: u64) -> Result<Findings, AttackError> {
    let setting = format!(
        "A fifth of the tenants send {ENLARGED} times the opposite of their update in every round."
    );
    spoil(images, size, seed, AttackName::SignFlip, setting, &Opposite)
}

/// Attacks with tenants that only want the model to be bad.
pub(super) fn spoil(
    images: &Images,
    size: Size,
    seed: u64,
    attack: AttackName,
    setting: String,
    hostile: &dyn Hostile,
) -> Result<Findings, AttackError> {
    let tenants = Federation::new(images, size, 0, seed).tenants();
    let federation = Federation::new(images, size, tenants / 5, seed);
    let mut rows = Vec::new();
    for defence in Defence::all(tenants) {
        let (honest, attacked) =
            (federation.train(None, defence)?, federation.train(Some(hostile), defence)?);
        rows.push(Row {
            defence: defence.name(),
            epsilon: attacked.epsilon,
            measures: vec![("accuracy", attacked.accuracy), ("accuracy_honest", honest.accuracy)],
        });
    }
    Ok(Findings { attack, setting, rows, pictures: Vec::new() })
}
