//! Tests of the simulator: seeds that found a defect once, each with the sentence of its defect,
//! and a fresh handful.

use super::{Options, run_seed};

/// (seed, what went wrong in it).
const KEPT: &[(u64, &str)] = &[
    (177, "a dying primary's FIN was shown while the backup was merely slow"),
    (155, "a required fence that failed was run again at every tick"),
    (870, "a small buffer on an idle flow was taken for a pinned window"),
    (1382, "a leg that ended inside a masked value held the flow for ever"),
    (632, "a primary that ended inside a masked value held the flow for ever"),
    (2812, "a lagging leg was acked bytes that the gateway never heard from it"),
    (3164, "a dead server that answered SYN probes only was never found"),
    (451, "after a restart the ends were asked for their positions once only"),
    (352, "a primary that failed in the handshake started the clock of a refusal"),
];

#[test]
fn kept_seeds() {
    super::hush_panics();
    for (seed, sentence) in KEPT {
        let outcome = run_seed(*seed, &Options::default());
        assert_eq!(outcome.failure(), None, "seed {seed}: {sentence}");
    }
}
