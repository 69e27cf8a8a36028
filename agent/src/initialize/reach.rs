//! How a subscriber's PostgreSQL reaches a publisher's: through the mesh, or directly.
//!
//! The publisher decides, by its `replication.link`: it is the one who knows whether its PostgreSQL may be reached from
//! outside. What it tells the subscriber's agent is a [`Reach`]; an agent that tells nothing knows the direct way only.

use steep_protocol::{
    failure::{Code, Failure},
    ids::NodeId,
    v1,
};

use super::findings::Findings;
use crate::{
    config::LinkMode,
    postgres::{Session, conninfo::Conninfo},
    rooms::Rooms,
};

/// What a peer may say about how its PostgreSQL is reached. Anything else in its conninfo could read this
/// machine's files or loosen this server's checks.
const FROM_A_PEER: &[&str] = &["host", "hostaddr", "port", "user", "dbname", "sslmode", "channel_binding"];

/// What this node may add for its own PostgreSQL: files beside it, and how strictly it looks.
const OF_OUR_OWN: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "sslcrldir",
    "ssl_min_protocol_version",
    "channel_binding",
    "require_auth",
    "passfile",
    "gssencmode",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
];

/// A way to a publisher's PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Through the agents, to this database.
    Mesh {
        /// The publisher's database.
        database: String,
    },
    /// Without them.
    Direct(Conninfo),
}

impl Reach {
    /// How other nodes' PostgreSQL reach this one's.
    pub fn own(rooms: &Rooms) -> Result<Self, Failure> {
        let database = rooms.config.postgres.dbname.clone();
        let replication = &rooms.config.replication;
        if replication.link == LinkMode::Mesh {
            return Ok(Self::Mesh { database });
        }
        let own = match &replication.conninfo {
            Some(text) => Conninfo::parse(text).map_err(|error| {
                Failure::new(Code::ConfigInvalid, format!("replication.conninfo: {error}"))
                    .hint("mend agent.toml on the source")
            })?,
            None => Conninfo::of(rooms.database.config()),
        };
        Ok(Self::Direct(own.without("password").without("passfile").with("dbname", database)))
    }

    /// What `peer` says about its PostgreSQL, as far as we take it from a peer.
    pub fn told(peer: &NodeId, link: &str, database: &str, conninfo: &str) -> Result<Self, Failure> {
        let bad = |reason: String| {
            Failure::new(
                Code::BadRequest,
                format!("{peer} gives an address of its PostgreSQL that cannot be used: {reason}"),
            )
            .hint(format!("mend [replication] in the agent.toml of {peer}"))
        };
        match LinkMode::told(link) {
            Some(LinkMode::Mesh) if database.is_empty() => Err(bad("it names no database".into())),
            Some(LinkMode::Mesh) => Ok(Self::Mesh { database: database.to_owned() }),
            Some(LinkMode::Direct) => {
                let parsed = Conninfo::parse(conninfo).map_err(|error| bad(error.to_string()))?;
                if let Some(key) = parsed.keys().find(|key| !FROM_A_PEER.contains(key)) {
                    return Err(bad(format!("{key} may not be set from another node")));
                }
                Ok(Self::Direct(parsed))
            }
            None => Err(bad(format!("{link:?} is no link this agent knows"))),
        }
    }

    /// What a direct way to `peer` is completed with on this node: `replication.local_conninfo`.
    pub fn local(rooms: &Rooms) -> Result<Conninfo, Failure> {
        let bad = |reason: String| {
            Failure::new(Code::ConfigInvalid, format!("replication.local_conninfo: {reason}"))
                .hint(format!("mend it in the agent.toml of {}, then restart the agent", rooms.me))
        };
        let text = rooms.config.replication.local_conninfo.as_deref().unwrap_or_default();
        let local = Conninfo::parse(text).map_err(|error| bad(error.to_string()))?;
        if let Some(key) = local.keys().find(|key| !OF_OUR_OWN.contains(key)) {
            return Err(bad(format!("{key} is not for it; it may set {}", OF_OUR_OWN.join(", "))));
        }
        Ok(local)
    }

    /// As the fields of a message that tells it.
    pub fn to_message(&self) -> v1::SubscribeRequest {
        let (mode, database, conninfo) = match self {
            Self::Mesh { database } => (LinkMode::Mesh, database.clone(), String::new()),
            Self::Direct(conninfo) => (LinkMode::Direct, String::new(), conninfo.to_string()),
        };
        v1::SubscribeRequest { link: mode.as_str().to_owned(), database, conninfo, ..v1::SubscribeRequest::default() }
    }
}

/// This node's PostgreSQL must reach the socket of a link to `peer`, if that is how `peer`'s is reached.
pub(super) async fn check(
    rooms: &Rooms,
    session: &Session,
    findings: &mut Findings,
    peer: &NodeId,
    link: &str,
) -> Result<(), Failure> {
    if LinkMode::told(link) != Some(LinkMode::Mesh) {
        if let Err(failure) = Reach::local(rooms) {
            findings.error(failure.code, failure.message, failure.hint);
        }
        return Ok(());
    }
    match rooms.links.probe(&rooms.database, session, peer).await {
        Ok(()) => findings.must(true, Code::LinkUnreachable, "PostgreSQL reaches the replication link", String::new),
        Err(failure) if [Code::LinkUnreachable, Code::LinkSocketUnusable].contains(&failure.code) => {
            let causes: String = failure.causes.iter().map(|cause| format!(": {cause}")).collect();
            findings.error(failure.code, failure.message + &causes, failure.hint);
        }
        // A role that may not look is told so by another check: it may not subscribe either.
        Err(failure) if failure.sqlstate.as_deref() == Some("42501") => {}
        Err(failure) => return Err(failure),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_tells_comes_over_as_it_was_meant() {
        let peer: NodeId = "node_a".parse().expect("a name");
        let direct = Conninfo::parse("host=db1 port=5432 user=repl sslmode=verify-full dbname=shop").expect("good");
        for reach in [Reach::Mesh { database: "shop".into() }, Reach::Direct(direct.clone())] {
            let told = reach.to_message();
            assert_eq!(Reach::told(&peer, &told.link, &told.database, &told.conninfo), Ok(reach));
        }
        assert_eq!(Reach::told(&peer, "", "", &direct.to_string()), Ok(Reach::Direct(direct)), "an older agent");
    }

    #[test]
    fn what_a_peer_may_not_tell_is_refused() {
        let peer: NodeId = "node_a".parse().expect("a name");
        for (link, database, conninfo) in [
            ("mesh", "", ""),
            ("pigeon", "shop", "host=db1"),
            ("direct", "", "host=db1 passfile=/etc/shadow"),
            ("", "", "host=db1 options='-c x=y'"),
            ("direct", "", "host=db1 sslrootcert=/tmp/mine"),
            ("direct", "", "host"),
        ] {
            let failure = Reach::told(&peer, link, database, conninfo).expect_err("refused");
            assert_eq!(failure.code, Code::BadRequest);
            assert!(failure.hint.contains("node_a"), "{}", failure.hint);
        }
    }
}
