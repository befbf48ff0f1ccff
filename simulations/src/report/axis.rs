//! Scales of charts: which numbers get a tick and how they are written.

/// What the numbers of an axis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// As they are.
    Plain,
    /// Whole numbers, such as rounds.
    Count,
    /// Fractions, written in percent.
    Percent,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// A number with its unit, to about three digits.
    #[must_use]
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Plain => digits(value),
            Self::Count => format!("{value:.0}"),
            Self::Percent => format!("{} %", digits(value * 100.0)),
            Self::Bytes => scaled(value, &[(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")]),
            Self::Seconds => {
                scaled(value, &[(3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")])
            }
        }
    }
}

/// A number to about three significant digits, without zeros at its end.
fn digits(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 100.0 || size == 0.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ if size >= 0.001 => 4,
        _ => return format!("{value:.1e}"),
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let (size, name) =
        units.iter().find(|(size, _)| value.abs() >= *size).or(units.last()).expect("some unit");
    format!("{} {name}", digits(value / size))
}

/// A linear scale that covers all values, with round ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    step: f64,
}

impl Scale {
    /// - `values`: finite
    /// - `unit`: whole numbers get no ticks between them
    pub(super) fn covering(values: impl Iterator<Item = f64>, unit: Unit) -> Self {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (low, mut high) = if low > high { (0.0, 1.0) } else { (low, high) };
        // Curves that begin near zero are easier to compare from zero.
        let low = if low > 0.0 && low < 0.35 * high { 0.0 } else { low };
        if high <= low {
            high = low + if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        }
        // Ticks are round in the unit that the largest number is written in.
        let size = match unit {
            Unit::Seconds if high >= 3600.0 => 3600.0,
            Unit::Seconds if high >= 60.0 => 60.0,
            _ => 1.0,
        };
        let rough = (high - low) / 5.0 / size;
        let power = 10.0_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(rough) * size;
        let step = if unit == Unit::Count { step.max(1.0).round() } else { step };
        Self { low: (low / step).floor() * step, high: (high / step).ceil() * step, step }
    }

    /// The ticks from low to high.
    pub(super) fn ticks(self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        (0..=count).map(move |index| {
            let tick = self.low + index as f64 * self.step;
            // Not -0.0000001 for 0.
            if tick.abs() < self.step * 1e-9 { 0.0 } else { tick }
        })
    }

    /// Where a value lies, 0 at the low end and 1 at the high end.
    pub(super) fn position(self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_ticks_that_cover_the_values() {
        for (values, unit, expected) in [
            (vec![0.1, 0.81], Unit::Percent, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (vec![0.0, 3.0], Unit::Count, vec![0.0, 1.0, 2.0, 3.0]),
            (vec![0.0, 480.0], Unit::Seconds, vec![0.0, 120.0, 240.0, 360.0, 480.0]),
            (vec![7.0], Unit::Count, vec![7.0, 8.0]),
            (vec![], Unit::Plain, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (vec![0.0], Unit::Plain, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ] {
            let scale = Scale::covering(values.iter().copied(), unit);
            let ticks: Vec<f64> = scale.ticks().collect();
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            let near = |(tick, wanted): (&f64, &f64)| (tick - wanted).abs() < 1e-12;
            assert!(ticks.iter().zip(&expected).all(near), "{ticks:?}");
            assert!(values.iter().all(|value| (0.0..=1.0).contains(&scale.position(*value))));
        }
    }

    #[test]
    fn numbers_are_short_and_have_their_unit() {
        for (unit, value, text) in [
            (Unit::Percent, 0.76, "76 %"),
            (Unit::Percent, 0.7616, "76.2 %"),
            (Unit::Bytes, 12_345_678.0, "12.3 MB"),
            (Unit::Bytes, 0.0, "0"),
            (Unit::Seconds, 90.0, "1.5 min"),
            (Unit::Seconds, 0.0042, "4.2 ms"),
            (Unit::Count, 20.0, "20"),
            (Unit::Plain, 2.684, "2.68"),
            (Unit::Plain, 0.00001, "1.0e-5"),
        ] {
            assert_eq!(unit.format(value), text);
        }
    }
}
