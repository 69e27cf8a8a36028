-- Made by `cargo x extension` from agent/sql/store: change the files there.
\echo Use "alter extension steep_repl update" to load this file. \quit

do $apply_9$
begin
    if not exists (select from steep_repl.migrations m where m.version = 9) then
        execute $migration_9$
-- What operations have learned and must know to go on after their agent has died.  PostgreSQL 15+.
create table steep_repl.operation_notes (
    op_id       uuid        not null references steep_repl.operations (op_id) on delete cascade,
    name        text        not null,
    body        bytea       not null,
    written_at  timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (op_id, name)
);
comment on table steep_repl.operation_notes is
    'What an operation that has not ended knows, so that it can go on should its agent die; gone when it has ended.';
comment on column steep_repl.operation_notes.name is
    'What it is: facts, existing, session, joined/NODE, counts, indexes.begun/OID, indexes.built/OID.';
comment on column steep_repl.operation_notes.body is
    'An encoded message of steep.v1; empty where the name says it all.';
$migration_9$;
        insert into steep_repl.migrations (version, name, checksum)
        values (9, 'operation_notes', 'af84eedbd8b8df7bf92d92b9852222b7d8fd9b165f01ac971800c5a427e689a9');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 9) <> 'af84eedbd8b8df7bf92d92b9852222b7d8fd9b165f01ac971800c5a427e689a9' then
        raise exception 'migration 9 (operation_notes) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_9$;

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
