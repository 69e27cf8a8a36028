//! Runs a statement that holds a secret so that neither the server's log nor pg_stat_activity shows it.
//!
//! PostgreSQL keeps the text of a session's last statement for all superusers to see, and logs statements as it was
//! configured. So the text goes in as a parameter, whose value is shown nowhere, and a block without a secret in its own
//! text executes it. An error is raised anew: PostgreSQL's context of it would quote the statement.

use super::{
    connect::Session,
    ddl::{self, Statement},
    error::Error,
};

/// Runs `statement` in a transaction of its own. For a superuser: others may not silence the log.
pub(super) async fn run(session: &Session, statement: &Statement) -> Result<(), Error> {
    session.begin().await?;
    let done = async {
        session.run(&ddl::silence_log()).await?;
        let handing = statement.doing();
        let sql = "select pg_catalog.set_config('steep.statement', $1::text, true)";
        session.execute(handing, sql, &[&statement.as_str()]).await?;
        session.run(&ddl::run_handed_over(statement.doing())).await
    };
    match done.await {
        Ok(()) => session.commit().await,
        Err(error) => {
            if !error.is_connection_loss() {
                session.rollback().await?;
            }
            Err(error)
        }
    }
}
