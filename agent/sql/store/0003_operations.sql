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
