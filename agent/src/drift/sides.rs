//! Two nodes' schemas side by side: this one's as it is, the other's as it was just told or, where it cannot be asked, as it
//! was last heard.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
};

use super::{Drift, Error};
use crate::{
    postgres::{Purpose, selection::Selection},
    schema::{
        Catalog,
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
}

impl Drift {
    /// Looks at this node and asks `other`, about the tables chosen. `may_be_cached`: what was last heard will do where
    /// the other cannot be asked.
    pub async fn pair(&self, other: &NodeId, chosen: &Selection, may_be_cached: bool) -> Result<Pair, Failure> {
        // Both captures at once: each is most of the work of its node.
        let (own, heard) = tokio::join!(self.own(chosen), self.heard(other, chosen, may_be_cached));
        Ok(Pair { own: own?, other: heard? })
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

    /// What is stored of a node, as far as it is chosen.
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
        if chosen.is_whole_database() {
            return Ok(catalog);
        }
        let named = catalog.tables.keys().cloned().collect();
        Ok(catalog.about(&named))
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
        Ok(comparison)
    }

    /// What would bring this node up to date with the other.
    pub fn plan(&self) -> Plan {
        plan::plan(&self.other.catalog, &self.own.catalog)
    }
}
