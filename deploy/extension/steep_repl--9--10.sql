-- Made by `cargo x extension` from agent/sql/store: change the files there.
\echo Use "alter extension steep_repl update" to load this file. \quit

do $apply_10$
begin
    if not exists (select from steep_repl.migrations m where m.version = 10) then
        execute $migration_10$
-- What made a node diverge, and which slots no longer carry all that was written since.  PostgreSQL 15+.
insert into steep_repl.legal_moves (subject, from_state, to_state)
values ('node', 'diverged', 'synchronized');

create table steep_repl.divergences (
    id          bigint      generated always as identity primary key,
    noticed_at  timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at    timestamptz,
    failure     jsonb       not null
);
comment on table steep_repl.divergences is
    'Each time replication to this node was found broken: the agent made the node diverged for it.';
comment on column steep_repl.divergences.ended_at is
    'When it was whole again, or the node was initialized anew or removed; null: it is diverged for this still.';
comment on column steep_repl.divergences.failure is
    'Code, message, causes and hint, as last seen.';
create unique index divergences_one_at_a_time
    on steep_repl.divergences ((true))
    where ended_at is null;

create table steep_repl.lost_slots (
    source_node  text        not null,
    slot_name    text        not null,
    target_node  text        not null,
    reason       text        not null,
    lost_at      timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (source_node, slot_name)
);
comment on table steep_repl.lost_slots is
    'Slots of this node, or read by its subscriptions, that do not carry all that was written since: nothing makes them whole again.';
comment on column steep_repl.lost_slots.source_node is
    'The node that had the slot.';
comment on column steep_repl.lost_slots.target_node is
    'The node it was kept for; empty: not known.';
comment on column steep_repl.lost_slots.reason is
    'What became of it, in a few words.';
$migration_10$;
        insert into steep_repl.migrations (version, name, checksum)
        values (10, 'watching', '8d631872dcfa53c325a54637665dfd3eea1f8650ae356c9041fdc8a6f65c54dd');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 10) <> '8d631872dcfa53c325a54637665dfd3eea1f8650ae356c9041fdc8a6f65c54dd' then
        raise exception 'migration 10 (watching) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_10$;

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
