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
