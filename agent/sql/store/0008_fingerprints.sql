-- What tables, types and sequences look like, in a form that can be compared between nodes and versions.  PostgreSQL 15+.
--
-- One text for all versions: a column of a catalog that older ones lack is read through to_jsonb(row). Whoever may use
-- schema steep_repl may call the functions; they run with the caller's rights and pin every setting that would change
-- how PostgreSQL prints an expression. Catalogs are readable by every role and expressions are printed for every role,
-- so a poor role sees the same tables; where an administrator took that right away, it is said (unreadable_catalogs).
--
-- Of the plan nothing is left to chance: functions take the tables as an array, which is planned as a few rows, and
-- ask for everything below a table in subqueries that cannot become joins. So all is read through indexes, in time
-- that grows with the number of tables and with nothing else, analyzed or not.

-- Nothing has written to it so far.
delete from steep_repl.schema_fingerprints;
alter table steep_repl.schema_fingerprints
    add column fingerprint_sorted  text   not null,
    add column shape_definition    jsonb  not null;
comment on table steep_repl.schema_fingerprints is
    'How tables look: of this node as last captured, of others as they told. Equal fingerprint and shape: equal tables.';
comment on column steep_repl.schema_fingerprints.fingerprint is
    'SHA-256 of column_definitions, in hexadecimal: sha256(convert_to(column_definitions::text, ''UTF8'')).';
comment on column steep_repl.schema_fingerprints.shape is
    'The same of shape_definition: keys, constraints, indexes, triggers, policies, partitioning, replica identity.';
comment on column steep_repl.schema_fingerprints.column_definitions is
    'In order, each [name, type, default, not null, identity, generated, generation expression, collation].';
comment on column steep_repl.schema_fingerprints.fingerprint_sorted is
    'The same with the columns in the order of their names: replication matches columns by name.';
comment on column steep_repl.schema_fingerprints.shape_definition is
    'What shape was taken of: everything that makes the table besides its columns.';
comment on column steep_repl.schema_fingerprints.captured_at is
    'When this form was first seen; when the node was last looked at is in schema_environments.';

create table steep_repl.schema_objects (
    node_id        text        not null,
    kind           text        not null
                   constraint schema_objects_kind_is_known
                   check (kind in ('enum', 'domain', 'composite', 'range', 'sequence')),
    object_schema  text        not null,
    object_name    text        not null,
    fingerprint    text        not null,
    definition     jsonb       not null,
    captured_at    timestamptz not null default pg_catalog.now(),
    primary key (node_id, kind, object_schema, object_name)
);
comment on table steep_repl.schema_objects is
    'What tables are made of: types and sequences, of this node and of others as they told.';
comment on column steep_repl.schema_objects.fingerprint is
    'SHA-256 of the definition, in hexadecimal; of a sequence without its plan.';
comment on column steep_repl.schema_objects.definition is
    'What makes it. The plan of a sequence (start, increment, bounds, cache) may differ between nodes on purpose.';

create table steep_repl.schema_environments (
    node_id      text        not null primary key,
    fingerprint  text        not null,
    definition   jsonb       not null,
    digest       text        not null,
    tables       integer     not null,
    is_complete  boolean     not null,
    captured_at  timestamptz not null default pg_catalog.now()
);
comment on table steep_repl.schema_environments is
    'The databases the tables are in: encoding, locale, extensions; and one digest of all that is in them.';
comment on column steep_repl.schema_environments.fingerprint is
    'SHA-256 of the definition without the server''s version, in hexadecimal.';
comment on column steep_repl.schema_environments.digest is
    'SHA-256 of the names and fingerprints of all its tables and objects: equal digests, equal schemas.';
comment on column steep_repl.schema_environments.tables is
    'How many tables it has fingerprints of.';
comment on column steep_repl.schema_environments.is_complete is
    'False: definition.cannot_read: catalogs the role may not read, all is as it last was; not_captured: locked tables.';
comment on column steep_repl.schema_environments.captured_at is
    'When the node was last looked at, also when nothing had changed; of others, as they told.';

create table steep_repl.schema_history (
    id                  bigint      generated always as identity primary key,
    node_id             text        not null,
    table_schema        text        not null,
    table_name          text        not null,
    change              text        not null
                        constraint schema_history_change_is_known
                        check (change in ('added', 'changed', 'dropped')),
    fingerprint         text        not null,
    shape               text        not null,
    column_definitions  jsonb       not null,
    shape_definition    jsonb       not null,
    noticed_at          timestamptz not null default pg_catalog.now()
);
comment on table steep_repl.schema_history is
    'How this node''s tables changed, as captures noticed; what was made and undone between two of them is not here.';
comment on column steep_repl.schema_history.change is
    'added, changed or dropped. A renamed table is dropped and added.';
comment on column steep_repl.schema_history.fingerprint is
    'What the table was from then on; of a dropped table what it had been.';
create index schema_history_by_table
    on steep_repl.schema_history (table_schema, table_name, id);

create view steep_repl.user_tables as
select c.oid            as relid,
       n.nspname::text  as table_schema,
       c.relname::text  as table_name
  from pg_catalog.pg_class     c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p')
   and c.relpersistence <> 't'
   and n.nspname not in ('information_schema', 'steep_repl')
   and not pg_catalog.starts_with(n.nspname::text, 'pg_')
   -- A subquery with a limit stays one: as a join it is planned by guesses.
   and (select d.deptype
          from pg_catalog.pg_depend d
         where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
           and d.objid = c.oid
           and d.deptype = 'e'
         limit 1) is null;
comment on view steep_repl.user_tables is
    'The tables that have a fingerprint: all but temporary ones, those of extensions, of PostgreSQL and of Steep.';

create function steep_repl.unreadable_catalogs() returns text[]
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    -- RLS cannot hide rows of a catalog, and the functions that print expressions ask for no right.
    select coalesce(array_agg(needed.name order by needed.name), '{}')
      from unnest(array['pg_attrdef', 'pg_attribute', 'pg_class', 'pg_collation', 'pg_constraint', 'pg_database',
                        'pg_depend', 'pg_enum', 'pg_extension', 'pg_index', 'pg_inherits', 'pg_namespace',
                        'pg_opclass', 'pg_policy', 'pg_proc', 'pg_range', 'pg_rewrite', 'pg_sequence', 'pg_trigger',
                        'pg_type']) as needed (name)
     where not has_table_privilege(current_user, ('pg_catalog.' || needed.name)::regclass, 'select')
$$;
comment on function steep_repl.unreadable_catalogs() is
    'Catalogs that fingerprints need and this role may not read: none, unless an administrator revoked it.';

create function steep_repl.hash_document(document jsonb) returns text
    language sql
    stable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select encode(sha256(convert_to(document::text, 'UTF8')), 'hex')
$$;
comment on function steep_repl.hash_document(jsonb) is
    'SHA-256 of a document''s text, which is the same on every version and in every encoding; 64 hexadecimal digits.';

create function steep_repl.canon_columns(relids oid[])
    returns table (relid oid, column_count integer, definition jsonb, definition_sorted jsonb)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
    set intervalstyle = 'postgres'
    set timezone = 'UTC'
    set bytea_output = 'hex'
    set extra_float_digits = 1
    set quote_all_identifiers = off
    set standard_conforming_strings = on
    set lc_monetary = 'C'
    set jit = off
as $$
    select c.oid,
           of_table.column_count,
           of_table.definition,
           of_table.definition_sorted
      from unnest(relids) as wanted (relid)
      join pg_class c on c.oid = wanted.relid
     cross join lateral (
           select count(*)::integer                                                          as column_count,
                  coalesce(jsonb_agg(of_column.definition order by of_column.attnum), '[]')  as definition,
                  coalesce(jsonb_agg(of_column.definition order by of_column.attname), '[]') as definition_sorted
             from (select a.attnum,
                          a.attname,
                          jsonb_build_array(
                              a.attname,
                              format_type(a.atttypid, a.atttypmod),
                              case
                                when a.attgenerated <> '' then null
                                -- How the sequence of its own is called says when it was made, not what it does.
                                when starts_with(expression.text, 'nextval(')
                                 and exists (select
                                               from pg_depend d
                                               join pg_class s on s.oid = d.objid
                                              where d.refclassid = 'pg_class'::regclass
                                                and d.refobjid = a.attrelid
                                                and d.refobjsubid = a.attnum
                                                and d.classid = 'pg_class'::regclass
                                                and d.deptype in ('a', 'i')
                                                and s.relkind = 'S'
                                                -- Quoted as expressions are printed, not as quote_literal does it.
                                                and expression.text = 'nextval('''
                                                    || replace(d.objid::regclass::text, '''', '''''')
                                                    || '''::regclass)')
                                then 'nextval(owned)'
                                else expression.text
                              end,
                              -- From 18 on a column may be marked though not all of its rows were looked at.
                              a.attnotnull
                              and not exists (select
                                                from pg_constraint k
                                               where k.conrelid = a.attrelid
                                                 and k.contype = 'n'
                                                 and not k.convalidated
                                                 and k.conkey[1] = a.attnum),
                              nullif(coalesce(
                                  -- Up to 16 a partition does not say that its partitioned table's identity fills it.
                                  case when c.relispartition then
                                      (select nullif(p.attidentity, '')
                                         from pg_attribute p
                                        where p.attrelid = pg_partition_root(c.oid)
                                          and p.attname = a.attname)
                                  end,
                                  a.attidentity), ''),
                              nullif(a.attgenerated, ''),
                              case when a.attgenerated <> '' then expression.text end,
                              -- Not where it is the type's own: that one is the database's or the domain's.
                              -- (100 is the default one, which all of PostgreSQL's own types have but name, 19.)
                              case when a.attcollation <> 0
                                    and not (a.attcollation = 100 and a.atttypid < 10000 and a.atttypid <> 19) then
                                  (select n.nspname || '.' || o.collname
                                     from pg_collation o
                                     join pg_namespace n on n.oid = o.collnamespace
                                    where o.oid = a.attcollation
                                      and a.attcollation <> (select t.typcollation
                                                               from pg_type t
                                                              where t.oid = a.atttypid))
                              end) as definition
                     from pg_attribute a
                    cross join lateral (
                          select case when a.atthasdef then
                                     -- A default names no column: without its table, that is neither opened nor locked.
                                     (select pg_get_expr(d.adbin, case when a.attgenerated = '' then 0 else d.adrelid end)
                                        from pg_attrdef d
                                       where d.adrelid = a.attrelid
                                         and d.adnum = a.attnum)
                                 end as text
                          offset 0) as expression
                    where a.attrelid = c.oid
                      and a.attnum > 0
                      and not a.attisdropped
                    -- So that each is made once, for both orders.
                    offset 0) as of_column
           ) as of_table
$$;
comment on function steep_repl.canon_columns(oid[]) is
    'The columns of tables as documents, in order and by name; only what says how they behave, nothing physical.';

create function steep_repl.canon_shape(relids oid[])
    returns table (relid oid, definition jsonb)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
    set intervalstyle = 'postgres'
    set timezone = 'UTC'
    set bytea_output = 'hex'
    set extra_float_digits = 1
    set quote_all_identifiers = off
    set standard_conforming_strings = on
    set lc_monetary = 'C'
    set jit = off
as $$
    -- Constraints, indexes and triggers that a partition has only because its partitioned table has them are left
    -- out: versions and histories name them differently. So is what Steep made (steep_..., or with a function of its own).
    select c.oid,
           jsonb_build_object(
               'kind', c.relkind,
               'persistence', c.relpersistence,
               'replident',
               case c.relreplident
                 when 'i' then
                     coalesce((select jsonb_agg(a.attname order by k.place)
                                 from pg_index i
                                cross join lateral unnest(i.indkey::smallint[]) with ordinality as k (attnum, place)
                                 join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                                where i.indrelid = c.oid
                                  and i.indisreplident
                                  and k.place <= i.indnkeyatts), '[]')
                 else to_jsonb(c.relreplident)
               end,
               'partkey', case when c.relkind = 'p' then pg_get_partkeydef(c.oid) end,
               'bound', case when c.relispartition then pg_get_expr(c.relpartbound, c.oid) end,
               'parents',
               (select jsonb_agg(i.inhparent::regclass::text order by i.inhseqno)
                  from pg_inherits i
                 where i.inhrelid = c.oid),
               'rls', jsonb_build_array(c.relrowsecurity, c.relforcerowsecurity),
               'cons',
               coalesce((select jsonb_agg(jsonb_build_array(k.conname, k.contype, pg_get_constraintdef(k.oid),
                                                            k.convalidated,
                                                            -- What may be not enforced, from 18 on.
                                                            case when k.contype in ('c', 'f')
                                                            then coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
                                                            else true end)
                                          order by k.contype, k.conname)
                           from pg_constraint k
                          where k.conrelid = c.oid
                            and (k.contype in ('p', 'u', 'f', 'c', 'x')
                                 -- From 18 on: no row to come may be null, and those that are there may be.
                                 or k.contype = 'n' and not k.convalidated)
                            and k.conislocal
                            and k.conparentid = 0
                            -- Steep's own checks: what a sync proves a column by, and the keys that a node may take.
                            and not (k.contype = 'c'
                                     and k.conname ~ '^steep_(not_null|range)_[0-9a-f]{12}$')), '[]'),
               'idx',
               coalesce((select jsonb_agg(jsonb_build_array(r.relname, pg_get_indexdef(i.indexrelid), i.indisvalid)
                                          order by r.relname)
                           from pg_index i
                           join pg_class r on r.oid = i.indexrelid
                          where i.indrelid = c.oid
                            and not r.relispartition
                            and not exists (select
                                              from pg_constraint k
                                             where k.conindid = i.indexrelid
                                               and k.conrelid = c.oid
                                               and k.contype in ('p', 'u', 'x'))), '[]'),
               'trg',
               coalesce((select jsonb_agg(jsonb_build_array(g.name, g.definition, g.enabled)
                                          order by g.name, g.definition)
                           from (select t.tgname, pg_get_triggerdef(t.oid), t.tgenabled
                                   from pg_trigger t
                                  where t.tgrelid = c.oid
                                    and not t.tgisinternal
                                    -- A partition's part of a trigger, where it was switched on or off by itself.
                                    and (t.tgparentid = 0
                                         or t.tgenabled <> (select p.tgenabled
                                                              from pg_trigger p
                                                             where p.oid = t.tgparentid))
                                    and not exists (select
                                                      from pg_proc p
                                                      join pg_namespace n on n.oid = p.pronamespace
                                                     where p.oid = t.tgfoid
                                                       and n.nspname = 'steep_repl')
                                 union
                                 -- What enforces a constraint, where that is switched off.
                                 select k.conname, 'CONSTRAINT', t.tgenabled
                                   from pg_trigger t
                                   join pg_constraint k on k.oid = t.tgconstraint
                                  where t.tgrelid = c.oid
                                    and t.tgisinternal
                                    and t.tgenabled <> 'O') g (name, definition, enabled)), '[]'),
               'pol',
               coalesce((select jsonb_agg(jsonb_build_array(p.polname, p.polcmd, p.polpermissive,
                                                            pg_get_expr(p.polqual, p.polrelid),
                                                            pg_get_expr(p.polwithcheck, p.polrelid),
                                                            (select jsonb_agg(r.name order by r.name)
                                                               from (select case
                                                                              when u.role = 0 then 'public'
                                                                              else pg_get_userbyid(u.role)
                                                                            end as name
                                                                       from unnest(p.polroles) as u (role)) r))
                                          order by p.polname)
                           from pg_policy p
                          where p.polrelid = c.oid), '[]'),
               'rules',
               coalesce((select jsonb_agg(jsonb_build_array(r.rulename, pg_get_ruledef(r.oid), r.ev_enabled)
                                          order by r.rulename)
                           from pg_rewrite r
                          where r.ev_class = c.oid), '[]'))
      from unnest(relids) as wanted (relid)
      join pg_class c on c.oid = wanted.relid
$$;
comment on function steep_repl.canon_shape(oid[]) is
    'Everything that makes tables besides their columns, as documents.';

create function steep_repl.canon_objects()
    returns table (kind text, object_schema text, object_name text, fingerprint text, definition jsonb)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
    set intervalstyle = 'postgres'
    set timezone = 'UTC'
    set bytea_output = 'hex'
    set extra_float_digits = 1
    set quote_all_identifiers = off
    set standard_conforming_strings = on
    set lc_monetary = 'C'
    set jit = off
as $$
    with of_type as materialized (
        select case t.typtype when 'e' then 'enum' when 'd' then 'domain' when 'c' then 'composite' else 'range' end as kind,
               n.nspname::text  as object_schema,
               t.typname::text  as object_name,
               case t.typtype
                 when 'e' then jsonb_build_object(
                     'labels', (select coalesce(jsonb_agg(e.enumlabel order by e.enumsortorder), '[]')
                                  from pg_enum e
                                 where e.enumtypid = t.oid))
                 when 'd' then jsonb_build_object(
                     'base', format_type(t.typbasetype, t.typtypmod),
                     'not_null', t.typnotnull,
                     'default', pg_get_expr(t.typdefaultbin, 0),
                     'collation', (select x.nspname || '.' || o.collname
                                     from pg_collation o
                                     join pg_namespace x on x.oid = o.collnamespace
                                    where o.oid = t.typcollation
                                      and t.typcollation <> (select b.typcollation
                                                               from pg_type b
                                                              where b.oid = t.typbasetype)),
                     'checks', (select coalesce(jsonb_agg(jsonb_build_array(k.conname, pg_get_constraintdef(k.oid),
                                                                            k.convalidated)
                                                          order by k.conname), '[]')
                                  from pg_constraint k
                                 where k.contypid = t.oid
                                   and k.contype = 'c'))
                 when 'c' then jsonb_build_object(
                     'attributes', (select coalesce(jsonb_agg(jsonb_build_array(
                                                a.attname,
                                                format_type(a.atttypid, a.atttypmod),
                                                (select x.nspname || '.' || o.collname
                                                   from pg_collation o
                                                   join pg_namespace x on x.oid = o.collnamespace
                                                  where o.oid = a.attcollation
                                                    and a.attcollation <> (select b.typcollation
                                                                             from pg_type b
                                                                            where b.oid = a.atttypid)))
                                                          order by a.attnum), '[]')
                                      from pg_attribute a
                                     where a.attrelid = t.typrelid
                                       and a.attnum > 0
                                       and not a.attisdropped))
                 else (select jsonb_build_object(
                                  'subtype', format_type(g.rngsubtype, null),
                                  'opclass', (select x.nspname || '.' || p.opcname
                                                from pg_opclass p
                                                join pg_namespace x on x.oid = p.opcnamespace
                                               where p.oid = g.rngsubopc),
                                  'collation', (select x.nspname || '.' || o.collname
                                                  from pg_collation o
                                                  join pg_namespace x on x.oid = o.collnamespace
                                                 where o.oid = g.rngcollation
                                                   and g.rngcollation <> (select b.typcollation
                                                                            from pg_type b
                                                                           where b.oid = g.rngsubtype)),
                                  'multirange', format_type(g.rngmultitypid, null))
                         from pg_range g
                        where g.rngtypid = t.oid)
               end as definition
          from pg_type t
          join pg_namespace n on n.oid = t.typnamespace
         where (t.typtype in ('e', 'd', 'r')
                -- Every table has a type of its own, too.
                or t.typtype = 'c' and (select c.relkind from pg_class c where c.oid = t.typrelid) = 'c')
           and n.nspname not in ('information_schema', 'steep_repl')
           and not starts_with(n.nspname::text, 'pg_')
           and (select d.deptype
                  from pg_depend d
                 where d.classid = 'pg_type'::regclass
                   and d.objid = t.oid
                   and d.deptype = 'e'
                 limit 1) is null
    ),
    of_sequence as materialized (
        select n.nspname::text  as object_schema,
               c.relname::text  as object_name,
               jsonb_build_object(
                   'type', format_type(s.seqtypid, null),
                   'cycle', s.seqcycle,
                   'owned_by', (select jsonb_build_array(x.nspname, r.relname, a.attname)
                                  from pg_depend d
                                  join pg_class r on r.oid = d.refobjid
                                  join pg_namespace x on x.oid = r.relnamespace
                                  join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
                                 where d.classid = 'pg_class'::regclass
                                   and d.objid = c.oid
                                   and d.refclassid = 'pg_class'::regclass
                                   and d.deptype in ('a', 'i')
                                 limit 1))  as definition,
               -- Where it begins and how much a session takes at once may differ from node to node.
               jsonb_build_object('increment', s.seqincrement, 'min', s.seqmin, 'max', s.seqmax) as steps,
               jsonb_build_object('plan', jsonb_build_object('start', s.seqstart, 'increment', s.seqincrement,
                                                             'min', s.seqmin, 'max', s.seqmax,
                                                             'cache', s.seqcache)) as plan
          from pg_class c
          join pg_namespace n on n.oid = c.relnamespace
          join pg_sequence s on s.seqrelid = c.oid
         where c.relkind = 'S'
           and c.relpersistence <> 't'
           and n.nspname not in ('information_schema', 'steep_repl')
           and not starts_with(n.nspname::text, 'pg_')
           and (select d.deptype
                  from pg_depend d
                 where d.classid = 'pg_class'::regclass
                   and d.objid = c.oid
                   and d.deptype = 'e'
                 limit 1) is null
    )
    select t.kind,
           t.object_schema,
           t.object_name,
           encode(sha256(convert_to(t.definition::text, 'UTF8')), 'hex'),
           t.definition
      from of_type t
     union all
    select 'sequence',
           s.object_schema,
           s.object_name,
           encode(sha256(convert_to((s.definition || s.steps)::text, 'UTF8')), 'hex'),
           s.definition || s.plan
      from of_sequence s
$$;
comment on function steep_repl.canon_objects() is
    'Types and sequences as documents with their fingerprints; those of a column''s own (serial, identity) too.';

create function steep_repl.canon_environment() returns jsonb
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
               'encoding', pg_encoding_to_char(d.encoding),
               'provider', d.datlocprovider,
               'collate', d.datcollate,
               'ctype', d.datctype,
               -- Renamed in 17.
               'locale', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
               'collversion', d.datcollversion,
               'server_version_num', current_setting('server_version_num')::integer,
               'extensions', (select coalesce(jsonb_agg(jsonb_build_array(e.extname, e.extversion)
                                                        order by e.extname), '[]')
                                from pg_extension e
                               where e.extname <> 'steep_repl'))
      from pg_database d
     where d.datname = current_database()
$$;
comment on function steep_repl.canon_environment() is
    'The database the tables are in, as a document.';

create function steep_repl.fingerprint_tables(relids oid[])
    returns table (relid oid, table_schema text, table_name text, column_count integer, fingerprint text,
                   fingerprint_sorted text, shape text, column_definitions jsonb, shape_definition jsonb)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
    -- Expressions that name columns are printed with their table open, which waits for whoever locks it all to itself.
    set lock_timeout = '250ms'
    set jit = off
as $$
    select c.oid,
           n.nspname::text,
           c.relname::text,
           col.column_count,
           encode(sha256(convert_to(col.definition::text, 'UTF8')), 'hex'),
           encode(sha256(convert_to(col.definition_sorted::text, 'UTF8')), 'hex'),
           encode(sha256(convert_to(shape.definition::text, 'UTF8')), 'hex'),
           col.definition,
           shape.definition
      from steep_repl.canon_columns(relids) col
      join steep_repl.canon_shape(relids) shape on shape.relid = col.relid
      join pg_class c on c.oid = col.relid
      join pg_namespace n on n.oid = c.relnamespace
     order by c.oid
$$;
comment on function steep_repl.fingerprint_tables(oid[]) is
    'Fingerprints and definitions of tables; fails where one of them is dropped meanwhile, or locked by somebody.';

create function steep_repl.fingerprint_surviving_tables(relids oid[], skip_locked boolean)
    returns table (relid oid, table_schema text, table_name text, column_count integer, fingerprint text,
                   fingerprint_sorted text, shape text, column_definitions jsonb, shape_definition jsonb)
    language plpgsql
    -- Volatile, so that every attempt looks anew.
    set search_path = pg_catalog, pg_temp
as $$
declare
    one oid;
begin
    -- PostgreSQL's functions look past our snapshot: of a table that was dropped they say null, or fail as they do on
    -- a broken catalog (internal_error). Whether it is still there, pg_table_is_visible tells: it looks past it, too.
    for attempt in 1..2 loop
        begin
            return query
            select f.* from steep_repl.fingerprint_tables(relids) f where pg_table_is_visible(f.relid) is not null;
            return;
        exception
            when internal_error or undefined_table or undefined_object or undefined_column then null;
            when lock_not_available then exit;
        end;
    end loop;
    foreach one in array relids loop
        begin
            return query
            select f.* from steep_repl.fingerprint_tables(array[one]) f where pg_table_is_visible(f.relid) is not null;
        exception
            when internal_error or undefined_table or undefined_object or undefined_column then
                -- One that is still there is not passed over in silence.
                if pg_table_is_visible(one) is not null then
                    raise;
                end if;
            when lock_not_available then
                if not skip_locked then
                    raise exception using
                        errcode = 'lock_not_available',
                        message = format('table %s is locked by somebody and cannot be looked at', one::regclass),
                        hint    = format('Who it is: select pid from pg_locks where relation = %s and granted; '
                                         'or try again later.', one);
                end if;
        end;
    end loop;
end
$$;
comment on function steep_repl.fingerprint_surviving_tables(oid[], boolean) is
    'Like fingerprint_tables, without those that are dropped meanwhile, and if told so without those that are locked.';

create function steep_repl.compute_fingerprint(table_schema text, table_name text) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    found_oid   oid;
    found_kind  "char";
begin
    select c.oid, c.relkind
      into found_oid, found_kind
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = table_schema
       and c.relname = table_name;
    if found_oid is null or found_kind not in ('r', 'p') then
        raise exception using
            errcode = case when found_oid is null then 'undefined_table' else 'wrong_object_type' end,
            message = case when found_oid is null
                        then format('table %I.%I does not exist', table_schema, table_name)
                        else format('%I.%I is not a table', table_schema, table_name)
                      end,
            hint    = 'All that have a fingerprint: select table_schema, table_name from steep_repl.user_tables.';
    end if;
    return (select steep_repl.hash_document(c.definition)
              from steep_repl.canon_columns(array[found_oid]) c);
end
$$;
comment on function steep_repl.compute_fingerprint(text, text) is
    'SHA-256 of a table''s columns as they are now, 64 hexadecimal digits: compute_fingerprint(''public'', ''orders'').';

create function steep_repl.check_own_node(node text) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    own text;
begin
    select i.node_id into own from steep_repl.identity i;
    -- Where no agent has been, whoever captures names the node.
    if own <> node then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('this database is node %s; tables of node %s cannot be captured here', own, node),
            hint    = 'What is known of others: select * from steep_repl.schema_environments.';
    end if;
    if node is null then
        raise exception using errcode = 'null_value_not_allowed', message = 'capture which node? its name is null';
    end if;
end
$$;
comment on function steep_repl.check_own_node(text) is
    'Fails for any node but this one: the rows of others are theirs to tell.';

create function steep_repl.save_fingerprints(node text, relids oid[]) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    changed integer;
begin
    with saved as (
        insert into steep_repl.schema_fingerprints as f
               (node_id, table_schema, table_name, column_count, fingerprint, fingerprint_sorted, shape,
                column_definitions, shape_definition, captured_at)
        select node, t.table_schema, t.table_name, t.column_count, t.fingerprint, t.fingerprint_sorted, t.shape,
               t.column_definitions, t.shape_definition, clock_timestamp()
          from steep_repl.fingerprint_surviving_tables(relids, true) t
         -- What has not changed is not even locked.
         where (select f.fingerprint || f.shape
                  from steep_repl.schema_fingerprints f
                 where f.node_id = node
                   and f.table_schema = t.table_schema
                   and f.table_name = t.table_name) is distinct from t.fingerprint || t.shape
            on conflict (node_id, table_schema, table_name) do update
           set column_count       = excluded.column_count,
               fingerprint        = excluded.fingerprint,
               fingerprint_sorted = excluded.fingerprint_sorted,
               shape              = excluded.shape,
               column_definitions = excluded.column_definitions,
               shape_definition   = excluded.shape_definition,
               captured_at        = excluded.captured_at
         where (f.fingerprint, f.shape) is distinct from (excluded.fingerprint, excluded.shape)
        -- A row that was inserted was locked by nobody.
        returning f.*, f.xmax = 0 as is_new
    )
    insert into steep_repl.schema_history
           (node_id, table_schema, table_name, change, fingerprint, shape, column_definitions, shape_definition,
            noticed_at)
    select s.node_id, s.table_schema, s.table_name, case when s.is_new then 'added' else 'changed' end, s.fingerprint,
           s.shape, s.column_definitions, s.shape_definition, s.captured_at
      from saved s;
    get diagnostics changed = row_count;
    return changed;
end
$$;
comment on function steep_repl.save_fingerprints(text, oid[]) is
    'Writes the rows of tables that are new or changed, and their history; returns how many.';

create function steep_repl.forget_dropped_tables(node text) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    gone     record;
    changed  integer := 0;
begin
    -- A difference of sets takes the time of both, whatever the planner believes of them.
    for gone in
        select f.table_schema, f.table_name
          from steep_repl.schema_fingerprints f
         where f.node_id = node
        except
        select u.table_schema, u.table_name
          from steep_repl.user_tables u
         order by 1, 2
    loop
        with deleted as (
            delete from steep_repl.schema_fingerprints f
             where f.node_id = node
               and f.table_schema = gone.table_schema
               and f.table_name = gone.table_name
            returning f.*
        )
        insert into steep_repl.schema_history
               (node_id, table_schema, table_name, change, fingerprint, shape, column_definitions, shape_definition,
                noticed_at)
        select d.node_id, d.table_schema, d.table_name, 'dropped', d.fingerprint, d.shape, d.column_definitions,
               d.shape_definition, clock_timestamp()
          from deleted d;
        changed := changed + 1;
    end loop;
    return changed;
end
$$;
comment on function steep_repl.forget_dropped_tables(text) is
    'Takes away the rows of tables that are gone, with a line in their history; returns how many.';

create function steep_repl.save_missing_tables(node text, out changed integer, out missing text[])
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    lacking oid[];
begin
    changed := 0;
    for attempt in 1..2 loop
        select coalesce(array_agg(c.oid), '{}'), coalesce(array_agg(format('%I.%I', l.table_schema, l.table_name)), '{}')
          into lacking, missing
          from (select u.table_schema, u.table_name
                  from steep_repl.user_tables u
                except
                select f.table_schema, f.table_name
                  from steep_repl.schema_fingerprints f
                 where f.node_id = node) l
          join pg_namespace n on n.nspname = l.table_schema
          join pg_class c on c.relnamespace = n.oid and c.relname = l.table_name;
        exit when lacking = '{}' or attempt = 2;
        -- Few: those made since their page was looked at, and new ones that somebody has locked.
        changed := steep_repl.save_fingerprints(node, lacking[:500]);
    end loop;
end
$$;
comment on function steep_repl.save_missing_tables(text) is
    'Captures the tables that have no row yet, and names those that still have none: they are locked.';

create function steep_repl.save_objects(node text) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    dropped  jsonb;
    gone     record;
    changed  integer;
begin
    -- As with tables: an object may be dropped while we look.
    for attempt in 1..5 loop
        begin
            with seen as materialized (
                select o.*
                  from steep_repl.canon_objects() o
            ),
            saved as (
                insert into steep_repl.schema_objects as s
                       (node_id, kind, object_schema, object_name, fingerprint, definition, captured_at)
                select node, o.kind, o.object_schema, o.object_name, o.fingerprint, o.definition, clock_timestamp()
                  from seen o
                 where (select s.definition
                          from steep_repl.schema_objects s
                         where s.node_id = node
                           and s.kind = o.kind
                           and s.object_schema = o.object_schema
                           and s.object_name = o.object_name) is distinct from o.definition
                 order by o.kind, o.object_schema, o.object_name
                    on conflict (node_id, kind, object_schema, object_name) do update
                   set fingerprint = excluded.fingerprint,
                       definition  = excluded.definition,
                       captured_at = excluded.captured_at
                returning s.kind
            )
            select (select count(*) from saved),
                   (select coalesce(jsonb_agg(to_jsonb(d)), '[]')
                      from (select s.kind, s.object_schema, s.object_name
                              from steep_repl.schema_objects s
                             where s.node_id = node
                            except
                            select o.kind, o.object_schema, o.object_name
                              from seen o) d)
              into changed, dropped;
            exit;
        exception
            when internal_error or undefined_table or undefined_object then
                if attempt = 5 then
                    raise;
                end if;
        end;
    end loop;
    for gone in
        select d.kind, d.object_schema, d.object_name
          from jsonb_to_recordset(dropped) as d (kind text, object_schema text, object_name text)
         order by 1, 2, 3
    loop
        delete from steep_repl.schema_objects s
         where s.node_id = node
           and s.kind = gone.kind
           and s.object_schema = gone.object_schema
           and s.object_name = gone.object_name;
        changed := changed + 1;
    end loop;
    return changed;
end
$$;
comment on function steep_repl.save_objects(text) is
    'Writes the rows of types and sequences that are new, changed or gone; returns how many.';

create function steep_repl.digest_fingerprints(node text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
    -- A sequence of a column's own goes by that column: how it is called says only when it was made.
    select encode(sha256(convert_to(coalesce(string_agg(line.text, e'\n' order by line.text collate "C"), ''), 'UTF8')),
                  'hex')
      from (select jsonb_build_array('table', f.table_schema, f.table_name, f.fingerprint, f.shape)::text
              from steep_repl.schema_fingerprints f
             where f.node_id = node
             union all
            select jsonb_build_array(o.kind, o.object_schema,
                                     case
                                       when jsonb_typeof(o.definition -> 'owned_by') = 'array' then o.definition -> 'owned_by'
                                       else to_jsonb(o.object_name)
                                     end,
                                     o.fingerprint)::text
              from steep_repl.schema_objects o
             where o.node_id = node) as line (text)
$$;
comment on function steep_repl.digest_fingerprints(text) is
    'One SHA-256 of all rows of a node, with their names: equal on nodes whose schemas are equal.';

create function steep_repl.save_environment(node text, missing text[]) returns text
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    hidden       constant text[] := steep_repl.unreadable_catalogs();
    environment  jsonb;
    found_digest text;
begin
    if hidden = '{}' then
        environment := steep_repl.canon_environment();
    else
        environment := jsonb_build_object('server_version_num', current_setting('server_version_num')::integer,
                                          'cannot_read', hidden);
    end if;
    if missing <> '{}' then
        environment := environment || jsonb_build_object('not_captured', missing[:100]);
    end if;
    insert into steep_repl.schema_environments as e
           (node_id, fingerprint, definition, digest, tables, is_complete, captured_at)
    select node,
           steep_repl.hash_document(environment - '{server_version_num,not_captured}'::text[]),
           environment,
           steep_repl.digest_fingerprints(node),
           (select count(*) from steep_repl.schema_fingerprints f where f.node_id = node),
           hidden = '{}' and missing = '{}',
           clock_timestamp()
        on conflict (node_id) do update
       set fingerprint = excluded.fingerprint,
           definition  = excluded.definition,
           digest      = excluded.digest,
           tables      = excluded.tables,
           is_complete = excluded.is_complete,
           captured_at = excluded.captured_at
    returning e.digest into found_digest;
    return found_digest;
end
$$;
comment on function steep_repl.save_environment(text, text[]) is
    'Writes what the database is and that the node was looked at; returns the digest of all its rows.';

create function steep_repl.capture_page(node text, after oid, at_most integer)
    returns table (last_relid oid, tables integer, changed integer)
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    page oid[];
begin
    perform steep_repl.check_own_node(node);
    tables := 0;
    changed := 0;
    if steep_repl.unreadable_catalogs() = '{}' then
        page := array(select u.relid
                        from steep_repl.user_tables u
                       where u.relid > after
                       order by u.relid
                       limit at_most);
        tables := cardinality(page);
        last_relid := page[tables];
        changed := steep_repl.save_fingerprints(node, page);
    end if;
    return next;
end
$$;
comment on function steep_repl.capture_page(text, oid, integer) is
    'Captures the tables whose oids come after one, a page of them; fewer than a page (or none): those were the last.';

create function steep_repl.capture_objects(node text) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform steep_repl.check_own_node(node);
    if steep_repl.unreadable_catalogs() <> '{}' then
        return 0;
    end if;
    return steep_repl.save_objects(node);
end
$$;
comment on function steep_repl.capture_objects(text) is
    'Captures types and sequences; returns how many had changed.';

create function steep_repl.finish_capture(node text)
    returns table (changed integer, digest text, is_complete boolean)
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    others   record;
    missing  text[] := '{}';
begin
    perform steep_repl.check_own_node(node);
    is_complete := steep_repl.unreadable_catalogs() = '{}';
    changed := 0;
    -- Whoever cannot see everything takes nothing for dropped.
    if is_complete then
        select m.changed, m.missing into others from steep_repl.save_missing_tables(node) m;
        missing := others.missing;
        is_complete := missing = '{}';
        changed := others.changed + steep_repl.forget_dropped_tables(node);
    end if;
    digest := steep_repl.save_environment(node, missing);
    return next;
end
$$;
comment on function steep_repl.finish_capture(text) is
    'Ends a capture of pages and objects: tables that were missed or dropped, the environment, the digest.';

create function steep_repl.capture_all_fingerprints(node text) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    page    record;
    ending  record;
    total   integer := 0;
begin
    select p.* into page from steep_repl.capture_page(node, 0, 1000) p;
    loop
        total := total + page.changed;
        exit when page.tables < 1000;
        select p.* into page from steep_repl.capture_page(node, page.last_relid, 1000) p;
    end loop;
    total := total + steep_repl.capture_objects(node);
    select f.* into ending from steep_repl.finish_capture(node) f;
    if steep_repl.unreadable_catalogs() <> '{}' then
        raise warning using
            errcode = 'insufficient_privilege',
            message = format('role %I cannot see every table: nothing was captured', current_user),
            detail  = format('It may not read %s.', array_to_string(steep_repl.unreadable_catalogs(), ', ')),
            hint    = 'grant select on these tables of pg_catalog to the role.';
    end if;
    return total + ending.changed;
end
$$;
comment on function steep_repl.capture_all_fingerprints(text) is
    'Captures all tables, types and sequences of this node; returns how many had changed since the last time.';

create function steep_repl.capture_fingerprint(node text, table_schema text, table_name text) returns text
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_variable
declare
    found_oid    oid;
    fingerprint  text;
begin
    perform steep_repl.check_own_node(node);
    select u.relid
      into found_oid
      from steep_repl.user_tables u
      join pg_class c on c.oid = u.relid
      join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = capture_fingerprint.table_schema
       and c.relname = capture_fingerprint.table_name;
    if found_oid is not null then
        perform steep_repl.save_fingerprints(node, array[found_oid]);
    end if;
    perform steep_repl.finish_capture(node);
    select f.fingerprint
      into fingerprint
      from steep_repl.schema_fingerprints f
     where f.node_id = node
       and f.table_schema = capture_fingerprint.table_schema
       and f.table_name = capture_fingerprint.table_name;
    return fingerprint;
end
$$;
comment on function steep_repl.capture_fingerprint(text, text, text) is
    'Captures one table of this node and returns its fingerprint; null: there is no such table (any more).';

create function steep_repl.compare_fingerprints(peer text)
    returns table (table_schema text, table_name text, verdict text, qualifier text, local_fingerprint text,
                   remote_fingerprint text, local_shape text, remote_shape text, remote_captured_at timestamptz)
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
    hidden   constant text[] := steep_repl.unreadable_catalogs();
    told_at  timestamptz;
    is_whole boolean;
begin
    if hidden <> '{}' then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('role %I cannot see every table', current_user),
            detail  = format('It may not read %s.', array_to_string(hidden, ', ')),
            hint    = 'grant select on these tables of pg_catalog to the role.';
    end if;
    select e.captured_at, e.is_complete
      into told_at, is_whole
      from steep_repl.schema_environments e
     where e.node_id = peer;
    if told_at is null then
        raise exception using
            errcode = 'no_data_found',
            message = format('nothing is known of the tables of node %s', coalesce(peer, '(null)')),
            hint    = 'Agents tell each other when they meet. Nodes known: '
                      'select node_id, captured_at from steep_repl.schema_environments.';
    end if;
    if not is_whole then
        raise exception using
            errcode = 'object_not_in_prerequisite_state',
            message = format('node %s could not see all of its own tables', peer),
            hint    = format('What it could not look at: select definition from steep_repl.schema_environments '
                             'where node_id = %L.', peer);
    end if;
    return query
    select coalesce(l.table_schema, r.table_schema),
           coalesce(l.table_name, r.table_name),
           case
             when r.table_name is null then 'LOCAL_ONLY'
             when l.table_name is null then 'REMOTE_ONLY'
             when (l.fingerprint, l.shape) = (r.fingerprint, r.shape) then 'MATCH'
             else 'MISMATCH'
           end,
           case
             when l.fingerprint <> r.fingerprint
              and l.fingerprint_sorted = r.fingerprint_sorted
              and l.shape = r.shape then 'ORDER_ONLY'
           end,
           l.fingerprint,
           r.fingerprint,
           l.shape,
           r.shape,
           case when r.table_name is not null then greatest(r.captured_at, told_at) end
      from steep_repl.fingerprint_surviving_tables(array(select u.relid from steep_repl.user_tables u), false) l
      full join (select f.*
                   from steep_repl.schema_fingerprints f
                  where f.node_id = peer) r
        on r.table_schema = l.table_schema
       and r.table_name = l.table_name
     order by 1, 2;
end
$$;
comment on function steep_repl.compare_fingerprints(text) is
    'This node''s tables as they are now beside those another node last told of: MATCH, MISMATCH, LOCAL_ONLY, REMOTE_ONLY.';
