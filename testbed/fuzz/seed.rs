//! Writes the inputs that fuzzing begins with into `corpus/<target>/`, each under a name made of
//! its content.

use std::path::Path;

// What the coverage counters of an instrumented build need to be linked.
use libfuzzer_sys as _;
use shadowvm_fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        std::fs::create_dir_all(&folder)?;
        let seeds = (target.seeds)();
        for seed in &seeds {
            let step =
                |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            let hash = seed.iter().fold(0xcbf2_9ce4_8422_2325, step);
            std::fs::write(folder.join(format!("seed-{hash:016x}")), seed)?;
        }
        println!("{}: {} seeds", target.name, seeds.len());
    }
    Ok(())
}
