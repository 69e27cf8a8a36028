//! The states of a node, and the only moves between them.
//!
//! Pure: says which move an event means and whether it is legal; who may ask, and what is stored, is decided
//! elsewhere. The database holds the same moves as rows (`steep_repl.legal_moves`) and refuses all others.

use std::fmt;

use steep_protocol::{
    failure::{Code, Explain},
    node::NodeState,
};

/// What can happen to a node. Each event leads to one state, whatever state it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeEvent {
    /// An initialization began: checks, slot, snapshot and schema are being made.
    Started,
    /// The first rows are about to be copied.
    CopyBegan,
    /// The rows are in place, by a copy of ours or by a backup of the user's.
    RowsInPlace,
    /// All that changed meanwhile is applied; or a reinitialization ended with the rest untouched; or what had stopped
    /// replication is over, and nothing was lost by it.
    CaughtUp,
    /// Replication stopped, or brings what does not fit.
    Diverged,
    /// An operation gave up.
    Failed,
    /// An operation was cancelled and what it had made is undone; or the node was taken out of replication.
    Undone,
    /// Some or all tables are about to be copied again.
    ReinitBegan,
}

impl NodeEvent {
    /// All events, in the order of a node's life.
    pub const ALL: [Self; 8] = [
        Self::Started,
        Self::CopyBegan,
        Self::RowsInPlace,
        Self::CaughtUp,
        Self::Diverged,
        Self::Failed,
        Self::Undone,
        Self::ReinitBegan,
    ];

    /// The state it leads to, where it is legal.
    pub fn leads_to(self) -> NodeState {
        match self {
            Self::Started => NodeState::Preparing,
            Self::CopyBegan => NodeState::Copying,
            Self::RowsInPlace => NodeState::CatchingUp,
            Self::CaughtUp => NodeState::Synchronized,
            Self::Diverged => NodeState::Diverged,
            Self::Failed => NodeState::Failed,
            Self::Undone => NodeState::Uninitialized,
            Self::ReinitBegan => NodeState::Reinitializing,
        }
    }
}

impl fmt::Display for NodeEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Started => "start",
            Self::CopyBegan => "begin to copy",
            Self::RowsInPlace => "catch up",
            Self::CaughtUp => "become synchronized",
            Self::Diverged => "diverge",
            Self::Failed => "fail",
            Self::Undone => "go back to uninitialized",
            Self::ReinitBegan => "be reinitialized",
        })
    }
}

/// A move the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node that is {state} cannot {event}")]
pub struct IllegalMove {
    /// The state it is in.
    pub state: NodeState,
    /// What was to happen.
    pub event: NodeEvent,
}

impl Explain for IllegalMove {
    fn code(&self) -> Code {
        Code::IllegalState
    }
}

/// Where `event` takes a node in `state`; every other pair is refused.
///
/// ```text
///                  ┌────────────── Undone ◄───────────────┐ (also from failed; from synchronized and diverged
///                  │                                      │  when the node is removed)
///                  ▼                                      │
///           uninitialized ──► preparing ──► copying ──► catching_up ──► synchronized
///                               ▲   └───────────────────────▲  │            │  │
///                               │ Started                   │  ▼            │  │
///            failed ◄───────────┼── any active state,    diverged ◄────────►┘  │
///              │                │   or diverged             │                  │
///              ├────────────────┘                           ▼                  │
///              └──────────────────────────────────► reinitializing ◄───────────┘
///                                                     │ copying, catching_up, synchronized,
///                                                     ▼ diverged or failed
/// ```
///
/// An event that leads to the state the node is in already is refused like any other: whoever resumes an
/// operation looks first.
pub fn next(state: NodeState, event: NodeEvent) -> Result<NodeState, IllegalMove> {
    use NodeEvent as E;
    use NodeState as S;
    match (state, event) {
        (S::Uninitialized, E::Started)
        | (S::Preparing, E::CopyBegan | E::RowsInPlace | E::Failed | E::Undone)
        | (S::Copying, E::RowsInPlace | E::Failed | E::Undone)
        | (S::CatchingUp, E::CaughtUp | E::Failed | E::Undone | E::Diverged)
        | (S::Synchronized, E::Diverged | E::ReinitBegan | E::Undone)
        | (S::Diverged, E::CaughtUp | E::ReinitBegan | E::Failed | E::Undone)
        | (S::Failed, E::Undone | E::Started | E::ReinitBegan)
        | (S::Reinitializing, E::CopyBegan | E::RowsInPlace | E::CaughtUp | E::Failed | E::Diverged) => {
            Ok(event.leads_to())
        }
        _ => Err(IllegalMove { state, event }),
    }
}

/// Whether some event takes a node from one state to the other.
pub fn may_move(from: NodeState, to: NodeState) -> bool {
    NodeEvent::ALL.into_iter().any(|event| next(from, event) == Ok(to))
}

/// Every legal move, as (from, to): what `steep_repl.legal_moves` must hold for nodes.
pub fn legal_moves() -> impl Iterator<Item = (NodeState, NodeState)> {
    let from_one = |from| NodeState::ALL.into_iter().filter(move |to| may_move(from, *to)).map(move |to| (from, to));
    NodeState::ALL.into_iter().flat_map(from_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the plan, written down a second time and in another form.
    const LEGAL: [(&str, &[&str]); 8] = [
        ("uninitialized", &["preparing"]),
        ("preparing", &["copying", "catching_up", "failed", "uninitialized"]),
        ("copying", &["catching_up", "failed", "uninitialized"]),
        ("catching_up", &["synchronized", "failed", "uninitialized", "diverged"]),
        ("synchronized", &["diverged", "reinitializing", "uninitialized"]),
        ("diverged", &["synchronized", "reinitializing", "failed", "uninitialized"]),
        ("failed", &["uninitialized", "preparing", "reinitializing"]),
        ("reinitializing", &["copying", "catching_up", "synchronized", "failed", "diverged"]),
    ];

    #[test]
    fn exactly_the_moves_of_the_table_are_legal() {
        assert_eq!(LEGAL.map(|(from, _)| from), NodeState::ALL.map(NodeState::as_str));
        for (from, targets) in LEGAL {
            let from: NodeState = from.parse().expect("a state");
            for to in NodeState::ALL {
                assert_eq!(may_move(from, to), targets.contains(&to.as_str()), "{from} to {to}");
            }
        }
    }

    #[test]
    fn every_pair_of_state_and_event_either_leads_where_the_event_says_or_is_refused_with_both_names() {
        for state in NodeState::ALL {
            for event in NodeEvent::ALL {
                match next(state, event) {
                    Ok(to) => assert_eq!(to, event.leads_to()),
                    Err(refused) => {
                        assert_eq!(refused, IllegalMove { state, event });
                        assert!(refused.to_string().contains(state.as_str()));
                    }
                }
            }
        }
    }

    #[test]
    fn each_state_is_reached_by_one_event_only() {
        let mut reached: Vec<_> = NodeEvent::ALL.into_iter().map(NodeEvent::leads_to).collect();
        reached.sort();
        reached.dedup();
        assert_eq!(reached.len(), NodeState::ALL.len());
    }

    #[test]
    fn no_event_leaves_a_node_where_it_is() {
        for state in NodeState::ALL {
            assert!(!may_move(state, state), "{state}");
        }
    }

    #[test]
    fn the_list_of_legal_moves_is_the_table() {
        let listed: Vec<_> = legal_moves().map(|(from, to)| (from.as_str(), to.as_str())).collect();
        let moves =
            |(from, targets): (&'static str, &'static [&'static str])| targets.iter().map(move |to| (from, *to));
        let mut expected: Vec<_> = LEGAL.into_iter().flat_map(moves).collect();
        expected.sort_by_key(|(from, to)| {
            let place = |word: &str| NodeState::ALL.iter().position(|state| state.as_str() == word);
            (place(from), place(to))
        });
        assert_eq!(listed, expected);
    }

    #[test]
    fn every_active_state_can_fail() {
        for state in NodeState::ALL.into_iter().filter(|state| state.is_active()) {
            assert!(may_move(state, NodeState::Failed), "{state}");
        }
    }
}
