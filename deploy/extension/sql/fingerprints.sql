create extension steep_repl;
\set SHOW_CONTEXT never
set client_min_messages = warning;
set timezone = 'Pacific/Auckland';
-- A fingerprint is 64 hexadecimal digits and says the same whatever the session's settings are.
create schema shop;
create type shop.mood as enum ('sad', 'ok', 'happy');
create table shop.orders (
    id     serial primary key,
    total  numeric(10, 2) not null default 0,
    mood   shop.mood default 'ok',
    at     timestamptz default '2026-01-01 00:00:00+00',
    constraint positive check (total >= 0)
);
select steep_repl.compute_fingerprint('shop', 'orders') as fingerprint \gset
select :'fingerprint' ~ '^[0-9a-f]{64}$' as is_hexadecimal;
set search_path = shop, public;
set datestyle = 'german';
set timezone = 'UTC';
set quote_all_identifiers = on;
select steep_repl.compute_fingerprint('shop', 'orders') = :'fingerprint' as is_same;
reset quote_all_identifiers;
reset search_path;
-- What it is taken of.
select jsonb_array_elements(definition) as "column"
  from steep_repl.canon_columns(array['shop.orders'::regclass::oid]);
select key, value
  from steep_repl.canon_shape(array['shop.orders'::regclass::oid]), jsonb_each(definition)
 where key in ('cons', 'replident', 'kind', 'persistence')
 order by key;
-- Captures say how much has changed.
select steep_repl.capture_all_fingerprints('node_a');
select steep_repl.capture_all_fingerprints('node_a');
alter table shop.orders add column note text;
select steep_repl.capture_all_fingerprints('node_a');
select steep_repl.capture_fingerprint('node_a', 'shop', 'orders') = steep_repl.compute_fingerprint('shop', 'orders') as is_same;
drop table shop.orders;
select steep_repl.capture_fingerprint('node_a', 'shop', 'orders') as dropped;
select table_name, change, jsonb_array_length(column_definitions) as columns
  from steep_repl.schema_history
 order by id;
-- A node is compared with what another one told.
create table shop.same (id int primary key);
create table shop.sorted (a int, b int);
create table shop.other (a varchar(10));
create table shop.theirs (a int);
select steep_repl.capture_all_fingerprints('node_b');
drop table shop.theirs, shop.sorted, shop.other;
create table shop.sorted (b int, a int);
create table shop.other (a varchar(200));
create table shop.ours (a int);
select table_schema, table_name, verdict, qualifier from steep_repl.compare_fingerprints('node_b');
-- Errors say what to do.
select steep_repl.compare_fingerprints('node_c');
select steep_repl.compute_fingerprint('shop', 'nothing');
insert into steep_repl.identity (node_id, mesh, system_identifier, database) values ('node_a', 'm', '1', 'd');
select steep_repl.capture_all_fingerprints('node_b');
drop schema shop cascade;
