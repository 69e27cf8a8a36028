//! Data directories are copied from a template: a tenth of a second instead of one.
//!
//! Each node of a cluster has a template of its own (`18.4-node_a`, `18.4-node_b`), made once by initdb and kept in
//! the cache: copies of one template would share a system identifier, and Steep would rightly refuse to
//! replicate between two nodes that look like one database.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    account::Account,
    server::{Server, USER},
};
use crate::{postgres, process};

/// Makes the data directory of `server` as a copy of the template for `node_id`.
pub(super) fn copy(server: &Server, node_id: &str) -> Result<()> {
    let account = Account::of_servers();
    let template = made(server, node_id)?;
    private_folder(&server.data)?;
    let mut cp = account.command(Path::new("cp"));
    cp.arg("-a").arg(template.join(".")).arg(&server.data);
    process::output(&mut cp).map(|_| ()).context("cannot copy the template of the data directory")
}

/// The template, made first where it is not there yet.
fn made(server: &Server, node_id: &str) -> Result<PathBuf> {
    let home = postgres::cache().join("templates");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let name = format!("{}-{node_id}", server.version);
    let template = home.join(&name);
    let lock = File::create(home.join(format!("{name}.lock")))?;
    lock.lock().context("cannot lock the cache of templates")?;
    if template.is_dir() {
        // Only whole templates are moved to this place.
        return Ok(template);
    }
    let aside = home.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&aside);
    private_folder(&aside)?;
    initdb(server, &aside)?;
    fs::rename(&aside, &template).with_context(|| format!("cannot move to {}", template.display()))?;
    Ok(template)
}

fn initdb(server: &Server, data: &Path) -> Result<()> {
    let initdb = |locale: &str| {
        let mut command = Account::of_servers().command(&server.program("initdb"));
        command.args(["--no-sync", "--no-instructions", "--auth=trust", "--encoding=UTF8"]);
        command.arg(format!("--username={USER}")).arg(format!("--locale={locale}")).arg("-D").arg(data);
        process::output(&mut command)
    };
    if initdb("C.UTF-8").is_err() {
        // macOS has no such locale.
        initdb("C").context("initdb failed")?;
    }
    Ok(())
}

/// A folder of the servers' account that nobody else may enter, as PostgreSQL demands.
fn private_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Account::of_servers().own(path)
}
