//! Tests of the simulator: the first seeds, and what found a defect once, kept as cases in
//! `src/sim/kept`.
//!
//! Each file there has the sentence of its defect and the whole scenario, so that it stays what it
//! is when seeds come to mean something else. `shadowvm sim --replay FILE` tells one's story;
//! `shadowvm sim --seed S --out DIR` writes a new one, to be given its sentence.

use std::fs;
use std::path::Path;

use super::case::Case;
use super::{Options, run_scenario, run_seed, run_twice};

/// At least so many have been kept.
const KEPT_MIN: usize = 34;
/// So many seeds unless SHADOWVM_SEEDS says how many: few beside what `shadowvm sim` runs, and
/// enough where the tests of the library stand alone (`testbed/mutants`, `testbed/coverage`).
const SEEDS: u64 = 200;

#[test]
fn the_first_seeds_pass() {
    super::hush_panics();
    let asked = std::env::var("SHADOWVM_SEEDS").ok();
    let seeds = asked.map_or(SEEDS, |seeds| seeds.parse().expect("a number"));
    for seed in 1..=seeds {
        let outcome = run_seed(seed, &Options::default());
        assert_eq!(outcome.failure(), None, "seed {seed}");
    }
}

#[test]
fn an_engine_that_goes_on_from_a_snapshot_is_the_same() {
    super::hush_panics();
    for seed in 1000..1100 {
        let report = run_twice(&Options::default().scenario(seed), &Options::default());
        assert_eq!(report.violation, None, "seed {seed}");
    }
}

#[test]
fn kept_cases_pass() {
    super::hush_panics();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sim/kept");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("it is there").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= KEPT_MIN, "{} cases", paths.len());
    for path in paths {
        let shown = path.display();
        let case = Case::parse(&fs::read_to_string(&path).expect("UTF-8"));
        let case = case.unwrap_or_else(|e| panic!("{shown}: {e}"));
        assert!(case.sentence.contains(' '), "{shown}: {:?} is no sentence", case.sentence);
        let options = Options { without_gateway: case.without_gateway, ..Options::default() };
        let report = run_scenario(&case.scenario, &options);
        assert_eq!(report.violation, None, "{shown}: {}", case.sentence);
    }
}
