-- Made by `cargo x extension` from agent/sql/store: change the files there.
\echo Use "alter extension steep_repl update" to load this file. \quit

do $apply_11$
begin
    if not exists (select from steep_repl.migrations m where m.version = 11) then
        execute $migration_11$
-- Snapshots in files: what each keeps on the server, and when that ends.  PostgreSQL 15+.
alter table steep_repl.snapshots
    add column slot_name         text,
    add column publication_name  text,
    add column warned_at         timestamptz;
comment on table steep_repl.snapshots is
    'Snapshots of this node''s database that its agent wrote into files.';
comment on column steep_repl.snapshots.snapshot_id is
    'The operation that made it; people know it by the end of that: snap_0192f3ac7d21.';
comment on column steep_repl.snapshots.slot_name is
    'The slot that keeps what was written since; null: not made yet.';
comment on column steep_repl.snapshots.publication_name is
    'The publication that holds its tables; null: not made yet.';
comment on column steep_repl.snapshots.warned_at is
    'When it was told that it expires soon; null: it was not.';

comment on column steep_repl.operations.kind is
    'What it does: init, reinit, remove or snapshot.';
comment on column steep_repl.intents.kind is
    'slot, publication, subscription, pause, origin, schema, objects, rows, detour, staged, fence, directory or peer_session.';
$migration_11$;
        insert into steep_repl.migrations (version, name, checksum)
        values (11, 'snapshots', '0a99ed0d4cde34865096a02b4768f1555f8d4dc4bfffc8d2077e50d5e51aac22');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 11) <> '0a99ed0d4cde34865096a02b4768f1555f8d4dc4bfffc8d2077e50d5e51aac22' then
        raise exception 'migration 11 (snapshots) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_11$;

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
