//! Pages that show what was found: one HTML file that needs nothing else, not even a network.
//!
//! A [`Page`] is made of [`Section`]s, and these of text, figures, tables, curves and pictures.
//! Curves are SVG and pictures are PNG inside the file; tables sort and filter by themselves; light and
//! dark, screens and phones are all served. [`page()`] is that of runs and sweeps; anything else that
//! finds something adds a section:
//!
//! ```
//! use tributary_sim::report::{Cell, Chart, Page, Picture, Section, Series, Table, Unit};
//!
//! let mut table = Table::new(["attack", "accuracy"]);
//! table.row([Cell::text("sign-flip"), Cell::number(0.31, "31 %")]);
//! let curve = Chart::new("accuracy", "round", Unit::Count, Unit::Percent)
//!     .series(Series::new("mean", vec![(0.0, 0.1), (10.0, 0.3)]));
//! let black = Picture::gray("what the attacker sees", 2, 2, &[0; 4])?;
//! let section = Section::new("Attacks")
//!     .paragraph("A fifth of the tenants send their update with the opposite sign.")
//!     .table(table)
//!     .charts(vec![curve])
//!     .pictures(vec![black]);
//! let html = Page::new("What an attacker can do").section(section).html();
//! assert!(html.starts_with("<!doctype html>"));
//! # Ok::<(), tributary_sim::report::PictureError>(())
//! ```

mod axis;
mod chart;
mod curves;
mod html;
mod page;
mod picture;
mod results;
mod table;
mod write;

pub use self::{
    axis::Unit,
    chart::{Chart, Series},
    page::{Page, Section},
    picture::{Picture, PictureError},
    results::{Entry, ReportError, Results, SeedResults},
    table::{Cell, Table},
    write::{ReportFiles, page, write},
};
