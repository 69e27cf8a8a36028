//! Makes a subscription on a slot that exists already; the same on the target and, for the way back, on the source.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::{NodeId, OperationId},
    lsn::Lsn,
    names::TableName,
};

use super::{gates, reach::Reach};
use crate::{
    breakpoint::crash_point,
    cleanup::Effect,
    postgres::{
        self, Purpose, Session,
        ddl::{self, NewSubscription, OriginFilter},
        origins,
        subscriptions::{self, Subscription},
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
    /// Tables whose rows hold what was committed before a later moment.
    pub gates: &'a [(TableName, Lsn)],
}

/// Subscribes this node to a peer's slot and starts it. It begins at [`Inflow::begin`] and copies nothing.
pub async fn subscribe(rooms: &Rooms, op: OperationId, inflow: &Inflow<'_>) -> Result<String, Failure> {
    let made = create(rooms, op, inflow, false).await?;
    if !made.is_enabled {
        gates::set(rooms, op, &made.name, inflow.gates).await?;
        start(rooms, op, &made, inflow.begin).await?;
    }
    Ok(made.name)
}

/// Makes the subscription for `inflow`, disabled; made by an earlier try, it may run already. `copies`: it will copy its
/// tables by itself.
pub(super) async fn create(
    rooms: &Rooms,
    op: OperationId,
    inflow: &Inflow<'_>,
    copies: bool,
) -> Result<Subscription, Failure> {
    let Inflow { source, slot, publication, reach, origin, .. } = *inflow;
    let explain = |error: postgres::Error| error.explain();
    let name = name_for(source.as_str());
    let session = rooms.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
    let effect = Effect::Subscription { name: name.clone() };
    if let Some(found) = subscriptions::find(&session, &name).await.map_err(explain)? {
        let written = rooms.cleanup.pending(op, "subscription").await?;
        let is_ours = written.iter().any(|effect| matches!(effect, Effect::Subscription { name: own } if *own == name));
        if !is_ours || found.slot.as_deref() != Some(slot) {
            let text = format!("a subscription {name} exists already on {}", rooms.me);
            let hint = format!("drop subscription {name}; on {}", rooms.me);
            return Err(Failure::new(Code::IllegalState, text).hint(hint));
        }
        // Made by a try that did not hear of it any more.
        rooms.cleanup.make(op, "subscribe", &effect, async { Ok(()) }).await?;
        return Ok(found);
    }
    let version = session.version();
    let make = async {
        let conninfo = match reach {
            Reach::Mesh { database } => rooms.links.offer(&rooms.database, source, database, slot, &name).await?,
            Reach::Direct(conninfo) => conninfo.clone().over(&Reach::local(rooms)?).pinned(),
        };
        let new = NewSubscription { name: &name, conninfo: &conninfo, publication, slot, origin, copies, version };
        let create = ddl::create_subscription(&new).map_err(explain)?;
        subscriptions::create(&session, &create).await.map_err(explain)
    };
    rooms.cleanup.make(op, "subscribe", &effect, make).await?;
    crash_point!("subscribed");
    let made = subscriptions::find(&session, &name).await.map_err(explain)?;
    session.close().await;
    made.ok_or_else(|| Failure::new(Code::SubscriptionFailing, format!("subscription {name} was dropped")))
}

/// Lets a subscription of this node run, from `begin` on where its slot stands before that.
pub(super) async fn start(rooms: &Rooms, op: OperationId, made: &Subscription, begin: Lsn) -> Result<(), Failure> {
    let explain = |error: postgres::Error| error.explain();
    let session = rooms.database.session(Purpose::Ddl(op)).await.map_err(explain)?;
    if begin > Lsn::default() {
        let origin = made.origin();
        let known = origins::list(&session, &origin).await.map_err(explain)?;
        let so_far = known.iter().find(|known| known.name == origin).and_then(|known| known.remote_lsn);
        // What it has applied since it was first told where to begin must not come again.
        if so_far.unwrap_or_default() < begin {
            origins::advance(&session, &origin, begin).await.map_err(explain)?;
        }
    }
    session.run(&ddl::enable_subscription(&made.name)).await.map_err(explain)?;
    session.close().await;
    Ok(())
}

/// As many errors in a row say that a new subscription will not get over them; a restart of the source is one.
const ERRORS_TOO_MANY: u64 = 3;

/// Watches over a new subscription.
#[derive(Debug)]
pub struct Vigil {
    name: String,
    /// Errors that do not count; none: those there are at the first look.
    before: Option<u64>,
}

impl Vigil {
    /// Over subscription `name`. `goes_on`: errors it had so far do not count, as an agent was away, and with it the link.
    pub fn over(name: &str, goes_on: bool) -> Self {
        Self { name: name.to_owned(), before: (!goes_on).then_some(0) }
    }

    /// Over subscription `name`, whose first errors `before` do not count.
    pub fn not_counting(name: &str, before: u64) -> Self {
        Self { name: name.to_owned(), before: Some(before) }
    }

    /// Fails when the subscription of this node, `me`, has stopped, or fails again and again.
    pub async fn check(&mut self, session: &Session, me: &NodeId) -> Result<(), Failure> {
        let found = subscriptions::find(session, &self.name).await.map_err(|error| error.explain())?;
        let errors = found.as_ref().map_or(0, |found| found.apply_errors);
        let before = *self.before.get_or_insert(errors);
        judge(found, errors.saturating_sub(before), me, &self.name)
    }
}

fn judge(found: Option<Subscription>, errors: u64, me: &NodeId, name: &str) -> Result<(), Failure> {
    match found {
        Some(subscription) if subscription.is_enabled && errors < ERRORS_TOO_MANY => Ok(()),
        Some(_) => {
            Err(Failure::new(Code::SubscriptionFailing, format!("subscription {name} on {me} stopped with an error"))
                .hint(format!("PostgreSQL's log on {me} says which row or table; mend it, then start the node again")))
        }
        None => Err(Failure::new(Code::SubscriptionFailing, format!("subscription {name} on {me} was dropped"))),
    }
}
