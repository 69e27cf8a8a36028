//! Reads libpq's password file: `host:port:database:user:password`, a line each.
//!
//! `*` matches anything, a backslash takes the next character as it is, `#` begins a comment line, the first
//! line that matches counts. A unix socket is named by its directory, or as `localhost`.

use std::{fs, path::Path};

use super::{connect::PostgresConfig, error::Error};

/// The password `path` holds for `config`; none where no line matches.
pub(super) fn password_for(path: &Path, config: &PostgresConfig) -> Result<Option<String>, Error> {
    refuse_if_open(path)?;
    let text = fs::read_to_string(path).map_err(|source| Error::Passfile { path: path.to_owned(), source })?;
    Ok(find(&text, config))
}

#[cfg(unix)]
fn refuse_if_open(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    let file = fs::metadata(path).map_err(|source| Error::Passfile { path: path.to_owned(), source })?;
    if file.mode() & 0o077 == 0 { Ok(()) } else { Err(Error::PassfileOpen { path: path.to_owned() }) }
}

#[cfg(not(unix))]
fn refuse_if_open(_path: &Path) -> Result<(), Error> {
    Ok(())
}

fn find(text: &str, config: &PostgresConfig) -> Option<String> {
    let port = config.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let [host, for_port, dbname, user, password] = fields(line)?;
        let matches = host.matches(&config.host) || (config.is_socket() && host.matches("localhost"));
        let matches =
            matches && for_port.matches(&port) && dbname.matches(&config.dbname) && user.matches(&config.user);
        matches.then_some(password.text)
    })
}

/// One field of a line. `*` is a wildcard only where no backslash stands before it.
#[derive(Default)]
struct Field {
    text: String,
    is_escaped: bool,
}

impl Field {
    fn matches(&self, value: &str) -> bool {
        self.text == value || (self.text == "*" && !self.is_escaped)
    }
}

fn fields(line: &str) -> Option<[Field; 5]> {
    let mut fields: [Field; 5] = Default::default();
    let mut at = 0;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => at += 1,
            '\\' => {
                fields.get_mut(at)?.text.extend(chars.next());
                fields[at].is_escaped = true;
            }
            _ => fields.get_mut(at)?.text.push(c),
        }
    }
    (at == 4).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(host: &str) -> PostgresConfig {
        PostgresConfig {
            host: host.to_owned(),
            port: 5433,
            dbname: "shop".to_owned(),
            user: "steep".to_owned(),
            passfile: None,
            bin_dir: None,
        }
    }

    #[test]
    fn the_first_matching_line_counts() {
        let cases = [
            ("db1:5433:shop:steep:secret", Some("secret")),
            ("*:*:*:*:any", Some("any")),
            ("db1:5432:shop:steep:wrong port\n*:*:*:steep:right", Some("right")),
            ("# *:*:*:*:comment\n*:*:*:*:real", Some("real")),
            ("db1:5433:shop:other:secret", None),
            (r"\*:*:*:*:a host called star", None),
            (r"*:*:*:*:with\:colon\\and backslash", Some(r"with:colon\and backslash")),
            ("*:*:*:*", None),
            ("*:*:*:*:too:many", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(find(text, &config("db1")).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_unix_socket_is_named_by_its_directory_or_as_localhost() {
        for line in ["/run/postgresql:5433:shop:steep:secret", "localhost:5433:shop:steep:secret"] {
            assert_eq!(find(line, &config("/run/postgresql")).as_deref(), Some("secret"), "{line}");
        }
        assert_eq!(find("localhost:5433:shop:steep:secret", &config("db1")), None);
    }

    #[test]
    #[cfg(unix)]
    fn a_file_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("steep-passfile-{}", std::process::id()));
        fs::write(&path, "*:*:*:*:secret").expect("a file in the temporary directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("to change its mode");
        let open = password_for(&path, &config("db1"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("to change its mode");
        let closed = password_for(&path, &config("db1"));
        fs::remove_file(&path).expect("to remove it again");
        assert!(matches!(open, Err(Error::PassfileOpen { .. })));
        assert_eq!(closed.expect("to be read").as_deref(), Some("secret"));
    }
}
