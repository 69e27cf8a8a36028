-- A shop of about 200 MB: what a real schema has, made by the server itself in seconds.
begin;
select setseed(0.42);

create type order_status as enum ('new', 'paid', 'shipped', 'returned');
create domain email as text check (value ~ '^[^@ ]+@[^@ ]+$');

create table customers (
  id         bigint generated always as identity primary key,
  name       text not null,
  email      email not null unique,
  address    jsonb not null,
  visits     integer not null default 0,
  joined_at  timestamptz not null default now()
);

create table products (
  id          serial primary key,
  sku         text not null unique,
  name        text not null,
  price       numeric(10, 2) not null check (price > 0),
  tags        text[] not null default '{}',
  description text
);

create table orders (
  id          uuid not null default gen_random_uuid(),
  customer_id bigint not null,
  status      order_status not null default 'new',
  total       numeric(12, 2) not null default 0,
  note        text,
  placed_at   timestamptz not null default now()
);

create table order_items (
  order_id   uuid not null,
  line       smallint not null,
  product_id integer not null,
  quantity   smallint not null check (quantity > 0),
  price      numeric(10, 2) not null,
  amount     numeric(12, 2) generated always as (quantity * price) stored
);

create table payments (
  id        uuid not null default gen_random_uuid(),
  order_id  uuid not null,
  method    text not null,
  amount    numeric(12, 2) not null,
  paid_at   timestamptz not null default now()
);

create table events (
  id      uuid not null default gen_random_uuid(),
  at      timestamptz not null default now(),
  kind    text not null,
  payload jsonb not null,
  primary key (id, at)
) partition by range (at);
create table events_2025 partition of events for values from (minvalue) to ('2026-01-01');
create table events_2026 partition of events for values from ('2026-01-01') to ('2027-01-01');
create table events_later partition of events default;

insert into customers (name, email, address, visits, joined_at)
select 'Customer ' || n, 'customer' || n || '@shop.example',
       jsonb_build_object('street', 'Street ' || n % 977, 'zip', lpad((n % 99999)::text, 5, '0'), 'city', 'City ' || n % 211),
       (random() * 40)::int, timestamptz '2025-01-01' + n * interval '4 minutes'
  from generate_series(1, 120000) n;

insert into products (sku, name, price, tags, description)
select 'SKU-' || lpad(n::text, 6, '0'), 'Product ' || n, 1 + (random() * 200)::numeric(10, 2),
       array['tag' || n % 17, 'tag' || n % 23], repeat('A thing worth having. ', 1 + n % 20)
  from generate_series(1, 5000) n;

insert into orders (customer_id, status, total, note, placed_at)
select 1 + (random() * 119999)::int, (enum_range(null::order_status))[1 + n % 4], n % 997 + 0.99,
       case when n % 10 = 0 then 'leave it with the neighbour at number ' || n % 300 end,
       timestamptz '2025-01-01' + n * interval '2 minutes'
  from generate_series(1, 220000) n;

insert into order_items (order_id, line, product_id, quantity, price)
select o.id, n, 1 + (random() * 4999)::int, 1 + n % 4, 1 + (random() * 200)::numeric(10, 2)
  from orders o, generate_series(1, 2) n;

insert into payments (order_id, method, amount, paid_at)
select id, (array['card', 'invoice', 'transfer'])[1 + (random() * 2)::int], total, placed_at + interval '5 minutes'
  from orders where status <> 'new';

insert into events (at, kind, payload)
select timestamptz '2025-06-01' + n * interval '3 minutes', (array['view', 'search', 'basket', 'login'])[1 + n % 4],
       jsonb_build_object('session', md5(n::text), 'page', '/product/' || n % 5000, 'ms', (random() * 900)::int)
  from generate_series(1, 200000) n;

-- Keys and indexes after the rows: built once, not row by row.
alter table orders add primary key (id);
alter table order_items add primary key (order_id, line);
alter table payments add primary key (id);
alter table orders add foreign key (customer_id) references customers;
alter table order_items add foreign key (order_id) references orders on delete cascade;
alter table order_items add foreign key (product_id) references products;
alter table payments add foreign key (order_id) references orders on delete cascade;

create index orders_by_customer on orders (customer_id, placed_at desc);
create index orders_open on orders (placed_at) where status = 'new';
create index payments_by_order on payments (order_id);
create index order_items_by_product on order_items (product_id);
create index products_by_tag on products using gin (tags);
create index events_by_kind on events (kind, at);

create view revenue as
select date_trunc('month', placed_at) as month, count(*) as orders, sum(total) as total
  from orders group by 1;

create function remember_visit() returns trigger language plpgsql as $$
begin
  update customers set visits = visits + 1 where id = new.customer_id;
  return new;
end $$;
create trigger orders_count_visits after insert on orders for each row execute function remember_visit();

commit;
vacuum analyze;
