//! Line and scatter charts as SVG: ticks at round numbers, logarithmic axes, lines labelled at their end, colours by CSS
//! variables so that one picture works in light and dark. Series differ in colour and in the shape of their points.
//!
//! There is one renderer. The page's script draws nothing: it finds series by `data-key` and points by `data-row`, the row of the
//! table that the chart shows, and adds hovering, hiding and selecting.

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
    /// Standard error of the ordinate.
    pub error: Option<f64>,
    /// Row of the table that the chart shows.
    pub row: Option<usize>,
    /// Shown when the pointer rests on it.
    pub title: String,
    /// Drawn with a ring.
    pub marked: bool,
}

/// Points of one colour.
#[derive(Clone, Debug)]
pub struct Series {
    /// What hides it: `column=value` of the table that the chart shows.
    pub key: String,
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
    /// Its confidence band: abscissa, lower and upper end.
    pub band: Vec<(f64, f64, f64)>,
}

impl Series {
    /// A series without points.
    #[must_use]
    pub fn new(key: String, label: String, colour: usize) -> Self {
        Self { key, label, colour, points: Vec::new(), line: Vec::new(), curve: Vec::new(), band: Vec::new() }
    }
}

/// A horizontal line with a label, such as a noise floor.
#[derive(Clone, Debug)]
pub struct Level {
    /// Ordinate.
    pub y: f64,
    /// Label.
    pub label: String,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// What it shows, for readers that do not see it.
    pub title: String,
    /// Table that the rows of its points are of.
    pub table: String,
    /// Columns of that table that the axes show.
    pub columns: [String; 2],
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Data.
    pub series: Vec<Series>,
    /// Horizontal lines.
    pub levels: Vec<Level>,
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
        let levels = self.levels.iter().map(|level| self.y.clip(level.y));
        let values = all().map(|point| self.y.clip(point.y)).chain(levels);
        let y = Mapping::new(values, self.y.scale, HEIGHT - BOTTOM, TOP)?;
        let mut svg = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-of=\"{}\" data-x=\"{}\" data-y=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">",
            escape(&self.title),
            escape(&self.table),
            escape(&self.columns[0]),
            escape(&self.columns[1])
        );
        self.axes(&mut svg, &x, &y);
        for level in &self.levels {
            let at = y.place(self.y.clip(level.y));
            let _ = write!(
                svg,
                "<path class=\"level\" d=\"M{LEFT} {at:.1} H{:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT + 6.0,
                at - 5.0,
                escape(&level.label)
            );
        }
        // Bands lie under everything, points above all lines.
        let titles = all().count() <= MOST_TITLES;
        for series in &self.series {
            self.group(&mut svg, series, |svg| self.lines(svg, series, &x, &y));
        }
        for series in &self.series {
            self.group(&mut svg, series, |svg| self.points(svg, series, &x, &y, titles));
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
                "<g class=\"series\" data-key=\"{8}\"><path class=\"leader s{0}\" d=\"M{1:.1} {2:.1} L{3:.1} {4:.1}\"/><path class=\"dot f{0}\" d=\"{9}\"/><text class=\"label f{0}\" x=\"{5:.1}\" y=\"{6:.1}\">{7}</text></g>",
                series.colour % COLOURS,
                from + 5.0,
                wanted,
                edge - 3.0,
                place,
                edge + 12.0,
                place + 4.0,
                escape(&shortened(&series.label)),
                escape(&series.key),
                marker(series.colour, edge + 4.0, *place, 4.0)
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

/// Points of a chart above which their words are left to the page's script, which has them from the table.
const MOST_TITLES: usize = 1000;
/// Characters of a label that fit beside the chart.
const LABEL_ROOM: usize = 18;

/// The beginning of a label that is too long for its room.
fn shortened(label: &str) -> String {
    if label.chars().count() <= LABEL_ROOM {
        return label.to_owned();
    }
    label.chars().take(LABEL_ROOM - 1).chain(['\u{2026}']).collect()
}

/// The outline of a point of series `number`: circle, square, triangle, diamond, triangle down, cross, hexagon; `size` half its width.
fn marker(number: usize, x: f64, y: f64, size: f64) -> String {
    let s = size;
    match number % 7 {
        0 => format!(
            "M{x:.1} {y:.1}m-{s:.1} 0a{s:.1} {s:.1} 0 1 0 {:.1} 0a{s:.1} {s:.1} 0 1 0 -{:.1} 0z",
            2.0 * s,
            2.0 * s
        ),
        1 => {
            let s = s * 0.9;
            format!("M{x:.1} {y:.1}m-{s:.1} -{s:.1}h{0:.1}v{0:.1}h-{0:.1}z", 2.0 * s)
        }
        2 => format!("M{x:.1} {y:.1}m0 -{:.1}l{:.1} {:.1}h-{:.1}z", s * 1.15, s * 1.15, s * 2.0, s * 2.3),
        3 => format!("M{x:.1} {y:.1}m0 -{0:.1}l{0:.1} {0:.1}l-{0:.1} {0:.1}l-{0:.1} -{0:.1}z", s * 1.25),
        4 => format!("M{x:.1} {y:.1}m0 {:.1}l{:.1} -{:.1}h-{:.1}z", s * 1.15, s * 1.15, s * 2.0, s * 2.3),
        5 => {
            let (a, b) = (s * 0.42, s * 0.75);
            format!(
                "M{x:.1} {y:.1}m-{a:.1} -{c:.1}h{d:.1}v{b:.1}h{b:.1}v{d:.1}h-{b:.1}v{b:.1}h-{d:.1}v-{b:.1}h-{b:.1}v-{d:.1}h{b:.1}z",
                c = a + b,
                d = 2.0 * a
            )
        }
        _ => format!(
            "M{x:.1} {y:.1}m-{s:.1} 0l{h:.1} -{v:.1}h{s:.1}l{h:.1} {v:.1}l-{h:.1} {v:.1}h-{s:.1}z",
            h = s / 2.0,
            v = s * 0.9
        ),
    }
}

impl Chart {
    /// Writes what `inner` draws as a group that the page's script finds.
    fn group(&self, svg: &mut String, series: &Series, inner: impl FnOnce(&mut String)) {
        let _ = write!(
            svg,
            "<g class=\"series\" data-key=\"{}\" data-label=\"{}\" data-colour=\"{}\">",
            escape(&series.key),
            escape(&series.label),
            series.colour
        );
        inner(svg);
        svg.push_str("</g>");
    }

    fn lines(&self, svg: &mut String, series: &Series, x: &Mapping, y: &Mapping) {
        let colour = series.colour % COLOURS;
        let place = |px: f64, py: f64| {
            (x.place(self.x.clip(px)), y.place(self.y.clip(py)).clamp(TOP, HEIGHT - BOTTOM))
        };
        let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
            let mut path = String::new();
            for (px, py) in points {
                let (px, py) = place(px, py);
                let _ = write!(path, "{}{px:.1} {py:.1}", if path.is_empty() { "M" } else { " L" });
            }
            path
        };
        if !series.band.is_empty() {
            let upper = series.band.iter().map(|(px, _, high)| (*px, *high));
            let lower = series.band.iter().rev().map(|(px, low, _)| (*px, *low));
            let _ = write!(svg, "<path class=\"band f{colour}\" d=\"{}z\"/>", path(&mut upper.chain(lower)));
        }
        for (class, points) in [("line", &series.line), ("curve", &series.curve)] {
            if !points.is_empty() {
                let _ = write!(
                    svg,
                    "<path class=\"{class} s{colour}\" d=\"{}\"/>",
                    path(&mut points.iter().copied())
                );
            }
        }
    }

    fn points(&self, svg: &mut String, series: &Series, x: &Mapping, y: &Mapping, titles: bool) {
        let colour = series.colour % COLOURS;
        for point in &series.points {
            let (px, py) = (x.place(self.x.clip(point.x)), y.place(self.y.clip(point.y)));
            let beyond = self.y.limit.is_some_and(|limit| point.y > limit);
            let row = point.row.map_or_else(String::new, |row| format!(" data-row=\"{row}\""));
            if point.marked && !beyond {
                let _ = write!(svg, "<circle class=\"ring\"{row} cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"7.5\"/>");
            }
            if let Some(error) = point.error.filter(|_| !beyond) {
                let end = |value: f64| y.place(self.y.clip(value)).clamp(TOP, HEIGHT - BOTTOM);
                let (from, to) = (end(point.y - error), end(point.y + error));
                // Bars that the point hides say nothing.
                if (from - to).abs() > 9.0 {
                    let _ =
                        write!(svg, "<path class=\"bar s{colour}\"{row} d=\"M{px:.1} {from:.1}V{to:.1}\"/>");
                }
            }
            let outline = if beyond {
                format!("M{px:.1} {:.1}l-5 9h10z", py - 9.0)
            } else {
                marker(series.colour, px, py, 4.0)
            };
            let _ = write!(svg, "<path class=\"dot f{colour}\"{row} d=\"{outline}\"");
            if titles {
                let _ = write!(svg, "><title>{}</title></path>", escape(&point.title));
            } else {
                svg.push_str("/>");
            }
        }
    }
}

/// `svg` as a file of its own: with the light colours of the page's style sheet, for viewers that know no variables.
#[must_use]
pub fn standalone(svg: &str) -> String {
    let open = svg.find('>').map_or(0, |end| end + 1);
    format!(
        "{}<style>{}</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>{}\n",
        &svg[..open],
        standalone_style(),
        &svg[open..]
    )
}

/// Style of an SVG file of its own.
#[must_use]
pub fn standalone_style() -> String {
    let mut style = String::from(
        "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}.grid{stroke:#dfe1e5}.tick,.axis{fill:#5c6470;font-size:12px}.axis{font-size:13px}.label{font-size:12.5px;font-weight:600}.line{fill:none;stroke-width:2}.curve{fill:none;stroke-width:1.6;stroke-dasharray:5 4}.leader{fill:none;stroke-width:.8;opacity:.5}.level{fill:none;stroke:#5c6470;stroke-dasharray:2 3}.band{opacity:.14;stroke:none}.bar{stroke-width:1.2;opacity:.6}.dot{stroke:#fff;stroke-width:1}.ring{fill:none;stroke:#1d1f23;stroke-width:1.4}.heat{fill:#1d1f23;font-size:12px}",
    );
    for (number, colour) in PALETTE.iter().enumerate() {
        let _ = write!(style, ".s{number}{{stroke:{colour}}}.f{number}{{fill:{colour}}}");
    }
    for (level, colour) in HEAT.iter().enumerate() {
        let _ = write!(style, ".h{level}{{fill:{colour}}}");
    }
    style
}

/// Colours on white, told apart with red-green and blue-yellow blindness (after Okabe and Ito, darkened to 4.5:1 on white).
pub const PALETTE: [&str; COLOURS] =
    ["#0b5fa5", "#b34700", "#0a7358", "#a3256f", "#7a5c00", "#4b4bb8", "#006f7a", "#8c1d18", "#5c6470"];
/// Steps of a heat map from small to large, of one lightness ramp (after cividis).
pub const HEAT: [&str; 11] = [
    "#f7f4e3", "#efe6b8", "#e3d68d", "#cfc371", "#b3ad70", "#969774", "#7a8278", "#5f6d7a", "#43577a",
    "#254177", "#0a2a66",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x: Axis, y: Axis, series: Series) -> Chart {
        let columns = ["x".into(), "y".into()];
        Chart {
            title: String::new(),
            table: "t".into(),
            columns,
            x,
            y,
            series: vec![series],
            levels: Vec::new(),
        }
    }

    #[test]
    fn files_have_their_colours_in_them() {
        let points =
            vec![Point { x: 1.0, y: 2.0, error: None, row: None, title: String::new(), marked: false }];
        let series = Series { points, ..Series::new("k=a".into(), "a".into(), 0) };
        let axis = || Axis::new("", Scale::Linear);
        let file = standalone(&chart(axis(), axis(), series).svg().unwrap());
        assert!(
            file.starts_with("<svg") && file.contains(".f0{fill:#0b5fa5}") && !file.contains("var("),
            "{file}"
        );
    }

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
        let point = Point { x: 1.0, y: -1.0, error: None, row: None, title: String::new(), marked: false };
        let series = Series { points: vec![point], ..Series::new(String::new(), String::new(), 0) };
        assert!(chart(axis(), axis(), series).svg().is_none());
    }

    #[test]
    fn a_point_past_the_limit_is_a_triangle_at_the_edge() {
        let point =
            |y: f64| Point { x: y, y, error: None, row: Some(7), title: format!("at {y}"), marked: false };
        let points = vec![point(1.0), point(2.0), point(1e9)];
        let series = Series { points, ..Series::new("k=a".into(), "a".into(), 0) };
        let y = Axis { limit: Some(2.0), ..Axis::new("y", Scale::Linear) };
        let svg = chart(Axis::new("x", Scale::Linear), y, series).svg().unwrap();
        assert_eq!(svg.matches("data-row=\"7\" d=\"M").count(), 3, "{svg}");
        assert_eq!(svg.matches("l-5 9h10z").count(), 1, "{svg}");
        assert!(svg.contains("l-5 9h10z\"><title>at 1000000000</title></path>"), "{svg}");
    }

    #[test]
    fn titles_are_escaped() {
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
