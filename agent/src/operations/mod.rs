//! Long work: ordered, undoable, watchable. Does not know what a snapshot or a merge is.
//!
//! [`step`] is the shape of a recipe; [`runner`] runs one, writes down every step before it is believed, and
//! undoes what it made when it fails or is cancelled; [`feed`] is what watchers see; [`progress`] is the
//! arithmetic of percents, rates and ETA; `gauges` tells the metrics.

pub mod feed;
mod gauges;
pub mod progress;
pub mod runner;
pub mod step;

pub use feed::{Feed, FeedEvent, Milestone};
pub use progress::Progress;
pub use runner::{Operations, Started};
pub use step::{Context, Recipe, Work};
