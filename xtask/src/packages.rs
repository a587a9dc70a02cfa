//! The crates of the workspace as `cargo metadata` lists them, compared with the policy.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::diagnostic::Diagnostic;
use crate::policy::{CratePolicy, Policy};

/// The parts of `cargo metadata --no-deps --format-version 1` that the rules need.
#[derive(Deserialize, Debug)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_root: PathBuf,
    #[serde(default)]
    pub(crate) target_directory: PathBuf,
}

/// A member of the workspace.
#[derive(Deserialize, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
}

/// An entry of a dependency table, per-target tables included.
#[derive(Deserialize, Debug)]
pub(crate) struct Dependency {
    name: String,
    /// `None`, `"dev"` or `"build"`.
    kind: Option<String>,
    /// Only for crates of this checkout.
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
    /// Whether it is a library or a program; tests and benches are not checked.
    pub(crate) fn ships(&self) -> bool {
        self.kind.iter().any(|kind| matches!(kind.as_str(), "lib" | "rlib" | "proc-macro" | "bin"))
    }
}

/// Imports that the policy does not allow, crates without an entry, and entries without a crate.
pub(crate) fn edge_diagnostics(metadata: &Metadata, policy: &Policy) -> Vec<Diagnostic> {
    let mut diagnostics = policy.diagnostics();
    for entry in &policy.crates {
        if !metadata.packages.iter().any(|package| package.name == entry.name) {
            diagnostics
                .push(Diagnostic::in_crate(&entry.name, "stands in layers.toml but not in the workspace"));
        }
    }
    for package in &metadata.packages {
        match policy.crate_policy(&package.name) {
            None => diagnostics.push(Diagnostic::in_crate(
                &package.name,
                "has no entry in layers.toml; add one, or fold it into an existing crate",
            )),
            Some(entry) => package_diagnostics(metadata, policy, package, entry, &mut diagnostics),
        }
    }
    diagnostics
}

fn package_diagnostics(
    metadata: &Metadata,
    policy: &Policy,
    package: &Package,
    entry: &CratePolicy,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut report = |text: String| diagnostics.push(Diagnostic::in_crate(&package.name, text));
    let folder = package.manifest_path.parent().unwrap_or(Path::new(""));
    if folder.strip_prefix(&metadata.workspace_root).ok() != Some(Path::new(&entry.folder)) {
        report(format!("lies in {}, but layers.toml says {}", folder.display(), entry.folder));
    }
    for dependency in &package.dependencies {
        let Dependency { name, kind, path } = dependency;
        let test = kind.as_deref() == Some("dev");
        let how = kind.as_deref().unwrap_or("normal");
        if let Some(target) = policy.crate_policy(name) {
            let allowed = entry.imports.contains(name) || (test && entry.test_imports.contains(name));
            if target.evidence {
                report(format!("imports {name} ({how}), which is evidence; no crate imports evidence"));
            } else if !allowed {
                report(format!(
                    "imports {name} ({how}), which layers.toml does not allow; call down and take values up, or hand a \
                     port in"
                ));
            }
        } else if path.is_some() {
            report(format!("imports {name} ({how}) by path, which has no entry in layers.toml"));
        } else if !(entry.outside.contains(name) || (test && policy.outside_tests.contains(name))) {
            report(format!(
                "imports {name} ({how}) from outside, which its line in layers.toml does not list"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
        outside_tests = ["proptest"]
        [[crate]]
        name = "core"
        folder = "crates/core"
        test_imports = ["sim"]
        outside = ["thiserror"]
        [[crate]]
        name = "sim"
        folder = "crates/sim"
        imports = ["core"]
        helps_tests = true
        [[crate]]
        name = "app"
        folder = "crates/app"
        imports = ["core", "sim"]
        [[crate]]
        name = "models"
        folder = "models"
        imports = ["core"]
        evidence = true
    "#;

    /// A workspace with four crates and the dependencies given as (crate, dependency, kind, by path).
    fn diagnostics(policy: &str, edges: &[(&str, &str, Option<&str>, bool)]) -> Vec<String> {
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
            target_directory: PathBuf::from("/w/target"),
        };
        let policy = Policy::parse(policy).unwrap();
        edge_diagnostics(&metadata, &policy).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn allowed_edges_of_every_kind_pass() {
        let found = diagnostics(
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
            let found = diagnostics(POLICY, &[("core", "app", kind, true)]);
            assert_eq!(found.len(), 1, "{kind:?} {found:?}");
            assert!(found[0].starts_with("crate core: imports app ("), "{}", found[0]);
        }
        assert_eq!(
            diagnostics(POLICY, &[("core", "sim", None, true)]).len(),
            1,
            "test help is for tests only"
        );
    }

    #[test]
    fn evidence_strangers_and_unlisted_outsiders_are_forbidden() {
        for (edge, says) in [
            (("app", "models", None, true), "no crate imports evidence"),
            (("app", "stranger", None, true), "has no entry"),
            (("app", "serde", None, false), "does not list"),
            (("app", "proptest", None, false), "does not list"),
        ] {
            let found = diagnostics(POLICY, &[edge]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(says), "{}", found[0]);
        }
    }

    #[test]
    fn crates_without_an_entry_and_entries_without_a_crate_are_named() {
        let policy = POLICY.replace("name = \"models\"", "name = \"gone\"");
        let found = diagnostics(&policy, &[]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("crate gone: stands in layers.toml but not"), "{}", found[0]);
        assert!(found[1].starts_with("crate models: has no entry"), "{}", found[1]);
    }

    #[test]
    fn a_crate_in_another_folder_is_named() {
        let found = diagnostics(&POLICY.replace("crates/app", "app"), &[]);
        assert_eq!(found, ["crate app: lies in /w/crates/app, but layers.toml says app"]);
    }

    #[test]
    fn a_policy_that_breaks_its_own_order_is_refused() {
        let upward = POLICY.replace("test_imports = [\"sim\"]", "imports = [\"sim\"]");
        assert!(diagnostics(&upward, &[])[0].contains("does not stand above it"));
        let evidence = POLICY.replace("imports = [\"core\", \"sim\"]", "imports = [\"models\"]");
        assert!(diagnostics(&evidence, &[])[0].contains("no crate imports evidence"));
        let tests = POLICY.replace("test_imports = [\"sim\"]", "test_imports = [\"app\"]");
        assert!(diagnostics(&tests, &[])[0].contains("is no test help"));
        assert!(Policy::parse("crates = 3").is_err());
    }
}
