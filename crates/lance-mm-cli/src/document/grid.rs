//! Numbers by row and place, as SVG.

use super::escape;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 150.0;
const TOP: f64 = 30.0;
const ROW: f64 = 20.0;
const COLOUR: &str = "#3b78d8";

/// A table of cells whose shade is their number.
pub(crate) struct Grid<'a> {
    pub(crate) title: &'a str,
    /// Names of the columns.
    pub(crate) places: &'a [String],
    /// Names and numbers of the rows; what is not finite leaves its cell out.
    pub(crate) rows: &'a [(String, Vec<f64>)],
    /// The number whose cell has the full colour.
    pub(crate) full: f64,
}

impl Grid<'_> {
    pub(crate) fn svg(&self) -> String {
        let column = ((WIDTH - LEFT) / self.places.len().max(1) as f64).min(40.0);
        let height = TOP + ROW * self.rows.len() as f64 + 24.0;
        let mut text = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" \
             fill=\"currentColor\">\n<text x=\"{LEFT}\" y=\"18\" font-weight=\"600\">{}</text>\n",
            escape(self.title)
        );
        for (r, (name, values)) in self.rows.iter().enumerate() {
            let y = TOP + ROW * r as f64;
            text += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                LEFT - 8.0,
                y + 14.0,
                escape(name)
            );
            for (i, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
                let x = LEFT + column * i as f64;
                text += &format!(
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{COLOUR}\" \
                     fill-opacity=\"{:.2}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>\n",
                    column - 1.0,
                    ROW - 1.0,
                    0.1 + 0.7 * (value / self.full).clamp(0.0, 1.0),
                    x + column / 2.0,
                    y + 14.0,
                );
            }
        }
        for (i, place) in self.places.iter().enumerate() {
            text += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                LEFT + column * (i as f64 + 0.5),
                height - 8.0,
                escape(place)
            );
        }
        text + "</svg>"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_for_each_number_that_is_there() {
        let places: Vec<String> = ["0", "1", "<2>"].map(str::to_owned).into();
        let rows = [("a & b".to_owned(), vec![4.0, f64::NAN, 8.0]), ("c".to_owned(), vec![f64::INFINITY])];
        let svg = Grid { title: "t", places: &places, rows: &rows, full: 8.0 }.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains(">8</text>") && svg.contains("a &amp; b") && !svg.contains("NaN"), "{svg}");
        assert!(Grid { title: "t", places: &[], rows: &[], full: 8.0 }.svg().ends_with("</svg>"));
    }
}
