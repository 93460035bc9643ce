//! Tests of the simulator: seeds that found a defect once, each with the sentence of its defect,
//! and a fresh handful.

use super::{Options, run_seed};

/// With every host on smoltcp: (seed, what went wrong in it).
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
    (18156, "after a restart the clock shown went back at a takeover"),
    (742, "after a restart a leg that had not answered its question yet was called late"),
    (63709, "after a restart bytes were shown ahead of a position that nobody knew"),
    (65443, "a client whose handshake met a restart was answered twice, with two numbers"),
    (20137, "a flow moved behind a FIN that had been shown while its backup lagged"),
    (17070, "a dying primary's FIN was shown while the backup lagged, in no known protocol"),
    (13476, "a primary that could not go on before the backup did was called late"),
    (35139, "a primary that waited for the client's delayed ack was called late"),
    (13005, "nobody answered a FIN repeated after both servers had closed"),
    (47560, "a flow without a proven server went to TIME-WAIT with the client's FIN unanswered"),
    (22103, "a SYN on a connection that the servers had closed was answered by a bare ack"),
    (46467, "bytes that a lagging leg lost on its way were asked for by nobody"),
    (41087, "a late segment of an older connection was taken for the new one's"),
    (166662, "a stack backing off for a minute was called stuck"),
    (184672, "a simulated server ignored the client's window once it had closed its socket"),
    (288208, "an engine that was woken too seldom had to give up a leg in time"),
    (185452, "a dying primary's FIN was believed before the backup's first retransmission"),
    (212869, "a primary without carrier stayed one because the operator had paused just then"),
    (208796, "two servers that waited for an ack inside a masked value held the flow for ever"),
    (245402, "a flow that lagged at a restart was called Paired after it, and mixed two dates"),
    (16759, "a window closed by the first ack of the backup was never called pinned"),
    (4120, "after a restart the client was shown an ack before both legs had stated theirs"),
];

#[test]
fn kept_seeds() {
    super::hush_panics();
    let options = Options { on_smoltcp: true, ..Options::default() };
    for (seed, sentence) in KEPT {
        let outcome = run_seed(*seed, &options);
        assert_eq!(outcome.failure(), None, "seed {seed}: {sentence}");
    }
}
