//! The account servers run under: our own, or `nobody` when we are root, whom PostgreSQL refuses.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result};

/// Environment variables that would lead PostgreSQL's programs elsewhere.
const MISLEADING: [&str; 12] = [
    "PGDATA",
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSERVICE",
    "PGOPTIONS",
    "PGSSLMODE",
    "PGTZ",
];

/// Who servers run as.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// uid and gid, where they are not our own.
    other: Option<(u32, u32)>,
}

impl Account {
    /// Looked up once: it does not change while we run.
    pub fn of_servers() -> Self {
        static ACCOUNT: OnceLock<Account> = OnceLock::new();
        *ACCOUNT.get_or_init(|| {
            let other = if id(&["-u"]) == Some(0) {
                Some((id(&["-u", "nobody"]).unwrap_or(65534), id(&["-g", "nobody"]).unwrap_or(65534)))
            } else {
                None
            };
            Self { other }
        })
    }

    /// Servers run as somebody else than we do.
    pub fn is_another(self) -> bool {
        self.other.is_some()
    }

    /// `program` to be run under this account, from a folder every account may stand in.
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        for name in MISLEADING {
            command.env_remove(name);
        }
        #[cfg(unix)]
        if let Some((uid, gid)) = self.other {
            use std::os::unix::process::CommandExt;
            command.uid(uid).gid(gid).env("HOME", "/").env("USER", "nobody").env("LOGNAME", "nobody");
        }
        command
    }

    /// Gives `path` to this account.
    pub fn own(self, path: &Path) -> Result<()> {
        #[cfg(unix)]
        if let Some((uid, gid)) = self.other {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to user {uid}", path.display()))?;
        }
        Ok(())
    }

    /// Whether this account may go through `folder`, and so through all above it.
    pub fn may_enter(self, folder: &Path) -> bool {
        let mut shell = self.command(Path::new("sh"));
        shell.args(["-c", "cd \"$0\""]).arg(folder).stdout(Stdio::null()).stderr(Stdio::null());
        shell.status().is_ok_and(|status| status.success())
    }
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).stderr(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}
