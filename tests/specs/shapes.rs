//! Tables come as they are, whatever their shape: partitions, generated columns, circles of foreign keys, triggers,
//! sequences, and all that stands around them.

use steep_tests::{Cluster, Node, NodeState::*};

use crate::alike::{alike, same_rows};

const START: &str = "node start node_b --from node_a";

/// Makes node_b from node_a.
async fn start(b: &Node) {
    b.steepctl(START).operation().completes().await;
    b.becomes(Synchronized).await;
}

#[tokio::test]
async fn partitioned_tables_come_with_all_partitions_and_rows_move_between_them() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create schema cold;
         create table sales (id bigint, region text not null, sold date not null, amount numeric,
           primary key (region, sold, id)) partition by list (region);
         create table sales_eu partition of sales for values in ('eu') partition by range (sold);
         create table cold.sales_eu_old partition of sales_eu for values from (minvalue) to ('2025-01-01');
         -- Attached: its columns stand in another order, and one is gone.
         create table sales_eu_new (sold date not null, gone int, amount numeric, id bigint not null, region text not null);
         alter table sales_eu_new drop gone;
         alter table sales_eu attach partition sales_eu_new for values from ('2025-01-01') to (maxvalue);
         create table sales_us partition of sales for values in ('us', 'ca');
         create table sales_rest partition of sales default;
         create index by_amount on sales (amount) include (id);
         create unique index on sales (id, region, sold);
         create index alone on sales_us (id);
         create table refunds (id int primary key, region text, sold date, sale bigint,
           foreign key (region, sold, sale) references sales (region, sold, id));
         create table events (id int primary key, kind text check (kind <> '')) partition by hash (id);
         create table events_0 partition of events for values with (modulus 2, remainder 0);
         create table events_1 partition of events for values with (modulus 2, remainder 1);
         create table empty_above (id int primary key) partition by range (id);
         insert into sales
         select n, (array['eu', 'us', 'ca', 'jp'])[1 + n % 4], date '2024-06-01' + n, n * 1.5 from generate_series(1, 1000) n;
         insert into refunds select id, region, sold, id from sales where id % 10 = 0;
         insert into events select n, 'kind ' || n from generate_series(1, 200) n;
         update sales set amount = 7 where id = 5;",
    )
    .await;
    start(&b).await;
    alike(&a, &b).await;
    let valid = "select count(*) from pg_index where not indisvalid or not indisready";
    assert_eq!(b.value::<i64>(valid).await, 0);

    for (node, other, region) in [(&a, &b, "us"), (&b, &a, "xx")] {
        let from = if node.id() == "node_a" { 10_001 } else { 20_001 };
        node.sql(&format!(
            "insert into sales select n, (array['eu', 'us', 'ca', 'nn'])[1 + n % 4], date '2024-06-01' + (n % 700), 1
               from generate_series({from}, {from} + 100) n;
             update sales set region = '{region}' where id between {from} and {from} + 20;
             update sales set sold = sold - 300 where region = 'eu' and id between {from} and {from} + 90;
             update sales set amount = 0 where id = {from} % 100;
             delete from sales where id between {from} + 30 and {from} + 35;
             insert into events values ({from}, 'x');
             delete from events where id = {from} - 10000 + 5 or id = 7"
        ))
        .await;
        for table in ["sales", "cold.sales_eu_old", "sales_eu_new", "sales_rest", "events"] {
            same_rows(&a, &b, table, "*").await;
        }
        assert!(other.count("sales_rest").await > 250);
    }
}

#[tokio::test]
async fn a_partitioned_table_of_the_target_has_the_same_partitions_or_is_refused() {
    let [a, b] = Cluster::of(2).start().await;
    let parted = "create table parted (id int primary key, v text) partition by range (id);
                  create table parted_1 partition of parted for values from (0) to (100);";
    let second = "create table parted_2 partition of parted for values from (100) to (200);";
    a.sql(parted).await;
    b.sql(parted).await;
    a.sql(second).await;
    let told = b.steepctl(START).fails_with("STP-2202");
    assert!(told.stderr.contains("partition public.parted_2 is missing here"), "{told}");
    b.sql(second).await;
    b.sql("create table more partition of parted default").await;
    let told = b.steepctl(START).fails_with("STP-2202");
    assert!(told.stderr.contains("partition public.more exists here only"), "{told}");
    b.sql("drop table more").await;
    a.sql("insert into parted select n, 'v' from generate_series(1, 150) n").await;
    start(&b).await;
    alike(&a, &b).await;
    // From one partition to the other, on either node.
    b.sql("update parted set id = 180 where id = 8").await;
    a.sql("update parted set id = 0 where id = 120; delete from parted where id = 150").await;
    for table in ["parted", "parted_1", "parted_2"] {
        same_rows(&a, &b, table, "*").await;
    }
}

#[tokio::test]
async fn generated_identity_and_dropped_columns_come_as_they_are() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create table made (
           gone_first text,
           id bigint generated always as identity (start 100 increment 3) primary key,
           price numeric not null,
           gone text,
           gross numeric generated always as (round(price * 1.19, 2)) stored,
           name text collate \"C\" default 'n' || 1,
           label text generated always as (upper(name)) stored,
           gone_last int
         );
         insert into made (gone_first, price, gone, name) select 'x', n / 7.0, 'y', 'name ' || n from generate_series(1, 300) n;
         alter table made drop gone_first, drop gone, drop gone_last;
         -- Rows that were there get it without being written.
         alter table made add later text not null default 'since then', add even_later timestamptz default '2026-01-01';
         insert into made (price) values (1), (2);
         create table by_default (id int generated by default as identity primary key, twice int generated always as (id * 2) stored);
         insert into by_default values (default), (10), (default);
         create table only_generated (id int primary key, a int generated always as (id + 1) stored);
         insert into only_generated values (1), (2);
         create table nothing_left (id int, gone int);
         insert into nothing_left values (1, 2);
         alter table nothing_left drop gone, replica identity full;
         create table keyed_by_index (a int not null, b text not null, c text);
         create unique index keys on keyed_by_index (b, a);
         alter table keyed_by_index replica identity using index keys;
         insert into keyed_by_index values (1, 'b', 'c'), (2, 'b', 'c');",
    )
    .await;
    if a.major() >= 18 {
        a.sql(
            "create table virtual (id int primary key, v int, double int generated always as (v * 2) virtual);
             insert into virtual values (1, 2), (2, null)",
        )
        .await;
    }
    start(&b).await;
    alike(&a, &b).await;
    for (at, node) in [&a, &b].into_iter().enumerate() {
        node.sql(&format!(
            "insert into made (price, name) values (1000 + {at}, 'on {at}');
             update made set price = price + 1, name = name || '{at}' where id in (100, 103 + {at});
             delete from made where id = 109 + 3 * {at};
             insert into by_default values (default);
             insert into only_generated values (10 + {at});
             update only_generated set id = 20 + {at} where id = 1 + {at};
             update nothing_left set id = id + 1;
             update keyed_by_index set c = c || {at}, b = 'z' where a = 1 + {at}"
        ))
        .await;
        if node.major() >= 18 {
            node.sql("insert into virtual values (10, 1) on conflict do nothing; update virtual set v = v + 1").await;
        }
        alike(&a, &b).await;
    }
    assert_eq!(b.texts("select gross from made where name like 'on %' order by id").await, ["1190.00", "1191.19"]);
}

#[tokio::test]
async fn a_table_that_exists_with_another_column_order_is_filled_by_name() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create table items (id int primary key, price numeric, gone int, note text, made int generated always as (id * 2) stored);
         alter table items drop gone;
         insert into items select n, n / 3.0, 'note ' || n from generate_series(1, 100) n;
         create type kind as enum ('a', 'b');
         create table others (id int primary key, kind kind, item int references items);
         insert into others select n, 'b', n from generate_series(1, 10) n;",
    )
    .await;
    b.sql(
        "create table items (note text, gone text, made int generated always as (id * 2) stored, price numeric,
           id int primary key);
         alter table items drop gone;
         create type kind as enum ('a', 'b');",
    )
    .await;
    start(&b).await;
    let columns = "id, price, note, made";
    same_rows(&a, &b, "items", columns).await;
    same_rows(&a, &b, "others", "*").await;
    assert_eq!(b.count("items").await, 100);
    for (at, node) in [&a, &b].into_iter().enumerate() {
        node.sql(&format!(
            "insert into items (id, note) values (200 + {at}, 'new'); update items set price = -1 where id = 5 + {at}"
        ))
        .await;
        same_rows(&a, &b, "items", columns).await;
        assert_eq!(b.count("items where id >= 200").await, at as i64 + 1);
    }
}

#[tokio::test]
async fn a_table_of_the_target_that_could_not_follow_is_refused() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql("create table t (id int primary key, v text); insert into t values (1, 'one')").await;
    // Its changes could not be applied, and its own not be sent.
    b.sql("create table t (id int, v text)").await;
    let told = b.steepctl(START).fails_with("STP-2202");
    assert!(told.stderr.contains("replica identity"), "{told}");
    // What is written there could not be sent back.
    b.sql("drop table t; create table t (id int primary key, v text, more text)").await;
    let told = b.steepctl(START).fails_with("STP-2202");
    assert!(told.stderr.contains("more"), "{told}");
    // An updated row could not be found.
    b.sql("drop table t; create table t (id int, v text primary key)").await;
    let told = b.steepctl(START).fails_with("STP-2202");
    assert!(told.stderr.contains("named by (v) here and by (id) on node_a"), "{told}");
    b.sql("drop table t; create table t (id int primary key, v text); alter table t replica identity full").await;
    b.steepctl(START).fails_with("STP-2202");
    b.sql("drop table t; create table t (id int primary key, v text, more text)").await;
    // One way, nothing is sent back.
    b.steepctl(START).arg("--one-way").operation().completes().await;
    same_rows(&a, &b, "t", "id, v").await;
    a.sql("insert into t values (2, 'two'); update t set v = 'changed' where id = 1").await;
    same_rows(&a, &b, "t", "id, v").await;
}

#[tokio::test]
async fn a_key_with_a_generated_column_is_refused_before_updates_would_fail() {
    let [a, b] = Cluster::of(2).start().await;
    let generated = "generated always as (id * 2) stored";
    for (table, version) in [
        (format!("create table t (id int, g int {generated} primary key)"), 15),
        (
            format!(
                "create table t (id int, g int {generated} not null unique); alter table t replica identity using index t_g_key"
            ),
            15,
        ),
        (format!("create table t (id int primary key, g int {generated}); alter table t replica identity full"), 18),
        (
            "create table t (id int, g int generated always as (id) virtual); alter table t replica identity full"
                .into(),
            18,
        ),
    ] {
        if a.major() < version {
            continue;
        }
        a.sql(&table).await;
        let told = b.steepctl(START).fails_with("STP-2201");
        assert!(told.stderr.contains("generated column"), "{table}: {told}");
        // The refusal is right: published, an update fails where the application is.
        a.sql("create publication p for table t; insert into t values (1)").await;
        let update = a.try_sql("update t set id = 2").await;
        assert!(update.is_err() || version == 15, "{table}");
        a.sql("drop publication p; drop table t").await;
    }
    // A generated column beside the key does no harm.
    a.sql(&format!("create table t (id int primary key, g int {generated}); insert into t values (1)")).await;
    start(&b).await;
    b.sql("update t set id = 2").await;
    same_rows(&a, &b, "t", "*").await;
}

#[tokio::test]
async fn foreign_keys_may_run_in_circles() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create table staff (id int primary key, boss int references staff, team int);
         create table teams (id int primary key, lead int not null references staff deferrable initially deferred);
         alter table staff add foreign key (team) references teams on delete set null on update cascade;
         create table a (id int primary key, b int unique);
         create table b (id int primary key references a (b), a int references a deferrable);
         alter table a add constraint back foreign key (b) references b deferrable initially deferred;
         begin;
         insert into staff select n, nullif(n / 2, 0), null from generate_series(1, 500) n;
         insert into teams select n, n * 2 from generate_series(1, 100) n;
         update staff set team = 1 + id % 100;
         insert into a select n, n from generate_series(1, 50) n;
         insert into b select n, 51 - n from generate_series(1, 50) n;
         commit;
         create table unproven (id int primary key, a int);
         insert into unproven values (1, 999);
         alter table unproven add foreign key (a) references a not valid;",
    )
    .await;
    start(&b).await;
    alike(&a, &b).await;
    let unproven =
        b.texts("select conrelid::regclass::text from pg_constraint where contype = 'f' and not convalidated").await;
    assert_eq!(unproven, ["unproven"]);
    b.sql("delete from teams where id = 7").await;
    a.sql("begin; insert into a values (100, 100); insert into b values (100, 100); commit").await;
    for table in ["staff", "teams", "a", "b"] {
        same_rows(&a, &b, table, "*").await;
    }
    assert!(b.try_sql("insert into staff values (1000, 999)").await.is_err(), "a foreign key is not checked on node_b");
}

#[tokio::test]
async fn triggers_rest_while_rows_are_copied_and_fire_for_local_writes_afterwards() {
    let [a, b] = Cluster::of(2).start().await;
    let schema = "
        create table watched (id int primary key, v text, touched int not null default 0);
        create table seen (id bigint generated by default as identity primary key, what text);
        create function see() returns trigger language plpgsql as $$
          begin insert into public.seen (what) values (tg_op || ' ' || new.id); new.touched := new.touched + 1; return new; end $$;
        create function refuse() returns trigger language plpgsql as $$ begin raise 'a trigger fired'; end $$;
        create trigger see before insert or update on watched for each row execute function see();
        create trigger off before insert on watched for each row execute function refuse();
        alter table watched disable trigger off;
        create trigger never before truncate on watched for each statement execute function refuse();
        create rule quiet as on delete to watched where old.id < 0 do instead nothing;";
    a.sql(schema).await;
    a.sql("insert into watched select n, 'v' from generate_series(1, 50) n").await;
    // Here one table exists already, with its trigger, and one is new.
    b.sql(schema).await;
    b.sql("drop table seen").await;
    start(&b).await;
    alike(&a, &b).await;
    assert_eq!(b.count("seen").await, 50, "a trigger fired for rows that were copied");
    for (at, node) in [&a, &b].into_iter().enumerate() {
        node.sql(&format!(
            "insert into watched values (100 + {at}, 'new'); update watched set v = 'w' where id = 1 + {at}"
        ))
        .await;
        same_rows(&a, &b, "watched", "*").await;
        same_rows(&a, &b, "seen", "*").await;
        assert_eq!(
            b.count("seen").await,
            52 + 2 * at as i64,
            "a trigger fired for a replicated row, or not for a local one"
        );
    }
}

#[tokio::test]
async fn a_trigger_that_fires_always_is_told_of() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create table watched (id int primary key);
         create function ok() returns trigger language plpgsql as $$ begin return new; end $$;
         create trigger every_time before insert on watched for each row execute function ok();
         alter table watched enable always trigger every_time;",
    )
    .await;
    let told = b.steepctl(START).arg("--dry-run").succeeds();
    assert!(format!("{}{}", told.stdout, told.stderr).contains("every_time"), "{told}");
    start(&b).await;
    alike(&a, &b).await;
}

#[tokio::test]
async fn all_that_stands_around_tables_comes_too() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        r#"create schema shop;
         comment on schema shop is 'it''s the shop';
         create type shop.state as enum ('new', 'paid');
         create domain shop.email as text check (value ~ '@');
         create function shop.tax(numeric) returns numeric language sql immutable as 'select $1 * 0.19';
         create table shop.orders (
           id int primary key, state shop.state default 'new', mail shop.email, total numeric check (total >= 0),
           during tsrange, exclude using gist (during with &&), unique nulls not distinct (mail, total));
         comment on table shop.orders is E'two\nlines';
         comment on column shop.orders.total is 'with tax';
         create index on shop.orders (shop.tax(total)) where state = 'paid';
         create index on shop.orders using brin (id);
         create statistics shop.both on state, total from shop.orders;
         alter table shop.orders alter total set statistics 500, alter mail set storage external;
         alter table shop.orders set (fillfactor = 70, autovacuum_enabled = false);
         alter table shop.orders add constraint later check (id > 5) not valid;
         cluster shop.orders using orders_pkey;
         create view shop.paid with (security_barrier) as select * from shop.orders where state = 'paid';
         create view shop.above as select count(*) as paid from shop.paid;
         create materialized view shop.sums as select state, sum(total) as total from shop.orders group by state;
         create unique index on shop.sums (state);
         create materialized view shop.sums_of_sums as select sum(total) from shop.sums;
         create materialized view shop.unfilled as select 1 as one with no data;
         create rule log as on update to shop.orders where new.total > 1000000 do also select 1;
         alter table shop.orders enable row level security;
         create policy own on shop.orders for update using (mail = current_user) with check (true);
         create policy none on shop.orders as restrictive for delete using (false);
         create table shop.parent (id int primary key); create table shop.child (more int, primary key (id)) inherits (shop.parent);
         create aggregate shop.product(numeric) (sfunc = numeric_mul, stype = numeric, initcond = 1);
         create operator shop.=== (leftarg = int, rightarg = int, function = int4eq);
         create collation shop.plain (locale = 'C');
         create text search configuration shop.words (copy = pg_catalog.english);
         create cast (shop.email as int) with inout;
         create procedure shop.nothing() language sql as '';
         create extension vector;
         create table shop.vectors (id int primary key, v vector(3));
         insert into shop.vectors select n, array[n, 1, 2]::vector from generate_series(1, 20) n;
         grant select on shop.orders to pg_monitor;
         grant usage on schema shop to pg_monitor;
         alter default privileges in schema shop grant select on tables to pg_monitor;
         create function shop.noted() returns event_trigger language plpgsql as 'begin end';
         create event trigger noted on ddl_command_end execute function shop.noted();
         create table shop.empty (id int primary key);
         insert into shop.orders select n, 'paid', n || '@x', n, tsrange(now()::timestamp + n * interval '1 day', now()::timestamp + n * interval '1 day')
           from generate_series(6, 200) n;
         insert into shop.parent values (1); insert into shop.child values (2, 2);
         refresh materialized view shop.sums; refresh materialized view shop.sums_of_sums;"#,
    )
    .await;
    start(&b).await;
    a.sql("refresh materialized view shop.sums").await;
    let unfilled = b.texts("select oid::regclass::text from pg_class where relkind = 'm' and not relispopulated").await;
    assert_eq!(unfilled, ["shop.unfilled"]);
    for node in [&a, &b] {
        node.sql("refresh materialized view shop.unfilled").await;
    }
    alike(&a, &b).await;
    a.sql("insert into shop.child values (3, 3); insert into shop.parent values (4); insert into shop.vectors values (50, '[1,2,3]')").await;
    b.sql("update shop.parent set id = id + 100; insert into shop.vectors values (51, null)").await;
    for table in ["only shop.parent", "shop.child", "shop.vectors"] {
        same_rows(&a, &b, table, "*").await;
    }
}

#[tokio::test]
async fn sequences_of_the_target_stand_ahead_of_the_sources() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create table serials (id serial primary key, by text);
         create table identities (id int generated always as identity (cache 50) primary key, by text);
         create sequence down increment -2 minvalue -100000 start -1;
         create table downs (id int primary key default nextval('down'), by text);
         create sequence wide increment 1000 cache 20;
         create sequence untouched start 5000;
         create sequence set_only; select setval('set_only', 777, false);
         create sequence nearly_full as smallint; select setval('nearly_full', 32000);
         create sequence round maxvalue 50 cycle; select setval('round', 49);
         select nextval('down'), nextval('wide') from generate_series(1, 30);
         insert into serials (by) select 'start' from generate_series(1, 100);
         insert into identities (by) select 'start' from generate_series(1, 100);
         insert into downs (by) select 'start' from generate_series(1, 10);",
    )
    .await;
    start(&b).await;
    for node in [&a, &b] {
        for table in ["serials", "identities", "downs"] {
            node.sql(&format!("insert into {table} (by) select '{}' from generate_series(1, 300)", node.id())).await;
        }
    }
    for table in ["serials", "identities", "downs"] {
        same_rows(&a, &b, table, "*").await;
    }
    assert_eq!([a.count("serials").await, a.count("identities").await, a.count("downs").await], [700, 700, 610]);
    for (name, least) in [("wide", 50_000), ("untouched", 5000), ("set_only", 777), ("nearly_full", 32_001)] {
        let next = if name == "nearly_full" { "last_value" } else { "nextval(:)" }.replace(':', &format!("'{name}'"));
        let next: i64 = b.value(&format!("select {next}::bigint from {name}")).await;
        assert!(next >= least, "{name} is at {next}, the source past {least}");
    }
}

#[tokio::test]
async fn empty_tables_and_tables_without_columns_come_too() {
    let [a, b] = Cluster::of(2).start().await;
    a.sql(
        "create table empty (id int primary key, v text);
         create table emptied (id int primary key); insert into emptied select generate_series(1, 1000); delete from emptied;
         create table bare (); alter table bare replica identity full;
         insert into bare default values; insert into bare default values; insert into bare default values;
         create table bare_and_empty (); alter table bare_and_empty replica identity full;",
    )
    .await;
    start(&b).await;
    alike(&a, &b).await;
    assert_eq!(b.count("bare").await, 3);
    a.sql("insert into bare default values; insert into empty values (1, 'a')").await;
    b.sql("insert into bare default values; insert into empty values (2, 'b'); insert into emptied values (1)").await;
    for table in ["empty", "emptied"] {
        same_rows(&a, &b, table, "*").await;
    }
    same_rows(&a, &b, "bare", "1").await;
    a.sql("delete from bare where ctid = (select min(ctid) from bare)").await;
    same_rows(&a, &b, "bare", "1").await;
    assert_eq!(b.count("bare").await, 4);
}

#[tokio::test]
async fn a_table_of_many_parts_with_large_values_and_holes_comes_whole() {
    let [a, b] = Cluster::of(2).agent_toml("[copy]\npart_size = \"1MiB\"").start().await;
    a.sql(
        "create table large (id int primary key, small text, large text, raw bytea);
         alter table large alter large set storage external;
         insert into large
         select n, repeat(md5(n::text), 20),
                case when n % 50 = 0 then (select string_agg(md5(n || '/' || i), '') from generate_series(1, 300) i) end,
                case when n % 1000 = 0 then decode(repeat(md5(n::text), 40000), 'hex') end
           from generate_series(1, 8000) n;
         delete from large where id between 2000 and 3500;",
    )
    .await;
    a.sql("vacuum large").await;
    a.sql("update large set small = small || 'x' where id % 7 = 0; delete from large where id > 7900").await;
    start(&b).await;
    let parts: i64 = b.value("select count(*) from steep_repl.copied_parts").await;
    assert!(parts > 4, "{parts} parts");
    alike(&a, &b).await;
    b.sql("update large set small = 'changed' where id % 50 = 0").await;
    // One after the other: what two nodes change at once in one row is the applications' conflict.
    same_rows(&a, &b, "large", "*").await;
    a.sql("update large set raw = raw where id = 1000; update large set id = id + 100000 where id % 500 = 1").await;
    same_rows(&a, &b, "large", "*").await;
}
