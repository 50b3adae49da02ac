//! Line and scatter charts as SVG: ticks at round numbers, logarithmic axes, lines labelled at their end, colours by CSS
//! variables so that one picture works in light and dark.

use std::fmt::Write as _;

/// Drawing area in SVG units.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 52.0;
/// Least distance of two labels, in SVG units.
const LABEL_GAP: f64 = 15.0;

/// Scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Equal ratios.
    Log,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Label with unit.
    pub label: String,
    /// Scale.
    pub scale: Scale,
    /// Points past it are drawn as triangles at the edge, so that a few failures do not flatten everything else.
    pub limit: Option<f64>,
}

/// A point.
#[derive(Clone, Debug)]
pub struct Point {
    /// Abscissa.
    pub x: f64,
    /// Ordinate.
    pub y: f64,
    /// Shown when the pointer rests on it.
    pub title: String,
    /// Drawn with a ring.
    pub marked: bool,
}

/// Points of one colour.
#[derive(Clone, Debug)]
pub struct Series {
    /// Label at the end of the line.
    pub label: String,
    /// Number of the colour, from 0.
    pub colour: usize,
    /// Points, by x.
    pub points: Vec<Point>,
    /// A line, such as one through the best of the points. The label stands at its end, or else at the last point.
    pub line: Vec<(f64, f64)>,
    /// A fitted curve, dashed.
    pub curve: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows, for readers that do not see it.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Data.
    pub series: Vec<Series>,
}

struct Mapping {
    low: f64,
    high: f64,
    scale: Scale,
    from: f64,
    to: f64,
}

impl Mapping {
    fn new(values: impl Iterator<Item = f64>, scale: Scale, from: f64, to: f64) -> Option<Self> {
        let change = |value: f64| if scale == Scale::Log { value.log10() } else { value };
        let (low, high) = values
            .filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0))
            .map(change)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return None;
        }
        let room = if high > low { (high - low) * 0.05 } else { high.abs().max(1.0) * 0.05 };
        Some(Self { low: low - room, high: high + room, scale, from, to })
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Log { value.max(1e-300).log10() } else { value };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = round_step((self.high - self.low) / 6.0);
                let first = (self.low / step).ceil();
                (0..20).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= self.high).collect()
            }
            Scale::Log => {
                let mut ticks = Vec::new();
                #[expect(clippy::cast_possible_truncation, reason = "decades")]
                let decades = (self.low.floor() as i32)..=(self.high.ceil() as i32);
                let parts: &[f64] = if self.high - self.low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                for decade in decades {
                    for part in parts {
                        let tick = part * 10f64.powi(decade);
                        if (self.low..=self.high).contains(&tick.log10()) {
                            ticks.push(tick);
                        }
                    }
                }
                ticks
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, not below `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.max(1e-300).log10().floor());
    let factor = rough / power;
    power
        * if factor <= 1.0 {
            1.0
        } else if factor <= 2.0 {
            2.0
        } else if factor <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// A number for a tick.
fn tick_text(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&magnitude) {
        format!("{value:.0e}")
    } else {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Text for an SVG or HTML attribute or element.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

impl Chart {
    /// The chart as an SVG element; `None` where there is nothing to draw.
    #[must_use]
    pub fn svg(&self) -> Option<String> {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let x = Mapping::new(all().map(|point| self.x.clip(point.x)), self.x.scale, LEFT, WIDTH - RIGHT)?;
        let y = Mapping::new(all().map(|point| self.y.clip(point.y)), self.y.scale, HEIGHT - BOTTOM, TOP)?;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">",
            escape(&self.title)
        );
        self.axes(&mut svg, &x, &y);
        for series in &self.series {
            self.draw(&mut svg, series, &x, &y);
        }
        self.labels(&mut svg, &x, &y);
        svg.push_str("</svg>");
        Some(svg)
    }

    fn axes(&self, svg: &mut String, x: &Mapping, y: &Mapping) {
        for tick in x.ticks() {
            let at = x.place(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/><text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 18.0,
                tick_text(tick)
            );
        }
        for tick in y.ticks() {
            let at = y.place(tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0,
                tick_text(tick)
            );
        }
        let _ = write!(
            svg,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text class=\"axis\" transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, WIDTH - RIGHT),
            HEIGHT - 10.0,
            escape(&self.x.label),
            f64::midpoint(TOP, HEIGHT - BOTTOM),
            escape(&self.y.label)
        );
    }

    /// Labels at the last point of each line, moved apart where they would touch.
    fn labels(&self, svg: &mut String, x: &Mapping, y: &Mapping) {
        let mut ends: Vec<(f64, f64, &Series)> = self
            .series
            .iter()
            .filter_map(|series| {
                let points = || series.points.iter().map(|point| (point.x, point.y));
                let last =
                    series.line.last().copied().or_else(|| points().max_by(|a, b| a.0.total_cmp(&b.0)))?;
                Some((y.place(self.y.clip(last.1)), x.place(self.x.clip(last.0)), series))
            })
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut next = TOP + 4.0;
        let mut places: Vec<f64> = Vec::new();
        for (wanted, ..) in &ends {
            let place = wanted.max(next);
            places.push(place);
            next = place + LABEL_GAP;
        }
        // Those pushed past the bottom move up again.
        let mut limit = HEIGHT - BOTTOM;
        for place in places.iter_mut().rev() {
            *place = place.min(limit);
            limit = *place - LABEL_GAP;
        }
        for ((wanted, from, series), place) in ends.iter().zip(&places) {
            let edge = WIDTH - RIGHT + 10.0;
            let _ = write!(
                svg,
                "<path class=\"leader s{0}\" d=\"M{1:.1} {2:.1} L{3:.1} {4:.1}\"/><text class=\"label f{0}\" x=\"{5:.1}\" y=\"{6:.1}\">{7}</text>",
                series.colour % COLOURS,
                from + 5.0,
                wanted,
                edge - 3.0,
                place,
                edge,
                place + 4.0,
                escape(&series.label)
            );
        }
    }
}

/// Number of colours of the style sheet.
pub const COLOURS: usize = 9;

impl Axis {
    /// An axis without a limit.
    #[must_use]
    pub fn new(label: &str, scale: Scale) -> Self {
        Self { label: label.to_owned(), scale, limit: None }
    }

    fn clip(&self, value: f64) -> f64 {
        self.limit.map_or(value, |limit| value.min(limit))
    }
}

impl Chart {
    fn draw(&self, svg: &mut String, series: &Series, x: &Mapping, y: &Mapping) {
        let colour = series.colour % COLOURS;
        let place = |px: f64, py: f64| (x.place(self.x.clip(px)), y.place(self.y.clip(py)));
        for (class, points) in [("line", &series.line), ("curve", &series.curve)] {
            let mut path = String::new();
            for (px, py) in points {
                let (px, py) = place(*px, *py);
                let _ = write!(path, "{}{px:.1} {py:.1}", if path.is_empty() { "M" } else { " L" });
            }
            if !path.is_empty() {
                let _ = write!(svg, "<path class=\"{class} s{colour}\" d=\"{path}\"/>");
            }
        }
        for point in &series.points {
            let (px, py) = place(point.x, point.y);
            let title = escape(&point.title);
            if point.marked {
                let _ = write!(svg, "<circle class=\"ring\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"7.5\"/>");
            }
            if self.y.limit.is_some_and(|limit| point.y > limit) {
                let _ = write!(
                    svg,
                    "<path class=\"dot f{colour}\" d=\"M{px:.1} {:.1} l-5 9 h10 z\"><title>{title}</title></path>",
                    py - 9.0
                );
            } else {
                let _ = write!(
                    svg,
                    "<circle class=\"dot f{colour}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"><title>{title}</title></circle>"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let mapping = Mapping::new([0.0, 9.7].into_iter(), Scale::Linear, 0.0, 100.0).unwrap();
        assert_eq!(mapping.ticks(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let mapping = Mapping::new([1e-4, 1.0].into_iter(), Scale::Log, 0.0, 100.0).unwrap();
        assert_eq!(
            mapping.ticks().iter().map(|tick| tick_text(*tick)).collect::<Vec<_>>(),
            ["1e-4", "0.001", "0.01", "0.1", "1"]
        );
    }

    #[test]
    fn nothing_to_draw_is_no_chart() {
        let axis = || Axis::new("", Scale::Log);
        let point = Point { x: 1.0, y: -1.0, title: String::new(), marked: false };
        let series = Series {
            label: String::new(),
            colour: 0,
            points: vec![point],
            line: Vec::new(),
            curve: Vec::new(),
        };
        assert!(Chart { title: String::new(), x: axis(), y: axis(), series: vec![series] }.svg().is_none());
    }

    #[test]
    fn a_point_past_the_limit_is_a_triangle_at_the_edge() {
        let point = |y: f64| Point { x: y, y, title: format!("at {y}"), marked: false };
        let points = vec![point(1.0), point(2.0), point(1e9)];
        let series = Series { label: "a".into(), colour: 0, points, line: Vec::new(), curve: Vec::new() };
        let y = Axis { limit: Some(2.0), ..Axis::new("y", Scale::Linear) };
        let chart = Chart { title: String::new(), x: Axis::new("x", Scale::Linear), y, series: vec![series] };
        let svg = chart.svg().unwrap();
        assert_eq!(svg.matches("<circle class=\"dot").count(), 2, "{svg}");
        assert!(svg.contains("z\"><title>at 1000000000</title></path>"), "{svg}");
    }

    #[test]
    fn titles_are_escaped() {
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
