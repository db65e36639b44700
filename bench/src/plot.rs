//! The plot of a run: lanes as bars with their spread, growth as lines.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::growth::Growth;
use crate::jobs::Job;
use crate::lanes::Lane;
use crate::report::{median, quantile};

const INK: RGBColor = RGBColor(40, 40, 40);
const OURS: RGBColor = RGBColor(31, 119, 180);
const THEIRS: RGBColor = RGBColor(160, 160, 160);

/// The whole picture, as SVG.
pub fn svg(lanes: &[Lane], growths: &[Growth]) -> Result<String> {
    let mut text = String::new();
    draw(&mut text, lanes, growths).map_err(|fault| anyhow!("the plot: {fault}"))?;
    Ok(text)
}

fn draw(
    text: &mut String,
    lanes: &[Lane],
    growths: &[Growth],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, (1000, 980)).into_drawing_area();
    root.fill(&WHITE)?;
    let (top, bottom) = root.split_vertically(560);
    let halves = top.split_evenly((1, 2));
    let of = |bbmsl: bool| -> Vec<&Lane> {
        let is_bbmsl = |lane: &&Lane| matches!(lane.job, Job::Bbmsl | Job::BbmslMade) == bbmsl;
        lanes.iter().filter(is_bbmsl).collect()
    };
    bars(
        &halves[0],
        "Moyasar (no signature): calls a second",
        &of(false),
    )?;
    bars(&halves[1], "BBMSL (signature): calls a second", &of(true))?;
    let shown: Vec<_> = growths
        .iter()
        .filter(|growth| growth.points.len() > 2)
        .collect();
    for (area, growth) in bottom
        .split_evenly((1, shown.len().max(1)))
        .iter()
        .zip(shown)
    {
        line(area, growth)?;
    }
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// Bars lie, so that their names can be read.
fn bars(area: &Area<'_>, title: &str, lanes: &[&Lane]) -> Result<(), Box<dyn std::error::Error>> {
    let most = lanes
        .iter()
        .flat_map(|lane| &lane.rates)
        .copied()
        .fold(1.0, f64::max);
    let count = lanes.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15, &INK))
        .margin(12)
        .margin_left(170)
        .x_label_area_size(24)
        .build_cartesian_2d(0.0..most * 1.05, 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(5)
        .x_label_formatter(&|rate| format!("{rate:.0}"))
        .label_style(("sans-serif", 12, &INK))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (nth, lane) in lanes.iter().enumerate() {
        let at = count - nth as f64 - 0.5;
        let color = if lane.name.starts_with("filter") {
            OURS
        } else {
            THEIRS
        };
        let rate = median(&lane.rates);
        let low = quantile(&lane.rates, 1, 4);
        let high = quantile(&lane.rates, 3, 4);
        chart.draw_series([Rectangle::new(
            [(0.0, at - 0.3), (rate, at + 0.3)],
            color.filled(),
        )])?;
        chart.draw_series([PathElement::new(
            vec![(low, at), (high, at)],
            INK.stroke_width(2),
        )])?;
        let (x, y) = chart.backend_coord(&(0.0, at));
        let (left, up) = area.get_base_pixel();
        let place = (x - left - 6, y - up);
        let style = TextStyle::from(("sans-serif", 12).into_font())
            .color(&INK)
            .pos(plotters::style::text_anchor::Pos::new(
                plotters::style::text_anchor::HPos::Right,
                plotters::style::text_anchor::VPos::Center,
            ));
        area.draw_text(lane.name, &style, place)?;
    }
    Ok(())
}

/// Microseconds of the gateway a call, over what grows.
fn line(area: &Area<'_>, growth: &Growth) -> Result<(), Box<dyn std::error::Error>> {
    let points: Vec<_> = growth
        .points
        .iter()
        .map(|(size, rates)| (*size as f64, 1e6 / median(rates)))
        .collect();
    let most = points.iter().map(|(_, cost)| *cost).fold(1.0, f64::max);
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("µs a call, by {}", growth.what),
            ("sans-serif", 14, &INK),
        )
        .margin(12)
        .x_label_area_size(24)
        .y_label_area_size(44)
        .build_cartesian_2d((first..last).log_scale(), 0.0..most * 1.15)?;
    chart
        .configure_mesh()
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|size| format!("{size:.0}"))
        .y_label_formatter(&|cost| format!("{cost:.0}"))
        .label_style(("sans-serif", 12, &INK))
        .light_line_style(TRANSPARENT)
        .draw()?;
    chart.draw_series(LineSeries::new(points.clone(), OURS.stroke_width(2)))?;
    chart.draw_series(
        points
            .into_iter()
            .map(|point| Circle::new(point, 3, OURS.filled())),
    )?;
    Ok(())
}
