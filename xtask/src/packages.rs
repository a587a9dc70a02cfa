//! The crates of the workspace as `cargo metadata` tells them, held against the policy.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::finding::Finding;
use crate::policy::{Policy, Room};

/// `cargo metadata --no-deps --format-version 1`, as far as it is needed.
#[derive(Deserialize, Debug)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_root: PathBuf,
}

/// A member of the workspace.
#[derive(Deserialize, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
}

/// One line of a dependency table; per-target tables are in the same list.
#[derive(Deserialize, Debug)]
pub(crate) struct Dependency {
    name: String,
    /// `None`, `"dev"` or `"build"`.
    kind: Option<String>,
    /// Set for crates of this checkout.
    path: Option<PathBuf>,
}

/// A library, program, test, ...
#[derive(Deserialize, Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

impl Target {
    /// Libraries and programs; tests and benches are judged by nobody.
    pub(crate) fn ships(&self) -> bool {
        self.kind.iter().any(|kind| matches!(kind.as_str(), "lib" | "rlib" | "proc-macro" | "bin"))
    }
}

/// Every edge that the policy does not allow, every crate it does not know, every room without a crate.
pub(crate) fn edge_findings(metadata: &Metadata, policy: &Policy) -> Vec<Finding> {
    let mut findings = policy.findings();
    for room in &policy.room {
        if !metadata.packages.iter().any(|package| package.name == room.name) {
            findings.push(Finding::in_crate(&room.name, "stands in layers.toml but not in the workspace"));
        }
    }
    for package in &metadata.packages {
        match policy.room(&package.name) {
            None => findings.push(Finding::in_crate(
                &package.name,
                "has no room in layers.toml; give it one, or fold it into an existing crate",
            )),
            Some(room) => room_findings(metadata, policy, package, room, &mut findings),
        }
    }
    findings
}

fn room_findings(
    metadata: &Metadata,
    policy: &Policy,
    package: &Package,
    room: &Room,
    findings: &mut Vec<Finding>,
) {
    let mut say = |text: String| findings.push(Finding::in_crate(&package.name, text));
    let folder = package.manifest_path.parent().unwrap_or(Path::new(""));
    if folder.strip_prefix(&metadata.workspace_root).ok() != Some(Path::new(&room.folder)) {
        say(format!("lies in {}, but layers.toml says {}", folder.display(), room.folder));
    }
    for dependency in &package.dependencies {
        let Dependency { name, kind, path } = dependency;
        let test = kind.as_deref() == Some("dev");
        let how = kind.as_deref().unwrap_or("normal");
        if let Some(target) = policy.room(name) {
            let allowed = room.imports.contains(name) || (test && room.test_imports.contains(name));
            if target.evidence {
                say(format!("imports {name} ({how}); nobody imports evidence"));
            } else if !allowed {
                say(format!(
                    "imports {name} ({how}), which layers.toml does not allow; call down and take values up, or hand a \
                     port in"
                ));
            }
        } else if path.is_some() {
            say(format!("imports {name} ({how}) by path, which has no room in layers.toml"));
        } else if !(room.outside.contains(name) || (test && policy.outside_tests.contains(name))) {
            say(format!("imports {name} ({how}) from outside, which its line in layers.toml does not list"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
        outside_tests = ["proptest"]
        [[room]]
        name = "core"
        folder = "crates/core"
        test_imports = ["sim"]
        outside = ["thiserror"]
        [[room]]
        name = "sim"
        folder = "crates/sim"
        imports = ["core"]
        helps_tests = true
        [[room]]
        name = "app"
        folder = "crates/app"
        imports = ["core", "sim"]
        [[room]]
        name = "models"
        folder = "models"
        imports = ["core"]
        evidence = true
    "#;

    /// A workspace with the four rooms and the dependencies given as (crate, dependency, kind, by path).
    fn findings(policy: &str, edges: &[(&str, &str, Option<&str>, bool)]) -> Vec<String> {
        let package = |name: &str, folder: &str| Package {
            name: name.to_owned(),
            manifest_path: PathBuf::from(format!("/w/{folder}/Cargo.toml")),
            dependencies: edges
                .iter()
                .filter(|(from, ..)| *from == name)
                .map(|(_, to, kind, path)| Dependency {
                    name: (*to).to_owned(),
                    kind: kind.map(str::to_owned),
                    path: path.then(|| PathBuf::from("/w/x")),
                })
                .collect(),
            targets: Vec::new(),
        };
        let metadata = Metadata {
            packages: vec![
                package("core", "crates/core"),
                package("sim", "crates/sim"),
                package("app", "crates/app"),
                package("models", "models"),
            ],
            workspace_root: PathBuf::from("/w"),
        };
        let policy = Policy::parse(policy).unwrap();
        edge_findings(&metadata, &policy).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn allowed_edges_of_every_kind_pass() {
        let found = findings(
            POLICY,
            &[
                ("core", "thiserror", None, false),
                ("core", "sim", Some("dev"), true),
                ("core", "proptest", Some("dev"), false),
                ("sim", "core", None, true),
                ("app", "sim", None, true),
                ("models", "core", None, true),
            ],
        );
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn an_edge_upward_is_forbidden_whether_normal_build_or_test() {
        for kind in [None, Some("build"), Some("dev")] {
            let found = findings(POLICY, &[("core", "app", kind, true)]);
            assert_eq!(found.len(), 1, "{kind:?} {found:?}");
            assert!(found[0].starts_with("crate core: imports app ("), "{}", found[0]);
        }
        assert_eq!(findings(POLICY, &[("core", "sim", None, true)]).len(), 1, "test help is for tests only");
    }

    #[test]
    fn evidence_strangers_and_unlisted_outsiders_are_forbidden() {
        for (edge, says) in [
            (("app", "models", None, true), "nobody imports evidence"),
            (("app", "stranger", None, true), "has no room"),
            (("app", "serde", None, false), "does not list"),
            (("app", "proptest", None, false), "does not list"),
        ] {
            let found = findings(POLICY, &[edge]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(says), "{}", found[0]);
        }
    }

    #[test]
    fn crates_without_a_room_and_rooms_without_a_crate_are_named() {
        let policy = POLICY.replace("name = \"models\"", "name = \"gone\"");
        let found = findings(&policy, &[]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("crate gone: stands in layers.toml but not"), "{}", found[0]);
        assert!(found[1].starts_with("crate models: has no room"), "{}", found[1]);
    }

    #[test]
    fn a_room_in_another_folder_is_named() {
        let found = findings(&POLICY.replace("crates/app", "app"), &[]);
        assert_eq!(found, ["crate app: lies in /w/crates/app, but layers.toml says app"]);
    }

    #[test]
    fn a_policy_that_breaks_its_own_order_is_refused() {
        let upward = POLICY.replace("test_imports = [\"sim\"]", "imports = [\"sim\"]");
        assert!(findings(&upward, &[])[0].contains("does not stand above it"));
        let evidence = POLICY.replace("imports = [\"core\", \"sim\"]", "imports = [\"models\"]");
        assert!(findings(&evidence, &[])[0].contains("nobody imports evidence"));
        let tests = POLICY.replace("test_imports = [\"sim\"]", "test_imports = [\"app\"]");
        assert!(findings(&tests, &[])[0].contains("is no test help"));
        assert!(Policy::parse("rooms = 3").is_err());
    }
}
