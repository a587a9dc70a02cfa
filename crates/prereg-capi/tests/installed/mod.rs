//! The library installed below a temporary folder, and C programs compiled with it.
#![allow(dead_code, clippy::allow_attributes, reason = "each test uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The exit code of a program that cannot run on this machine.
pub(crate) const SKIPPED: i32 = 77;

/// The folder of the package, in which cargo runs its tests. Not known at compile time: a cached build may come from another checkout.
pub(crate) fn package() -> PathBuf {
    std::env::current_dir().unwrap()
}

pub(crate) fn is_here(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no {program} on this machine");
    }
    found
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

pub(crate) fn must(command: &mut Command) -> Output {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The library, installed below a temporary folder.
pub(crate) struct Installed {
    root: TempDir,
    /// The folder of the static library.
    built: PathBuf,
}

impl Installed {
    /// `None`, with a printed reason, if a tool is missing.
    pub(crate) fn new() -> Option<Self> {
        if !(is_here("make") && is_here("cc")) {
            return None;
        }
        // Cargo writes the library to the folder of the tests.
        let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        if !built.ends_with("deps") {
            eprintln!("skipped: this test was copied away from the library that cargo built beside it");
            return None;
        }
        let installed = Self { root: TempDir::new().unwrap(), built };
        must(&mut installed.make("install"));
        Some(installed)
    }

    /// A run of the Makefile.
    pub(crate) fn make(&self, goal: &str) -> Command {
        let mut make = self.make_to("/usr", goal);
        make.arg(format!("DESTDIR={}", self.root().display()));
        make
    }

    /// A run of the Makefile for another prefix.
    pub(crate) fn make_to(&self, prefix: &str, goal: &str) -> Command {
        let mut make = Command::new("make");
        make.args(["--silent", goal]).arg(format!("PREFIX={prefix}"));
        make.arg(format!("LIBS={}", self.built.display()));
        make.arg(format!("OUT={}", self.root().display()));
        make.current_dir(package());
        make
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn include(&self) -> PathBuf {
        self.root().join("usr/include")
    }

    /// The output of pkg-config for the installed library.
    pub(crate) fn pkg_config(&self, questions: &[&str]) -> Vec<String> {
        let output = must(
            Command::new("pkg-config")
                .args(questions)
                .arg("prereg")
                .env("PKG_CONFIG_PATH", self.lib().join("pkgconfig"))
                .env("PKG_CONFIG_SYSROOT_DIR", self.root())
                .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1")
                .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1"),
        );
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
    }

    pub(crate) fn lib(&self) -> PathBuf {
        self.root.path().join("usr/lib")
    }

    /// Compiles and runs one program; its output, or `None` if it cannot run here.
    pub(crate) fn compiled(
        &self,
        compiler: &mut Command,
        source: &str,
        linking: &[String],
    ) -> Option<String> {
        let program = self.root.path().join(Path::new(source).file_stem().unwrap());
        must(compiler.arg("-o").arg(&program).arg(package().join(source)).args(linking));
        let output = run(Command::new(&program).env("LD_LIBRARY_PATH", self.lib()));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(SKIPPED) {
            eprintln!("skipped: {source}: {errors}");
            return None;
        }
        assert!(output.status.success(), "{source}: {}\n{said}{errors}", output.status);
        Some(said)
    }

    pub(crate) fn shared(&self) -> Vec<String> {
        vec![format!("-L{}", self.lib().display()), "-lprereg".to_owned()]
    }

    pub(crate) fn static_(&self) -> Vec<String> {
        let archive = self.lib().join("libprereg.a").display().to_string();
        [archive.as_str(), "-lpthread", "-ldl", "-lm", "-lgcc_eh", "-lc"].map(str::to_owned).to_vec()
    }

    pub(crate) fn cc(&self) -> Command {
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu99", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]);
        cc.arg("-I").arg(self.root.path().join("usr/include"));
        cc
    }

    /// With the shared library, then with the static one.
    pub(crate) fn c(&self, source: &str) -> Option<String> {
        let said = self.compiled(&mut self.cc(), source, &self.shared());
        self.compiled(&mut self.cc(), source, &self.static_());
        said
    }
}
