-- Sequences and where they stand; last_value is null for one that has not handed out anything since it was set.
-- $1 only those the tables with these oids own or take defaults from; null: all of the users' own.  PostgreSQL 15+.
select n.nspname::text                                                     as schema_name,
       c.relname::text                                                     as sequence_name,
       case
         when pg_catalog.has_sequence_privilege(c.oid, 'select, usage')
         then pg_catalog.pg_sequence_last_value(c.oid)
       end                                                                 as last_value,
       s.seqincrement                                                      as increment,
       s.seqmin                                                            as min_value,
       s.seqmax                                                            as max_value,
       s.seqcache                                                          as cache,
       s.seqcycle                                                          as cycles
  from pg_catalog.pg_sequence  s
  join pg_catalog.pg_class     c on c.oid = s.seqrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relpersistence <> 't'
   and n.nspname not in ('pg_catalog', 'information_schema', 'steep_repl', 'steep_mark')
   and not exists (select
                     from pg_catalog.pg_depend e
                    where e.classid = 'pg_catalog.pg_class'::regclass
                      and e.objid = c.oid
                      and e.deptype = 'e')
   and ($1::oid[] is null
        or exists (select
                     from pg_catalog.pg_depend d
                    where d.classid = 'pg_catalog.pg_class'::regclass
                      and d.objid = c.oid
                      and d.refclassid = 'pg_catalog.pg_class'::regclass
                      and d.refobjid = any ($1::oid[])
                      and d.deptype in ('a', 'i'))
        or exists (select
                     from pg_catalog.pg_depend  d
                     join pg_catalog.pg_attrdef f on f.oid = d.objid
                    where d.classid = 'pg_catalog.pg_attrdef'::regclass
                      and d.refclassid = 'pg_catalog.pg_class'::regclass
                      and d.refobjid = c.oid
                      and f.adrelid = any ($1::oid[])))
 order by n.nspname, c.relname;
