-- Made by `cargo x extension` from agent/sql/store: change the files there.
\echo Use "alter extension steep_repl update" to load this file. \quit

do $apply_13$
begin
    if not exists (select from steep_repl.migrations m where m.version = 13) then
        execute $migration_13$
-- Backups made by hand: what a node keeps for them, and until when.  PostgreSQL 15+.
create table steep_repl.preparations (
    op_id          uuid        primary key,
    purpose        text        not null check (purpose in ('pg_dump', 'pg_basebackup', 'storage-snapshot')),
    target_node    text        not null,
    slot_name      text        not null,
    publication    text        not null,
    selection      bytea       not null,
    lsn            pg_lsn,
    snapshot       text        not null default '',
    prepared_by    text        not null,
    prepared_at    timestamptz not null default pg_catalog.clock_timestamp(),
    expires_at     timestamptz not null,
    warned_at      timestamptz,
    taken_by       uuid,
    ended_at       timestamptz,
    end_reason     text
);
comment on table steep_repl.preparations is
    'What this node was prepared for by steepctl node prepare: each keeps a slot until a node is completed from it, or it expires.';
comment on column steep_repl.preparations.target_node is
    'The node that is to be completed from it; empty: not said.';
comment on column steep_repl.preparations.selection is
    'Which tables, as a message of the protocol.';
comment on column steep_repl.preparations.lsn is
    'Where the slot begins; null: it is not made yet.';
comment on column steep_repl.preparations.snapshot is
    'The exported snapshot that is held for it; empty: none is, or not any more.';
comment on column steep_repl.preparations.warned_at is
    'When it was told that it expires soon.';
comment on column steep_repl.preparations.taken_by is
    'The operation that last began to complete a node from it.';
create unique index preparations_by_slot
    on steep_repl.preparations (slot_name)
    where ended_at is null;
$migration_13$;
        insert into steep_repl.migrations (version, name, checksum)
        values (13, 'preparations', '671e5e3a3c0885198bda7bb999b5d3096c7e0ab631d9f1c50b82853e1d59e082');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 13) <> '671e5e3a3c0885198bda7bb999b5d3096c7e0ab631d9f1c50b82853e1d59e082' then
        raise exception 'migration 13 (preparations) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_13$;

-- Makes everything in schema steep_repl part of extension steep_repl, where that is installed and this role's to change.
-- No parameters.  PostgreSQL 15+.
do $adopt$
declare
    stray record;
begin
    if not exists (select
                     from pg_catalog.pg_extension e
                    where e.extname = 'steep_repl'
                      and pg_catalog.pg_has_role(e.extowner, 'usage')) then
        return;
    end if;
    for stray in
        select o.classid,
               o.objid,
               o.kind,
               o.name
          from (select 'pg_catalog.pg_class'::pg_catalog.regclass                      as classid,
                       c.oid                                                           as objid,
                       case c.relkind when 'v' then 'view' when 'S' then 'sequence' else 'table' end as kind,
                       pg_catalog.format('steep_repl.%I', c.relname)                   as name
                  from pg_catalog.pg_class c
                 where c.relnamespace = 'steep_repl'::pg_catalog.regnamespace
                   and c.relkind in ('r', 'v', 'S')
                 union all
                select 'pg_catalog.pg_proc'::pg_catalog.regclass,
                       p.oid,
                       'function',
                       pg_catalog.format('steep_repl.%I(%s)', p.proname,
                                         pg_catalog.pg_get_function_identity_arguments(p.oid))
                  from pg_catalog.pg_proc p
                 where p.pronamespace = 'steep_repl'::pg_catalog.regnamespace) o
         where not exists (select
                             from pg_catalog.pg_depend d
                            where d.classid = o.classid
                              and d.objid = o.objid
                              and d.deptype = 'e')
    loop
        execute pg_catalog.format('alter extension steep_repl add %s %s', stray.kind, stray.name);
    end loop;
end
$adopt$;
