//! Packages of any Debian architecture and suite from the machine's mirror, without changing the machine.
//!
//! apt fetches them with its own folder for lists and archives: signatures and checksums are checked as usual, no architecture
//! is added, nothing is installed, and no privilege is needed. The mirror is the one that the machine's apt is configured with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache;
use crate::error::Error;
use crate::tool::{self, run};

/// Debian's keys; without the file, apt uses its own trusted keys.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    /// Address of the archive.
    pub(crate) archive: String,
    pub(crate) suite: String,
}

impl Source {
    /// The Debian suites that this machine's apt is configured with, its release first.
    ///
    /// # Errors
    /// [`Error::NoMirror`] if there is none.
    pub(crate) fn of_machine() -> Result<Vec<Self>, Error> {
        let sources = Self::parse(&run(Command::new("apt-get").args(["update", "--print-uris"]))?);
        if sources.is_empty() { Err(Error::NoMirror) } else { Ok(sources) }
    }

    /// The Debian archives among the addresses that apt would fetch.
    fn parse(text: &str) -> Vec<Self> {
        let mut sources = Vec::new();
        for line in text.lines() {
            let Some(address) = line.split('\'').nth(1) else { continue };
            let Some((archive, rest)) = address.split_once("/dists/") else { continue };
            let Some(suite) = rest.strip_suffix("/InRelease") else { continue };
            if ["/debian", "/debian-security"].iter().any(|name| archive.ends_with(name)) {
                sources.push(Self { archive: archive.to_owned(), suite: suite.to_owned() });
            }
        }
        sources
    }

    /// Another suite of the same archive.
    pub(crate) fn with_suite(&self, suite: &str) -> Self {
        Self { archive: self.archive.clone(), suite: suite.to_owned() }
    }
}

/// apt with its own lists and archives.
#[derive(Clone, Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
    config: PathBuf,
    suites: Vec<String>,
}

impl Apt {
    /// Configures `folder` for packages of `architecture` from `sources` and fetches the lists.
    pub(crate) fn new(folder: &Path, architecture: &str, sources: &[Source]) -> Result<Self, Error> {
        for part in ["lists/partial", "archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(Error::file(&part))?;
        }
        // apt sees no installed packages: those of this machine may have another architecture or be removed later.
        let status = folder.join("status");
        cache::write_changed(&status, b"")?;
        let list = folder.join("sources.list");
        let keys = if Path::new(KEYS).exists() { format!("[signed-by={KEYS}] ") } else { String::new() };
        let lines =
            sources.iter().map(|source| format!("deb {keys}{} {} main\n", source.archive, source.suite));
        cache::write_changed(&list, lines.collect::<String>().as_bytes())?;
        let config = folder.join("apt.conf");
        cache::write_changed(&config, configuration(folder, &list, &status, architecture).as_bytes())?;
        let suites = sources.iter().map(|source| source.suite.clone()).collect();
        let apt = Self { folder: folder.to_owned(), config, suites };
        run(apt.command("apt-get").args(["-q", "update", "--error-on=any"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("DEBIAN_FRONTEND", "noninteractive").env_remove("APT_CONFIG");
        command
    }

    /// The dependencies of the newest version of `name`.
    pub(crate) fn depends(&self, name: &str) -> Result<Vec<String>, Error> {
        let shown = run(self.command("apt-cache").args(["show", "--no-all-versions", name]));
        let line =
            shown.as_ref().ok().and_then(|text| text.lines().find_map(|line| line.strip_prefix("Depends: ")));
        let Some(line) = line else {
            return Err(Error::NoPackage { name: name.to_owned(), suite: self.suites.join(", ") });
        };
        Ok(line.split(',').filter_map(|word| Some(word.split_whitespace().next()?.to_owned())).collect())
    }

    /// Fetches the packages `names` without dependencies.
    pub(crate) fn fetch(&self, names: &[String]) -> Result<Vec<PathBuf>, Error> {
        let folder = self.folder.join("fetched");
        fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        run(self.command("apt-get").args(["-q", "download"]).args(names).current_dir(&folder))?;
        packages(&folder)
    }

    /// Fetches `names` with dependencies, from the last suite that has them.
    pub(crate) fn fetch_with_dependencies(&self, names: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let order = ["-q", "-y", "--no-install-recommends", "--download-only", "install"];
        let mut command = self.command("apt-get");
        command.args(order).args(names);
        // apt takes a package from backports only if asked for that suite, or if no other suite has it.
        if let Some(suite) = self.suites.last().filter(|suite| suite.ends_with("-backports")) {
            command.args(["-t", suite]);
        }
        run(&mut command)?;
        packages(&self.folder.join("archives"))
    }
}

/// The archives in `folder`.
fn packages(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file(folder))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut packages: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
    packages.sort();
    Ok(packages)
}

/// apt's configuration for its own folder. Read last, so it overrides the machine's; the machine's proxies stay in effect.
fn configuration(folder: &Path, list: &Path, status: &Path, architecture: &str) -> String {
    let at = folder.display();
    let (list, status) = (list.display(), status.display());
    format!(
        "Dir::Etc::sourcelist \"{list}\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         Dir::State \"{at}\";\n\
         Dir::State::lists \"{at}/lists\";\n\
         Dir::State::status \"{status}\";\n\
         Dir::Cache \"{at}\";\n\
         Dir::Cache::archives \"{at}/archives\";\n\
         APT::Architecture \"{architecture}\";\n\
         #clear APT::Architectures;\n\
         APT::Architectures {{ \"{architecture}\"; }};\n\
         APT::Keep-Downloaded-Packages \"true\";\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear DPkg::Post-Invoke;\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         // The user that apt switches to cannot read home directories.\n\
         APT::Sandbox::User \"\";\n\
         // Nothing of the machine changes, so its locks are not needed.\n\
         Debug::NoLocking \"true\";\n"
    )
}

/// Unpacks all of `package` into `folder`.
pub(crate) fn unpack(package: &Path, folder: &Path) -> Result<(), Error> {
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder)).map(|_| ())
}

/// Unpacks the files of `package` that match tar's `patterns`, each of which must match a file.
pub(crate) fn unpack_some(package: &Path, folder: &Path, patterns: &[&str]) -> Result<(), Error> {
    let mut source = Command::new("dpkg-deb");
    source
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut unpacking = source.spawn().map_err(|error| tool::unstarted(&source, error))?;
    let files = unpacking.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let mut target = Command::new("tar");
    target.arg("-C").arg(folder).args(["-x", "--wildcards"]).args(patterns).stdin(files);
    let output = target.output().map_err(|error| tool::unstarted(&target, error));
    let status = unpacking.wait().map_err(|error| tool::unstarted(&source, error))?;
    let output = output?;
    if status.success() && output.status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        command: format!("unpacking {} from {}", patterns.join(" "), package.display()),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Whether `package` is the C library. It belongs to its loader, and a program that the machine's loader starts needs the
/// machine's C library.
pub(crate) fn is_libc(package: &Path) -> bool {
    package.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc6_"))
}

/// The name of `architecture` in library paths.
pub(crate) fn triplet(architecture: &str) -> String {
    match architecture {
        "amd64" => "x86_64-linux-gnu".to_owned(),
        "arm64" => "aarch64-linux-gnu".to_owned(),
        "ppc64el" => "powerpc64le-linux-gnu".to_owned(),
        other => format!("{other}-linux-gnu"),
    }
}

/// Debian's name of this machine's architecture.
pub(crate) fn architecture() -> Result<String, Error> {
    Ok(run(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_the_debian_archives_that_apt_would_fetch() {
        let text = "'http://mirror.example/debian/dists/stable/InRelease' mirror_stable_InRelease 0 \n\
                    'http://mirror.example/debian/dists/stable/main/binary-amd64/Packages.xz' mirror_Packages 0 \n\
                    'http://mirror.example/debian-security/dists/stable-security/InRelease' mirror_InRelease 0 \n\
                    'https://other.example/apt/dists/tool/InRelease' other_InRelease 0 \n\
                    no address at all\n";
        let sources = Source::parse(text);
        let named: Vec<(&str, &str)> =
            sources.iter().map(|source| (source.archive.as_str(), source.suite.as_str())).collect();
        assert_eq!(
            named,
            [
                ("http://mirror.example/debian", "stable"),
                ("http://mirror.example/debian-security", "stable-security")
            ]
        );
        assert_eq!(sources[0].with_suite("next").suite, "next");
        assert!(Source::parse("").is_empty());
    }
}
