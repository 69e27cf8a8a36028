-- Roles that own something of this database or are granted something on it, and so must exist where it is restored.
-- $1 only for these tables, their sequences and their schemas; null: for everything.  PostgreSQL 15+.
with wanted (classid, objid) as (
       select 'pg_catalog.pg_class'::regclass::oid, unnest($1::oid[])
       union
       select d.classid, d.objid
         from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_class'::regclass
          and d.refclassid = 'pg_catalog.pg_class'::regclass
          and d.refobjid = any ($1::oid[])
          and d.deptype in ('a', 'i')
       union
       select 'pg_catalog.pg_namespace'::regclass::oid, c.relnamespace
         from pg_catalog.pg_class c
        where c.oid = any ($1::oid[])
     ),
     own (oid) as (
       select n.oid
         from pg_catalog.pg_namespace n
        where n.nspname = 'steep_repl'
     ),
     needed (roleid) as (
       select s.refobjid
         from pg_catalog.pg_shdepend s
         left join pg_catalog.pg_class c on s.classid = 'pg_catalog.pg_class'::regclass and c.oid = s.objid
         left join pg_catalog.pg_proc  p on s.classid = 'pg_catalog.pg_proc'::regclass and p.oid = s.objid
        where s.refclassid = 'pg_catalog.pg_authid'::regclass
          and s.dbid = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
          and ($1::oid[] is null or (s.classid, s.objid) in (select w.classid, w.objid from wanted w))
          and coalesce(c.relnamespace, p.pronamespace, s.objid) not in (select o.oid from own o)
          and s.classid not in ('pg_catalog.pg_subscription'::regclass, 'pg_catalog.pg_publication'::regclass)
       -- Owners that PostgreSQL itself needs, such as the first superuser, leave no dependency behind.
       union
       select c.relowner
         from pg_catalog.pg_class     c
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.oid >= 16384
          and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
          and c.relpersistence <> 't'
          and n.oid not in (select o.oid from own o)
          and ($1::oid[] is null or c.oid in (select w.objid from wanted w))
       union
       select p.proowner
         from pg_catalog.pg_proc p
        where p.oid >= 16384
          and $1::oid[] is null
          and p.pronamespace not in (select o.oid from own o)
       union
       select n.nspowner
         from pg_catalog.pg_namespace n
        where n.oid >= 16384
          and n.nspname !~ '^pg_(toast|temp)'
          and n.oid not in (select o.oid from own o)
          and ($1::oid[] is null or n.oid in (select w.objid from wanted w))
     )
select r.rolname::text as name
  from needed              x
  join pg_catalog.pg_roles r on r.oid = x.roleid
 where r.rolname !~ '^pg_'
 order by r.rolname;
