//! Makes a subscription on a slot that exists already; the same on the target and, for the way back, on the source.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
};

use super::reach::Reach;
use crate::{
    cleanup::Effect,
    postgres::{
        self, Purpose, Session,
        ddl::{self, NewSubscription, OriginFilter},
        subscriptions,
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

/// Subscribes this node to a peer's slot and starts it. It begins where the slot stands and copies nothing.
pub async fn subscribe(
    rooms: &Rooms,
    op: OperationId,
    source: &NodeId,
    slot: &str,
    publication: &str,
    reach: &Reach,
    origin: OriginFilter,
) -> Result<String, Failure> {
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
