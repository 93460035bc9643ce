//! What a watch no longer knows to be equal.

use std::collections::BTreeMap;

use super::entry::Rel;

/// Why a path is doubted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// All below it is doubted as well.
    pub is_deep: bool,
    /// Its content may have changed, not only its attributes.
    pub is_content: bool,
}

/// Everything that may have changed.
#[derive(Clone, Debug, Default)]
pub struct Doubts {
    /// Anything may: events were lost, or nobody watched. The items are doubted all the same.
    pub is_all: bool,
    /// Paths.
    pub items: BTreeMap<Rel, Doubt>,
}

/// More paths than this are not told apart any more: to look at everything is cheaper.
const ITEMS_MAX: usize = 1 << 16;

impl Doubts {
    /// Nobody knows anything.
    pub fn all() -> Self {
        Self { is_all: true, items: BTreeMap::new() }
    }

    /// Doubts one more path.
    pub fn add(&mut self, path: Rel, doubt: Doubt) {
        if let Some(known) = self.items.get_mut(&path) {
            known.is_deep |= doubt.is_deep;
            known.is_content |= doubt.is_content;
        } else if self.items.len() < ITEMS_MAX {
            self.items.insert(path, doubt);
        } else {
            self.is_all = true;
        }
    }

    /// Takes over the doubts of another.
    pub fn add_all(&mut self, other: Self) {
        self.is_all |= other.is_all;
        for (path, doubt) in other.items {
            self.add(path, doubt);
        }
    }

    /// Whether the path is doubted, or is below something that is with all below it.
    pub fn covers(&self, path: &Rel) -> bool {
        if self.items.is_empty() {
            return false;
        }
        let parent = |path: &Rel| path.split().map(|(parent, _)| parent);
        let mut above = std::iter::successors(parent(path), parent);
        self.items.contains_key(path)
            || above.any(|above| self.items.get(&above).is_some_and(|doubt| doubt.is_deep))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Rel {
        Rel::new(text.as_bytes()).expect("a good path")
    }

    #[test]
    fn a_doubt_covers_its_path_and_a_deep_one_all_below() {
        let mut doubts = Doubts::default();
        doubts.add(path("a"), Doubt::default());
        doubts.add(path("d"), Doubt { is_deep: true, is_content: false });
        for (text, is_covered) in
            [("a", true), ("a/b", false), ("d", true), ("d/e/f", true), ("de", false), ("", false)]
        {
            assert_eq!(doubts.covers(&path(text)), is_covered, "{text}");
        }
        doubts.add(Rel::root(), Doubt { is_deep: true, is_content: false });
        assert!(doubts.covers(&path("x/y")));
    }

    #[test]
    fn too_many_doubts_are_doubt_about_everything() {
        let mut doubts = Doubts::default();
        for i in 0..=ITEMS_MAX {
            assert!(!doubts.is_all);
            doubts.add(path(&i.to_string()), Doubt::default());
        }
        assert!(doubts.is_all && doubts.items.len() == ITEMS_MAX);
    }
}
