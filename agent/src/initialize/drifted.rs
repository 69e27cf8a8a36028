//! How tables that both nodes have already compare, and what an initialization does about it.
//!
//! `strict` refuses whatever would keep rows of one node out of the other, or change what they mean. `auto` first brings the
//! target's tables up to date, as far as a plan that only adds can; what no plan settles is refused as well. The agents'
//! fingerprints are compared before the copy, before the subscription is enabled, and once more when it has caught up.

use steep_protocol::{
    failure::{Code, Explain as _, Failure},
    ids::NodeId,
    names::TableName,
    operation::SchemaSync,
    wire::identity::Who,
};

use super::{direct::Direct, findings::Findings, messages::table_name, preflight::Wanted};
use crate::{
    drift::apply,
    operations::{Context, Milestone},
    postgres::selection::Selection,
    rooms::Rooms,
    schema::{
        compare::{Comparison, TableComparison, Verdict},
        diff::{Aspect, Difference},
        plan::Hazard,
    },
};

/// Tables told of one by one.
const TOLD_APART: usize = 20;

/// Whether a table of this node (on the left) keeps rows out, or changes what they mean. One way a column that is here only
/// does neither: whether it fills itself is judged where columns are.
fn stops(compared: &TableComparison, one_way: bool) -> bool {
    judged(compared, |one| one.aspect.is_blocking() && !is_own(one, one_way))
}

/// Whether rows of the source would not fit any more: a default of another text is no reason to throw a copy away.
fn breaks(compared: &TableComparison, one_way: bool) -> bool {
    judged(compared, |one| match one.aspect {
        Aspect::Default | Aspect::Identity | Aspect::Collation => false,
        Aspect::Nullability => one.left.as_deref() == Some("NOT NULL"),
        aspect => aspect.is_blocking() && !is_own(one, one_way),
    })
}

fn judged(compared: &TableComparison, counts: impl Fn(&Difference) -> bool) -> bool {
    match compared.verdict {
        Verdict::Mismatch => compared.differences.iter().any(counts),
        _ => compared.is_blocking(),
    }
}

fn is_own(one: &Difference, one_way: bool) -> bool {
    one_way && matches!(one.aspect, Aspect::Column | Aspect::ValueType) && one.right.is_none()
}

/// Findings about the tables called `existing`, which this node and `source` have both.
pub(super) async fn check(
    rooms: &Rooms,
    source: &NodeId,
    findings: &mut Findings,
    existing: Vec<TableName>,
    wanted: &Wanted,
) -> Result<(), Failure> {
    if existing.is_empty() {
        return Ok(());
    }
    let chosen = Selection { tables: existing, ..Selection::default() };
    let mut pair = match rooms.drift.pair(source, &chosen, false).await {
        Ok(pair) => pair,
        // What the source says for the copy has been compared; it keeps the rest to itself.
        Err(failure) if failure.code == Code::Denied && wanted.schema_sync == SchemaSync::Strict => {
            findings.warn(
                Code::SchemaDiffers,
                format!("only columns and keys were compared: {}", failure.message),
                failure.hint,
            );
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    let comparison = pair.compare(&rooms.drift).await?;
    match wanted.schema_sync {
        SchemaSync::Strict => tell(findings, &comparison, &rooms.me, source, wanted.one_way),
        SchemaSync::Auto => {
            findings.forget(Code::SchemaDiffers);
            let plan = pair.plan().await?;
            let is_own = |hazard: &Hazard| {
                // There the source is on the left, here on the right.
                let difference = hazard.difference.clone();
                let turned = difference.map(|one| Difference { left: one.right, right: one.left, ..one });
                turned.is_some_and(|one| is_own(&one, wanted.one_way))
            };
            for hazard in plan.hazards.iter().filter(|hazard| hazard.is_blocking && !is_own(hazard)) {
                findings.error(Code::SchemaDiffers, hazard.headline(), &hazard.by_hand);
            }
            for step in &plan.steps {
                findings.warn(
                    Code::SchemaDiffers,
                    format!("will be run first: {}", step.printable()),
                    step.kind.reversal(),
                );
            }
        }
    }
    Ok(())
}

fn tell(findings: &mut Findings, comparison: &Comparison, me: &NodeId, source: &NodeId, one_way: bool) {
    let hint = format!(
        "steepctl schema diff {source} {me}; steepctl schema sync {source} {me} --apply, or start with --schema-sync auto"
    );
    let differing = comparison.tables.iter().filter(|(_, compared)| compared.verdict != Verdict::Match);
    let (blocking, other): (Vec<_>, Vec<_>) = differing.partition(|(_, compared)| stops(compared, one_way));
    let known = findings.messages(Code::SchemaDiffers);
    let is_new = |name: &TableName| !known.iter().any(|told| told.starts_with(&format!("table {name} differs")));
    for (name, compared) in blocking.iter().filter(|(name, _)| is_new(name)).take(TOLD_APART) {
        findings.error(Code::SchemaDiffers, format!("table {name} differs: {}", words(compared, me, source)), &hint);
    }
    if blocking.len() > TOLD_APART {
        findings.error(Code::SchemaDiffers, format!("{} tables differ in all", blocking.len()), &hint);
    }
    for (name, compared) in other.iter().take(TOLD_APART) {
        let text = format!("table {name} is not quite the same: {}", words(compared, me, source));
        findings.warn(Code::SchemaDiffers, text, format!("steepctl schema diff {source} {me} {name}"));
    }
}

fn words(compared: &TableComparison, me: &NodeId, source: &NodeId) -> String {
    match compared.verdict {
        Verdict::LocalOnly => format!("it is missing on {source}"),
        Verdict::RemoteOnly => format!("it is missing on {me}"),
        _ => {
            let told = compared.differences.iter().map(|one| one.summary(me.as_str(), source.as_str()));
            told.collect::<Vec<_>>().join("; ")
        }
    }
}

impl Direct {
    /// Brings the tables that are here already up to date. Only adds; what it did stays, whatever comes after it.
    pub(super) async fn sync_schema(&mut self, context: &Context) -> Result<(), Failure> {
        let chosen = Selection { tables: self.here.existing.keys().cloned().collect(), ..Selection::default() };
        if !chosen.is_whole_database() {
            let source = &self.plan.source;
            let mut pair = self.rooms.drift.pair(source, &chosen, false).await?;
            pair.compare(&self.rooms.drift).await?;
            let plan = pair.plan().await?;
            let order = apply::Order { op: context.op, source: source.clone(), actor: context.actor.clone() };
            let applied = apply::apply(&self.rooms.store, &plan, &order, &apply::Limits::default()).await;
            applied.map_err(|error| error.explain())?;
        }
        // From here on as if the operator had done it by hand.
        self.plan.wanted.schema_sync = SchemaSync::Strict;
        self.check_both_nodes(context).await
    }

    /// The tables of the copy, compared as they are now on both nodes; none where the source keeps that to itself.
    async fn misfits(&self, counts: fn(&TableComparison, bool) -> bool) -> Result<Vec<(TableName, String)>, Failure> {
        let names = self.facts.tables.iter().filter_map(|table| table.table.as_ref().map(table_name));
        let chosen = Selection { tables: names.collect(), ..Selection::default() };
        if chosen.is_whole_database() {
            return Ok(Vec::new());
        }
        let source = &self.plan.source;
        let mut pair = match self.rooms.drift.pair(source, &chosen, false).await {
            Ok(pair) => pair,
            Err(failure) if failure.code == Code::Denied => return Ok(Vec::new()),
            Err(failure) => return Err(failure),
        };
        let comparison = pair.compare(&self.rooms.drift).await?;
        let one_way = self.plan.wanted.one_way;
        let blocking = comparison.tables.iter().filter(|(_, compared)| counts(compared, one_way));
        Ok(blocking.map(|(name, compared)| (name.clone(), words(compared, &self.rooms.me, source))).collect())
    }

    /// The tables that differ so that their rows cannot be replicated, and how.
    pub(super) async fn differences(&self) -> Result<Vec<(TableName, String)>, Failure> {
        self.misfits(breaks).await
    }

    /// Nobody may have changed a table on either node since the copy began.
    pub(super) async fn check_alike(&self) -> Result<(), Failure> {
        let misfits = self.misfits(breaks).await?;
        let Some((name, words)) = misfits.first() else { return Ok(()) };
        let failure =
            Failure::new(Code::SchemaChanged, format!("table {name} changed on one node during the copy: {words}"));
        Err(misfits[1..]
            .iter()
            .take(TOLD_APART)
            .fold(failure, |failure, (name, words)| failure.cause(format!("also table {name}: {words}"))))
    }

    /// What changed since is told: the rows are here, and a difference that stops replication has stopped it.
    pub(super) async fn tell_misfits(&self, context: &Context) -> Result<(), Failure> {
        for (name, words) in self.misfits(stops).await? {
            let text = format!("table {name} is not the same on {}: {words}", self.plan.source);
            context.announce(Milestone::new("schema.mismatch_detected", text).table(&name)).await;
        }
        Ok(())
    }
}

/// DDL on the target is for those whom its configuration lets run it.
pub(super) fn may_sync(rooms: &Rooms, wanted: &Wanted, signer: &Who) -> Result<(), Failure> {
    let least = rooms.config.schema.sync_role;
    match signer {
        _ if wanted.schema_sync == SchemaSync::Strict => Ok(()),
        Who::Operator { role, .. } if *role >= least => Ok(()),
        _ => {
            let text = format!("--schema-sync auto may change tables on {}, which needs role {least}", rooms.me);
            let hint = "ask with the certificate of an admin, or set schema.sync_role = \"operator\" in the target's agent.toml";
            Err(Failure::new(Code::Denied, text).hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_copy_is_less_than_what_keeps_it_from_beginning() {
        let difference = |aspect, left: Option<&str>, right: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            let differences = vec![Difference { aspect, name: "c".into(), left: text(left), right: text(right) }];
            TableComparison { verdict: Verdict::Mismatch, qualifier: None, differences }
        };
        // Aspect, here, there; stops and breaks both ways, stops and breaks one way.
        let cases = [
            (Aspect::Column, Some("int"), None, [true, true, false, false]),
            (Aspect::Column, None, Some("int"), [true, true, true, true]),
            (Aspect::Type, Some("int"), Some("text"), [true, true, true, true]),
            (Aspect::Default, Some("1"), Some("2"), [true, false, true, false]),
            (Aspect::Nullability, Some("NOT NULL"), Some("NULL"), [true, true, true, true]),
            (Aspect::Nullability, Some("NULL"), Some("NOT NULL"), [true, false, true, false]),
            (Aspect::PrimaryKey, Some("a"), Some("b"), [true, true, true, true]),
            (Aspect::Index, Some("a"), None, [false; 4]),
        ];
        for (aspect, left, right, expected) in cases {
            let one = difference(aspect, left, right);
            let found = [stops(&one, false), breaks(&one, false), stops(&one, true), breaks(&one, true)];
            assert_eq!(found, expected, "{aspect:?} {left:?} {right:?}");
        }
    }
}
