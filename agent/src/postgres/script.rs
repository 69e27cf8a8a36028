//! Runs a schema that pg_restore wrote as SQL: for a server older than pg_restore, or with more in one transaction.
//!
//! Newer programs set things at the beginning that an older server does not know, and frame their output for psql;
//! both are taken off. What remains is one simple query: one transaction, all or nothing.

use tokio_util::sync::CancellationToken;

use super::{connect::Session, ddl, error::Error};

/// Runs `script` in one transaction; after `cancelled` it is cancelled and nothing of it stays.
pub(super) async fn run(
    session: &Session,
    script: &str,
    settings: &[(&'static str, &str)],
    cancelled: &CancellationToken,
) -> Result<(), Error> {
    for (name, value) in settings {
        session.run(&ddl::set_session(name, value)).await?;
    }
    let statement = ddl::restore_script(&without_frame(script));
    let canceller = session.canceller();
    let running = session.run(&statement);
    tokio::pin!(running);
    let done = tokio::select! {
        done = &mut running => return done,
        () = cancelled.cancelled() => {
            canceller.cancel().await?;
            running.await
        }
    };
    // It may have been done just before the cancel reached it; what it made then stays, and is the caller's to undo.
    match done {
        Err(error) if error.is_connection_loss() => Err(error),
        _ => Err(Error::Cancelled { doing: "restore the schema".to_owned() }),
    }
}

/// Without psql's commands around the script and without settings that older servers do not have.
///
/// Only the head, up to the first object, and the tail are touched: a line of a function's body may look the same.
fn without_frame(script: &str) -> String {
    let is_frame = |line: &str| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ");
    let mut in_head = true;
    let last_frame = script.lines().filter(|line| line.starts_with("\\unrestrict ")).count();
    let mut seen = 0;
    let mut kept = String::with_capacity(script.len());
    for line in script.split_inclusive('\n') {
        in_head &= line.trim().is_empty()
            || line.starts_with("--")
            || line.starts_with("SET ")
            || is_frame(line)
            || line.starts_with("SELECT pg_catalog.set_config('search_path'");
        if line.starts_with("\\unrestrict ") {
            seen += 1;
        }
        let in_frame = in_head && is_frame(line) || line.starts_with("\\unrestrict ") && seen == last_frame;
        let is_unknown = in_head && line.starts_with("SET transaction_timeout ");
        if !in_frame && !is_unknown {
            kept.push_str(line);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_goes_and_a_functions_body_stays() {
        let script = "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\nSET statement_timeout = 0;\n\
                      SET transaction_timeout = 0;\nSET client_encoding = 'UTF8';\n\
                      SELECT pg_catalog.set_config('search_path', '', false);\n\n\
                      CREATE FUNCTION f() AS $$\n\\restrict x\n\\unrestrict x\nSET transaction_timeout = 0;\n$$;\n\n\
                      --\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n\n";
        let kept = without_frame(script);
        assert!(!kept.contains("abc"), "{kept}");
        assert_eq!(kept.matches("transaction_timeout").count(), 1, "{kept}");
        assert!(kept.contains("\\restrict x\n\\unrestrict x\n"), "{kept}");
        assert!(kept.contains("SET client_encoding"), "{kept}");
    }
}
