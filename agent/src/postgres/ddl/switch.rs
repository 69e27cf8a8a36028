//! Renders what copying a table again needs: a table beside it, the switch, a fence for writers meanwhile.

use steep_protocol::{
    failure::Code,
    names::{TableName, quote_identifier, quote_literal},
};

use super::{OWN_SCHEMA, Statement, TableRef, alter_subscription, columns_sql, doing, list, tables};
use crate::postgres::keys::KeyCheck;

/// Makes an unlogged table with the same columns as `table`, and nothing else of it. No log of it is ever decoded.
pub fn create_stage(stage: &TableName, table: &TableName, columns: &[String]) -> Statement {
    let sql = format!(
        "create unlogged table {} as select {} from only {} with no data",
        stage.sql(),
        columns_sql(columns),
        table.sql()
    );
    Statement::new(sql, doing(format!("make a table to copy {table} into")).or(Code::CopyFailed))
}

/// Drops such tables, those that are there.
pub fn drop_stages(stages: &[TableName]) -> Statement {
    let sql = format!("drop table if exists {}", list(stages, TableName::sql));
    Statement::new(sql, doing("drop the tables that were copied into"))
}

/// Keeps everybody from changing tables until the transaction ends; they can be read.
pub fn lock_against_writers(names: &[TableName]) -> Statement {
    let sql = format!("lock table {} in share row exclusive mode", list(names, |name| format!("only {}", name.sql())));
    Statement::new(sql, doing(format!("lock {}", tables(names))).or(Code::SwitchBlocked))
}

/// Deletes the rows of one table, so that readers see them until the transaction commits.
pub fn delete_rows(table: &TableName) -> Statement {
    Statement::new(
        format!("delete from only {}", table.sql()),
        doing(format!("empty table {table}")).or(Code::CopyFailed),
    )
}

/// Puts the rows of `stage` into `table`.
pub fn insert_from_stage(table: &TableName, stage: &TableName, columns: &[String]) -> Statement {
    let columns = columns_sql(columns);
    let sql = format!(
        "insert into {} ({columns}) overriding system value select {columns} from {}",
        table.sql(),
        stage.sql()
    );
    Statement::new(sql, doing(format!("fill table {table}")).or(Code::CopyFailed))
}

/// Has a disabled subscription read another slot.
pub fn set_subscription_slot(name: &str, slot: &str) -> Statement {
    alter_subscription("change the slot of", name, &format!("set (slot_name = {})", quote_identifier(slot)))
}

/// Reclaims what deleted rows left, and gathers the planner's statistics.
pub fn vacuum(names: &[TableName]) -> Statement {
    let sql = format!("vacuum (analyze) {}", list(names, TableName::sql));
    Statement::new(sql, doing(format!("vacuum {}", tables(names))))
}

/// The function behind a fence; raises an error that says why.
pub fn create_fence(fence: &str, source: &str) -> Statement {
    let sql = format!(
        "create function {}.{}() returns trigger language plpgsql as $fence$
begin
    raise exception using
        errcode = 'read_only_sql_transaction',
        message = 'table ' || tg_table_schema || '.' || tg_table_name || ' is being copied again from ' || {},
        hint = 'Write on that node meanwhile, or wait until it is done.';
end
$fence$",
        quote_identifier(OWN_SCHEMA),
        quote_identifier(fence),
        quote_literal(source)
    );
    Statement::new(sql, doing("make the fence for writers").or(Code::SwitchBlocked))
}

/// Makes applications that change `table` fail; what is replicated goes on.
pub fn put_fence(fence: &str, table: &TableName) -> Statement {
    let (name, table_sql) = (quote_identifier(fence), table.sql());
    let function = format!("{}.{name}", quote_identifier(OWN_SCHEMA));
    let rows = quote_identifier(&format!("{fence}_rows"));
    let sql = format!(
        "create trigger {name} before truncate on {table_sql} for each statement execute function {function}(); \
         create trigger {rows} before insert or update or delete on {table_sql} for each row execute function {function}()"
    );
    Statement::new(sql, doing(format!("fence {table}")).or(Code::SwitchBlocked))
}

/// Takes a fence away from all tables, if it is there.
pub fn drop_fence(fence: &str) -> Statement {
    let sql = format!("drop function if exists {}.{}() cascade", quote_identifier(OWN_SCHEMA), quote_identifier(fence));
    Statement::new(sql, doing("take the fence for writers away").or(Code::SwitchBlocked))
}

/// Rows that refer, by a foreign key, to a row that is not there.
pub(in crate::postgres) fn rows_without_parent(key: &KeyCheck, what: &str) -> Statement {
    let from = |name: &TableName, is_partitioned| TableRef { name: name.clone(), is_partitioned }.sql();
    let sql = format!(
        "select {what} from {} c where {} and not exists (select from {} r where {})",
        from(&key.table, key.is_partitioned),
        key.is_set,
        from(&key.references, key.is_referenced_partitioned),
        key.is_met
    );
    Statement::new(sql, doing(format!("look at foreign key {}", key.name)).privilege(Code::SelectPrivilege))
}
