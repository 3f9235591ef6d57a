//! The latency curve: time over percentile, both logarithmic, as an SVG that needs nothing else.

use std::fmt::Write;

use hdrhistogram::Histogram;

use super::report::time_text;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
/// Left, right, top and bottom of the field.
const FIELD: (f64, f64, f64, f64) = (80.0, 730.0, 60.0, 460.0);
const COLOURS: [&str; 5] = ["#1b6ca8", "#c8553d", "#4a8f3c", "#333333", "#9467bd"];

/// A curve and its name.
pub struct Curve<'a> {
    pub name: &'a str,
    pub times: &'a Histogram<u64>,
}

/// How many nines a percentile has: 0 for the least, 2 for 99 %.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// Where things are in the picture.
struct Scale {
    nines_max: f64,
    /// Powers of ten of ns.
    low: f64,
    high: f64,
}

impl Scale {
    fn of(curves: &[Curve<'_>]) -> Self {
        let count = curves.iter().map(|curve| curve.times.len()).max().unwrap_or_default().max(10);
        let low = curves.iter().map(|curve| curve.times.min()).min().unwrap_or_default().max(1);
        let high = curves.iter().map(|curve| curve.times.max()).max().unwrap_or_default().max(low);
        // Rounded up to a digit, so that the highest time does not stick to the edge.
        let (low, high) = ((low as f64).log10().floor(), (high as f64 * 1.05).log10().ceil());
        Self { nines_max: (count as f64).log10().ceil().clamp(2.0, 6.0), low, high: high.max(low + 1.0) }
    }

    fn x(&self, nines: f64) -> f64 {
        FIELD.0 + nines.min(self.nines_max) / self.nines_max * (FIELD.1 - FIELD.0)
    }

    fn y(&self, ns: f64) -> f64 {
        let share = (ns.max(1.0).log10() - self.low) / (self.high - self.low);
        FIELD.3 - share * (FIELD.3 - FIELD.2)
    }
}

/// The picture; curves of nothing are left out.
pub fn svg(title: &str, curves: &[Curve<'_>]) -> String {
    let curves: Vec<&Curve<'_>> = curves.iter().filter(|curve| !curve.times.is_empty()).collect();
    let scale = Scale::of(&curves.iter().map(|curve| Curve { ..**curve }).collect::<Vec<_>>());
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, (FIELD.0, 30.0), "start", &format!("Latency: {title}"));
    axes(&mut out, &scale);
    for (index, curve) in curves.into_iter().enumerate() {
        draw(&mut out, &scale, index, curve);
    }
    out.push_str("</svg>\n");
    out
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, said: &str) {
    let said = said.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{said}</text>");
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let at = format!("x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"");
    let _ = writeln!(out, "<line {at} stroke=\"#dddddd\"/>");
}

fn axes(out: &mut String, scale: &Scale) {
    for power in scale.low as i32..=scale.high as i32 {
        let ns = 10_f64.powi(power);
        let y = scale.y(ns);
        rule(out, (FIELD.0, y), (FIELD.1, y));
        let label = if ns < 1_000.0 { format!("{ns:.0} ns") } else { time_text(ns / 1_000.0).replace(".00", "") };
        text(out, (FIELD.0 - 8.0, y + 4.0), "end", &label);
    }
    for nine in 0..=scale.nines_max as usize {
        let x = scale.x(nine as f64);
        rule(out, (x, FIELD.2), (x, FIELD.3));
        let label = match nine {
            0 => "0 %".to_owned(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            more => format!("99.{} %", "9".repeat(more - 2)),
        };
        text(out, (x, FIELD.3 + 20.0), "middle", &label);
    }
    text(out, ((FIELD.0 + FIELD.1) / 2.0, FIELD.3 + 42.0), "middle", "this share of the operations took no longer");
}

fn draw(out: &mut String, scale: &Scale, index: usize, curve: &Curve<'_>) {
    const STEPS: usize = 200;
    let colour = COLOURS[index % COLOURS.len()];
    // Further right there is not one operation any more.
    let last = nines(1.0 - 1.0 / curve.times.len() as f64).min(scale.nines_max);
    let points: Vec<String> = (0..=STEPS)
        .map(|step| {
            let nines = last * step as f64 / STEPS as f64;
            let ns = curve.times.value_at_quantile(1.0 - 10_f64.powf(-nines));
            format!("{:.1},{:.1}", scale.x(nines), scale.y(ns as f64))
        })
        .collect();
    let line = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"");
    let _ = writeln!(out, "<polyline points=\"{}\" {line}/>", points.join(" "));
    let y = FIELD.2 + 20.0 * index as f64;
    let mark = format!("x=\"{}\" y=\"{}\" width=\"12\" height=\"4\" fill=\"{colour}\"", FIELD.1 + 15.0, y - 6.0);
    let _ = writeln!(out, "<rect {mark}/>");
    text(out, (FIELD.1 + 33.0, y), "start", curve.name);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(svg: &str) -> Vec<(f64, f64)> {
        let line = svg.split("<polyline points=\"").nth(1).unwrap().split('"').next().unwrap();
        let point = |text: &str| text.split_once(',').map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap())).unwrap();
        line.split(' ').map(point).collect()
    }

    #[test]
    fn a_curve_rises_to_the_right_and_stays_in_its_field() {
        let mut times = Histogram::new_with_bounds(1, 1_000_000_000_000, 3).unwrap();
        (1..=100_000_u64).for_each(|n| times.record(n * n).unwrap());
        let empty = Histogram::new(3).unwrap();
        let picture = svg("a < b", &[Curve { name: "none", times: &empty }, Curve { name: "get", times: &times }]);
        assert!(picture.contains("a &lt; b") && !picture.contains("none</text>"), "{picture}");
        assert_eq!(picture.matches("<polyline").count(), 1);
        let points = points(&picture);
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 >= pair[1].1), "{points:?}");
        let inside = |(x, y): (f64, f64)| (FIELD.0..=FIELD.1).contains(&x) && (FIELD.2..=FIELD.3).contains(&y);
        assert!(points.iter().all(|point| inside(*point)), "{points:?}");
        assert!(points[0].1 - points[200].1 > 200.0, "it uses the field");
    }

    #[test]
    fn a_run_without_operations_is_an_empty_field() {
        let empty = Histogram::new(3).unwrap();
        assert!(!svg("nothing", &[Curve { name: "get", times: &empty }]).contains("polyline"));
    }
}
