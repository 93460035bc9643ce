//! What came of a replay, for people who were not there: one HTML page that stands alone, and JUnit
//! for the machines that run tests.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::diff::Verdict;
use super::lane::How;
use super::player::{Outcome, Parted, Servers};
use super::run::Replayed;
use super::view::{View, side_by_side};

/// Differences of one group that are listed by their conversation; more are counted.
const LISTED_MAX: usize = 50;

/// The kind of a difference: the same header, the body, the length, wherever it stands.
pub fn kind(parted: &Parted) -> String {
    if matches!(parted.parting.how, How::Ends(_)) {
        return "the end".to_owned();
    }
    if parted.field.starts_with("line ") {
        return "text".to_owned();
    }
    // "answer 3, header `etag`" and "answer 3, body, byte 17".
    let field = parted.field.split_once(", ").map_or(&*parted.field, |(_, rest)| rest);
    field.split(", byte ").next().unwrap_or(field).to_owned()
}

/// The answer as a whole, in words.
pub const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Same => "the same",
        Verdict::Different => "different",
        Verdict::Unknown => "it cannot be told",
    }
}

/// What the two versions are called.
pub fn names(servers: Servers) -> [String; 2] {
    match servers {
        Servers::Two([first, second]) => [format!("primary {first}"), format!("backup {second}")],
        Servers::One(server) => ["recorded".to_owned(), server.to_string()],
    }
}

/// The quantile `share` (0 to 1) of times in nanoseconds, in seconds; they are sorted.
pub fn quantile(sorted_ns: &[u64], share: f64) -> Option<f64> {
    let last = sorted_ns.len().checked_sub(1)?;
    let at = (last as f64 * share).round() as usize;
    Some(sorted_ns[at.min(last)] as f64 / 1e9)
}

/// All answers' times of one version, sorted.
pub fn latencies(replayed: &Replayed, file: usize) -> Vec<u64> {
    let times = replayed.talks.iter().flat_map(|(_, o)| o.latencies_ns[file].iter().copied());
    let mut times: Vec<u64> = times.collect();
    times.sort_unstable();
    times
}

/// One page with everything on it.
pub fn html(replayed: &Replayed, capture: &str, servers: Servers) -> String {
    let names = names(servers);
    let mut page = String::from(HEAD);
    let all = replayed.talks.len();
    let (different, failed) = (replayed.different(), replayed.failed());
    let verdict = replayed.verdict();
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<h1>{}: <span class=\"{}\">{}</span></h1><p>{} against {}</p>\
         <table><tr><th>conversations</th><td>{all}</td></tr>\
         <tr><th>the same</th><td>{}</td></tr><tr><th>different</th><td>{different}</td></tr>\
         <tr><th>not said to the end</th><td>{failed}</td></tr>\
         <tr><th>without a client's side, left out</th><td>{}</td></tr>\
         <tr><th>parts of the capture that cannot be read</th><td>{}</td></tr>\
         <tr><th>bytes said, and compared</th><td>{}, {}</td></tr>\
         <tr><th>values that differ as the rules allow</th><td>{}</td></tr>\
         <tr><th>cookies returned as each server had set them</th><td>{}</td></tr>\
         <tr><th>time</th><td>{:.1} s</td></tr></table>",
        escaped(capture),
        if verdict == Verdict::Same { "good" } else { "bad" },
        word(verdict),
        escaped(&names[0]),
        escaped(&names[1]),
        all - different - failed,
        replayed.silent,
        replayed.facts.troubles_count,
        replayed.sum(|outcome| outcome.said_bytes),
        replayed.sum(|outcome| outcome.compared_bytes),
        replayed.sum(|outcome| outcome.masked),
        replayed.sum(|outcome| outcome.cookies_followed),
        replayed.elapsed.as_secs_f64(),
    );
    page.push_str(&histogram(replayed, &names));
    for (kind, members) in groups(replayed) {
        let _ = write!(page, "<h2>{}: {}</h2>", escaped(&kind), members.len());
        if let Some((_, _, parted)) = members.first() {
            let shown = side_by_side(&parted.windows[0], &parted.windows[1], View::Auto);
            let _ = write!(page, "<pre>{}</pre>", escaped(&shown));
        }
        page.push_str(
            "<table><tr><th>client</th><th>server</th><th>request</th><th>where</th></tr>",
        );
        for (client, server, parted) in members.iter().take(LISTED_MAX) {
            let request = parted.request.as_deref().unwrap_or("");
            let _ = write!(
                page,
                "<tr><td>{client}</td><td>{server}</td><td>{}</td><td>{}</td></tr>",
                escaped(request),
                escaped(&parted.field)
            );
        }
        page.push_str("</table>");
        if members.len() > LISTED_MAX {
            let _ = write!(page, "<p>and {} more</p>", members.len() - LISTED_MAX);
        }
    }
    let failures: Vec<_> =
        replayed.talks.iter().filter_map(|(ends, o)| Some((ends, o.failure.as_ref()?))).collect();
    if !failures.is_empty() {
        let _ = write!(page, "<h2>not said to the end: {}</h2><table>", failures.len());
        for (ends, failure) in failures.iter().take(LISTED_MAX) {
            let _ = write!(page, "<tr><td>{}</td><td>{}</td></tr>", ends.client, escaped(failure));
        }
        page.push_str("</table>");
    }
    page.push_str("</body></html>\n");
    page
}

/// A difference with the conversation it stands in.
type Member<'r> = (String, String, &'r Parted);

/// The differences by their kind.
fn groups(replayed: &Replayed) -> BTreeMap<String, Vec<Member<'_>>> {
    let mut groups: BTreeMap<String, Vec<Member<'_>>> = BTreeMap::new();
    for (ends, outcome) in &replayed.talks {
        for parted in &outcome.differences {
            let member = (ends.client.to_string(), ends.server.to_string(), parted);
            groups.entry(kind(parted)).or_default().push(member);
        }
    }
    groups
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<title>shadowvm replay</title><style>\
body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;margin:1em 0}th,td{text-align:left;padding:.2em .8em;\
border-bottom:1px solid #ddd}pre{background:#f4f4f4;padding:1em;overflow:auto}\
.good{color:#176b2c}.bad{color:#a11}.a{stroke:#1f5fbf}.b{stroke:#c9700a}\
polyline{fill:none;stroke-width:2}text{font-size:11px}</style></head><body>\n";

/// Bins of the histogram: so many in a decade, from a microsecond to a hundred seconds.
const BINS_A_DECADE: usize = 8;
const DECADES: usize = 8;
const WIDTH: usize = 800;
const HEIGHT: usize = 200;

/// Both versions' answer times over one another, on a logarithmic axis.
fn histogram(replayed: &Replayed, names: &[String; 2]) -> String {
    let times = [0, 1].map(|file| latencies(replayed, file));
    if times.iter().all(Vec::is_empty) {
        return String::new();
    }
    let bins = times.each_ref().map(|times| {
        let mut bins = [0u64; BINS_A_DECADE * DECADES];
        for &ns in times {
            let place = (ns.max(1000) as f64 / 1000.0).log10() * BINS_A_DECADE as f64;
            bins[(place as usize).min(bins.len() - 1)] += 1;
        }
        bins
    });
    let most = bins.iter().flatten().copied().max().unwrap_or(1).max(1);
    let mut out = String::from("<h2>time to answer</h2>");
    let _ = write!(out, "<svg viewBox=\"0 0 {WIDTH} {}\" width=\"100%\">", HEIGHT + 20);
    for (decade, label) in
        ["1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms", "1 s", "10 s"].iter().enumerate()
    {
        let x = decade * WIDTH / DECADES;
        let y = HEIGHT + 15;
        let _ = write!(out, "<text x=\"{x}\" y=\"{y}\">{label}</text>");
    }
    for (class, bins) in ["a", "b"].into_iter().zip(&bins) {
        let points: Vec<String> = bins
            .iter()
            .enumerate()
            .map(|(bin, count)| {
                let x = bin * WIDTH / bins.len();
                let y = HEIGHT as u64 - count * (HEIGHT as u64 - 5) / most;
                format!("{x},{y}")
            })
            .collect();
        let _ = write!(out, "<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "));
    }
    out.push_str("</svg><table><tr><th></th><th>answers</th><th>p50</th><th>p99</th></tr>");
    for ((times, name), class) in times.iter().zip(names).zip(["a", "b"]) {
        let ms =
            |share| quantile(times, share).map_or(String::new(), |s| format!("{:.2} ms", s * 1e3));
        let line = "<svg width=\"20\" height=\"6\"><polyline points=\"0,3 20,3\" class=";
        let _ = write!(
            out,
            "<tr><td>{line}\"{class}\"/></svg> {}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(name),
            times.len(),
            ms(0.5),
            ms(0.99)
        );
    }
    out.push_str("</table>");
    out
}

/// JUnit's XML: a test case for each conversation.
pub fn junit(replayed: &Replayed, capture: &str) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        xml,
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" time=\"{:.3}\">",
        escaped(capture),
        replayed.talks.len(),
        replayed.different(),
        replayed.failed(),
        replayed.elapsed.as_secs_f64(),
    );
    for (ends, outcome) in &replayed.talks {
        let name = format!("{} to {}", ends.client, ends.server);
        let _ = write!(xml, "<testcase classname=\"shadowvm.replay\" name=\"{name}\"");
        xml.push_str(&case(outcome));
    }
    xml.push_str("</testsuite>\n");
    xml
}

fn case(outcome: &Outcome) -> String {
    let mut xml = String::new();
    if outcome.differences.is_empty() && outcome.failure.is_none() {
        return "/>\n".to_owned();
    }
    xml.push_str(">\n");
    for parted in &outcome.differences {
        let request = parted.request.as_deref().unwrap_or_default();
        let shown = side_by_side(&parted.windows[0], &parted.windows[1], View::Auto);
        let _ = writeln!(
            xml,
            "<failure message=\"{}\" type=\"{}\">{}\n{}</failure>",
            escaped(&parted.field),
            escaped(&kind(parted)),
            escaped(request),
            escaped(&shown)
        );
    }
    if let (Some(failure), true) = (&outcome.failure, outcome.differences.is_empty()) {
        let _ = writeln!(xml, "<error message=\"{}\"/>", escaped(failure));
    }
    xml.push_str("</testcase>\n");
    xml
}

/// Text as HTML and XML have it; what neither may hold is a question mark.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::lane::Parting;

    #[test]
    fn differences_of_a_kind_have_one_name() {
        let parted = |field: &str, how| Parted {
            request: None,
            parting: Parting { at: [0; 2], how },
            field: field.into(),
            windows: Default::default(),
        };
        for (field, name) in [
            ("answer 2, header `etag`", "header `etag`"),
            ("answer 12, body, byte 17", "body"),
            ("answer 1, status line", "status line"),
            ("line 2, column 9", "text"),
        ] {
            assert_eq!(kind(&parted(field, How::Byte(1, 2))), name);
        }
        assert_eq!(kind(&parted("answer 2, body, byte 1", How::Ends(0))), "the end");
    }

    #[test]
    fn quantiles_and_escapes() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1_000_000_000, 2_000_000_000, 3_000_000_000], 0.5), Some(2.0));
        assert_eq!(escaped("<a href=\"x\">&\u{1}\n"), "&lt;a href=&quot;x&quot;&gt;&amp;?\n");
    }
}
