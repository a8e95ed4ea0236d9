//! The timeline as an SVG: a panel for each event, with how much the guest got done in
//! each small interval around it, and the time in which nothing was. It has no script, and
//! follows the reader's light or dark scheme.

use std::fmt::Write as _;
use std::time::Duration;

use outboard_e2e::storm::Gap;

use super::load::Sample;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 190.0;
/// The plot in its panel: left and right, top and bottom.
const PLOT: [f64; 4] = [90.0, 860.0, 52.0, 150.0];
/// What is shown: from so long before the event to at least so long after it, in milliseconds.
const BEFORE: f64 = 100.0;
const AFTER: f64 = 300.0;
/// Of an interval that a gap takes almost all of, so much is left in any case: the guest's
/// lines have whole milliseconds.
const LEAST: f64 = 2.0;
const STYLE: &str = "text{font:13px sans-serif;fill:#1f2328}\
    .title{font-weight:bold}.right{text-anchor:end}.middle{text-anchor:middle}\
    .page{fill:#fff}.bar{fill:#2f74c0}.gap{fill:#d1453b;fill-opacity:.35}\
    line{stroke:#8c959f}.event{stroke:#d1453b;stroke-width:2;stroke-dasharray:4 3}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}\
    .bar{fill:#58a6ff}.gap{fill:#ff7b72;fill-opacity:.45}.event{stroke:#ff7b72}}";

/// What there is to draw of one event.
pub struct Panel<'a> {
    /// What happened.
    pub title: &'a str,
    /// What was counted, in the plural.
    pub what: &'a str,
    /// When it was asked for, from the beginning of the workload.
    pub at: Duration,
    /// When nothing was done.
    pub gap: Option<Gap>,
    /// How far the guest was, and when.
    pub samples: &'a [Sample],
}

/// So much was done in a second, for some time. Times are in milliseconds after the event.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bar {
    from: f64,
    to: f64,
    rate: f64,
}

/// The picture of these events, one below the other.
pub fn svg(panels: &[Panel<'_>]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\">\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    for (place, panel) in panels.iter().enumerate() {
        let top = HEIGHT * place as f64;
        let _ = writeln!(out, "<g transform=\"translate(0 {top})\">");
        panel.draw(&mut out);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

impl Panel<'_> {
    /// The gap, in milliseconds after the event.
    fn gap(&self) -> Option<(f64, f64)> {
        let gap = self.gap?;
        let from = self.after(gap.since);
        Some((from, from + millis(gap.length)))
    }

    fn after(&self, time: Duration) -> f64 {
        millis(time) - millis(self.at)
    }

    /// What was done between one sample and the next; not in the gap, of which the guest
    /// knows to the nanosecond when it was.
    fn bars(&self) -> Vec<Bar> {
        let gap = self.gap().unwrap_or((f64::INFINITY, f64::INFINITY));
        let mut bars = Vec::new();
        for pair in self.samples.windows(2) {
            let [first, second] = pair else { continue };
            let (from, to) = (self.after(first.at), self.after(second.at));
            let pieces = [(from, to.min(gap.0)), (from.max(gap.1), to)];
            let pieces = pieces.iter().filter(|(from, to)| from < to);
            let time: f64 = pieces.clone().map(|(from, to)| to - from).sum();
            let done = second.done.saturating_sub(first.done) as f64;
            let rate = done * 1000.0 / time.max(LEAST);
            bars.extend(pieces.map(|(from, to)| Bar {
                from: *from,
                to: *to,
                rate,
            }));
        }
        bars
    }

    fn draw(&self, out: &mut String) {
        let [left, right, top, bottom] = PLOT;
        let gap = self.gap();
        let end = gap.map_or(AFTER, |(_, to)| (to + BEFORE).max(AFTER));
        let x = |time: f64| {
            let part = (time.clamp(-BEFORE, end) + BEFORE) / (end + BEFORE);
            left + part * (right - left)
        };
        let mut bars = self.bars();
        bars.retain(|bar| bar.to > -BEFORE && bar.from < end);
        let most = bars.iter().map(|bar| bar.rate).fold(1.0, f64::max);
        let length = gap.map_or("no gap among those that the guest names".into(), |gap| {
            format!("the guest waited {:.1} ms", gap.1 - gap.0)
        });
        let title = format!("{}: {length}", self.title);
        text(out, "title", (left, 20.0), &title);
        let per_second = format!("{} a second; the dashed line: the command", self.what);
        text(out, "unit", (left, 40.0), &per_second);
        for bar in &bars {
            let height = bar.rate / most * (bottom - top);
            let place = (x(bar.from), bottom - height);
            rectangle(out, "bar", place, (x(bar.to) - x(bar.from), height));
        }
        if let Some((from, to)) = gap {
            let size = (x(to) - x(from), bottom - top);
            rectangle(out, "gap", (x(from), top), size);
        }
        line(out, "axis", (left, bottom), (right, bottom));
        line(out, "axis", (left, top), (left, bottom));
        line(out, "event", (x(0.0), top - 4.0), (x(0.0), bottom));
        text(out, "right", (left - 6.0, top + 5.0), &count(most as u64));
        text(out, "right", (left - 6.0, bottom), "0");
        let step = if end > 1000.0 { 500.0 } else { 100.0 };
        let mut tick = (-BEFORE / step).ceil() * step;
        while tick <= end {
            line(out, "axis", (x(tick), bottom), (x(tick), bottom + 4.0));
            let label = format!("{tick:.0} ms");
            text(out, "middle", (x(tick), bottom + 18.0), &label);
            tick += step;
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn text(out: &mut String, class: &str, (x, y): (f64, f64), words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>"
    );
}

fn rectangle(out: &mut String, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
    );
}

fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// 100 requests each 10 ms from 800 to 1,500 ms, but none from 1,020 to 1,050.
    fn samples() -> Vec<Sample> {
        let times = (80..=150).map(|tens| tens * 10);
        let times = times.filter(|time| !(1030..=1050).contains(time));
        let mut done = 0;
        let sample = |time| {
            done += 100;
            Sample { at: at(time), done }
        };
        times.map(sample).collect()
    }

    fn panel(samples: &[Sample]) -> Panel<'_> {
        Panel {
            title: "a <b> & c",
            what: "requests",
            at: at(1000),
            gap: Some(Gap {
                since: at(1020),
                length: at(30),
            }),
            samples,
        }
    }

    #[test]
    fn nothing_is_drawn_in_a_gap() {
        let samples = samples();
        let bars = panel(&samples).bars();
        assert!(bars.iter().all(|bar| bar.to <= 20.0 || bar.from >= 50.0));
        // The guest spoke at 1,020 ms and at 1,060 ms: all between was done in the last ten.
        let after = bars.iter().find(|bar| bar.from >= 50.0).unwrap();
        assert_eq!((after.from, after.to), (50.0, 60.0));
        assert!(bars.iter().all(|bar| (bar.rate - 10_000.0).abs() < 1e-6));
    }

    #[test]
    fn a_gap_that_leaves_next_to_nothing_of_an_interval_makes_no_spike() {
        let samples = [(0, 0), (31, 20)].map(|(time, done)| Sample { at: at(time), done });
        let mut panel = panel(&samples);
        (panel.at, panel.gap) = (
            at(0),
            Some(Gap {
                since: at(0),
                length: Duration::from_micros(30_900),
            }),
        );
        let bars = panel.bars();
        assert_eq!(bars.len(), 1);
        assert_eq!(bars[0].rate, 20.0 * 1000.0 / LEAST);
    }

    #[test]
    fn each_event_is_a_panel_with_its_gap_and_axes() {
        let samples = samples();
        let svg = svg(&[panel(&samples), panel(&samples)]);
        assert!(svg.contains("viewBox=\"0 0 900 380\""), "{svg}");
        assert_eq!(svg.matches("<g ").count(), 2);
        assert_eq!(
            svg.matches(">a &lt;b> &amp; c: the guest waited 30.0 ms<")
                .count(),
            2
        );
        // 400 ms are 770 wide: 120 ms after the left edge, 30 wide, as high as the plot.
        let gap = "<rect class=\"gap\" x=\"321.0\" y=\"52.0\" width=\"57.8\" height=\"98.0\"/>";
        assert_eq!(svg.matches(gap).count(), 2, "{svg}");
        for label in [
            ">-100 ms<",
            ">0 ms<",
            ">300 ms<",
            ">10,000<",
            ">0<",
            "requests a second",
        ] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
        let bars = svg.lines().filter(|line| line.contains("class=\"bar\""));
        assert!(bars.count() > 70);
        assert!(svg.contains("prefers-color-scheme:dark") && !svg.contains("<script"));
    }

    #[test]
    fn a_long_gap_is_shown_whole() {
        let samples = samples();
        let mut panel = panel(&samples);
        panel.gap = Some(Gap {
            since: at(1020),
            length: at(2000),
        });
        let svg = svg(&[panel]);
        assert!(svg.contains(">2000 ms<") && !svg.contains(">100 ms<"));
    }

    #[test]
    fn an_event_without_a_gap_says_so() {
        let samples = samples();
        let mut panel = panel(&samples);
        panel.gap = None;
        let svg = svg(&[panel]);
        assert!(svg.contains("no gap") && !svg.contains("class=\"gap\""));
    }

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (12_345_678, "12,345,678"),
        ] {
            assert_eq!(count(number), text);
        }
    }
}
