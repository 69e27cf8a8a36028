//! Replacing the root of a mesh while it runs: both are trusted, everything is issued anew, the old one is dropped.
//!
//! While it lasts, the old authorities are in `previous` below the pki directory: they issue nothing more, but can
//! still revoke what they issued. Afterwards they are in `retired-KEY`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    Error,
    authority::{self, PREVIOUS},
    files::{self, NewFile},
    inspect::{self, Class},
    register::Register,
    revoke,
};

/// Where the new authorities are made before they take their places.
const NEXT: &str = "next";

/// Makes a second root with its authorities, which issue from now on; `ca.pem` then holds both roots.
///
/// The old root's key is not needed. Fails with [`Error::Rotation`] while another exchange lasts.
pub fn begin(dir: &Path, now: Timestamp) -> Result<Vec<PathBuf>, Error> {
    let _register = Register::open(dir)?;
    let (previous, next) = (dir.join(PREVIOUS), dir.join(NEXT));
    if previous.symlink_metadata().is_ok() {
        return Err(Error::Rotation(format!("the root is being exchanged already: {} is there", previous.display())));
    }
    let ca = dir.join("ca.pem");
    let root = inspect::file(&ca)?;
    let Class::Authority { mesh: Some(mesh), .. } = &root.class else {
        return Err(Error::Unusable { path: ca, reason: format!("{:?} is no root of a mesh", root.subject) });
    };
    let old_roots = files::read(&ca)?;
    // What an interrupted beginning left was never in use.
    if next.symlink_metadata().is_ok() {
        fs::remove_dir_all(&next).map_err(|source| Error::Unwritable { path: next.clone(), source })?;
    }
    authority::create(mesh, &next, now)?;
    let both = format!("{}{old_roots}", files::read(&next.join("ca.pem"))?);
    files::make_directory(&previous)?;
    files::write_all(&[NewFile::certificate(previous.join("ca.pem"), old_roots)])?;
    files::replace(&NewFile::certificate(ca.clone(), both))?;
    let mut written = vec![ca];
    for name in authority::files().into_iter().filter(|name| *name != "ca.pem") {
        // The root's key may be elsewhere, and should be.
        if dir.join(name).symlink_metadata().is_ok() {
            rename(&dir.join(name), &previous.join(name))?;
        }
        rename(&next.join(name), &dir.join(name))?;
        written.push(dir.join(name));
    }
    let _ = fs::remove_dir_all(&next);
    Ok(written)
}

/// What dropping the old root did.
#[derive(Debug)]
pub struct Finished {
    /// The roots, without the old one.
    pub ca: PathBuf,
    /// Where the old authorities are now.
    pub retired: PathBuf,
}

/// Drops the old root: `ca.pem` then holds the new one alone.
///
/// Fails with [`Error::StillOld`] while somebody has no certificate under the new root, unless `force`.
pub fn finish(dir: &Path, force: bool, now: Timestamp) -> Result<Finished, Error> {
    let register = Register::open(dir)?;
    let previous = dir.join(PREVIOUS);
    if previous.symlink_metadata().is_err() {
        return Err(Error::Rotation("the root is not being exchanged: steepctl pki rotate begins it".into()));
    }
    let mut old_keys = BTreeSet::new();
    for name in ["nodes-ca.pem", "operators-ca.pem"] {
        if previous.join(name).symlink_metadata().is_ok() {
            old_keys.extend(inspect::file(&previous.join(name))?.key_id);
        }
    }
    let good = || register.entries().iter().filter(|entry| entry.is_good(now));
    let new: BTreeSet<_> =
        good().filter(|entry| !old_keys.contains(&entry.authority)).map(|entry| entry.whose()).collect();
    let old: BTreeSet<_> = good().map(|entry| entry.whose()).filter(|whose| !new.contains(whose)).collect();
    if !old.is_empty() && !force {
        return Err(Error::StillOld(old.into_iter().collect()));
    }
    let ca = dir.join("ca.pem");
    let old_roots = blocks(&files::read(&previous.join("ca.pem"))?);
    let roots: Vec<_> = blocks(&files::read(&ca)?).into_iter().filter(|root| !old_roots.contains(root)).collect();
    if roots.is_empty() {
        return Err(Error::Unusable { path: ca, reason: "holds no root but the old one".into() });
    }
    let lists = dir.join(revoke::FILE);
    if lists.symlink_metadata().is_ok() {
        let found = revoke::read(dir, &lists)?;
        let still: String =
            found.iter().filter(|list| !old_keys.contains(list.authority())).map(|list| list.pem()).collect();
        if still.is_empty() {
            rename(&lists, &previous.join(revoke::FILE))?;
        } else {
            files::replace(&NewFile::certificate(lists, still))?;
        }
    }
    files::replace(&NewFile::certificate(ca.clone(), roots.concat()))?;
    let key = old_keys.first().map_or_else(|| now.as_second().to_string(), |key| key.chars().take(12).collect());
    let retired = dir.join(format!("retired-{key}"));
    rename(&previous, &retired)?;
    Ok(Finished { ca, retired })
}

/// The PEM blocks of a text, one by one, with line ends as we write them.
fn blocks(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block = String::new();
    for line in text.lines().map(str::trim_end) {
        if line.starts_with("-----BEGIN ") {
            block.clear();
        }
        block.push_str(line);
        block.push('\n');
        if line.starts_with("-----END ") {
            found.push(std::mem::take(&mut block));
        }
    }
    found
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::Unwritable { path: to.to_owned(), source })
}
