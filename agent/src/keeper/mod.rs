//! The keeper: a small process beside the agent that holds one session's locks and snapshot, and nothing else.
//!
//! It is started by the agent ([`Keepers::start`]) as `steep-agent keep`, in a session of its own, and listens on a unix
//! socket that only the agent's user reaches. When the agent dies or is restarted, the keeper stays; the agent that comes
//! after it attaches again ([`Keepers::attach`]). It lets go at once when told to, when its connection to PostgreSQL ends,
//! and when nobody has spoken to it for the lease: then it drops the slot too, which would keep WAL back for nobody.
//!
//! Both sides speak [`words`], one JSON object a line, one answer a question. Knows nothing of peers or operations.

mod attached;
mod place;
mod process;
mod words;

pub use attached::{Keeper, Keepers};
pub use process::run;
