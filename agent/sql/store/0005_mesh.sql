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
