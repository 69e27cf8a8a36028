-- The database as it is now, and what the role cannot see of it.  PostgreSQL 15+.
select steep_repl.canon_environment()      as definition,
       steep_repl.unreadable_catalogs()    as unreadable;
