//! Everything a node holds that an operation could leave behind.

use std::{collections::BTreeSet, fmt};

use tokio_postgres::error::SqlState;

use crate::node::Node;

/// One line a thing: `slot …`, `origin …`, `table public.orders`, `10 rows in public.orders`.
#[derive(Clone, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

/// Everything but rows; what belongs to PostgreSQL or to `steep_repl` itself is left out.
const THINGS: &str = r"
with spaces as (
  select oid, nspname from pg_namespace
   where nspname !~ '^pg_' and nspname not in ('information_schema', 'steep_repl')
)
select 'slot ' || slot_name from pg_replication_slots where not temporary
union all
select 'origin ' || roname from pg_replication_origin
union all
select 'publication ' || pubname from pg_publication
union all
select format('publication %s has %I.%I', pubname, schemaname, tablename) from pg_publication_tables
union all
select format('subscription %s, enabled: %s', subname, subenabled) from pg_subscription
 where subdbid = (select oid from pg_database where datname = current_database())
union all
select 'schema ' || nspname from spaces
union all
select format('%s %I.%I', case relkind when 'r' then 'table' when 'p' then 'partitioned table' when 'i' then 'index'
              when 'S' then 'sequence' when 'v' then 'view' else 'relation of kind ' || relkind::text end, nspname, relname)
  from pg_class join spaces on spaces.oid = relnamespace
union all
select format('constraint %I on %s', conname, conrelid::regclass)
  from pg_constraint join spaces on spaces.oid = connamespace where conrelid <> 0
union all
select format('trigger %I on %s', tgname, tgrelid::regclass)
  from pg_trigger join pg_class c on c.oid = tgrelid join spaces on spaces.oid = c.relnamespace where not tgisinternal
union all
select format('function %I.%I(%s)', nspname, proname, pg_get_function_identity_arguments(pg_proc.oid))
  from pg_proc join spaces on spaces.oid = pronamespace
union all
select format('type %I.%I', nspname, typname)
  from pg_type join spaces on spaces.oid = typnamespace where typtype in ('e', 'd', 'r') or typrelid = 0 and typtype = 'c'
";

/// Every table one can count the rows of.
const TABLES: &str = r"
select format('%I.%I', nspname, relname)
  from pg_class join pg_namespace n on n.oid = relnamespace
 where relkind = 'r' and nspname !~ '^pg_' and nspname not in ('information_schema', 'steep_repl')
";

impl Node {
    /// What is there now.
    pub async fn inventory(&self) -> Inventory {
        let mut lines: BTreeSet<String> = self.texts(THINGS).await.into_iter().collect();
        for table in self.texts(TABLES).await {
            // One that somebody drops at this moment is among the things still, and looked at again by whoever waits.
            let counted = self.try_rows(&format!("select count(*) from only {table}")).await;
            match counted {
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {}
                Err(error) => panic!("{}: {table}: {error}", self.id()),
                Ok(rows) => drop(lines.insert(format!("{} rows in {table}", rows[0].get::<_, i64>(0)))),
            }
        }
        Inventory(lines)
    }
}

impl Inventory {
    /// Fails with what is new and what is gone, unless nothing is.
    #[track_caller]
    pub fn is_as(&self, before: &Self) {
        let difference = self.since(before);
        assert!(difference.is_empty(), "not as before:\n{}", difference.join("\n"));
    }

    /// What is new (`+`) and what is gone (`-`).
    pub fn since(&self, before: &Self) -> Vec<String> {
        let new = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        let gone = before.0.difference(&self.0).map(|line| format!("- {line}"));
        new.chain(gone).collect()
    }

    /// Whether a line says exactly this.
    pub fn has(&self, line: &str) -> bool {
        self.0.contains(line)
    }
}

impl fmt::Debug for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
