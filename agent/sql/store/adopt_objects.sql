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
