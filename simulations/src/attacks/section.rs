//! What was found as a section of a report page, and as text.

use super::{Findings, Row};
use crate::report::{Cell, Picture, PictureError, Section, Table};

/// Pictures are shown so many times larger than they are.
const ENLARGED: usize = 4;

/// The section of one attack: its setting, a row a defence, and what the attacker sees.
///
/// # Errors
/// [`PictureError`] never for findings of an attack; it says that a picture is not square.
pub fn section(findings: &Findings) -> Result<Section, PictureError> {
    let names = measures(findings);
    let columns = ["defence", "epsilon"].into_iter().chain(names.iter().copied());
    let mut table = Table::new(columns);
    for row in &findings.rows {
        let epsilon = Cell::optional(row.epsilon, number);
        let values = names.iter().map(|name| Cell::optional(row.measure(name), number));
        table.row([Cell::text(&row.defence), epsilon].into_iter().chain(values));
    }
    let pictures = findings.pictures.iter().map(|sight| {
        let side = (sight.side * ENLARGED) as u32;
        let pixels: Vec<u8> = (0..sight.side * ENLARGED)
            .flat_map(|row| {
                let first = row / ENLARGED * sight.side;
                (0..sight.side * ENLARGED).map(move |column| first + column / ENLARGED)
            })
            .map(|place| (sight.pixels[place].clamp(0.0, 1.0) * 255.0).round() as u8)
            .collect();
        Picture::gray(&sight.caption, side, side, &pixels)
    });
    let pictures: Vec<Picture> = pictures.collect::<Result<_, _>>()?;
    let section = Section::new(findings.attack.title())
        .paragraph(&findings.setting)
        .table(table.without_empty_columns());
    Ok(if pictures.is_empty() { section } else { section.pictures(pictures) })
}

/// The same as lines of text.
#[must_use]
pub fn text(findings: &Findings) -> String {
    let line = |row: &Row| {
        let epsilon =
            row.epsilon.map_or_else(String::new, |epsilon| format!(" (ε {})", number(epsilon)));
        let values: Vec<_> =
            row.measures.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        format!("  {}{epsilon}: {}", row.defence, values.join(", "))
    };
    let rows: Vec<_> = findings.rows.iter().map(line).collect();
    format!("{}: {}\n{}", findings.attack.title(), findings.setting, rows.join("\n"))
}

/// The names of all measures, in the order in which rows have them.
fn measures(findings: &Findings) -> Vec<&'static str> {
    let mut names = Vec::new();
    for (name, _) in findings.rows.iter().flat_map(|row| &row.measures) {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    names
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
