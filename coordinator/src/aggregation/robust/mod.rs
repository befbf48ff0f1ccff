//! Rules that compare the updates of a round with each other, so that a few hostile ones cannot
//! move the result far.
//!
//! The updates are read in windows of coordinates, so memory is bounded whatever the model and the
//! cohort are. Everything is compared in integers, in the order of the tenants' names: a round
//! replays bit for bit.

mod krum;
mod median;
mod trimmed_mean;

use tributary_privacy::lattice::{Lattice, LatticeError, ModularSum};
use tributary_protocol::job::AggregationRule;

/// Coordinates of all updates that are unpacked at a time: 16 MiB.
const WINDOW_VALUES: usize = 4 << 20;

/// The packed updates of a round, in a fixed order.
pub trait PackedUpdates {
    /// Why one cannot be read.
    type Error: From<LatticeError>;

    /// How many there are.
    fn count(&self) -> usize;

    /// Reads `bytes.len()` bytes of one update.
    ///
    /// - `offset`: of the first byte within the packed update
    ///
    /// # Errors
    /// The update cannot be read.
    fn read(&self, update: usize, offset: usize, bytes: &mut [u8]) -> Result<(), Self::Error>;
}

/// The update that a rule makes of those of a round, in units of the wire.
///
/// What it is worth under noise: a rule sees each update with its noise, so it tells hostile from
/// honest only where they differ by more than that.
///
/// - `dimension`: coordinates that are compared; an update may have more
/// - returns: shape `[dimension]`; all zero without updates
///
/// # Errors
/// Those of `updates`.
pub fn combine<U: PackedUpdates>(
    rule: &AggregationRule,
    updates: &U,
    lattice: Lattice,
    dimension: usize,
) -> Result<Vec<f64>, U::Error> {
    let count = updates.count();
    let mut combined = match *rule {
        AggregationRule::Mean => by_coordinate(updates, lattice, dimension, &mut mean)?,
        AggregationRule::Median => by_coordinate(updates, lattice, dimension, &mut median::median)?,
        AggregationRule::TrimmedMean { trim } => {
            let rule = &mut |values: &mut [i32]| trimmed_mean::trimmed_mean(values, trim);
            by_coordinate(updates, lattice, dimension, rule)?
        }
        AggregationRule::Krum { byzantine_max } => {
            mean_of_nearest(updates, lattice, dimension, byzantine_max, 1)?
        }
        AggregationRule::MultiKrum { byzantine_max, selected } => {
            mean_of_nearest(updates, lattice, dimension, byzantine_max, selected)?
        }
    };
    if count == 0 {
        combined.fill(0.0);
    }
    let step = lattice.step();
    combined.iter_mut().for_each(|value| *value *= step);
    Ok(combined)
}

fn by_coordinate<U: PackedUpdates>(
    updates: &U,
    lattice: Lattice,
    dimension: usize,
    rule: &mut dyn FnMut(&mut [i32]) -> f64,
) -> Result<Vec<f64>, U::Error> {
    let mut combined = Vec::with_capacity(dimension);
    let mut column = vec![0; updates.count()];
    each_window(updates, lattice, dimension, |rows| {
        for coordinate in 0..rows.width {
            for (value, row) in column.iter_mut().zip(rows.iter()) {
                *value = row[coordinate];
            }
            combined.push(rule(&mut column));
        }
    })?;
    Ok(combined)
}

fn mean_of_nearest<U: PackedUpdates>(
    updates: &U,
    lattice: Lattice,
    dimension: usize,
    byzantine_max: u32,
    selected: u32,
) -> Result<Vec<f64>, U::Error> {
    let mut distances = krum::Distances::new(updates.count());
    each_window(updates, lattice, dimension, |rows| distances.add(rows))?;
    let chosen = distances.nearest(byzantine_max as usize, selected as usize);
    let mut combined = Vec::with_capacity(dimension);
    each_window(updates, lattice, dimension, |rows| {
        combined.extend((0..rows.width).map(|coordinate| {
            let values = chosen.iter().map(|&update| i64::from(rows.row(update)[coordinate]));
            values.sum::<i64>() as f64 / chosen.len() as f64
        }));
    })?;
    Ok(combined)
}

fn mean(values: &mut [i32]) -> f64 {
    values.iter().copied().map(i64::from).sum::<i64>() as f64 / values.len() as f64
}

/// Some coordinates of every update, in grid units.
struct Rows {
    values: Vec<i32>,
    width: usize,
}

impl Rows {
    fn row(&self, update: usize) -> &[i32] {
        &self.values[update * self.width..][..self.width]
    }

    fn iter(&self) -> std::slice::ChunksExact<'_, i32> {
        self.values.chunks_exact(self.width)
    }
}

/// Unpacks all updates window by window.
fn each_window<U: PackedUpdates>(
    updates: &U,
    lattice: Lattice,
    dimension: usize,
    mut take: impl FnMut(&Rows),
) -> Result<(), U::Error> {
    let (count, bits) = (updates.count(), usize::from(lattice.bits()));
    // Eight coordinates always begin at a byte.
    let widest = (WINDOW_VALUES / count.max(1) / 8).max(1) * 8;
    let mut bytes = Vec::new();
    for first in (0..dimension).step_by(widest) {
        let width = widest.min(dimension - first);
        // The byte in which the last coordinate ends may hold a part of the next one.
        let used = (width * bits).div_ceil(8);
        let mut rows = Rows { values: Vec::with_capacity(count * width), width };
        let mut window = ModularSum::new(lattice, width);
        for update in 0..count {
            bytes.resize(used, 0);
            updates.read(update, first * bits / 8, &mut bytes)?;
            if let (Some(last), part @ 1..) = (bytes.last_mut(), width * bits % 8) {
                *last &= (1 << part) - 1;
            }
            window.clear();
            window.add_packed(&bytes)?;
            rows.values.extend(window.values().iter().map(|&value| centred(value, lattice)));
        }
        take(&rows);
    }
    Ok(())
}

/// The representative of a coordinate in `-2^(bits-1)..2^(bits-1)`.
fn centred(value: u32, lattice: Lattice) -> i32 {
    let unused = 32 - u32::from(lattice.bits());
    (value << unused).cast_signed() >> unused
}

#[cfg(test)]
mod tests;
