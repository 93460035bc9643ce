//! The table of scenarios is true: each place that it names is there, and says the names.

use std::path::Path;

#[test]
fn every_scenario_is_where_the_table_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("testbed/SCENARIOS.md")).expect("the table");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| | given"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut wrong = Vec::new();
    for row in &rows {
        let [_, what, place, names] = row.as_slice() else {
            wrong.push(format!("not four columns: {row:?}"));
            continue;
        };
        if place.is_empty() {
            let is_said = names.starts_with("not ");
            (!is_said)
                .then(|| wrong.push(format!("{what}: neither a place nor why there is none")));
            continue;
        }
        let text = std::fs::read_to_string(root.join(place)).unwrap_or_default();
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        let missing: Vec<&&str> = names.iter().filter(|name| !text.contains(**name)).collect();
        if names.is_empty() || !missing.is_empty() {
            wrong.push(format!("{what}: {place} does not have {missing:?}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let mut numbers: Vec<u32> = rows
        .iter()
        .flat_map(|row| row[0].split(','))
        .filter_map(|number| number.trim().parse().ok())
        .collect();
    numbers.dedup(); // one may be proved in several places
    assert_eq!(numbers, (1..=52).collect::<Vec<_>>(), "all of them, in order");
}
