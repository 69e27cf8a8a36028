//! Whose database this is. A database keeps the node id of its first agent, and refuses any other.

use std::{fmt, num::ParseIntError};

use steep_protocol::ids::{MeshName, NodeId};

use super::{Error, control::doing, migrate};
use crate::postgres::{Session, connect::field, sql};

/// Who the agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its node.
    pub node: NodeId,
    /// The mesh it belongs to.
    pub mesh: MeshName,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of mesh {}", self.node, self.mesh)
    }
}

/// Which database on which server, worldwide. Only a physical copy of the server shares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The server's, given when its data directory was made.
    pub system_identifier: u64,
    /// The database's name.
    pub database: String,
}

impl Identity {
    pub(super) fn parse(system_identifier: &str, database: String) -> Result<Self, Error> {
        // PostgreSQL has no unsigned type: what passes the middle is shown with a sign.
        let signed: i64 = system_identifier.parse().map_err(|error: ParseIntError| Error::Unreadable {
            what: "system_identifier".to_owned(),
            source: error.into(),
        })?;
        Ok(Self { system_identifier: signed.cast_unsigned(), database })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "database {} of server {}", self.database, self.system_identifier)
    }
}

/// Refuses a standby, and a database known to be another's, before anything is written to it.
///
/// `expected` is what the database was when this agent last held it.
pub(super) async fn look(session: &Session, owner: &Owner, expected: Option<&Identity>) -> Result<(), Error> {
    let found = migrate::find(session).await?;
    if found.in_recovery {
        return Err(Error::Standby { database: found.database.database });
    }
    if let Some(expected) = expected
        && *expected != found.database
    {
        return Err(Error::Moved { node: owner.node.clone(), recorded: expected.clone(), found: found.database });
    }
    if found.has_identity {
        compare(session, owner).await?;
    }
    Ok(())
}

/// Writes whose database this is, if nobody has, and makes sure it is ours.
pub(super) async fn claim(session: &Session, owner: &Owner) -> Result<Identity, Error> {
    let claiming = doing("write the node's identity");
    let (node, mesh) = (owner.node.as_str(), owner.mesh.as_str());
    session.execute(claiming, sql!("store/claim_identity.sql"), &[&node, &mesh]).await?;
    compare(session, owner).await?.ok_or_else(|| Error::Missing("the node's identity".to_owned()))
}

/// The identity, where the database says it is ours; none where it says nothing.
async fn compare(session: &Session, owner: &Owner) -> Result<Option<Identity>, Error> {
    let reading = doing("read the node's identity");
    let row = session.one(reading, sql!("store/read_identity.sql"), &[]).await?;
    let found = Identity::parse(field(&row, "system_identifier")?, field(&row, "database")?)?;
    let Some(node) = field::<Option<String>>(&row, "node_id")? else { return Ok(None) };
    let mesh: String = field(&row, "mesh")?;
    if node != owner.node.as_str() || mesh != owner.mesh.as_str() {
        let theirs = format!("{node} of mesh {mesh}");
        return Err(Error::Foreign { database: found.database, owner: theirs, us: owner.clone() });
    }
    let recorded = Identity::parse(field(&row, "recorded_system_identifier")?, field(&row, "recorded_database")?)?;
    if recorded != found {
        return Err(Error::Moved { node: owner.node.clone(), recorded, found });
    }
    Ok(Some(found))
}
