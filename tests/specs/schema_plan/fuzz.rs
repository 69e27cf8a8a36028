//! Random pairs of schemas: a shop, changed at random on either side, with rows on the target. A sync ends in a match or
//! in listed hazards; or it is refused and nothing has changed. Rows are what they were, whatever happens.

use std::fmt::Write as _;

use steep_agent::{drift::apply::Limits, schema::compare::Verdict};
use steep_protocol::failure::{Code, Explain as _};
use steep_tests::{Cluster, Node};

use super::lab::{Side, both, planned, told};

/// The same numbers for the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is small")
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

const BASE: &str = "
create type mood as enum ('b', 'd');
create domain short as varchar(8) check (value <> '');
create sequence tick;
create table a (id integer primary key, name varchar(10), price numeric(8,2) default 1, mood mood, code text not null, note text default 'x');
create table b (id integer primary key, a_id integer, name varchar(20) default 'n', amount integer not null default 3, at date);
create table p (id integer not null, at integer not null, note varchar(10), primary key (id, at)) partition by range (at);
create table p1 partition of p for values from (0) to (100);
create table p2 partition of p for values from (100) to (200);
create table parent (id integer, word text);
create table child (extra integer) inherits (parent);
";

const ROWS: &str = "
insert into a select i, 'n' || i, i, 'b', 'c' || i, null from generate_series(1, 20) i;
insert into b select i, i, 'n' || i, i, null from generate_series(1, 20) i;
insert into p select i, i * 9, 'n' from generate_series(1, 20) i;
insert into child select i, 'w', i from generate_series(1, 20) i;
";

/// Everything the rows of the base hold, whatever was added to them.
const KEPT: &str = "select md5(string_agg(r, ',' order by r)) from (
    select row('a', a.id)::text from a union all select row('b', b.id)::text from b
    union all select row('p', p.id, p.at)::text from p union all select row('c', child.id)::text from child) t (r)";

/// One change; some fail for what came before them, and are passed over.
fn change(chance: &mut Chance, number: usize) -> String {
    let table = chance.of(&["a", "b", "p", "parent", "child", "a", "b"]);
    let kind = chance.of(&[
        "text",
        "integer",
        "varchar(12)",
        "numeric(6,1)",
        "timestamptz",
        "mood",
        "short",
        "integer[]",
        "text collate \"C\"",
    ]);
    let column = chance.of(&["name", "price", "note", "code", "amount", "a_id", "mood", "word"]);
    match chance.below(24) {
        0 => format!("alter table {table} add n{number} {kind}"),
        1 => format!("alter table {table} add n{} {kind} default null", chance.below(3)),
        2 => format!("alter table {table} add k{number} integer not null default {number}"),
        3 => format!("alter table {table} add t{number} timestamptz default now()"),
        4 => format!(
            "alter table {table} alter {column} type {}",
            chance.of(&["varchar(30)", "text", "varchar(5)", "numeric(12,2)", "numeric(9,3)"])
        ),
        5 => format!(
            "alter table {table} alter {column} set default {}",
            chance.of(&["null", "'5'", "'7'", "2", "('z' || 'y')"])
        ),
        6 => format!("alter table {table} alter {column} drop default"),
        7 => format!("alter table {table} alter {column} set not null"),
        8 => format!("alter table {table} alter {column} drop not null"),
        9 => format!("create index i{} on {table} ({column})", chance.below(4)),
        10 => format!("create unique index u{} on {table} ({column}, id)", chance.below(3)),
        11 => format!(
            "alter table {table} add constraint c{} check (id {} {number})",
            chance.below(4),
            chance.of(&["<>", ">", "<"])
        ),
        12 => "alter table b add constraint to_a foreign key (a_id) references a".to_owned(),
        13 => format!("alter table {table} add constraint q{} unique (id, {column})", chance.below(2)),
        14 => format!("alter table {table} replica identity {}", chance.of(&["full", "default", "nothing"])),
        15 => format!(
            "alter type mood add value if not exists '{}' {} '{}'",
            chance.of(&["a", "c", "e"]),
            chance.of(&["before", "after"]),
            chance.of(&["b", "d"])
        ),
        16 => format!(
            "create table t{} (id {} primary key, m mood default 'b', s short, r integer references a)",
            chance.below(3),
            chance.of(&["serial", "integer", "bigint generated always as identity"])
        ),
        17 => format!("alter table {table} drop column {column}"),
        18 => format!(
            "create table p{} partition of p for values from ({}) to ({})",
            number + 3,
            200 + number * 10,
            210 + number * 10
        ),
        19 => format!("create type y{} as enum ('x', 'y{}')", chance.below(3), chance.below(2)),
        20 => format!("create sequence s{} {}", chance.below(2), chance.of(&["", "cycle", "as integer"])),
        21 => format!("alter table {table} add g{number} integer generated always as (id * 2) stored"),
        22 => format!("alter table {table} rename {column} to r{}", chance.below(3)),
        _ => format!("alter table {table} add constraint d{} check ({column} is not null) not valid", chance.below(2)),
    }
}

async fn side(node: &Node, name: &str, chance: &mut Chance, script: &mut String) -> Side {
    let side = Side::new(node, name).await;
    side.sql(BASE).await;
    for number in 0..chance.below(9) {
        let sql = change(chance, number);
        if side.client.batch_execute(&sql).await.is_ok() {
            let _ = writeln!(script, "{name}: {sql};");
        }
    }
    side
}

/// Whether the pair of `seed` matched, was left with hazards, or was refused.
async fn pair(node: &Node, seed: u64) -> &'static str {
    let mut chance = Chance(seed);
    let mut script = String::new();
    let (first, second) = (format!("s{seed}"), format!("t{seed}"));
    let source = side(node, &first, &mut chance, &mut script).await;
    let target = side(node, &second, &mut chance, &mut script).await;
    for rows in ROWS.trim().lines() {
        // A change may keep rows out.
        let _ = target.client.batch_execute(rows).await;
    }
    let kept = target.text(KEPT).await;
    let before = target.catalog().await;
    let plan = planned(&source, &target).await;
    let limits = Limits { small_bytes: 32 << 20, ..Limits::default() };
    let context =
        |what: String| format!("seed {seed}, PostgreSQL {}: {what}\n{script}\n{}", node.major(), plan.script());
    let outcome = match target.apply(&plan, &limits).await.map_err(|error| error.explain()) {
        Ok(_) => {
            let (.., compared) = both(&source, &target).await;
            let unlisted: Vec<_> = compared
                .tables
                .iter()
                .filter(|(name, table)| {
                    table.verdict != Verdict::Match
                        && !plan.hazards.iter().any(|hazard| hazard.table.as_ref() == Some(*name))
                })
                .map(|(name, _)| name.to_string())
                .collect();
            assert!(unlisted.is_empty(), "{}", context(format!("{unlisted:?} {:#?}", told(&compared))));
            assert!(compared.is_match() || !plan.hazards.is_empty(), "{}", context(format!("{:#?}", told(&compared))));
            let again = planned(&source, &target).await;
            assert!(again.steps.is_empty(), "{}", context(format!("a second plan goes on: {}", again.script())));
            if plan.hazards.is_empty() { "matched" } else { "hazards" }
        }
        Err(failure) => {
            let context = context(format!("{failure:#?}"));
            // Rows that break a constraint of the source are the one reason for which a plan may be refused.
            let by_rows =
                ["23502", "23503", "23505", "23514"].contains(&failure.sqlstate.as_deref().unwrap_or_default());
            assert!(failure.code == Code::SchemaTrialFailed && by_rows, "{context}");
            let after = target.catalog().await;
            assert_eq!(after.tables, before.tables, "{context}");
            "refused"
        }
    };
    assert_eq!(target.text(KEPT).await, kept, "rows changed: {}", context(String::new()));
    drop((source, target));
    node.sql(&format!("drop database {first} with (force)")).await;
    node.sql(&format!("drop database {second} with (force)")).await;
    outcome
}

async fn pairs(node: &Node, seeds: std::ops::Range<u64>) {
    let mut counted = std::collections::BTreeMap::new();
    for seed in seeds {
        *counted.entry(pair(node, seed).await).or_insert(0) += 1;
    }
    eprintln!("PostgreSQL {}: {counted:?}", node.major());
    assert!(counted.contains_key("matched") && counted.contains_key("hazards"), "{counted:?}");
}

#[tokio::test]
async fn random_pairs_end_in_a_match_or_in_listed_hazards_and_keep_their_rows() {
    let [new, old]: [Node; 2] = Cluster::of(2).pg(&["18", "15"]).servers_only().start().await;
    let count = std::env::var("STEEP_FUZZ_PAIRS").ok().and_then(|text| text.parse().ok()).unwrap_or(25);
    let first = std::env::var("STEEP_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    tokio::join!(pairs(&new, first..first + count), pairs(&old, first + 1_000..first + 1_000 + count));
}
