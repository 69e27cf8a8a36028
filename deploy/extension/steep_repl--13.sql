-- Made by `cargo x extension` from agent/sql/store: change the files there.
\echo Use "create extension steep_repl" to load this file. \quit

do $apply_1$
begin
    if pg_catalog.to_regclass('steep_repl.migrations') is null then
        execute $migration_1$
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
$migration_1$;
        insert into steep_repl.migrations (version, name, checksum)
        values (1, 'schema', '34384fb0aff72b1065fb20b68d990184ca4e5c6dfe4ef1ece48a5cc5c217d33a');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 1) <> '34384fb0aff72b1065fb20b68d990184ca4e5c6dfe4ef1ece48a5cc5c217d33a' then
        raise exception 'migration 1 (schema) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_1$;

do $apply_2$
begin
    if not exists (select from steep_repl.migrations m where m.version = 2) then
        execute $migration_2$
-- What a node is and how its initialization fares; and the one table of legal moves.  PostgreSQL 15+.
create table steep_repl.legal_moves (
    subject     text not null check (subject in ('node', 'operation')),
    from_state  text not null,
    to_state    text not null,
    primary key (subject, from_state, to_state)
);
comment on table steep_repl.legal_moves is
    'The only changes of state there are; triggers refuse all others. The agent''s code holds the same pairs.';

insert into steep_repl.legal_moves (subject, from_state, to_state)
values ('node', 'uninitialized',  'preparing'),
       ('node', 'preparing',      'copying'),
       ('node', 'preparing',      'catching_up'),
       ('node', 'preparing',      'failed'),
       ('node', 'preparing',      'uninitialized'),
       ('node', 'copying',        'catching_up'),
       ('node', 'copying',        'failed'),
       ('node', 'copying',        'uninitialized'),
       ('node', 'catching_up',    'synchronized'),
       ('node', 'catching_up',    'failed'),
       ('node', 'catching_up',    'uninitialized'),
       ('node', 'catching_up',    'diverged'),
       ('node', 'synchronized',   'diverged'),
       ('node', 'synchronized',   'reinitializing'),
       ('node', 'diverged',       'reinitializing'),
       ('node', 'diverged',       'failed'),
       ('node', 'failed',         'uninitialized'),
       ('node', 'failed',         'preparing'),
       ('node', 'failed',         'reinitializing'),
       ('node', 'reinitializing', 'copying'),
       ('node', 'reinitializing', 'catching_up'),
       ('node', 'reinitializing', 'synchronized'),
       ('node', 'reinitializing', 'failed'),
       ('node', 'reinitializing', 'diverged'),
       ('operation', 'running',     'cancelling'),
       ('operation', 'running',     'completed'),
       ('operation', 'running',     'failed'),
       ('operation', 'running',     'interrupted'),
       ('operation', 'cancelling',  'cancelled'),
       ('operation', 'cancelling',  'completed'),
       ('operation', 'cancelling',  'failed'),
       ('operation', 'cancelling',  'interrupted'),
       ('operation', 'interrupted', 'running'),
       ('operation', 'interrupted', 'failed'),
       ('operation', 'interrupted', 'cancelled');

create function steep_repl.refuse_illegal_move() returns trigger
    language plpgsql
    set search_path = pg_catalog
as $$
declare
    mover    constant text := tg_argv[0];
    named    constant text := to_jsonb(old) ->> tg_argv[2];
    was      constant text := to_jsonb(old) ->> tg_argv[1];
    becomes  constant text := to_jsonb(new) ->> tg_argv[1];
    legal    text;
begin
    if exists (select
                 from steep_repl.legal_moves m
                where m.subject = mover
                  and m.from_state = was
                  and m.to_state = becomes) then
        return new;
    end if;
    select string_agg(m.to_state, ', ' order by m.to_state)
      into legal
      from steep_repl.legal_moves m
     where m.subject = mover
       and m.from_state = was;
    raise exception using
        errcode = 'check_violation',
        message = format('%s %s is %s and cannot become %s', mover, named, was, becomes),
        detail  = format('From %s it may become: %s.', was, coalesce(legal, 'nothing else')),
        hint    = 'The agent moves states; to change one, use steepctl. All moves: select * from steep_repl.legal_moves.',
        schema  = tg_table_schema,
        table   = tg_table_name,
        column  = tg_argv[1];
end
$$;
comment on function steep_repl.refuse_illegal_move() is
    'Trigger (subject, state column, name column): refuses a change of state that steep_repl.legal_moves does not list.';

create table steep_repl.nodes (
    node_id            text        not null primary key,
    init_state         text        not null default 'uninitialized'
                       constraint nodes_init_state_is_known
                       check (init_state in ('uninitialized', 'preparing', 'copying', 'catching_up',
                                             'synchronized', 'diverged', 'failed', 'reinitializing')),
    init_source_node   text,
    init_started_at    timestamptz,
    init_completed_at  timestamptz,
    op_id              uuid,
    health             text        not null default 'unknown'
                       constraint nodes_health_is_known
                       check (health in ('ok', 'busy', 'warn', 'error', 'unknown')),
    health_reason      text        not null default '',
    last_seen          timestamptz not null default pg_catalog.now(),
    agent_version      text        not null default '',
    postgres_version   text        not null default ''
);
comment on table steep_repl.nodes is
    'This node, and what it last heard of others. Read identity.node_id to know which row is its own.';
comment on column steep_repl.nodes.init_state is
    'Where the node is in its life; only moves of steep_repl.legal_moves are accepted.';
comment on column steep_repl.nodes.init_source_node is
    'The node it was, or is being, initialized from; null: none.';
comment on column steep_repl.nodes.init_started_at is
    'When its last initialization began.';
comment on column steep_repl.nodes.init_completed_at is
    'When it last became synchronized; null while an initialization has not.';
comment on column steep_repl.nodes.op_id is
    'The operation that last moved its state; null: none did.';
comment on column steep_repl.nodes.health_reason is
    'Why health is not ok; empty when it is.';
comment on column steep_repl.nodes.last_seen is
    'When its agent last said how it is.';

create trigger legal_moves_only
    before update on steep_repl.nodes
    for each row
    when (old.init_state is distinct from new.init_state)
    execute function steep_repl.refuse_illegal_move('node', 'init_state', 'node_id');
-- Also for whoever loads rows as a replica.
alter table steep_repl.nodes enable always trigger legal_moves_only;

create table steep_repl.init_progress (
    node_id                text        not null primary key references steep_repl.nodes (node_id),
    op_id                  uuid,
    phase                  text        not null
                           constraint init_progress_phase_is_known
                           check (phase in ('preflight', 'snapshot', 'schema', 'copy', 'indexes', 'sequences',
                                            'catching_up', 'verify')),
    overall_percent        real        not null default 0,
    tables_total           integer     not null default 0,
    tables_completed       integer     not null default 0,
    current_table          text,
    current_table_percent  real        not null default 0,
    rows_copied            bigint      not null default 0,
    bytes_copied           bigint      not null default 0,
    throughput_rows_sec    real        not null default 0,
    parallel_workers       integer     not null default 0,
    started_at             timestamptz not null default pg_catalog.now(),
    eta_seconds            integer,
    error_message          text,
    updated_at             timestamptz not null default pg_catalog.now()
);
comment on table steep_repl.init_progress is
    'How far the last initialization of a node is or came; written about once a second while it runs.';
comment on column steep_repl.init_progress.overall_percent is
    '0 to 100, all phases; never goes back within one operation.';
comment on column steep_repl.init_progress.current_table is
    'One of the tables being copied; null: none. With several workers, the one that is furthest from done.';
comment on column steep_repl.init_progress.bytes_copied is
    'Bytes of COPY data that have landed.';
comment on column steep_repl.init_progress.throughput_rows_sec is
    'Rows a second, over the last seconds.';
comment on column steep_repl.init_progress.eta_seconds is
    'Seconds until it is done, by the rate so far; null: not known.';
comment on column steep_repl.init_progress.error_message is
    'Why it ended early; null: it did not.';

create table steep_repl.init_slots (
    slot_name    text        not null primary key,
    node_id      text        not null,
    op_id        uuid,
    lsn          pg_lsn      not null,
    created_at   timestamptz not null default pg_catalog.now(),
    released_at  timestamptz
);
comment on table steep_repl.init_slots is
    'Replication slots this node keeps for the initialization of others.';
comment on column steep_repl.init_slots.node_id is
    'The node the slot is kept for.';
comment on column steep_repl.init_slots.lsn is
    'The slot''s consistent point: a copy taken there needs everything after it.';
comment on column steep_repl.init_slots.released_at is
    'When the slot was dropped or handed to a subscription; null: it is kept for an initialization still.';

create table steep_repl.snapshots (
    snapshot_id   uuid        not null primary key,
    source_node   text        not null,
    op_id         uuid,
    lsn           pg_lsn,
    storage       text        not null,
    status        text        not null
                  constraint snapshots_status_is_known
                  check (status in ('generating', 'complete', 'failed', 'deleted')),
    manifest      jsonb,
    size_bytes    bigint      not null default 0,
    created_at    timestamptz not null default pg_catalog.now(),
    completed_at  timestamptz,
    expires_at    timestamptz
);
comment on table steep_repl.snapshots is
    'Snapshots of a database that lie in storage.';
comment on column steep_repl.snapshots.lsn is
    'The point of the source''s WAL the snapshot shows; null: not known yet.';
comment on column steep_repl.snapshots.storage is
    'Where it lies, without credentials.';
comment on column steep_repl.snapshots.manifest is
    'Its tables, files, counts and checksums; null until it is complete.';

create table steep_repl.schema_fingerprints (
    node_id             text        not null,
    table_schema        text        not null,
    table_name          text        not null,
    fingerprint         text        not null,
    shape               text        not null,
    column_count        integer     not null,
    column_definitions  jsonb       not null,
    captured_at         timestamptz not null default pg_catalog.now(),
    primary key (node_id, table_schema, table_name)
);
comment on table steep_repl.schema_fingerprints is
    'How tables looked when their fingerprint was taken: of this node, and of others as they told.';
comment on column steep_repl.schema_fingerprints.fingerprint is
    'SHA-256 of the columns in order, in hexadecimal.';
comment on column steep_repl.schema_fingerprints.shape is
    'SHA-256 of everything else that makes the table: keys, constraints, indexes, triggers, policies, partitioning.';
comment on column steep_repl.schema_fingerprints.column_definitions is
    'What the fingerprint was taken of, so that a difference can be named.';
$migration_2$;
        insert into steep_repl.migrations (version, name, checksum)
        values (2, 'nodes', '9b068aaf6dc694e7de7ba54016cff55a7a7d474b56aa9d5f3c75307a2dc6835a');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 2) <> '9b068aaf6dc694e7de7ba54016cff55a7a7d474b56aa9d5f3c75307a2dc6835a' then
        raise exception 'migration 2 (nodes) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_2$;

do $apply_3$
begin
    if not exists (select from steep_repl.migrations m where m.version = 3) then
        execute $migration_3$
-- Long work: what was asked, the steps it takes, what it made, and what it told.  PostgreSQL 15+.
create table steep_repl.operations (
    op_id       uuid        not null primary key,
    kind        text        not null,
    target      text        not null,
    source      text        not null,
    method      text        not null,
    request     jsonb       not null,
    status      text        not null default 'running'
                constraint operations_status_is_known
                check (status in ('running', 'cancelling', 'completed', 'failed', 'cancelled', 'interrupted')),
    step        text,
    started_by  text        not null,
    started_at  timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at    timestamptz,
    failure     jsonb,
    constraint operations_end_when_they_end
    check ((ended_at is not null) = (status in ('completed', 'failed', 'cancelled')))
);
comment on table steep_repl.operations is
    'Long work of this node''s agent, one row each, kept after its end.';
comment on column steep_repl.operations.op_id is
    'UUID of version 7, made by whoever asked: asking again with the same id starts nothing new.';
comment on column steep_repl.operations.kind is
    'What it does: init.';
comment on column steep_repl.operations.request is
    'All that was asked, enough to go on with it after a crash.';
comment on column steep_repl.operations.step is
    'The step it is in, or was in when it ended; null: none began.';
comment on column steep_repl.operations.failure is
    'Why it failed or was cancelled: code, message, causes, hint; null: it did not.';

create unique index operations_one_active_per_target
    on steep_repl.operations (target)
    where status in ('running', 'cancelling', 'interrupted');
comment on index steep_repl.operations_one_active_per_target is
    'Two operations on one node at a time are refused, whoever asks.';
create index operations_by_start
    on steep_repl.operations (started_at desc);

create trigger legal_moves_only
    before update on steep_repl.operations
    for each row
    when (old.status is distinct from new.status)
    execute function steep_repl.refuse_illegal_move('operation', 'status', 'op_id');
alter table steep_repl.operations enable always trigger legal_moves_only;

create table steep_repl.operation_steps (
    op_id       uuid        not null references steep_repl.operations (op_id) on delete cascade,
    ordinal     integer     not null,
    name        text        not null,
    status      text        not null default 'pending'
                constraint operation_steps_status_is_known
                check (status in ('pending', 'running', 'done', 'undone', 'failed')),
    started_at  timestamptz,
    ended_at    timestamptz,
    primary key (op_id, ordinal),
    unique (op_id, name)
);
comment on table steep_repl.operation_steps is
    'The steps of each operation, in order; a step is marked running before it begins.';
comment on column steep_repl.operation_steps.ordinal is
    'Its place in the recipe, from 1.';

create table steep_repl.operation_events (
    cursor  bigint      generated always as identity primary key,
    op_id   uuid        not null references steep_repl.operations (op_id) on delete cascade,
    at      timestamptz not null default pg_catalog.clock_timestamp(),
    event   text        not null,
    body    jsonb       not null
);
comment on table steep_repl.operation_events is
    'What happened in each operation, once each; stored before any watcher is told.';
comment on column steep_repl.operation_events.cursor is
    'Grows with every event of this node; a watcher goes on after the last one it saw.';
comment on column steep_repl.operation_events.event is
    'A name of the log event schema: init.started.';
create index operation_events_by_operation
    on steep_repl.operation_events (op_id, cursor);

create table steep_repl.copied_parts (
    op_id         uuid        not null references steep_repl.operations (op_id) on delete cascade,
    table_schema  text        not null,
    table_name    text        not null,
    part          integer     not null,
    row_count     bigint      not null,
    byte_count    bigint      not null,
    hash          bigint      not null,
    copied_at     timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (op_id, table_schema, table_name, part)
);
comment on table steep_repl.copied_parts is
    'Parts of tables that have landed here, each written in the transaction that loaded its rows: both or neither.';
comment on column steep_repl.copied_parts.part is
    'Its number within the table, from 0, as the source cut it.';
comment on column steep_repl.copied_parts.byte_count is
    'Bytes of COPY data.';
comment on column steep_repl.copied_parts.hash is
    'XXH3 over the part''s blocks as source and target both computed it; 64 bits, shown with a sign.';

create table steep_repl.intents (
    id        bigint      generated always as identity primary key,
    op_id     uuid        not null,
    step      text        not null,
    kind      text        not null,
    name      text        not null,
    detail    jsonb       not null,
    state     text        not null default 'planned'
              constraint intents_state_is_known
              check (state in ('planned', 'live', 'undone', 'kept')),
    made_at   timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at  timestamptz,
    constraint intents_end_when_they_end
    check ((ended_at is not null) = (state in ('undone', 'kept')))
);
comment on table steep_repl.intents is
    'Everything an operation makes outside this schema, written down before it is made, so that it can be undone.';
comment on column steep_repl.intents.op_id is
    'The operation; that of another node has its row in that node''s database.';
comment on column steep_repl.intents.kind is
    'slot, publication, subscription, origin, schema, objects, rows or peer_session.';
comment on column steep_repl.intents.detail is
    'All that is needed to undo it.';
comment on column steep_repl.intents.state is
    'planned: may or may not exist; live: exists; undone: gone again; kept: there to stay, its operation succeeded.';
create index intents_pending
    on steep_repl.intents (op_id, id)
    where state in ('planned', 'live');
$migration_3$;
        insert into steep_repl.migrations (version, name, checksum)
        values (3, 'operations', 'a1253e53312cc2fa603875cfd68de723a108d17d3da409ea90b8762cdbe2e86e');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 3) <> 'a1253e53312cc2fa603875cfd68de723a108d17d3da409ea90b8762cdbe2e86e' then
        raise exception 'migration 3 (operations) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_3$;

do $apply_4$
begin
    if not exists (select from steep_repl.migrations m where m.version = 4) then
        execute $migration_4$
-- Who changed what: rows that can only be added, each sealed with the one before it.  PostgreSQL 15+.
create table steep_repl.audit_log (
    id          bigint      not null primary key,
    at          timestamptz not null,
    actor_kind  text        not null
                constraint audit_log_actor_kind_is_known
                check (actor_kind in ('operator', 'node', 'system')),
    actor       text        not null,
    actor_role  text,
    action      text        not null,
    target      text        not null,
    op_id       uuid,
    detail      jsonb       not null,
    prev_hash   bytea       not null,
    hash        bytea       not null
);
comment on table steep_repl.audit_log is
    'Every change the agent made for somebody. Each row''s hash covers the row before it: a row altered or taken out shows.';
comment on column steep_repl.audit_log.id is
    'Counts from 1 without gaps; given by the trigger.';
comment on column steep_repl.audit_log.actor_kind is
    'operator: a person with a certificate; node: another agent; system: this agent by itself.';
comment on column steep_repl.audit_log.actor_role is
    'The role in an operator''s certificate; null: no operator.';
comment on column steep_repl.audit_log.action is
    'What was done: init.state_change.';
comment on column steep_repl.audit_log.target is
    'To what: a node, a table, a certificate.';
comment on column steep_repl.audit_log.prev_hash is
    'The hash of the row before; 32 zero bytes in the first row.';
comment on column steep_repl.audit_log.hash is
    'SHA-256 of prev_hash and of all other columns: see steep_repl.audit_hash.';

create function steep_repl.audit_hash(entry steep_repl.audit_log) returns bytea
    language sql
    immutable
    set search_path = pg_catalog
as $$
    -- An array, so that no text can pass for two; a time as microseconds, so that no setting changes it.
    select sha256(entry.prev_hash || convert_to(jsonb_build_array(
        entry.id,
        (extract(epoch from entry.at) * 1000000)::bigint,
        entry.actor_kind,
        entry.actor,
        entry.actor_role,
        entry.action,
        entry.target,
        entry.op_id,
        entry.detail)::text, 'UTF8'));
$$;
comment on function steep_repl.audit_hash(steep_repl.audit_log) is
    'The hash an audit row must have.';

create function steep_repl.seal_audit_entry() returns trigger
    language plpgsql
    set search_path = pg_catalog
as $$
begin
    -- One writer at a time, until it commits: the chain has one end. ("step" in ASCII; 3: the audit chain.)
    perform pg_advisory_xact_lock(1937007984, 3);
    select a.id + 1, a.hash
      into new.id, new.prev_hash
      from steep_repl.audit_log a
     order by a.id desc
     limit 1;
    if not found then
        new.id := 1;
        new.prev_hash := decode(repeat('00', 32), 'hex');
    end if;
    new.at := clock_timestamp();
    new.hash := steep_repl.audit_hash(new);
    return new;
end
$$;
comment on function steep_repl.seal_audit_entry() is
    'Trigger: gives an audit row its number, time, and its place in the chain, whatever was asked for.';

create function steep_repl.refuse_rewriting() returns trigger
    language plpgsql
    set search_path = pg_catalog
as $$
begin
    raise exception using
        errcode = 'insufficient_privilege',
        message = format('rows of %I.%I can only be added', tg_table_schema, tg_table_name),
        hint    = 'What was written there is evidence; it is neither changed nor deleted.';
end
$$;
comment on function steep_repl.refuse_rewriting() is
    'Trigger: refuses update, delete and truncate.';

create trigger sealed
    before insert on steep_repl.audit_log
    for each row
    execute function steep_repl.seal_audit_entry();
alter table steep_repl.audit_log enable always trigger sealed;

create trigger added_only
    before update or delete or truncate on steep_repl.audit_log
    for each statement
    execute function steep_repl.refuse_rewriting();
alter table steep_repl.audit_log enable always trigger added_only;

create table steep_repl.merge_audit_log (
    id              bigint      generated always as identity primary key,
    op_id           uuid        not null,
    table_schema    text        not null,
    table_name      text        not null,
    row_key         jsonb       not null,
    category        text        not null
                    constraint merge_audit_log_category_is_known
                    check (category in ('conflict', 'a_only', 'b_only')),
    resolution      text        not null,
    node_a          text        not null,
    node_b          text        not null,
    node_a_row      jsonb,
    node_b_row      jsonb,
    resolved_by     text        not null,
    resolved_at     timestamptz not null default pg_catalog.clock_timestamp(),
    unique (op_id, table_schema, table_name, row_key)
);
comment on table steep_repl.merge_audit_log is
    'Every decision of a merge with the rows of both nodes as they were before it, written in the transaction that applied it.';
comment on column steep_repl.merge_audit_log.row_key is
    'The row''s primary key: column names and values.';
comment on column steep_repl.merge_audit_log.category is
    'conflict: both nodes had the row and it differed; a_only, b_only: one node had it.';
comment on column steep_repl.merge_audit_log.resolution is
    'What was decided, and by which strategy.';
comment on column steep_repl.merge_audit_log.node_a_row is
    'The row as node_a had it; null: it had none.';
comment on column steep_repl.merge_audit_log.node_b_row is
    'The row as node_b had it; null: it had none.';
comment on column steep_repl.merge_audit_log.resolved_by is
    'Who asked for the merge.';

create trigger added_only
    before update or delete or truncate on steep_repl.merge_audit_log
    for each statement
    execute function steep_repl.refuse_rewriting();
alter table steep_repl.merge_audit_log enable always trigger added_only;
$migration_4$;
        insert into steep_repl.migrations (version, name, checksum)
        values (4, 'audit', '10c20c19c4007dbb8aaa51a5dd50b81652be6a8a3f2ec59985fb28c5915d9024');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 4) <> '10c20c19c4007dbb8aaa51a5dd50b81652be6a8a3f2ec59985fb28c5915d9024' then
        raise exception 'migration 4 (audit) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_4$;

do $apply_5$
begin
    if not exists (select from steep_repl.migrations m where m.version = 5) then
        execute $migration_5$
-- What is heard of the other nodes, beside this node's own row.  PostgreSQL 15+.
alter table steep_repl.nodes
    add column is_hearsay        boolean     not null default false,
    add column liveness          text        not null default 'alive'
               constraint nodes_liveness_is_known
               check (liveness in ('alive', 'suspect', 'dead', 'left', 'unknown')),
    add column address           text        not null default '',
    add column postgres_address  text        not null default '',
    add column generation        bigint      not null default 0,
    add column percent           real,
    add column eta_seconds       bigint,
    add column lag_bytes         bigint,
    add column changed_at        timestamptz,
    alter column init_state drop not null,
    alter column last_seen drop not null,
    add constraint nodes_own_state_is_known
        check (is_hearsay or (init_state is not null and last_seen is not null));
comment on column steep_repl.nodes.is_hearsay is
    'False for this node''s own row, which is the truth; true for what the agents told of another node.';
comment on column steep_repl.nodes.liveness is
    'alive, suspect (does not answer), dead (given up), left (said goodbye), unknown (not heard of since this agent started).';
comment on column steep_repl.nodes.address is
    'host:port at which its agent is reached by the others.';
comment on column steep_repl.nodes.postgres_address is
    'host:port or socket directory of its PostgreSQL, as its agent sees it.';
comment on column steep_repl.nodes.generation is
    'Which run of its agent said so; later runs have higher ones.';
comment on column steep_repl.nodes.percent is
    '0 to 100, of the operation that runs; null: none does.';
comment on column steep_repl.nodes.eta_seconds is
    'Seconds until that is done; null: not known.';
comment on column steep_repl.nodes.lag_bytes is
    'Bytes of source WAL not yet applied there; null: no subscription.';
comment on column steep_repl.nodes.changed_at is
    'When state, source, operation or health last changed, by the node''s own clock.';
comment on column steep_repl.nodes.init_state is
    'Where the node is in its life; of this node only moves of steep_repl.legal_moves are accepted. Null: nothing was heard.';
comment on column steep_repl.nodes.last_seen is
    'When its agent was last heard of, to about ten seconds; null: never.';

-- Hearsay may have missed the moves in between.
drop trigger legal_moves_only on steep_repl.nodes;
create trigger legal_moves_only
    before update on steep_repl.nodes
    for each row
    when (old.init_state is distinct from new.init_state and not (old.is_hearsay and new.is_hearsay))
    execute function steep_repl.refuse_illegal_move('node', 'init_state', 'node_id');
alter table steep_repl.nodes enable always trigger legal_moves_only;
$migration_5$;
        insert into steep_repl.migrations (version, name, checksum)
        values (5, 'mesh', 'a8481d5954ea0a0ae0b558570c1f52e58fb13ff2c5524b3b5b9810d3b53f4866');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 5) <> 'a8481d5954ea0a0ae0b558570c1f52e58fb13ff2c5524b3b5b9810d3b53f4866' then
        raise exception 'migration 5 (mesh) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_5$;

do $apply_6$
begin
    if not exists (select from steep_repl.migrations m where m.version = 6) then
        execute $migration_6$
-- What operators have signed and this node has acted on.  PostgreSQL 15+.
create table steep_repl.signed_intents (
    op_id      uuid        not null primary key,
    action     text        not null,
    signer     text        not null,
    target     text        not null,
    source     text,
    about      uuid,
    intent     bytea       not null,
    signature  bytea       not null,
    scheme     integer     not null,
    chain      bytea[]     not null,
    used_at    timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at   timestamptz
);
comment on table steep_repl.signed_intents is
    'Every order of an operator that this node has acted on, as it was signed: proof of who wanted what, and no second use.';
comment on column steep_repl.signed_intents.op_id is
    'The order''s own id, which is also that of an operation it begins.';
comment on column steep_repl.signed_intents.action is
    'What was ordered: node.start.';
comment on column steep_repl.signed_intents.signer is
    'Who signed, as the URI in their certificate.';
comment on column steep_repl.signed_intents.target is
    'The node whose agent is to act.';
comment on column steep_repl.signed_intents.source is
    'The node whose rows the target may read; null: none.';
comment on column steep_repl.signed_intents.about is
    'The operation that was begun or cancelled by it; null: it was about none.';
comment on column steep_repl.signed_intents.intent is
    'The bytes that were signed: an encoded steep.v1.Intent.';
comment on column steep_repl.signed_intents.scheme is
    'The signature''s scheme, by its number in TLS 1.3.';
comment on column steep_repl.signed_intents.chain is
    'DER: the signer''s certificate, then those that lead to the mesh''s root.';
comment on column steep_repl.signed_intents.ended_at is
    'Nothing more may begin by it from then on; null: the operation it began has not been closed.';

create trigger kept
    before delete or truncate or update of op_id, action, signer, target, source, about, intent, signature, scheme, chain,
    used_at on steep_repl.signed_intents
    for each statement
    execute function steep_repl.refuse_rewriting();
alter table steep_repl.signed_intents enable always trigger kept;
$migration_6$;
        insert into steep_repl.migrations (version, name, checksum)
        values (6, 'signed_intents', 'c1ad20bb33c9b3d622ebefe334d68dce69bc75c28ff9d02d857bb8995643e496');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 6) <> 'c1ad20bb33c9b3d622ebefe334d68dce69bc75c28ff9d02d857bb8995643e496' then
        raise exception 'migration 6 (signed_intents) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_6$;

do $apply_7$
begin
    if not exists (select from steep_repl.migrations m where m.version = 7) then
        execute $migration_7$
-- Nodes that were taken out of replication, and who still has to hear of it.  PostgreSQL 15+.
create table steep_repl.removals (
    op_id       uuid         not null primary key,
    node_id     text         not null,
    removed_by  text         not null,
    asked_at    timestamptz  not null,
    heard_at    timestamptz  not null default pg_catalog.clock_timestamp(),
    done_at     timestamptz,
    pending     text[]       not null,
    signed      bytea        not null
);
comment on table steep_repl.removals is
    'Nodes that were removed, as far as this node has heard; rows stay, so that none is done twice.';
comment on column steep_repl.removals.op_id is
    'The operation that removed the node; it ran on the node''s own agent, or on another one where that could not be reached.';
comment on column steep_repl.removals.node_id is
    'The node removed; it may be this one.';
comment on column steep_repl.removals.asked_at is
    'When the removal was asked for: what was made later is not taken away.';
comment on column steep_repl.removals.done_at is
    'When this node had taken away what it had with the removed one; null: it has not yet, and tries again.';
comment on column steep_repl.removals.pending is
    'Nodes that have not confirmed it yet, as far as this one knows; it tells them again and again.';
comment on column steep_repl.removals.signed is
    'What an operator signed to ask for it (a SignedIntent); shown to whoever is told.';
create index removals_unfinished
    on steep_repl.removals (node_id)
    where done_at is null or pending <> '{}';

insert into steep_repl.legal_moves (subject, from_state, to_state)
values ('node', 'synchronized', 'uninitialized'),
       ('node', 'diverged',     'uninitialized');

comment on column steep_repl.operations.kind is
    'What it does: init or remove.';
comment on column steep_repl.intents.kind is
    'slot, publication, subscription, pause, origin, schema, objects, rows or peer_session.';
$migration_7$;
        insert into steep_repl.migrations (version, name, checksum)
        values (7, 'removals', '3aad9ddf9887031eca70eda9e1e62a9a7b9cc523988a1360d6d9750a63060212');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 7) <> '3aad9ddf9887031eca70eda9e1e62a9a7b9cc523988a1360d6d9750a63060212' then
        raise exception 'migration 7 (removals) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_7$;

do $apply_8$
begin
    if not exists (select from steep_repl.migrations m where m.version = 8) then
        execute $migration_8$
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
$migration_8$;
        insert into steep_repl.migrations (version, name, checksum)
        values (8, 'fingerprints', 'dcd91b911a4a26ae339aa222a15addd35a0a20b19ac81a83365fd686b7235b8c');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 8) <> 'dcd91b911a4a26ae339aa222a15addd35a0a20b19ac81a83365fd686b7235b8c' then
        raise exception 'migration 8 (fingerprints) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_8$;

do $apply_9$
begin
    if not exists (select from steep_repl.migrations m where m.version = 9) then
        execute $migration_9$
-- What operations have learned and must know to go on after their agent has died.  PostgreSQL 15+.
create table steep_repl.operation_notes (
    op_id       uuid        not null references steep_repl.operations (op_id) on delete cascade,
    name        text        not null,
    body        bytea       not null,
    written_at  timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (op_id, name)
);
comment on table steep_repl.operation_notes is
    'What an operation that has not ended knows, so that it can go on should its agent die; gone when it has ended.';
comment on column steep_repl.operation_notes.name is
    'What it is: facts, existing, session, joined/NODE, counts, indexes.begun/OID, indexes.built/OID.';
comment on column steep_repl.operation_notes.body is
    'An encoded message of steep.v1; empty where the name says it all.';
$migration_9$;
        insert into steep_repl.migrations (version, name, checksum)
        values (9, 'operation_notes', 'af84eedbd8b8df7bf92d92b9852222b7d8fd9b165f01ac971800c5a427e689a9');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 9) <> 'af84eedbd8b8df7bf92d92b9852222b7d8fd9b165f01ac971800c5a427e689a9' then
        raise exception 'migration 9 (operation_notes) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_9$;

do $apply_10$
begin
    if not exists (select from steep_repl.migrations m where m.version = 10) then
        execute $migration_10$
-- What made a node diverge, and which slots no longer carry all that was written since.  PostgreSQL 15+.
insert into steep_repl.legal_moves (subject, from_state, to_state)
values ('node', 'diverged', 'synchronized');

create table steep_repl.divergences (
    id          bigint      generated always as identity primary key,
    noticed_at  timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at    timestamptz,
    failure     jsonb       not null
);
comment on table steep_repl.divergences is
    'Each time replication to this node was found broken: the agent made the node diverged for it.';
comment on column steep_repl.divergences.ended_at is
    'When it was whole again, or the node was initialized anew or removed; null: it is diverged for this still.';
comment on column steep_repl.divergences.failure is
    'Code, message, causes and hint, as last seen.';
create unique index divergences_one_at_a_time
    on steep_repl.divergences ((true))
    where ended_at is null;

create table steep_repl.lost_slots (
    source_node  text        not null,
    slot_name    text        not null,
    target_node  text        not null,
    reason       text        not null,
    lost_at      timestamptz not null default pg_catalog.clock_timestamp(),
    primary key (source_node, slot_name)
);
comment on table steep_repl.lost_slots is
    'Slots of this node, or read by its subscriptions, that do not carry all that was written since: nothing makes them whole again.';
comment on column steep_repl.lost_slots.source_node is
    'The node that had the slot.';
comment on column steep_repl.lost_slots.target_node is
    'The node it was kept for; empty: not known.';
comment on column steep_repl.lost_slots.reason is
    'What became of it, in a few words.';
$migration_10$;
        insert into steep_repl.migrations (version, name, checksum)
        values (10, 'watching', '8d631872dcfa53c325a54637665dfd3eea1f8650ae356c9041fdc8a6f65c54dd');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 10) <> '8d631872dcfa53c325a54637665dfd3eea1f8650ae356c9041fdc8a6f65c54dd' then
        raise exception 'migration 10 (watching) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_10$;

do $apply_11$
begin
    if not exists (select from steep_repl.migrations m where m.version = 11) then
        execute $migration_11$
-- Snapshots in files: what each keeps on the server, and when that ends.  PostgreSQL 15+.
alter table steep_repl.snapshots
    add column slot_name         text,
    add column publication_name  text,
    add column warned_at         timestamptz;
comment on table steep_repl.snapshots is
    'Snapshots of this node''s database that its agent wrote into files.';
comment on column steep_repl.snapshots.snapshot_id is
    'The operation that made it; people know it by the end of that: snap_0192f3ac7d21.';
comment on column steep_repl.snapshots.slot_name is
    'The slot that keeps what was written since; null: not made yet.';
comment on column steep_repl.snapshots.publication_name is
    'The publication that holds its tables; null: not made yet.';
comment on column steep_repl.snapshots.warned_at is
    'When it was told that it expires soon; null: it was not.';

comment on column steep_repl.operations.kind is
    'What it does: init, reinit, remove or snapshot.';
comment on column steep_repl.intents.kind is
    'slot, publication, subscription, pause, origin, schema, objects, rows, detour, staged, fence, directory or peer_session.';
$migration_11$;
        insert into steep_repl.migrations (version, name, checksum)
        values (11, 'snapshots', '0a99ed0d4cde34865096a02b4768f1555f8d4dc4bfffc8d2077e50d5e51aac22');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 11) <> '0a99ed0d4cde34865096a02b4768f1555f8d4dc4bfffc8d2077e50d5e51aac22' then
        raise exception 'migration 11 (snapshots) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_11$;

do $apply_13$
begin
    if not exists (select from steep_repl.migrations m where m.version = 13) then
        execute $migration_13$
-- Backups made by hand: what a node keeps for them, and until when.  PostgreSQL 15+.
create table steep_repl.preparations (
    op_id          uuid        primary key,
    purpose        text        not null check (purpose in ('pg_dump', 'pg_basebackup', 'storage-snapshot')),
    target_node    text        not null,
    slot_name      text        not null,
    publication    text        not null,
    selection      bytea       not null,
    lsn            pg_lsn,
    snapshot       text        not null default '',
    prepared_by    text        not null,
    prepared_at    timestamptz not null default pg_catalog.clock_timestamp(),
    expires_at     timestamptz not null,
    warned_at      timestamptz,
    taken_by       uuid,
    ended_at       timestamptz,
    end_reason     text
);
comment on table steep_repl.preparations is
    'What this node was prepared for by steepctl node prepare: each keeps a slot until a node is completed from it, or it expires.';
comment on column steep_repl.preparations.target_node is
    'The node that is to be completed from it; empty: not said.';
comment on column steep_repl.preparations.selection is
    'Which tables, as a message of the protocol.';
comment on column steep_repl.preparations.lsn is
    'Where the slot begins; null: it is not made yet.';
comment on column steep_repl.preparations.snapshot is
    'The exported snapshot that is held for it; empty: none is, or not any more.';
comment on column steep_repl.preparations.warned_at is
    'When it was told that it expires soon.';
comment on column steep_repl.preparations.taken_by is
    'The operation that last began to complete a node from it.';
create unique index preparations_by_slot
    on steep_repl.preparations (slot_name)
    where ended_at is null;
$migration_13$;
        insert into steep_repl.migrations (version, name, checksum)
        values (13, 'preparations', '671e5e3a3c0885198bda7bb999b5d3096c7e0ab631d9f1c50b82853e1d59e082');
    elsif (select m.checksum from steep_repl.migrations m where m.version = 13) <> '671e5e3a3c0885198bda7bb999b5d3096c7e0ab631d9f1c50b82853e1d59e082' then
        raise exception 'migration 13 (preparations) of schema steep_repl is not the one of this extension'
            using hint = 'Take the extension that belongs to the agent which made the schema, or a later one.';
    end if;
end
$apply_13$;

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
