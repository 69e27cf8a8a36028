//! Takes a physical copy over for the node it is to become: it forgets whose it was, and keeps where it left its source.
//!
//! Done once, by a run of the agent that ends with it, since the database says that it belongs to the source. Nothing is changed
//! before it is certain that this is a copy and not the source itself: it holds the mark of the preparation, the source's agent
//! does not see our lock in its database, and this server has left the timeline the source was on.

use std::time::Duration;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
};
use tokio::time::{Instant, sleep};
use tracing::info;

use super::{apart, manual::wrong_backup};
use crate::{
    mesh::Peers,
    postgres::{
        self, Database, Purpose, Session,
        copies::{self, Branch, Inherited},
        marks::{self, Adopted, Mark},
    },
    store::{self, Owner},
};

/// How long the source may stay unheard of.
const MEETING: Duration = Duration::from_secs(30);
/// How long recovery may still take; a server that takes connections has replayed nearly all.
const RECOVERY: Duration = Duration::from_secs(120);
/// How often either is looked at.
const LOOK: Duration = Duration::from_millis(200);

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Takes the copy that `database` is in over for this node; returns what is to be told. Done before, it changes nothing.
pub async fn adopt(database: &Database, peers: &Peers, id: &str) -> Result<String, Failure> {
    let session = database.session(Purpose::Control).await.map_err(explain)?;
    let me = peers.me();
    let Some(mark) = marks::find(&session, id).await.map_err(explain)? else {
        return Err(wrong_backup(&session, me, id).await?);
    };
    let source: NodeId = mark.node.parse().map_err(|_| peers.unknown(&mark.node))?;
    if let Some(done) = marks::adopted(&session, id).await.map_err(explain)? {
        return already(me, &source, id, &done);
    }
    refuse_own(&session, me, &source).await?;
    meet(peers, &source).await?;
    if apart::is_same(&session, peers, &source).await? {
        let text =
            format!("this database is that of {source} itself, not a copy of it: its agent sees what is done here");
        return Err(Failure::new(Code::NotACopy, text));
    }
    let branch = promoted(&session, &source, &mark).await?;
    let owner = Owner { node: me.clone(), mesh: peers.mesh().clone() };
    store::keep_agents_out(&session, &owner).await.map_err(|error| error.explain())?;
    let inherited = copies::inherited(&session).await.map_err(explain)?;
    refuse_active(&session, &inherited).await?;
    let wal_sha256 = copies::wal_digest(&session, branch.timeline, branch.lsn).await.map_err(explain)?;
    let adopted = Adopted { node: me.to_string(), branch, wal_sha256: wal_sha256.unwrap_or_default() };
    forget(&session, id, &adopted).await?;
    let lsn = branch.lsn;
    info!(event = "agent.copy_adopted", peer = %source, lsn = %lsn, details.prepare_id = id, "a physical copy is this node's now");
    session.close().await;
    Ok(told(me, &source, id, &adopted))
}

fn told(me: &NodeId, source: &NodeId, id: &str, adopted: &Adopted) -> String {
    format!(
        "the copy of {source} is {me} from now on; it holds what {source} wrote before {}\n\
         next: restart its PostgreSQL with settings of its own, start its agent, then\n\
         steepctl node complete {me} --source {source} --prepare-id {id}",
        adopted.branch.lsn
    )
}

fn already(me: &NodeId, source: &NodeId, id: &str, done: &Adopted) -> Result<String, Failure> {
    if done.node == me.as_str() {
        return Ok(told(me, source, id, done));
    }
    let text = format!("the copy for preparation {id} was taken over by {} before", done.node);
    Err(Failure::new(Code::NotACopy, text).hint(format!("make a copy of its own for {me}")))
}

/// The database must say of itself that it is the source's.
async fn refuse_own(session: &Session, me: &NodeId, source: &NodeId) -> Result<(), Failure> {
    let owner = copies::owner(session).await.map_err(explain)?;
    if owner.as_deref() == Some(source.as_str()) && source != me {
        return Ok(());
    }
    let whose = owner.map_or_else(|| "nobody".to_owned(), |owner| owner.clone());
    let text = format!(
        "the database belongs to {whose}; a copy that {me} may take over belongs to the node prepared, {source}"
    );
    Err(Failure::new(Code::NotACopy, text))
}

/// Waits until this agent has heard of `source`.
async fn meet(peers: &Peers, source: &NodeId) -> Result<(), Failure> {
    let until = Instant::now() + MEETING;
    while !peers.knows(source) {
        if Instant::now() >= until {
            let text = format!("{source} has to confirm that this is not its own database, and nobody knows it");
            let hint =
                format!("start the agent of {source}; mesh.seeds in agent.toml must lead to an agent that knows it");
            return Err(Failure::new(Code::PeerUnreachable, text).hint(hint));
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Waits until the copy's recovery has ended, and says where it left its source.
async fn promoted(session: &Session, source: &NodeId, mark: &Mark) -> Result<Branch, Failure> {
    let not_promoted = |text: &str| Failure::new(Code::CopyNotPromoted, text);
    let until = Instant::now() + RECOVERY;
    loop {
        let stage = copies::stage(session).await.map_err(explain)?;
        if !stage.is_in_recovery {
            break;
        }
        if stage.is_standby {
            let hint = "select pg_promote(); on it, with no subscription enabled in it; then adopt it again";
            return Err(not_promoted("the copy is a standby").hint(hint));
        }
        if Instant::now() >= until {
            return Err(
                not_promoted("the copy is still in recovery").hint("wait until it has ended, then adopt it again")
            );
        }
        sleep(LOOK).await;
    }
    let branch = copies::branch(session).await.map_err(explain)?;
    match branch.filter(|branch| branch.timeline == mark.timeline) {
        Some(branch) => Ok(branch),
        None => {
            let timeline = copies::timeline(session).await.map_err(explain)?;
            Err(not_promoted(&match branch {
                None => format!(
                    "the copy writes on timeline {timeline}, which is {source}'s own: where it left that nobody knows"
                ),
                Some(branch) => format!(
                    "the copy left timeline {} last, and {source} was on timeline {} when it was prepared",
                    branch.timeline, mark.timeline
                ),
            }))
        }
    }
}

/// Refuses a copy whose inherited subscriptions may have read from their publishers, or will.
async fn refuse_active(session: &Session, inherited: &[Inherited]) -> Result<(), Failure> {
    let stage = copies::stage(session).await.map_err(explain)?;
    if let Some(enabled) = inherited.iter().find(|one| one.is_enabled).filter(|_| stage.has_workers) {
        let text = format!(
            "subscription {} of database {} came with the copy and may run: it reads from a slot that its source needs",
            enabled.name, enabled.database
        );
        let hint = "stop the copy at once; make it again, and start it with -c max_logical_replication_workers=0";
        return Err(Failure::new(Code::CopyWasActive, text).hint(hint));
    }
    let elsewhere: Vec<_> = inherited.iter().filter(|one| !one.is_here).collect();
    if !elsewhere.is_empty() {
        let names: Vec<_> = elsewhere.iter().map(|one| format!("{} in {}", one.name, one.database)).collect();
        let text = format!("subscriptions of other databases came with the copy: {}", names.join(", "));
        return Err(Failure::new(Code::SubscriptionsElsewhere, text));
    }
    Ok(())
}

async fn forget(session: &Session, id: &str, adopted: &Adopted) -> Result<(), Failure> {
    copies::drop_slots(session, adopted.branch.lsn).await.map_err(explain)?;
    copies::roll_back_prepared(session).await.map_err(explain)?;
    session.begin().await.map_err(explain)?;
    let forgotten = async {
        copies::forget_source(session).await?;
        marks::adopt(session, id, adopted).await
    };
    match forgotten.await {
        Ok(()) => session.commit().await.map_err(explain),
        Err(error) => {
            // The error in hand says more than a failed rollback could; the session ends with it.
            drop(session.rollback().await);
            Err(explain(error))
        }
    }
}
