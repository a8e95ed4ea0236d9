//! One picture: bars to the median of each kind, whiskers to its p99, and marks
//! where the texts' ratios would put it. Times are on a logarithmic scale.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::cost::Bell;
use super::report::{Kind, Report, What};
use super::targets::is_alone;

const WIDTH: u32 = 1000;
/// Pixels for the names, and for each bar.
const NAMES: u32 = 400;
const BAR: u32 = 22;
const TITLE: u32 = 40;
const SCALE: u32 = 50;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Choice = fn(&Kind) -> bool;

/// The panels: a title, and which kinds are in it.
const PANELS: [(&str, Choice); 3] = [
    (
        "A guest's write, nothing behind the doorbell (◆: by the text of 2009, from the exit here)",
        is_alone,
    ),
    (
        "Round trip: ring, back-end, call, the guest has seen it",
        |kind| matches!(kind.what, What::Trip(_)),
    ),
    ("4 KiB reads from a disk in memory", |kind| {
        match kind.what {
            What::Disk(disk) if disk.rw == "randread" => {
                disk.depth == 1 || (disk.suppression && disk.doorbell == "mmio")
            }
            _ => false,
        }
    }),
];

/// Draws it.
///
/// # Errors
/// The file cannot be written.
pub fn draw(report: &Report, path: &Path) -> Result<()> {
    let panels = PANELS.map(|(title, choice)| {
        let kinds = report.kinds.iter().enumerate();
        let chosen = kinds
            .filter(|(_, kind)| choice(kind))
            .map(|(index, _)| index);
        (title, chosen.collect::<Vec<_>>())
    });
    let height = |kinds: &[usize]| TITLE + SCALE + BAR * kinds.len() as u32;
    let all = panels.iter().map(|(_, kinds)| height(kinds)).sum();
    let root = SVGBackend::new(path, (WIDTH, all)).into_drawing_area();
    let result = (|| {
        root.fill(&WHITE)?;
        let mut rest = root.clone();
        for (title, kinds) in &panels {
            let (panel, below) = rest.split_vertically(height(kinds));
            if !kinds.is_empty() {
                draw_panel(report, &panel, title, kinds)?;
            }
            rest = below;
        }
        root.present()
    })();
    result.map_err(|error| anyhow!("drawing {}: {error}", path.display()))
}

fn colour(kind: &Kind) -> RGBColor {
    const EXIT: RGBColor = RGBColor(200, 90, 70);
    const WORKER: RGBColor = RGBColor(220, 170, 70);
    const KVM: RGBColor = RGBColor(70, 130, 180);
    match kind.what {
        What::Write(write) if write.bell == Bell::Exit => EXIT,
        What::Disk(disk) if disk.ring == "exit" => EXIT,
        What::Disk(disk) if disk.ring == "worker" => WORKER,
        _ => KVM,
    }
}

fn draw_panel<'a>(
    report: &Report,
    area: &Area<'a>,
    title: &str,
    kinds: &[usize],
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let p50 = |index: usize| report.spread(index, |sample| sample.p50).quantile(0.5);
    let p99 = |index: usize| report.spread(index, |sample| sample.p99).quantile(0.5);
    let least = kinds.iter().map(|i| p50(*i)).fold(f64::MAX, f64::min);
    let most = kinds.iter().map(|i| p99(*i)).fold(0.0, f64::max);
    let begin = 10f64.powf((least / 1.5).log10().floor());
    let end = most * 1.5;
    let area = area.titled(title, ("sans-serif", 16))?;
    let mut chart = ChartBuilder::on(&area)
        .margin_right(20)
        .x_label_area_size(SCALE)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((begin..end).log_scale(), 0f64..kinds.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(WHITE)
        .x_desc("µs")
        .x_label_formatter(&|time| format!("{time}"))
        .draw()?;
    let name_style = ("sans-serif", 13).into_font().color(&BLACK);
    let name_style = name_style.pos(Pos::new(HPos::Right, VPos::Center));
    for (place, index) in kinds.iter().rev().enumerate() {
        let (kind, bottom) = (&report.kinds[*index], place as f64);
        let (middle, median, high) = (bottom + 0.5, p50(*index), p99(*index));
        let bar = [(begin, bottom + 0.15), (median, bottom + 0.85)];
        chart.draw_series([Rectangle::new(bar, colour(kind).filled())])?;
        let whisker = vec![(median, middle), (high, middle)];
        let cap = vec![(high, bottom + 0.3), (high, bottom + 0.7)];
        chart.draw_series([whisker, cap].map(|line| PathElement::new(line, BLACK)))?;
        let text = kind.text.as_ref();
        let text = text.and_then(|(dear, ratio)| Some((report.index(dear)?, ratio)));
        if let Some((dear, ratio)) = text {
            let at = (p50(dear) / ratio, middle);
            let mark = ("sans-serif", 16).into_font().color(&BLACK);
            let mark = mark.pos(Pos::new(HPos::Center, VPos::Center));
            chart.draw_series([Text::new("◆", at, mark)])?;
        }
        let (x, y) = chart.backend_coord(&(begin, middle));
        let (left, top) = area.get_base_pixel();
        let name = kind.name.trim_end_matches(", 1 others");
        area.draw(&Text::new(
            name,
            (x - left - 8, y - top),
            name_style.clone(),
        ))?;
    }
    Ok(())
}
