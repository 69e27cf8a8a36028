//! Makes a subscription on a slot that exists already; the same on the target and, for the way back, on the source.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    lsn::Lsn,
};

use super::reach::Reach;
use crate::{
    cleanup::Effect,
    postgres::{
        self, Purpose, Session,
        ddl::{self, NewSubscription, OriginFilter},
        origins, subscriptions,
    },
    rooms::Rooms,
};

/// The name of this node's subscription to `source`.
pub fn name_for(source: &str) -> String {
    let mut name = format!("steep_from_{source}");
    // PostgreSQL cuts names at 63 bytes; cut ourselves, so that we find it again. Node ids are ASCII.
    name.truncate(63);
    name
}

/// What a subscription is to bring.
#[derive(Debug, Clone, Copy)]
pub struct Inflow<'a> {
    /// The publisher's node.
    pub source: &'a NodeId,
    /// The slot there.
    pub slot: &'a str,
    /// The publication there.
    pub publication: &'a str,
    /// How the publisher's PostgreSQL is reached.
    pub reach: &'a Reach,
    /// Which changes.
    pub origin: OriginFilter,
    /// What the publisher committed before this is here already; 0/0, or before where the slot stands: the slot decides.
    pub begin: Lsn,
}

/// Subscribes this node to a peer's slot and starts it. It begins at [`Inflow::begin`] and copies nothing.
pub async fn subscribe(rooms: &Rooms, op: OperationId, inflow: &Inflow<'_>) -> Result<String, Failure> {
    let Inflow { source, slot, publication, reach, origin, begin } = *inflow;
    let explain = |error: postgres::Error| error.explain();
    let name = name_for(source.as_str());
    let session = rooms.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
    if subscriptions::find(&session, &name).await.map_err(explain)?.is_some() {
        let text = format!("a subscription {name} exists already on {}", rooms.me);
        return Err(Failure::new(Code::IllegalState, text).hint(format!("drop subscription {name}; on {}", rooms.me)));
    }
    let version = session.version();
    let effect = Effect::Subscription { name: name.clone() };
    let make = async {
        let conninfo = match reach {
            Reach::Mesh { database } => rooms.links.offer(&rooms.database, source, database, slot, &name).await?,
            Reach::Direct(conninfo) => conninfo.clone().over(&Reach::local(rooms)?).pinned(),
        };
        let new = NewSubscription { name: &name, conninfo: &conninfo, publication, slot, origin, version };
        let create = ddl::create_subscription(&new).map_err(explain)?;
        subscriptions::create(&session, &create).await.map_err(explain)
    };
    rooms.cleanup.make(op, "subscribe", &effect, make).await?;
    if begin > Lsn::default() {
        let made = subscriptions::find(&session, &name).await.map_err(explain)?;
        let gone = || Failure::new(Code::SubscriptionFailing, format!("subscription {name} was dropped"));
        let origin = made.ok_or_else(gone)?.origin();
        origins::advance(&session, &origin, begin).await.map_err(explain)?;
    }
    session.run(&ddl::enable_subscription(&name)).await.map_err(explain)?;
    session.close().await;
    Ok(name)
}

/// As many errors in a row say that a new subscription will not get over them; a restart of the source is one.
const ERRORS_TOO_MANY: u64 = 3;

/// Fails when the new subscription of this node, `me`, has stopped, or fails again and again.
pub async fn check_running(session: &Session, me: &NodeId, name: &str) -> Result<(), Failure> {
    let found = subscriptions::find(session, name).await.map_err(|error| error.explain())?;
    match found {
        Some(subscription) if subscription.is_enabled && subscription.apply_errors < ERRORS_TOO_MANY => Ok(()),
        Some(_) => {
            Err(Failure::new(Code::SubscriptionFailing, format!("subscription {name} on {me} stopped with an error"))
                .hint(format!("PostgreSQL's log on {me} says which row or table; mend it, then start the node again")))
        }
        None => Err(Failure::new(Code::SubscriptionFailing, format!("subscription {name} on {me} was dropped"))),
    }
}
