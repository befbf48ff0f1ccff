//! The page and its sections.

use super::{
    chart::{self, Chart},
    html::{escape, push},
    picture::Picture,
    table::Table,
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A whole page.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    title: String,
    subtitle: String,
    sections: Vec<Section>,
}

/// A part of a page under a heading.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    title: String,
    blocks: Vec<Block>,
}

#[derive(Debug, Clone, PartialEq)]
enum Block {
    Paragraph(String),
    Figures(Vec<(String, String)>),
    Charts(Vec<Chart>),
    Table(Table),
    Pictures(Vec<Picture>),
    Listing { title: String, text: String, open: bool },
    Folded { title: String, block: Box<Self> },
}

impl Section {
    /// A section without content.
    #[must_use]
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    /// Adds a paragraph of text.
    #[must_use]
    pub fn paragraph(self, text: impl Into<String>) -> Self {
        self.block(Block::Paragraph(text.into()))
    }

    /// Adds the few figures that matter most, each with its name.
    #[must_use]
    pub fn figures(
        self,
        figures: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        let figures = figures.into_iter().map(|(name, value)| (name.into(), value.into()));
        self.block(Block::Figures(figures.collect()))
    }

    /// Adds charts side by side with one legend; empty ones are left out.
    #[must_use]
    pub fn charts(self, charts: Vec<Chart>) -> Self {
        let charts: Vec<Chart> = charts.into_iter().filter(|chart| !chart.is_empty()).collect();
        if charts.is_empty() { self } else { self.block(Block::Charts(charts)) }
    }

    /// Adds a table.
    #[must_use]
    pub fn table(self, table: Table) -> Self {
        self.block(Block::Table(table))
    }

    /// Adds a table that is folded away at first.
    #[must_use]
    pub fn folded_table(self, title: impl Into<String>, table: Table) -> Self {
        self.block(Block::Folded { title: title.into(), block: Block::Table(table).into() })
    }

    /// Adds pictures side by side.
    #[must_use]
    pub fn pictures(self, pictures: Vec<Picture>) -> Self {
        self.block(Block::Pictures(pictures))
    }

    /// Adds commands or a file, letter by letter.
    #[must_use]
    pub fn listing(self, title: impl Into<String>, text: impl Into<String>) -> Self {
        let (title, text) = (title.into(), text.into());
        self.block(Block::Listing { title, text, open: true })
    }

    /// Adds a file that is folded away at first.
    #[must_use]
    pub fn folded_listing(self, title: impl Into<String>, text: impl Into<String>) -> Self {
        let (title, text) = (title.into(), text.into());
        self.block(Block::Listing { title, text, open: false })
    }

    fn block(mut self, block: Block) -> Self {
        self.blocks.push(block);
        self
    }
}

impl Page {
    /// A page without sections.
    #[must_use]
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), subtitle: String::new(), sections: Vec::new() }
    }

    /// A line below the title.
    #[must_use]
    pub fn subtitle(mut self, text: impl Into<String>) -> Self {
        self.subtitle = text.into();
        self
    }

    /// Adds a section.
    #[must_use]
    pub fn section(mut self, section: Section) -> Self {
        self.sections.push(section);
        self
    }

    /// The page as one file that asks nobody for anything.
    #[must_use]
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut html = String::new();
        push(
            &mut html,
            format_args!(
                "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
                 <meta name=\"color-scheme\" content=\"light dark\">\
                 <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
                 style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\
                 <title>{title}</title><style>{STYLE}</style></head><body><main>\
                 <header><h1>{title}</h1>"
            ),
        );
        if !self.subtitle.is_empty() {
            push(&mut html, format_args!("<p>{}</p>", escape(&self.subtitle)));
        }
        html.push_str("</header>");
        for section in &self.sections {
            push(&mut html, format_args!("<section><h2>{}</h2>", escape(&section.title)));
            section.blocks.iter().for_each(|block| block.write(&mut html));
            html.push_str("</section>");
        }
        push(&mut html, format_args!("</main><script>{SCRIPT}</script></body></html>\n"));
        html
    }
}

impl Block {
    fn write(&self, html: &mut String) {
        match self {
            Self::Paragraph(text) => push(html, format_args!("<p>{}</p>", escape(text))),
            Self::Figures(figures) => {
                html.push_str("<dl class=\"figures\">");
                for (name, value) in figures {
                    push(
                        html,
                        format_args!(
                            "<div><dt>{}</dt><dd>{}</dd></div>",
                            escape(name),
                            escape(value)
                        ),
                    );
                }
                html.push_str("</dl>");
            }
            Self::Charts(charts) => {
                let mut names: Vec<&str> = Vec::new();
                for name in charts.iter().flat_map(Chart::names) {
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
                html.push_str("<div class=\"charts\">");
                if names.len() > 1 {
                    chart::write_legend(html, &names);
                }
                html.push_str("<div class=\"side-by-side\">");
                charts.iter().for_each(|chart| chart.write(html, &names));
                html.push_str("</div></div>");
            }
            Self::Table(table) => table.write(html),
            Self::Pictures(pictures) => {
                html.push_str("<div class=\"pictures\">");
                pictures.iter().for_each(|picture| picture.write(html));
                html.push_str("</div>");
            }
            Self::Listing { title, text, open } => {
                let (open, title) = (if *open { " open" } else { "" }, escape(title));
                push(
                    html,
                    format_args!(
                        "<details{open}><summary>{title}</summary><pre>{}</pre></details>",
                        escape(text)
                    ),
                );
            }
            Self::Folded { title, block } => {
                push(html, format_args!("<details><summary>{}</summary>", escape(title)));
                block.write(html);
                html.push_str("</details>");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cell, Series, Unit};

    #[test]
    fn a_page_asks_nobody_for_anything() {
        let mut table = Table::new(["a"]);
        table.row([Cell::text("</script><img src=http://example.org>")]);
        let chart = Chart::new("y", "x", Unit::Plain, Unit::Plain)
            .series(Series::new("<one>", vec![(0.0, 1.0)]))
            .series(Series::new("two", vec![(0.0, 1.0)]));
        let empty = Chart::new("never", "x", Unit::Plain, Unit::Plain);
        let section = Section::new("A & B")
            .figures([("accuracy", "76 %")])
            .charts(vec![chart, empty])
            .folded_table("tenants", table)
            .folded_listing("file", "x = 1")
            .pictures(vec![Picture::gray("p", 1, 1, &[0]).expect("a pixel")]);
        let html = Page::new("T").subtitle("S").section(section).html();
        assert!(!html.contains("<one>") && html.contains("A &amp; B") && !html.contains("never"));
        assert!(!html.contains("<img src=http") && !html.contains("<link"));
        // No address but those of data inside the page.
        assert!(!html.contains("src=\"http") && !html.contains("url(") && !html.contains("import"));
        assert_eq!(html.matches("<details>").count(), html.matches("</details>").count());
    }
}
