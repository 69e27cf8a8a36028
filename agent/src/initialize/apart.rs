//! The proof that two databases are two, though they say the same of themselves.
//!
//! A physical copy has its source's system identifier, and its databases the same names. So one side takes an advisory lock under
//! a key made up at random, and the other looks whether it sees it: it does if the two are one, and only then.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
};

use super::findings::Findings;
use crate::{
    mesh::{Peers, Source},
    postgres::{self, Purpose, Session, catalog::ServerFacts, copies},
    rooms::Rooms,
};

fn explain(error: postgres::Error) -> Failure {
    error.explain()
}

/// Whether the database of `session` is the one that the agent of `peer` serves. Asks that agent, and fails without an answer.
pub async fn is_same(session: &Session, peers: &Peers, peer: &NodeId) -> Result<bool, Failure> {
    let key: i64 = rand::random();
    copies::hold(session, key).await.map_err(explain)?;
    let seen = Source::new(peers.clone(), peer.clone(), OperationId::generate()).sees_lock(key).await;
    copies::let_go(session, key).await.map_err(explain)?;
    seen
}

/// Whether this node's PostgreSQL sees an advisory lock in the node's database.
pub async fn sees(rooms: &Rooms, key: i64) -> Result<bool, Failure> {
    let session = rooms.database.session(Purpose::Watch).await.map_err(explain)?;
    let seen = copies::sees(&session, key).await.map_err(explain);
    session.close().await;
    seen
}

/// Finds source and target to be one database, where they are: `theirs` is what `peer` says of its own, system identifier and
/// database; only where this node's says the same `peer` is asked.
pub(super) async fn check(
    rooms: &Rooms,
    session: &Session,
    findings: &mut Findings,
    server: &ServerFacts,
    (peer, theirs): (&NodeId, (u64, &str)),
) -> Result<(), Failure> {
    let looks_same = theirs == (server.system_identifier, server.database.as_str());
    let same = looks_same && is_same(session, &rooms.peers, peer).await?;
    findings.must(!same, Code::SameDatabase, "source and target are two databases", || {
        format!("{peer} and {} are both database {} of server {}", rooms.me, server.database, server.system_identifier)
    });
    Ok(())
}
