//! Plots as SVG.

use super::escape;
use super::number::short;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 8] =
    ["#3b78d8", "#d9792b", "#3a9d5d", "#b14fb0", "#c9423b", "#7a6a53", "#1aa0a8", "#8a8f1f"];

/// Named values, one for each place on the x axis; those that are not finite leave a gap.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
}

/// A plot of series over places.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    /// Names of the places on the x axis.
    pub(crate) places: &'a [String],
    pub(crate) series: &'a [Series],
    /// Whether the y axis is logarithmic; values that are not positive then leave a gap.
    pub(crate) log: bool,
}

impl Plot<'_> {
    /// A group of bars for each place.
    pub(crate) fn bars(&self) -> String {
        let axis = Axis::new(self.series.iter().flat_map(|series| &series.values), self.log, true);
        let slot = axis.slot(self.places.len());
        let bar = slot * 0.8 / self.series.len().max(1) as f64;
        let mut marks = String::new();
        for (s, series) in self.series.iter().enumerate() {
            for (i, value) in series.values.iter().enumerate() {
                let Some(y) = axis.y(*value) else { continue };
                let x = LEFT + slot * (i as f64 + 0.1) + bar * s as f64;
                marks += &format!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\">\
                     <title>{} {}: {}</title></rect>\n",
                    bar.max(1.0),
                    (HEIGHT - BOTTOM - y).max(0.0),
                    colour(s),
                    escape(&series.name),
                    escape(self.places.get(i).map_or("", String::as_str)),
                    short(*value),
                );
            }
        }
        self.frame(&axis, &marks)
    }

    /// A line for each series.
    pub(crate) fn lines(&self) -> String {
        self.lines_over(&[])
    }

    /// A line for each series, over a dashed one of the same colour for each of `before`.
    pub(crate) fn lines_over(&self, before: &[Series]) -> String {
        let values = self.series.iter().chain(before).flat_map(|series| &series.values);
        let axis = Axis::new(values, self.log, false);
        let slot = axis.slot(self.places.len());
        let mut marks = String::new();
        let dashed = before
            .iter()
            .enumerate()
            .map(|(s, series)| (s, series, " stroke-dasharray=\"4 4\" stroke-opacity=\"0.7\""));
        let solid = self.series.iter().enumerate().map(|(s, series)| (s, series, ""));
        for (s, series, dashes) in dashed.chain(solid) {
            let place = |(i, value): (usize, &f64)| Some((LEFT + slot * (i as f64 + 0.5), axis.y(*value)?));
            let points: Vec<Option<(f64, f64)>> = series.values.iter().enumerate().map(place).collect();
            for run in points.split(Option::is_none).filter(|run| !run.is_empty()) {
                let text: Vec<String> = run.iter().flatten().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                marks += &format!(
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{dashes}/>\n",
                    text.join(" "),
                    colour(s)
                );
            }
            for (x, y) in points.iter().flatten() {
                marks += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{}\"/>\n", colour(s));
            }
        }
        self.frame(&axis, &marks)
    }

    /// Title, axes and legend around the marks.
    fn frame(&self, axis: &Axis, marks: &str) -> String {
        let right = WIDTH - RIGHT;
        let mut text = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
             fill=\"currentColor\">\n<text x=\"{LEFT}\" y=\"18\" font-weight=\"600\">{}</text>\n",
            escape(self.title)
        );
        for tick in axis.ticks() {
            let Some(y) = axis.y(tick) else { continue };
            text += &format!(
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"currentColor\" \
                 stroke-opacity=\"0.15\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                LEFT - 6.0,
                y + 4.0,
                short(tick)
            );
        }
        let slot = axis.slot(self.places.len());
        // Names that would lie on each other are left out.
        let every = (28.0 / slot).ceil().max(1.0) as usize;
        for (i, place) in self.places.iter().enumerate().step_by(every) {
            let (x, y) = (LEFT + slot * (i as f64 + 0.5), HEIGHT - BOTTOM + 14.0);
            text += &format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\" transform=\"rotate(-30 {x:.1} {y:.1})\">{}</text>\n",
                escape(place)
            );
        }
        for (s, series) in self.series.iter().enumerate() {
            let y = TOP + 18.0 * s as f64;
            text += &format!(
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
                right + 12.0,
                colour(s),
                right + 26.0,
                y + 9.0,
                escape(&series.name)
            );
        }
        text + marks + "</svg>"
    }
}

fn colour(series: usize) -> &'static str {
    COLOURS[series % COLOURS.len()]
}

/// The y axis.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn new<'a>(values: impl Iterator<Item = &'a f64>, log: bool, from_zero: bool) -> Self {
        let usable = values.copied().filter(|v| v.is_finite() && (!log || *v > 0.0));
        let (mut low, mut high) =
            usable.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            (low, high) = if log { (0.1, 1.0) } else { (0.0, 1.0) };
        }
        if log {
            (low, high) = (10f64.powf(low.log10().floor()), 10f64.powf(high.log10().ceil()));
            // Bars begin at the bottom; the smallest needs some height too.
            low /= if from_zero || low == high { 10.0 } else { 1.0 };
        } else {
            low = if from_zero { low.min(0.0) } else { low };
            high = if high > low { high } else { low + 1.0 };
        }
        Self { low, high, log }
    }

    fn slot(&self, places: usize) -> f64 {
        (WIDTH - LEFT - RIGHT) / places.max(1) as f64
    }

    fn y(&self, value: f64) -> Option<f64> {
        if !value.is_finite() || (self.log && value <= 0.0) {
            return None;
        }
        let scale = |v: f64| if self.log { v.log10() } else { v };
        let share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        Some(HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - BOTTOM - TOP))
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let (low, high) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
            let every = ((high - low) / 8).max(1) as usize;
            return (low..=high).step_by(every).map(|e| 10f64.powi(e)).collect();
        }
        (0..=4).map(|i| self.low + (self.high - self.low) * f64::from(i) / 4.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(values: &[f64], log: bool, bars: bool) -> String {
        let places: Vec<String> = (0..values.len()).map(|i| format!("<{i}>")).collect();
        let series = [Series { name: "a & b".into(), values: values.to_vec() }];
        let plot = Plot { title: "t", places: &places, series: &series, log };
        if bars { plot.bars() } else { plot.lines() }
    }

    #[test]
    fn any_values_make_a_plot() {
        let lists =
            [&[][..], &[0.0], &[1.0, f64::NAN, 3.0], &[f64::INFINITY], &[-1.0, 1e-9, 1e9], &[2.0, 2.0]];
        for values in lists {
            for (log, bars) in [(false, false), (false, true), (true, false), (true, true)] {
                let text = svg(values, log, bars);
                assert!(text.starts_with("<svg") && text.ends_with("</svg>"), "{values:?}");
                assert!(
                    !text.contains("NaN") && !text.contains("\"inf") && !text.contains("a & b"),
                    "{text}"
                );
            }
        }
        let series = |values: &[f64]| [Series { name: "x".into(), values: values.to_vec() }];
        let places = ["0".to_owned(), "1".to_owned()];
        let after = series(&[1.0, 2.0]);
        let plot = Plot { title: "t", places: &places, series: &after, log: true };
        let over = plot.lines_over(&series(&[1e3, 1e4]));
        assert!(over.matches("<polyline").count() == 2 && over.matches("dasharray").count() == 1);
        assert!(over.contains(">10000</text>"), "the axis holds both: {over}");
        assert_eq!(svg(&[1.0, f64::NAN, 3.0, 4.0], false, false).matches("<polyline").count(), 2);
        assert_eq!(svg(&[1.0, f64::NAN, 3.0], false, true).matches("<title>").count(), 2);
    }
}
