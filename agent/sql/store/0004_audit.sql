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
