//! Two nodes' schemas side by side: this one's as it is, the other's as it was just told or, where it cannot be asked, as it
//! was last heard.

use std::collections::BTreeSet;

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
};

use super::{Drift, Error};
use crate::{
    postgres::{Purpose, selection::Selection},
    schema::{
        Catalog, blame_types,
        catalog::{Environment, Object, ObjectKey, ObjectKind, Table},
        compare::{Comparison, compare},
        plan::{self, Plan},
    },
    store::fingerprints::{self, EnvironmentFingerprint},
};

/// Tables read at once.
const ROWS: i64 = 500;

/// One node's schema.
#[derive(Debug, Clone)]
pub struct Side {
    /// Its database and when it was looked at.
    pub environment: EnvironmentFingerprint,
    /// Why its agent could not be asked: then this is what was last heard.
    pub cached: Option<Failure>,
    /// What it looks like.
    pub catalog: Catalog,
}

/// This node and another.
#[derive(Debug, Clone)]
pub struct Pair {
    /// This node.
    pub own: Side,
    /// The other one.
    pub other: Side,
    /// Which tables are meant; of everything else only what they use.
    pub chosen: Selection,
}

impl Drift {
    /// Looks at this node and asks `other`, about the tables chosen. `may_be_cached`: what was last heard will do where
    /// the other cannot be asked.
    pub async fn pair(&self, other: &NodeId, chosen: &Selection, may_be_cached: bool) -> Result<Pair, Failure> {
        // Both captures at once: each is most of the work of its node.
        let (own, heard) = tokio::join!(self.own(chosen), self.heard(other, chosen, may_be_cached));
        Ok(Pair { own: own?, other: heard?, chosen: chosen.clone() })
    }

    async fn own(&self, chosen: &Selection) -> Result<Side, Failure> {
        self.capture().await?;
        let own = self.environment(self.me()).await?;
        let own = own.ok_or_else(|| Failure::new(Code::Internal, "nothing was captured"))?;
        self.side(own, None, chosen).await
    }

    async fn heard(&self, other: &NodeId, chosen: &Selection, may_be_cached: bool) -> Result<Side, Failure> {
        let (heard, cached) = match self.fetch(other).await {
            Ok(told) => (told, None),
            Err(failure) => match self.environment(other).await? {
                Some(heard) if may_be_cached => (heard, Some(failure)),
                _ => return Err(failure),
            },
        };
        self.side(heard, cached, chosen).await
    }

    async fn side(
        &self,
        environment: EnvironmentFingerprint,
        cached: Option<Failure>,
        chosen: &Selection,
    ) -> Result<Side, Failure> {
        let catalog = self.catalog(&environment, chosen).await.map_err(|error| error.explain())?;
        Ok(Side { environment, cached, catalog })
    }

    /// What is stored of a node: its tables as far as they are chosen, all of its types and sequences.
    async fn catalog(&self, of: &EnvironmentFingerprint, chosen: &Selection) -> Result<Catalog, Error> {
        let environment = Environment::parse(&of.definition)?;
        let mut catalog = Catalog { server_major: environment.major(), environment, ..Catalog::default() };
        let mut after = None;
        loop {
            let rows = fingerprints::tables(self.store(), &of.node_id, after.as_ref(), ROWS).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.table.clone());
            for row in rows.iter().filter(|row| chosen.holds(&row.table)) {
                let table = Table {
                    fingerprint: row.fingerprint.clone(),
                    fingerprint_sorted: row.fingerprint_sorted.clone(),
                    shape_fingerprint: row.shape.clone(),
                    ..Table::parse(&row.table, &row.columns, &row.definition)?
                };
                catalog.tables.insert(row.table.clone(), table);
            }
        }
        for row in fingerprints::objects(self.store(), &of.node_id).await? {
            // Kinds of a later version mean nothing here.
            let Some(kind) = ObjectKind::parse(&row.kind) else { continue };
            let key = ObjectKey { kind, name: row.object };
            let object = Object::parse(&key, row.fingerprint, &row.definition)?;
            catalog.objects.insert(key, object);
        }
        Ok(catalog)
    }
}

impl Pair {
    /// Compares them; this node is on the left. Where the servers' versions differ, expressions that they only write in
    /// two ways are told from those that are not the same.
    pub async fn compare(&mut self, drift: &Drift) -> Result<Comparison, Failure> {
        let mut comparison = compare(&self.own.catalog, &self.other.catalog);
        if self.own.catalog.server_major != self.other.catalog.server_major && !comparison.is_match() {
            let database = drift.store().database();
            let session = database.session(Purpose::Watch).await.map_err(|error| error.explain())?;
            let (own, other) = (&self.own.catalog, &mut self.other.catalog);
            let settled = super::deparse::settle(&session, &mut comparison, own, other).await;
            session.close().await;
            settled.map_err(|error| error.explain())?;
        }
        blame_types(&mut comparison, &self.own.catalog, &self.other.catalog);
        let concerns = self.concerned();
        comparison.objects.retain(|key, _| concerns(key));
        Ok(comparison)
    }

    /// What would bring this node up to date with the other. Takes seconds for thousands of tables, so not on a thread that
    /// others wait for.
    pub async fn plan(&self) -> Result<Plan, Failure> {
        let pair = self.clone();
        let planned = tokio::task::spawn_blocking(move || pair.plan_here()).await;
        planned.map_err(|error| Failure::new(Code::Internal, "planning ended unexpectedly").caused_by(&error))
    }

    fn plan_here(&self) -> Plan {
        let concerns = self.concerned();
        let mut source = self.other.catalog.clone();
        source.objects.retain(|key, _| concerns(key));
        let mut plan = plan::plan(&source, &self.own.catalog);
        let aside: BTreeSet<_> =
            self.own.catalog.objects.keys().filter(|key| !concerns(key)).map(ToString::to_string).collect();
        plan.hazards.retain(|hazard| hazard.table.is_some() || !aside.contains(&hazard.object));
        plan
    }

    /// Which types and sequences are meant: all, or those that the tables chosen use and those of the schemas chosen.
    fn concerned(&self) -> impl Fn(&ObjectKey) -> bool + use<> {
        let is_everything = self.chosen.is_whole_database();
        let schemas = self.chosen.schemas.clone();
        let used = |side: &Side| side.catalog.used_by(&side.catalog.tables.keys().cloned().collect());
        let used = match is_everything {
            true => BTreeSet::new(),
            false => &used(&self.own) | &used(&self.other),
        };
        move |key| is_everything || used.contains(key) || schemas.contains(&key.name.schema)
    }
}
