//! Which protocol versions exist, and when two agents understand each other.

/// What this build speaks. 1: the first; direct initialization between two nodes.
pub const PROTOCOL: u32 = 1;

/// The oldest version this build still understands.
pub const OLDEST_UNDERSTOOD: u32 = 1;

/// Whether this build and a peer that speaks `theirs` understand each other.
pub fn understands(theirs: u32) -> bool {
    (OLDEST_UNDERSTOOD..=PROTOCOL + 1).contains(&theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_understand_each_other_and_strangers_do_not() {
        assert!(understands(PROTOCOL));
        assert!(understands(PROTOCOL + 1), "a newer agent speaks our version too");
        assert!(!understands(PROTOCOL + 2));
        assert!(!understands(0));
    }
}
