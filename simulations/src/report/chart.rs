//! Line charts as SVG.

use super::{
    axis::{Scale, Unit},
    html::{escape, escape_into, push},
};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;
/// Curves with more points than this have no dots.
const DOTS_MAX: usize = 60;
/// Colours in the style sheet; further curves repeat them with dashes.
const COLOURS: usize = 8;
const DASHES: [&str; 4] = ["", "7 4", "2 3", "9 3 2 3"];

/// Curves over a common axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    title: String,
    x_label: String,
    x_unit: Unit,
    y_unit: Unit,
    series: Vec<Series>,
}

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    band: Vec<(f64, f64, f64)>,
}

impl Series {
    /// A curve through points, in their order; those that are not finite are left out.
    ///
    /// - `name`: in the legend; curves of one name have one colour in a group of charts
    #[must_use]
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        let finite = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
        let points = points.into_iter().filter(finite).collect();
        Self { name: name.into(), points, band: Vec::new() }
    }

    /// Shades what lies between two values at each x, such as the scatter of seeds.
    ///
    /// - `band`: x, lower and upper end
    #[must_use]
    pub fn band(mut self, band: Vec<(f64, f64, f64)>) -> Self {
        let finite =
            |(x, low, high): &(f64, f64, f64)| x.is_finite() && low.is_finite() && high.is_finite();
        self.band = band.into_iter().filter(finite).collect();
        self
    }

    /// The name in the legend.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

impl Chart {
    /// Axes without a curve.
    ///
    /// - `title`: what goes up
    /// - `x_label`: what goes to the right
    #[must_use]
    pub fn new(
        title: impl Into<String>,
        x_label: impl Into<String>,
        x_unit: Unit,
        y_unit: Unit,
    ) -> Self {
        let (title, x_label) = (title.into(), x_label.into());
        Self { title, x_label, x_unit, y_unit, series: Vec::new() }
    }

    /// Adds a curve; one without points is left out.
    #[must_use]
    pub fn series(mut self, series: Series) -> Self {
        if !series.is_empty() {
            self.series.push(series);
        }
        self
    }

    /// Whether nothing would be drawn.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// The names of its curves.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.series.iter().map(Series::name)
    }

    /// Appends the chart.
    ///
    /// - `names`: of all curves in the group; the place decides the colour
    pub(super) fn write(&self, html: &mut String, names: &[&str]) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let bands = || self.series.iter().flat_map(|series| &series.band);
        let x = Scale::covering(points().map(|point| point.0), self.x_unit);
        let heights =
            points().map(|point| point.1).chain(bands().flat_map(|band| [band.1, band.2]));
        let y = Scale::covering(heights, self.y_unit);
        let plot = Plot { x, y };
        let title = escape(&self.title);
        push(html, format_args!("<figure class=\"chart\"><figcaption>{title}</figcaption>"));
        push(
            html,
            format_args!(
                "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
            ),
        );
        self.write_axes(html, plot);
        for series in &self.series {
            let place = names.iter().position(|name| *name == series.name).unwrap_or(0);
            self.write_series(html, plot, series, place);
        }
        html.push_str("</svg></figure>");
    }

    fn write_axes(&self, html: &mut String, plot: Plot) {
        for tick in plot.y.ticks() {
            let (height, label) = (plot.top(tick), self.y_unit.format(tick));
            push(
                html,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{height:.1}\" y2=\"{height:.1}\"/>\
                     <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    WIDTH - RIGHT,
                    LEFT - 7.0,
                    height + 4.0,
                    escape(&label),
                ),
            );
        }
        let bottom = HEIGHT - BOTTOM;
        for tick in plot.x.ticks() {
            let left = plot.left(tick);
            // The last label would reach beyond the picture.
            let anchor = if left > WIDTH - RIGHT - 20.0 { "end" } else { "middle" };
            let left = if anchor == "end" { WIDTH - 4.0 } else { left };
            push(
                html,
                format_args!(
                    "<text class=\"tick\" x=\"{left:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                    bottom + 17.0,
                    escape(&self.x_unit.format(tick)),
                ),
            );
        }
        push(
            html,
            format_args!(
                "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
                 <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                WIDTH - RIGHT,
                LEFT.midpoint(WIDTH - RIGHT),
                HEIGHT - 8.0,
                escape(&self.x_label),
            ),
        );
    }

    fn write_series(&self, html: &mut String, plot: Plot, series: &Series, place: usize) {
        let colour = place % COLOURS;
        push(html, format_args!("<g class=\"series c{colour}\" data-series=\"{place}\">"));
        if series.band.len() > 1 {
            html.push_str("<path class=\"band\" d=\"M");
            let upper = series.band.iter().map(|&(x, _, high)| (x, high));
            let lower = series.band.iter().rev().map(|&(x, low, _)| (x, low));
            for (x, y) in upper.chain(lower) {
                push(html, format_args!("{:.1} {:.1} ", plot.left(x), plot.top(y)));
            }
            html.push_str("Z\"/>");
        }
        push(html, format_args!("<polyline{} points=\"", dash_attribute(place)));
        for &(x, y) in &series.points {
            push(html, format_args!("{:.1},{:.1} ", plot.left(x), plot.top(y)));
        }
        html.push_str("\"/>");
        // The last point is always marked: a curve of one point would not be seen.
        let dots = if series.points.len() <= DOTS_MAX { 0 } else { series.points.len() - 1 };
        for &(x, y) in &series.points[dots..] {
            push(
                html,
                format_args!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>",
                    plot.left(x),
                    plot.top(y)
                ),
            );
            escape_into(html, &series.name);
            let (x, y) = (self.x_unit.format(x), self.y_unit.format(y));
            push(
                html,
                format_args!(
                    "&#10;{} {}: {}</title></circle>",
                    escape(&self.x_label),
                    escape(&x),
                    escape(&y)
                ),
            );
        }
        html.push_str("</g>");
    }
}

/// Appends the legend of a group of charts; its entries hide and show their curves.
pub(super) fn write_legend(html: &mut String, names: &[&str]) {
    html.push_str("<ul class=\"legend\">");
    for (place, name) in names.iter().enumerate() {
        push(
            html,
            format_args!(
                "<li><button type=\"button\" data-series=\"{place}\" aria-pressed=\"true\">\
                 <svg class=\"c{}\" viewBox=\"0 0 28 10\"><polyline{} points=\"1,5 27,5\"/></svg> {}\
                 </button></li>",
                place % COLOURS,
                dash_attribute(place),
                escape(name)
            ),
        );
    }
    html.push_str("</ul>");
}

fn dash_attribute(place: usize) -> String {
    match DASHES[place / COLOURS % DASHES.len()] {
        "" => String::new(),
        dashes => format!(" stroke-dasharray=\"{dashes}\""),
    }
}

#[derive(Debug, Clone, Copy)]
struct Plot {
    x: Scale,
    y: Scale,
}

impl Plot {
    fn left(self, x: f64) -> f64 {
        LEFT + self.x.position(x) * (WIDTH - LEFT - RIGHT)
    }

    fn top(self, y: f64) -> f64 {
        TOP + (1.0 - self.y.position(y)) * (HEIGHT - TOP - BOTTOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_lie_inside_their_axes() {
        let chart = Chart::new("accuracy", "round", Unit::Count, Unit::Percent)
            .series(
                Series::new("a", vec![(0.0, 0.1), (f64::NAN, 0.3), (20.0, 0.8)])
                    .band(vec![(0.0, 0.05, 0.2), (20.0, 0.7, 0.9)]),
            )
            .series(Series::new("nothing", vec![]));
        assert_eq!(chart.names().collect::<Vec<_>>(), ["a"]);
        let mut html = String::new();
        chart.write(&mut html, &["a"]);
        let points = html.split("polyline points=\"").nth(1).expect("a curve");
        let points = points.split('"').next().expect("closed");
        let numbers: Vec<f64> =
            points.split([',', ' ']).filter_map(|number| number.parse().ok()).collect();
        assert_eq!(numbers.len(), 4);
        assert!(numbers.chunks(2).all(|point| {
            (LEFT..=WIDTH - RIGHT).contains(&point[0])
                && (TOP..=HEIGHT - BOTTOM).contains(&point[1])
        }));
        assert!(numbers[1] > numbers[3], "more is higher up");
        assert!(html.contains("class=\"band\"") && html.contains("round 20: 80 %"), "{html}");
    }

    #[test]
    fn a_single_point_and_many_curves_can_be_told_apart() {
        let names: Vec<String> = (0..20).map(|name| name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut html = String::new();
        write_legend(&mut html, &names);
        let distinct: std::collections::BTreeSet<(usize, String)> =
            (0..20).map(|place| (place % COLOURS, dash_attribute(place))).collect();
        assert_eq!((distinct.len(), html.matches("<li>").count()), (20, 20));
        let mut html = String::new();
        let one = Series::new("0", vec![(1.0, 1.0)]);
        Chart::new("y", "x", Unit::Plain, Unit::Plain).series(one).write(&mut html, &names);
        assert!(html.contains("<circle") && !html.contains("NaN"), "{html}");
    }
}
