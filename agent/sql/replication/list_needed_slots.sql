-- Which of these slots subscriptions of this server read, in whichever database; those of table synchronization workers
-- are known by the subscription in their names.
-- $1 the slots.  PostgreSQL 15+.
select w.name                                  as name,
       s.subname::text                         as subscription,
       s.subenabled                            as is_enabled
  from pg_catalog.unnest($1::text[]) w (name)
  join pg_catalog.pg_subscription s
    on s.subslotname::text = w.name
    or pg_catalog.starts_with(w.name, 'pg_' || s.oid || '_sync_')
       and pg_catalog.right(w.name, 1 + pg_catalog.length((select c.system_identifier::text
                                                             from pg_catalog.pg_control_system() c)))
           = '_' || (select c.system_identifier::text from pg_catalog.pg_control_system() c)
 order by w.name;
