//! A forecast as a picture: history, what came, and the fan of quantiles over it.

use super::quantile::{self, Quantiles};

/// The picture's size, and the margin that holds the figures.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 60.0;
/// Bands drawn, widest first.
const BANDS: [(f64, f64); 3] = [(0.025, 0.975), (0.1, 0.9), (0.25, 0.75)];

/// Draws `history`, then `steps` of forecast, and what was observed of them.
#[must_use]
pub fn svg(title: &str, history: &[f64], steps: &[Quantiles], observed: &[f64]) -> String {
    let count = history.len() + steps.len();
    let ends = steps.iter().flat_map(|step| {
        [
            quantile::at(step, BANDS[0].0),
            quantile::at(step, BANDS[0].1),
        ]
    });
    let shown = || history.iter().chain(observed).copied().chain(ends.clone());
    let low = shown().fold(f64::INFINITY, f64::min);
    let high = shown().fold(f64::NEG_INFINITY, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    let x = |at: usize| MARGIN + (WIDTH - 2.0 * MARGIN) * at as f64 / count.max(2) as f64;
    let y = |value: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (value - low) / span;
    let line = |first: usize, values: &mut dyn Iterator<Item = f64>| {
        let points = values
            .enumerate()
            .map(|(i, value)| format!("{:.1},{:.1}", x(first + i), y(value)));
        points.collect::<Vec<_>>().join(" ")
    };
    let now = history.len();

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let mut add = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let safe = title.replace('&', "&amp;").replace('<', "&lt;");
    add(format!(
        "<text x=\"{MARGIN}\" y=\"30\" font-size=\"15\">{safe}</text>"
    ));
    for (value, label) in [(low, low), (high, high)] {
        add(format!(
            "<text x=\"4\" y=\"{:.1}\">{label:.4e}</text>",
            y(value)
        ));
    }
    for (below, above) in BANDS {
        let upper = line(now, &mut steps.iter().map(|step| quantile::at(step, above)));
        let back = (0..steps.len())
            .rev()
            .map(|i| format!("{:.1},{:.1}", x(now + i), y(quantile::at(&steps[i], below))));
        let lower = back.collect::<Vec<_>>().join(" ");
        add(format!(
            "<polygon points=\"{upper} {lower}\" fill=\"#2a6fdb\" fill-opacity=\"0.22\"/>"
        ));
    }
    let median = line(now, &mut steps.iter().map(|step| quantile::at(step, 0.5)));
    add(format!(
        "<polyline points=\"{median}\" fill=\"none\" stroke=\"#2a6fdb\" stroke-width=\"2\"/>"
    ));
    let past = line(0, &mut history.iter().copied());
    add(format!(
        "<polyline points=\"{past}\" fill=\"none\" stroke=\"#444\"/>"
    ));
    let came = line(now, &mut observed.iter().copied());
    add(format!(
        "<polyline points=\"{came}\" fill=\"none\" stroke=\"#c33\"/>"
    ));
    add("</svg>".to_owned());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_inside_the_picture_and_the_title_is_escaped() {
        let steps = vec![quantile::of_sample(&mut [1.0, 5.0, 9.0]); 4];
        let picture = svg("a<b", &[0.0, 1.0, 2.0], &steps, &[3.0, 4.0, 20.0, 1.0]);
        assert!(picture.contains("a&lt;b") && !picture.contains("NaN"));
        for points in picture.split("points=\"").skip(1) {
            for pair in points.split('"').next().unwrap().split_whitespace() {
                let (x, y) = pair.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!(
                    (0.0..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y),
                    "{pair}"
                );
            }
        }
    }
}
