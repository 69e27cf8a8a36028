-- The schema of the agent's memory, its own history, and whose memory it is.  PostgreSQL 15+.
do $$
begin
    -- An administrator may have made the schema beforehand, for a role that may not create one.
    if pg_catalog.to_regnamespace('steep_repl') is null then
        create schema steep_repl;
    end if;
end
$$;
comment on schema steep_repl is
    'Memory of the Steep agent of this node; never replicated. Other roles may read what they are granted, not write.';
revoke all on schema steep_repl from public;

create table steep_repl.migrations (
    version     integer     not null primary key,
    name        text        not null,
    checksum    text        not null,
    applied_at  timestamptz not null default pg_catalog.now(),
    applied_by  text        not null default current_user
);
comment on table steep_repl.migrations is
    'Changes of this schema that were applied, in order; an agent that knows fewer of them refuses to start.';
comment on column steep_repl.migrations.checksum is
    'SHA-256 of the migration''s text, in hexadecimal: the same version must mean the same schema everywhere.';

create table steep_repl.identity (
    only_row           boolean     not null primary key default true check (only_row),
    node_id            text        not null,
    mesh               text        not null,
    system_identifier  text        not null,
    database           text        not null,
    created_at         timestamptz not null default pg_catalog.now()
);
comment on table steep_repl.identity is
    'Which node this database is: written by its first agent, compared by every later one.';
comment on column steep_repl.identity.only_row is
    'Always true: the table has one row.';
comment on column steep_repl.identity.mesh is
    'The trust domain the node belongs to, as in its agent''s certificate.';
comment on column steep_repl.identity.system_identifier is
    'Of the server the row was written on. Another server''s: the database was restored or moved, and may not be this node.';
comment on column steep_repl.identity.database is
    'Name of the database the row was written in. Another name: the database was cloned or renamed.';
