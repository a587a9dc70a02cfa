//! A plot of map and unmap time against the number of regions: one row per size, one panel per pattern.

use std::fmt::Write;

use super::candidate::Case;
use super::layout::{Layout, Pattern, binary_size};
use super::measure::{BackgroundLoad, Row};

/// A curve of a panel.
struct Line {
    candidate: &'static str,
    layout: Layout,
    colour: &'static str,
    dashed: bool,
    label: &'static str,
}

const fn line(candidate: &'static str, layout: Layout, colour: &'static str, label: &'static str) -> Line {
    Line { candidate, layout, colour, dashed: matches!(layout, Layout::Contiguous), label }
}

const LINES: [Line; 9] = [
    line("prereg", Layout::Scattered, "#d62728", "prereg, scattered memory"),
    line("prereg", Layout::Contiguous, "#d62728", "prereg, contiguous memory"),
    line("limit", Layout::Scattered, "#111111", "limit"),
    line("array4", Layout::Scattered, "#999999", "array of 4 bytes"),
    line("one-atomic", Layout::Scattered, "#1f77b4", "one atomic, search"),
    line("kernel-list", Layout::Scattered, "#2ca02c", "kernel's list"),
    line("vm-memory", Layout::Scattered, "#ff7f0e", "vm-memory find_region (counts nothing)"),
    line("vm-memory-iotlb", Layout::Scattered, "#8c564b", "vm-memory Iotlb, RwLock (counts nothing)"),
    line("btreemap-rwlock", Layout::Scattered, "#9467bd", "BTreeMap, RwLock"),
];

const PANEL: (f64, f64) = (300.0, 220.0);
const MARGIN: (f64, f64) = (64.0, 64.0);
const GAP: (f64, f64) = (64.0, 56.0);
const LEGEND_LINE: f64 = 20.0;

/// The rows of `map-unmap` on one thread, as SVG.
#[must_use]
pub fn plot(rows: &[Row]) -> String {
    let rows: Vec<&Row> =
        rows.iter().filter(|row| row.case == Case::MapUnmap && row.load == BackgroundLoad::None).collect();
    let sizes = distinct(rows.iter().map(|row| row.size));
    let regions = distinct(rows.iter().map(|row| row.regions));
    let (low, high) = decades(&rows);
    let across = Pattern::ALL.len() as f64;
    let width = MARGIN.0 + across * (PANEL.0 + GAP.0);
    let panels = MARGIN.1 + sizes.len() as f64 * (PANEL.1 + GAP.1);
    let height = panels + LINES.len().div_ceil(3) as f64 * LEGEND_LINE + 10.0;
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"26\" font-size=\"16\">map + unmap: ns of processor time against the number of regions</text>",
        MARGIN.0
    );
    for (down, &size) in sizes.iter().enumerate() {
        for (right, &pattern) in Pattern::ALL.iter().enumerate() {
            let panel = Panel {
                left: MARGIN.0 + right as f64 * (PANEL.0 + GAP.0),
                top: MARGIN.1 + down as f64 * (PANEL.1 + GAP.1),
                regions: &regions,
                low,
                high,
            };
            panel.frame(&mut svg, &format!("{}, {} addresses", binary_size(size), pattern.name()));
            for line in &LINES {
                let mine = |row: &&&Row| {
                    row.size == size
                        && row.pattern == pattern
                        && row.candidate == line.candidate
                        && row.layout == line.layout
                };
                panel.curve(&mut svg, line, rows.iter().filter(mine).map(|row| (row.regions, row.ns)));
            }
        }
    }
    for (index, line) in LINES.iter().enumerate() {
        let x = MARGIN.0 + (index % 3) as f64 * (PANEL.0 + GAP.0);
        let y = panels + (index / 3) as f64 * LEGEND_LINE;
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"{}\" stroke-width=\"2\"{}/>\n\
             <text x=\"{}\" y=\"{}\">{}</text>",
            x + 30.0,
            line.colour,
            dashes(line),
            x + 38.0,
            y + 4.0,
            line.label
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn dashes(line: &Line) -> &'static str {
    if line.dashed { " stroke-dasharray=\"6 3\"" } else { "" }
}

fn distinct(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// The powers of ten that enclose all times.
fn decades(rows: &[&Row]) -> (f64, f64) {
    let low = rows.iter().map(|row| row.ns).fold(1.0, f64::min).max(0.01);
    let high = rows.iter().map(|row| row.ns).fold(10.0, f64::max);
    (low.log10().floor(), high.log10().ceil())
}

/// A coordinate system.
struct Panel<'a> {
    left: f64,
    top: f64,
    regions: &'a [u64],
    low: f64,
    high: f64,
}

impl Panel<'_> {
    fn x(&self, regions: u64) -> f64 {
        let last = self.regions.len().saturating_sub(1).max(1) as f64;
        let at = self.regions.iter().position(|&other| other == regions).unwrap_or(0) as f64;
        self.left + at / last * PANEL.0
    }

    fn y(&self, ns: f64) -> f64 {
        let part = (ns.max(0.01).log10() - self.low) / (self.high - self.low);
        self.top + (1.0 - part) * PANEL.1
    }

    fn frame(&self, svg: &mut String, title: &str) {
        let Self { left, top, .. } = self;
        let _ = writeln!(
            svg,
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>\n\
             <rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#888\"/>",
            top - 8.0,
            PANEL.0,
            PANEL.1
        );
        let mut decade = self.low;
        while decade <= self.high {
            let (ns, y) = (10f64.powf(decade), self.y(10f64.powf(decade)));
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{ns}</text>",
                left + PANEL.0,
                left - 6.0,
                y + 4.0
            );
            decade += 1.0;
        }
        for &regions in self.regions {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{regions}</text>",
                self.x(regions),
                top + PANEL.1 + 16.0
            );
        }
    }

    fn curve(&self, svg: &mut String, line: &Line, points: impl Iterator<Item = (u64, f64)>) {
        let points: Vec<(f64, f64)> = points.map(|(regions, ns)| (self.x(regions), self.y(ns))).collect();
        if points.is_empty() {
            return;
        }
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>",
            path.join(" "),
            line.colour,
            dashes(line)
        );
        for (x, y) in points {
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{}\"/>", line.colour);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hot_path::layout::Shape;

    fn row(candidate: &'static str, regions: u64, ns: f64) -> Row {
        let shape = Shape { size: 64 << 20, regions, layout: Layout::Scattered };
        Row {
            case: Case::MapUnmap,
            pattern: Pattern::Random,
            size: shape.size,
            regions,
            layout: shape.layout,
            threads: 1,
            load: BackgroundLoad::None,
            candidate,
            ns,
            low: ns,
            high: ns,
            ratio_to_limit: None,
        }
    }

    #[test]
    fn a_slower_subject_is_drawn_higher_and_all_inside_the_frame() {
        let svg = plot(&[row("limit", 1, 2.0), row("prereg", 1, 3.0), row("prereg", 64, 900.0)]);
        let circles: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<circle"))
            .map(|line| line.split('"').nth(3).unwrap().parse().unwrap())
            .collect();
        assert_eq!(circles.len(), 3);
        // prereg's curve is drawn first: 3 ns, 900 ns, then the limit's 2 ns. Smaller is higher.
        assert!(circles[1] < circles[0] && circles[0] < circles[2], "{circles:?}");
        assert!(circles.iter().all(|y| (MARGIN.1..=MARGIN.1 + PANEL.1).contains(y)), "{circles:?}");
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn nothing_measured_draws_no_curve() {
        assert!(!plot(&[]).contains("polyline"));
    }
}
