//! Long work: ordered, undoable, watchable. Does not know what a snapshot or a merge is.
//!
//! [`step`] is the shape of a recipe; [`runner`] starts one, or goes on with one that was left; `course` runs its steps,
//! writes down each before it is believed, waits out what passes, and undoes what it made when it fails or is cancelled;
//! [`feed`] is what watchers see, [`watching`] how they see it; [`progress`] is the arithmetic of percents, rates and ETA;
//! `gauges` tells the metrics.

mod course;
pub mod feed;
mod gauges;
pub mod progress;
pub mod runner;
pub mod step;
pub mod watching;

pub use feed::{Feed, FeedEvent, Milestone};
pub use progress::Progress;
pub use runner::{Operations, Started};
pub use step::{Context, Recipe, Work};
pub use watching::Told;
