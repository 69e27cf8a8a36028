-- What the role we connect as may do.
-- No parameters.  PostgreSQL 15+ (pg_create_subscription exists from 16 on).
select r.rolname::text                                                          as name,
       r.rolsuper                                                               as is_superuser,
       r.rolsuper or r.rolreplication                                           as may_replicate,
       r.rolsuper or r.rolbypassrls                                             as bypasses_row_security,
       r.rolsuper or exists (select
                               from pg_catalog.pg_roles g
                              where g.rolname = 'pg_create_subscription'
                                and pg_catalog.pg_has_role(r.oid, g.oid, 'usage'))
                                                                                as may_create_subscription,
       pg_catalog.has_database_privilege(r.oid, d.oid, 'create')                as may_create_in_database,
       r.rolsuper or pg_catalog.has_parameter_privilege(r.oid, 'session_replication_role', 'set')
                                                                                as may_set_replication_role,
       (select bool_and(pg_catalog.has_function_privilege(r.oid, p.oid, 'execute'))
          from pg_catalog.pg_proc p
         where p.pronamespace = 'pg_catalog'::regnamespace
           and p.proname in ('pg_replication_origin_create',
                             'pg_replication_origin_drop',
                             'pg_replication_origin_session_setup',
                             'pg_replication_origin_session_reset'))            as may_use_origins
  from pg_catalog.pg_roles    r
  join pg_catalog.pg_database d on d.datname = pg_catalog.current_database()
 where r.rolname = current_user;
