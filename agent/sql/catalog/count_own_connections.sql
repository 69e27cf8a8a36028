-- The agent's connections to this database, by what they are for and what they do.  PostgreSQL 15+.
-- No parameters.
select coalesce(pg_catalog.substring(a.application_name,
                  '^steep-(control|watch|keeper|copy-out|copy-in|ddl|slot|dump|restore)'), 'other')  as purpose,
       coalesce(a.state, 'starting')                                                               as state,
       count(*)                                                                                    as connections
  from pg_catalog.pg_stat_activity a
 where pg_catalog.starts_with(a.application_name, 'steep-')
   and a.datname = pg_catalog.current_database()
 group by 1, 2;
