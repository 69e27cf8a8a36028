//! Where a physical copy left its source: held against what the source knows, before anything is sent from there on.
//!
//! The slot of the preparation begins before that point, and the target's subscription at it: PostgreSQL sends the transactions
//! whose commit was written at or after the position asked for, and all of them in full, since the slot is older than they are.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    lsn::{BadLsn, Lsn},
    v1,
};

use crate::{
    postgres::{self, Session, copies, slots},
    rooms::Rooms,
    store::preparations::Preparation,
};

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Makes sure that a copy which left this node at `branch` may begin there with the slot of `found`.
pub(super) async fn check(
    rooms: &Rooms,
    look: &Session,
    found: &Preparation,
    branch: Option<&v1::Branch>,
) -> Result<(), Failure> {
    let (me, id) = (&rooms.me, found.id());
    let branch = match (found.is_physical(), branch) {
        (false, None) => return Ok(()),
        (true, Some(branch)) => branch,
        (true, None) => {
            let text =
                format!("preparation {id} of {me} is for a physical copy ({}), and the target is none", found.purpose);
            let hint = format!("stop the target's agent, then on its host: steep-agent adopt-copy --prepare-id {id}");
            return Err(Failure::new(Code::CopyNotAdopted, text).hint(hint));
        }
        (false, Some(_)) => {
            let text = format!("preparation {id} of {me} is for pg_dump, and the target is a physical copy");
            return Err(Failure::new(Code::BackupElsewhere, text).hint(again(rooms, "pg_basebackup")));
        }
    };
    let lsn: Lsn = branch.lsn.parse().map_err(|error: BadLsn| Failure::new(Code::BadRequest, error.to_string()))?;
    let elsewhere = |text: String| Err(Failure::new(Code::BackupElsewhere, text).hint(again(rooms, &found.purpose)));
    let timeline = copies::timeline(look).await.map_err(explain)?;
    if branch.timeline != timeline {
        return elsewhere(format!("the copy left timeline {}, and {me} is on timeline {timeline}", branch.timeline));
    }
    let begins = found.lsn.unwrap_or_default();
    if lsn < begins {
        return elsewhere(format!("the copy ends at {lsn}, before slot {} of {me} begins at {begins}", found.slot));
    }
    let written = slots::current_lsn(look).await.map_err(explain)?;
    if lsn > written {
        return elsewhere(format!("the copy ends at {lsn}, and {me} has written up to {written} only"));
    }
    let here = copies::wal_digest(look, timeline, lsn).await.map_err(explain)?;
    if here.is_some_and(|here| !branch.wal_sha256.is_empty() && here != branch.wal_sha256) {
        return elsewhere(format!(
            "the WAL that the copy holds before {lsn} is not what {me} has written there: it was started as a server of its own \
             before its recovery was ended"
        ));
    }
    Ok(())
}

fn again(rooms: &Rooms, purpose: &str) -> String {
    format!("steepctl node prepare {} --for {purpose}, then make the copy anew, as it says", rooms.me)
}
