//! Tables that sort and filter themselves.

use super::html::{escape, push};

/// Rows under named columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// One entry of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Sorted by its letters.
    Text(String),
    /// Sorted by its value.
    Number {
        /// What it is sorted by.
        value: f64,
        /// What is shown.
        text: String,
    },
    /// Nothing; sorted last.
    Empty,
}

/// Rows from which on a table can be searched.
const FILTER_FROM: usize = 12;

impl Cell {
    /// Some text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A number, and how it is shown.
    #[must_use]
    pub fn number(value: f64, text: impl Into<String>) -> Self {
        Self::Number { value, text: text.into() }
    }

    /// A number that may be missing.
    #[must_use]
    pub fn optional(value: Option<f64>, format: impl Fn(f64) -> String) -> Self {
        value.map_or(Self::Empty, |value| Self::number(value, format(value)))
    }
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If it has not one cell a column: a mistake of the caller.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<Cell> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns.len(), "one cell a column");
        self.rows.push(cells);
    }

    /// The same without columns in which no row has anything.
    #[must_use]
    pub fn without_empty_columns(mut self) -> Self {
        let used: Vec<bool> = (0..self.columns.len())
            .map(|column| self.rows.iter().any(|row| row[column] != Cell::Empty))
            .collect();
        let keep = |place: &mut std::slice::Iter<'_, bool>| *place.next().expect("one a column");
        let mut places = used.iter();
        self.columns.retain(|_| keep(&mut places));
        for row in &mut self.rows {
            let mut places = used.iter();
            row.retain(|_| keep(&mut places));
        }
        self
    }

    /// Number of rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has no rows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn write(&self, html: &mut String) {
        html.push_str("<div class=\"table\">");
        if self.rows.len() >= FILTER_FROM {
            html.push_str(
                "<input type=\"search\" class=\"filter\" placeholder=\"filter rows\" \
                 aria-label=\"filter rows\">",
            );
        }
        html.push_str("<div class=\"scroll\"><table><thead><tr>");
        for (column, name) in self.columns.iter().enumerate() {
            let class = if self.is_numeric(column) { " class=\"number\"" } else { "" };
            push(
                html,
                format_args!(
                    "<th{class} scope=\"col\"><button type=\"button\">{}</button></th>",
                    escape(name)
                ),
            );
        }
        html.push_str("</tr></thead><tbody>");
        for row in &self.rows {
            html.push_str("<tr>");
            for cell in row {
                match cell {
                    Cell::Text(text) => push(html, format_args!("<td>{}</td>", escape(text))),
                    Cell::Number { value, text } => push(
                        html,
                        format_args!(
                            "<td class=\"number\" data-value=\"{value}\">{}</td>",
                            escape(text)
                        ),
                    ),
                    Cell::Empty => html.push_str("<td class=\"number\">–</td>"),
                }
            }
            html.push_str("</tr>");
        }
        html.push_str("</tbody></table></div></div>");
    }

    fn is_numeric(&self, column: usize) -> bool {
        !self.rows.iter().any(|row| matches!(row[column], Cell::Text(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_what_they_are_sorted_by_and_names_no_markup() {
        let mut table = Table::new(["tenant", "accuracy"]);
        table.row([Cell::text("<b>ann</b>"), Cell::number(0.5, "50 %")]);
        table.row([Cell::text("bob"), Cell::optional(None, |value| value.to_string())]);
        let mut html = String::new();
        table.write(&mut html);
        assert!(html.contains("&lt;b&gt;ann") && html.contains("data-value=\"0.5\">50 %"));
        let narrow = Table {
            columns: vec!["never".to_owned(), "once".to_owned()],
            rows: vec![vec![Cell::Empty, Cell::text("x")], vec![Cell::Empty, Cell::Empty]],
        };
        let narrow = narrow.without_empty_columns();
        assert_eq!((narrow.columns, narrow.rows[1].len()), (vec!["once".to_owned()], 1));
        assert!(html.contains("<th class=\"number\"") && !html.contains("class=\"filter\""));
        for _ in 0..12 {
            table.row([Cell::text("eve"), Cell::Empty]);
        }
        table.write(&mut html);
        assert!(html.contains("class=\"filter\"") && table.len() == 14);
    }
}
