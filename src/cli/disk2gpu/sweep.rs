//! Bandwidth over chunk sizes and depths, and the picture of it: a heat map for each stage, numbers in its cells.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Serialize;

use crate::cli::table::memory;
use crate::error::{Error, Result};

use super::report::Stage;

/// What was measured where.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    pub chunks: Vec<usize>,
    pub depths: Vec<usize>,
    pub maps: Vec<Map>,
}

/// Medians of a stage.
#[derive(Clone, Debug, Serialize)]
pub struct Map {
    pub stage: Stage,
    /// By chunk, then depth; absent where there is not enough memory for so much in flight.
    pub gbps: Vec<Vec<Option<f64>>>,
}

impl Map {
    fn range(&self) -> (f64, f64) {
        let known = || self.gbps.iter().flatten().flatten().copied();
        (known().fold(f64::INFINITY, f64::min), known().fold(0.0, f64::max))
    }

    /// The fastest place: indices of its chunk and depth, and the bandwidth there.
    pub fn best(&self) -> Option<(usize, usize, f64)> {
        let cells = self.gbps.iter().enumerate().flat_map(|(chunk, row)| {
            row.iter().enumerate().filter_map(move |(depth, gbps)| Some((chunk, depth, (*gbps)?)))
        });
        cells.max_by(|a, b| a.2.total_cmp(&b.2))
    }
}

/// Refuses a place where something is already.
pub fn must_be_new(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        let path = path.display();
        return Err(Error::Request(format!("{path}: is there already and is not overwritten: name another file")));
    }
    Ok(())
}

/// Draws the maps below each other and writes them to a file that must not be there yet.
pub fn write(sweep: &Sweep, caption: &str, path: &Path) -> Result<()> {
    let svg = draw(sweep, caption);
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(Error::io(path, "create"))?;
    file.write_all(svg.as_bytes()).map_err(|e| {
        // Ours, and useless. The error that is told is the first one.
        let _ = std::fs::remove_file(path);
        Error::io(path, "write")(e)
    })
}

/// Sizes in pixels.
const CELL: (i32, i32) = (74, 40);
const LEFT: i32 = 110;
const RIGHT: i32 = 120;
const TOP: i32 = 70;
const BOTTOM: i32 = 70;
const LEGEND: i32 = 16;
/// plotters writes fonts so much smaller than they are asked for.
const FONT: f64 = 1.24;

fn draw(sweep: &Sweep, caption: &str) -> String {
    let grid = (CELL.0 * sweep.depths.len() as i32, CELL.1 * sweep.chunks.len() as i32);
    // Wide enough for the caption, too.
    let width = (LEFT + grid.0 + RIGHT).max(7 * caption.chars().count() as i32 + 40);
    let panel = TOP + grid.1 + BOTTOM;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width as u32, (panel * sweep.maps.len() as i32) as u32));
        let area = area.into_drawing_area();
        let drawn = area.fill(&WHITE).and_then(|()| {
            let panels = area.split_evenly((sweep.maps.len(), 1));
            panels.iter().zip(&sweep.maps).try_for_each(|(panel, map)| draw_map(panel, sweep, map, caption))
        });
        drawn.and_then(|()| area.present()).expect("drawing into a string does not fail");
    }
    svg
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw_map<'a>(area: &Area<'a>, sweep: &Sweep, map: &Map, caption: &str) -> Drawn<'a> {
    let (low, high) = map.range();
    let grid = (CELL.0 * sweep.depths.len() as i32, CELL.1 * sweep.chunks.len() as i32);
    let text = |size: i32, colour: RGBColor, h, v| {
        ("sans-serif", f64::from(size) * FONT).into_font().color(&colour).pos(Pos::new(h, v))
    };
    let label = |h, v| text(14, BLACK, h, v);
    let title = format!("{}, GB/s (median)", map.stage.name());
    area.draw(&Text::new(title, (LEFT, 14), text(18, BLACK, HPos::Left, VPos::Top)))?;
    area.draw(&Text::new(caption.to_string(), (LEFT, 42), text(12, GREY, HPos::Left, VPos::Top)))?;
    for (row, chunk) in sweep.chunks.iter().enumerate() {
        let y = TOP + CELL.1 * row as i32;
        let middle = y + CELL.1 / 2;
        area.draw(&Text::new(memory(*chunk as u64), (LEFT - 8, middle), label(HPos::Right, VPos::Center)))?;
        for (column, _) in sweep.depths.iter().enumerate() {
            let x = LEFT + CELL.0 * column as i32;
            let (fill, ink, number) = match map.gbps[row][column] {
                Some(gbps) => {
                    let share = if high > low { (gbps - low) / (high - low) } else { 1.0 };
                    (shade(share), if share > 0.55 { WHITE } else { BLACK }, format!("{gbps:.2}"))
                }
                None => (RGBColor(225, 225, 225), BLACK, "no room".into()),
            };
            let place = [(x, y), (x + CELL.0, y + CELL.1)];
            area.draw(&Rectangle::new(place, fill.filled()))?;
            area.draw(&Rectangle::new(place, WHITE.stroke_width(1)))?;
            let style = text(15, ink, HPos::Center, VPos::Center);
            area.draw(&Text::new(number, (x + CELL.0 / 2, middle), style))?;
        }
    }
    let under = TOP + grid.1;
    for (column, depth) in sweep.depths.iter().enumerate() {
        let x = LEFT + CELL.0 * column as i32 + CELL.0 / 2;
        area.draw(&Text::new(depth.to_string(), (x, under + 8), label(HPos::Center, VPos::Top)))?;
    }
    let middle = (LEFT + grid.0 / 2, under + 34);
    area.draw(&Text::new("depth: reads in flight for each drive", middle, label(HPos::Center, VPos::Top)))?;
    let style = label(HPos::Center, VPos::Top).transform(FontTransform::Rotate270);
    area.draw(&Text::new("chunk: size of a read", (12, TOP + grid.1 / 2), style))?;
    draw_legend(area, (LEFT + grid.0 + 24, TOP), grid.1, (low, high))
}

/// The scale of the colours, the fastest at the top.
fn draw_legend<'a>(area: &Area<'a>, at: (i32, i32), height: i32, range: (f64, f64)) -> Drawn<'a> {
    for y in 0..height {
        let share = 1.0 - f64::from(y) / f64::from((height - 1).max(1));
        let line = [(at.0, at.1 + y), (at.0 + LEGEND, at.1 + y + 1)];
        area.draw(&Rectangle::new(line, shade(share).filled()))?;
    }
    for (value, y, v) in [(range.1, 0, VPos::Top), (range.0, height, VPos::Bottom)] {
        let style = ("sans-serif", 13.0 * FONT).into_font().color(&BLACK).pos(Pos::new(HPos::Left, v));
        area.draw(&Text::new(format!("{value:.2} GB/s"), (at.0 + LEGEND + 6, at.1 + y), style))?;
    }
    Ok(())
}

const GREY: RGBColor = RGBColor(90, 90, 90);

/// A sequential scale from light to dark blue: lightness alone tells the order, also without seeing colours.
fn shade(share: f64) -> RGBColor {
    const STOPS: [(f64, f64, f64); 3] = [(239.0, 246.0, 252.0), (107.0, 164.0, 214.0), (8.0, 48.0, 107.0)];
    let at = share.clamp(0.0, 1.0) * 2.0;
    let (from, to) = if at < 1.0 { (STOPS[0], STOPS[1]) } else { (STOPS[1], STOPS[2]) };
    let mix = |a: f64, b: f64| (a + (b - a) * (at - at.floor().min(1.0))).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_its_number() {
        let gbps = vec![vec![Some(1.25), None], vec![Some(2.5), Some(3.75)]];
        let map = Map { stage: Stage::DiskHost, gbps };
        assert_eq!(map.best(), Some((1, 1, 3.75)));
        let sweep = Sweep { chunks: vec![1 << 20, 4 << 20], depths: vec![1, 32], maps: vec![map] };
        let svg = draw(&sweep, "a <drive>");
        for text in ["1.25", "2.50", "3.75", "no room", "1.0 MiB", "4.0 MiB", "32", "a &lt;drive&gt;"] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
    }

    #[test]
    fn shades_get_darker() {
        let light = |share: f64| {
            let RGBColor(r, g, b) = shade(share);
            u32::from(r) + u32::from(g) + u32::from(b)
        };
        let lights: Vec<u32> = (0..=20).map(|i| light(f64::from(i) / 20.0)).collect();
        assert!(lights.windows(2).all(|pair| pair[0] > pair[1]), "{lights:?}");
    }
}
