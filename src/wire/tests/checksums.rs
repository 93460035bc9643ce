//! Incremental checksum updates (RFC 1624) against the sum over everything, and the sum itself
//! against the definition of RFC 1071: exhaustive for a word, random for several.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::wire::checksum::{Sum, update_bytes, update16, update32};

/// RFC 1071, 4.1, word by word with the carry added back at once.
fn naive(words: &[u16]) -> u16 {
    words.iter().fold(0u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(*word);
        sum + u16::from(carry)
    })
}

fn check_of(words: &[u16]) -> u16 {
    !naive(words)
}

/// Words around every wrap and carry.
const EDGES: [u16; 9] = [0, 1, 2, 0x7fff, 0x8000, 0x8001, 0xfffd, 0xfffe, 0xffff];

/// Every word becomes every edge and the other way round, beside words that make the sum of the
/// rest anything at its edges. Some word is never zero, as in each pseudo header: all zeros have
/// two sums.
#[test]
fn an_update_of_any_word_is_the_sum_anew() {
    for word in 0..=u16::MAX {
        for edge in EDGES {
            for rest in EDGES {
                let beside = [6, rest];
                for (old, new) in [(word, edge), (edge, word)] {
                    let before = check_of(&[beside[0], beside[1], old]);
                    let after = check_of(&[beside[0], beside[1], new]);
                    assert_eq!(update16(before, old, new), after, "{old:#x} to {new:#x}");
                }
            }
        }
    }
}

/// The sum of any two words at the edges and any third.
#[test]
fn a_sum_is_that_of_the_words() {
    for word in 0..=u16::MAX {
        for (a, b) in EDGES.into_iter().flat_map(|a| EDGES.map(|b| (a, b))) {
            let sum = Sum::new().word(a).word(word).word(b);
            assert_eq!(sum.fold(), naive(&[a, word, b]));
            assert_eq!(sum.check(), check_of(&[a, word, b]));
        }
    }
}

fn any_word() -> impl Strategy<Value = u16> {
    prop_oneof![prop::sample::select(EDGES.to_vec()), any::<u16>()]
}

fn bytes_of(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Any number of edits, one behind the other, of two words and of many: what an edited header
    /// holds is what a header made anew would.
    #[test]
    fn updates_add_up(
        mut words in vec(any_word(), 4..20),
        edits in vec((any::<usize>(), vec(any_word(), 1..6)), 1..8),
    ) {
        words.push(6);
        let mut check = check_of(&words);
        for (at, new) in edits {
            let len = new.len().min(words.len() - 1);
            let at = at % (words.len() - len);
            let (old, new) = (words[at..at + len].to_vec(), &new[..len]);
            let two = |words: &[u16]| u32::from(words[0]) << 16 | u32::from(words[1]);
            check = match len {
                1 => update16(check, old[0], new[0]),
                2 => update32(check, two(&old), two(new)),
                _ => update_bytes(check, &bytes_of(&old), &bytes_of(new)),
            };
            words[at..at + len].copy_from_slice(new);
            prop_assert_eq!(check, check_of(&words));
        }
        prop_assert_eq!(Sum::new().bytes(&bytes_of(&words)).check(), check);
    }

    /// Damage stays visible: an update over bytes whose sum was wrong leaves it wrong (I13).
    #[test]
    fn an_update_never_makes_a_wrong_sum_right(
        mut words in vec(any_word(), 2..12), at in any::<usize>(), new in any_word(),
        damage in 1u16..0xffff,
    ) {
        words.push(6);
        let wrong = check_of(&words) ^ damage;
        prop_assume!(naive(&[wrong, naive(&words)]) != 0xffff);
        let at = at % (words.len() - 1);
        let updated = update16(wrong, words[at], new);
        words[at] = new;
        prop_assert_ne!(naive(&[updated, naive(&words)]), 0xffff);
    }
}
