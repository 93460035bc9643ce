//! A result as one HTML page that stands alone: tables, and plots as inline SVG. It loads nothing.

use std::fmt::Write;

use hdrhistogram::Histogram;

use super::table::{Row, Table, Unit, cpus, kernel};

const WIDTH: f64 = 760.0;
/// What is left of the plots for names.
const NAMES: f64 = 300.0;
const LINE: f64 = 22.0;
const CURVE_HEIGHT: f64 = 300.0;

/// The page.
pub(super) fn html(table: &Table) -> String {
    let mut page = String::from(HEAD);
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<h1>shadowvm bench {}</h1><p>{}<br>Linux {}, {} cores, shadowvm {}</p>",
        escaped(table.name),
        escaped(&table.setting.to_string()),
        escaped(&kernel()),
        cpus(),
        env!("CARGO_PKG_VERSION"),
    );
    for why in &table.unavailable {
        let _ = write!(page, "<p class=\"bad\">UNAVAILABLE {}</p>", escaped(why));
    }
    for trouble in &table.troubles {
        let _ = write!(page, "<p class=\"bad\">TROUBLE: {}</p>", escaped(trouble));
    }
    page.push_str(&curves(&table.curves));
    for (group, rows) in table.groups() {
        if !group.is_empty() {
            let _ = write!(page, "<h2>{}</h2>", escaped(group));
        }
        numbers(&mut page, &rows);
        for unit in units(&rows) {
            let of_unit: Vec<_> = rows.iter().filter(|row| row.unit == unit).copied().collect();
            page.push_str(&strips(&of_unit, unit));
        }
    }
    page.push_str("</body></html>\n");
    page
}

fn numbers(page: &mut String, rows: &[&Row]) {
    page.push_str(
        "<table><tr><th></th><th>median</th><th>least</th><th>most</th><th>rounds</th></tr>",
    );
    for row in rows {
        let [median, least, most] = [0.5, 0.0, 1.0].map(|share| row.unit.show(row.quantile(share)));
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{median}</td><td>{least}</td><td>{most}</td><td>{}</td></tr>",
            escaped(&row.name),
            row.values.len()
        );
    }
    page.push_str("</table>");
}

/// Of these rows, each once.
fn units(rows: &[&Row]) -> Vec<Unit> {
    let mut units = Vec::new();
    for row in rows {
        if !units.contains(&row.unit) {
            units.push(row.unit);
        }
    }
    units
}

/// A line for each row, a dot for each round, a bar at the median; from zero on, so that lengths
/// compare.
fn strips(rows: &[&Row], unit: Unit) -> String {
    let finite = rows.iter().flat_map(|row| &row.values).copied().filter(|v| v.is_finite());
    let (least, most) = finite.fold((0f64, 0f64), |(l, m), v| (l.min(v), m.max(v)));
    if most <= least {
        return String::new();
    }
    let x = |value: f64| NAMES + (value - least) / (most - least) * (WIDTH - NAMES - 20.0);
    let height = LINE * (rows.len() as f64 + 1.0);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"100%\">");
    for (index, row) in rows.iter().enumerate() {
        let y = LINE * (index as f64 + 0.5);
        let (zero, median) = (x(0.0), x(row.quantile(0.5)));
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{:.1}\">{}</text>\
             <line class=\"bar\" x1=\"{zero:.1}\" x2=\"{median:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            y + 4.0,
            escaped(&row.name)
        );
        for value in row.values.iter().filter(|value| value.is_finite()) {
            let _ = write!(svg, "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"3\"/>", x(*value));
        }
    }
    let y = height - 6.0;
    for (share, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let value = least + share * (most - least);
        let _ = write!(
            svg,
            "<text class=\"axis\" text-anchor=\"{anchor}\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
            x(value),
            unit.show(value)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Times over the share of requests that took longer, both axes logarithmic: the tail is the plot.
fn curves(curves: &[(String, Histogram<u64>)]) -> String {
    let curves: Vec<_> = curves.iter().filter(|(_, histogram)| !histogram.is_empty()).collect();
    let least = curves.iter().map(|(_, h)| h.value_at_quantile(0.01).max(1)).min();
    let most = curves.iter().map(|(_, h)| h.max().max(2)).max();
    let (Some(least), Some(most)) = (least, most) else { return String::new() };
    // The share that takes longer, from all to one in ten thousand.
    const DECADES: f64 = 4.0;
    let x = |share_longer: f64| 60.0 - share_longer.log10() / DECADES * (WIDTH - 80.0);
    let low = (least as f64).log10().floor();
    let high = (most as f64).log10().ceil().max(low + 1.0);
    let y = |ns: f64| 10.0 + (high - ns.log10()) / (high - low) * (CURVE_HEIGHT - 20.0);
    let mut svg = format!(
        "<h2>latency</h2><svg viewBox=\"0 0 {WIDTH} {}\" width=\"100%\">",
        CURVE_HEIGHT + 30.0
    );
    for decade in low as i32..=high as i32 {
        let (at, label) = (y(10f64.powi(decade)), Unit::Seconds.show(10f64.powi(decade - 9)));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"60\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"axis\" x=\"0\" y=\"{:.1}\">{label}</text>",
            at + 4.0
        );
    }
    for (label, longer) in
        [("p0", 1.0), ("p50", 0.5), ("p90", 0.1), ("p99", 0.01), ("p99.9", 1e-3), ("p99.99", 1e-4)]
    {
        let at = x(longer);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"10\" y2=\"{CURVE_HEIGHT}\"/>\
             <text class=\"axis\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{:.1}\">{label}</text>",
            CURVE_HEIGHT + 16.0
        );
    }
    let steps = (DECADES * 20.0) as i32;
    for (index, (_, histogram)) in curves.iter().enumerate() {
        let points: Vec<_> = (0..=steps)
            .map(|step| 10f64.powf(f64::from(-step) / 20.0))
            .map(|longer| {
                let ns = histogram.value_at_quantile(1.0 - longer).max(1) as f64;
                format!("{:.1},{:.1}", x(longer), y(ns))
            })
            .collect();
        let _ = write!(svg, "<polyline class=\"c{}\" points=\"{}\"/>", index % 6, points.join(" "));
    }
    svg.push_str("</svg><p>");
    for (index, (name, _)) in curves.iter().enumerate() {
        let _ = write!(
            svg,
            "<svg width=\"24\" height=\"8\"><polyline class=\"c{}\" points=\"0,4 24,4\"/></svg> \
             {} ",
            index % 6,
            escaped(name)
        );
    }
    svg.push_str("</p>");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<title>shadowvm bench</title><style>\
body{font:15px/1.5 system-ui,sans-serif;max-width:64em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}th,td{text-align:left;padding:.2em .8em;\
border-bottom:1px solid #ddd}svg text{font-size:12px}.axis{fill:#666}.bad{color:#a11}\
.bar{stroke:#1f5fbf;stroke-width:8;opacity:.35}circle{fill:#1f5fbf}.grid{stroke:#ddd}\
polyline{fill:none;stroke-width:2}.c0{stroke:#1f5fbf}.c1{stroke:#c9700a}.c2{stroke:#176b2c}\
.c3{stroke:#a11}.c4{stroke:#7a3fb0}.c5{stroke:#555}</style></head><body>\n";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_stands_alone_with_every_row_and_curve() {
        let mut table = Table::new("latency", json!({ "runs": 2 }), Vec::new());
        for value in [1e-4, 2e-4] {
            table.note_value("a < b", "shadowvm, p50", Unit::Seconds, value);
            table.note_value("a < b", "haproxy, p50", Unit::Seconds, 2.0 * value);
        }
        table.ratio("shadowvm to haproxy", 0, 1);
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("good bounds");
        (1..1000u64).for_each(|us| histogram.saturating_record(us * 1000));
        table.curves.push(("shadowvm".into(), histogram));
        table.unavailable.push("nginx: not installed".into());
        let page = html(&table);
        for part in [
            "a &lt; b",
            "shadowvm, p50",
            "shadowvm to haproxy",
            "0.50",
            "<polyline",
            "p99.9",
            "UNAVAILABLE nginx",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        for foreign in ["http://", "https://", "<script", "NaN", "inf"] {
            assert!(!page.contains(foreign), "{foreign} is in\n{page}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert_eq!(page.matches("<circle").count(), 6);
    }
}
