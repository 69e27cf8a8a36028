-- Lets a subscription go back: tables named take every change, all others only those committed from an LSN on, as far as they
-- have them already. None of its workers may be alive.
-- $1 its name; $2 schemas, $3 tables, pairwise; $4 how far the others are.  PostgreSQL 15+.
update pg_catalog.pg_subscription_rel r
   set srsubstate = case when k.is_named then 'r' else 's' end::"char",
       srsublsn   = case when not k.is_named then greatest(r.srsublsn, $4::pg_lsn) end
  from (select t.srsubid                                                                  as srsubid,
               t.srrelid                                                                  as srrelid,
               exists (select
                         from unnest($2::text[], $3::text[]) w (schema_name, table_name)
                         join pg_catalog.pg_namespace n on n.nspname = w.schema_name
                         join pg_catalog.pg_class     c on c.relnamespace = n.oid
                                                       and c.relname = w.table_name
                        where c.oid = t.srrelid)                                          as is_named
          from pg_catalog.pg_subscription_rel t
          join pg_catalog.pg_subscription     s on s.oid = t.srsubid
          join pg_catalog.pg_database         d on d.oid = s.subdbid
         where s.subname = $1::text
           and d.datname = pg_catalog.current_database()) k
 where r.srsubid = k.srsubid
   and r.srrelid = k.srrelid
   and r.srsubstate in ('r', 's');
