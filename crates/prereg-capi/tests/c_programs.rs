//! The library as a C program meets it: installed by the Makefile, found by pkg-config, compiled by cc without a warning, run
//! against the shared and the static library.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// What a program ends with when this machine does not let it do what it is for.
const SKIPPED: i32 = 77;

/// The folder of the package, in which cargo runs its tests. Not known at compile time: a cached build may come from another checkout.
fn package() -> PathBuf {
    std::env::current_dir().unwrap()
}

fn is_here(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: no {program} on this machine");
    }
    found
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn must(command: &mut Command) -> Output {
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

/// The library, installed below a folder of its own.
struct Installed {
    root: TempDir,
}

impl Installed {
    /// `None`, said aloud: a tool is missing.
    fn new() -> Option<Self> {
        if !(is_here("make") && is_here("cc")) {
            return None;
        }
        // Cargo leaves the two libraries beside the tests that it builds.
        let built = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        if !built.ends_with("deps") {
            eprintln!("skipped: this test was copied away from the libraries that cargo built beside it");
            return None;
        }
        let root = TempDir::new().unwrap();
        must(
            Command::new("make")
                .args(["--silent", "install", "PREFIX=/usr"])
                .arg(format!("LIBS={}", built.display()))
                .arg(format!("DESTDIR={}", root.path().display()))
                .current_dir(package()),
        );
        Some(Self { root })
    }

    fn lib(&self) -> PathBuf {
        self.root.path().join("usr/lib")
    }

    /// Compiles and runs one program; what it printed, or `None` when it cannot run here.
    fn compiled(&self, compiler: &mut Command, source: &str, linking: &[String]) -> Option<String> {
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

    fn shared(&self) -> Vec<String> {
        vec![format!("-L{}", self.lib().display()), "-lprereg".to_owned()]
    }

    fn static_(&self) -> Vec<String> {
        let archive = self.lib().join("libprereg.a").display().to_string();
        [archive.as_str(), "-lpthread", "-ldl", "-lm", "-lgcc_s"].map(str::to_owned).to_vec()
    }

    fn cc(&self) -> Command {
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu99", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]);
        cc.arg("-I").arg(self.root.path().join("usr/include"));
        cc
    }

    /// With the shared library, then with the static one.
    fn c(&self, source: &str) -> Option<String> {
        let said = self.compiled(&mut self.cc(), source, &self.shared());
        self.compiled(&mut self.cc(), source, &self.static_());
        said
    }
}

#[test]
fn the_core_does_what_the_header_says() {
    let Some(installed) = Installed::new() else { return };
    assert_eq!(installed.c("tests/c/core.c").unwrap(), "core: all as expected\n");
}

#[test]
fn tables_guests_containers_and_iova_maps_do_what_the_header_says() {
    let Some(installed) = Installed::new() else { return };
    if !Path::new("/usr/include/linux/vfio.h").exists() {
        return eprintln!("skipped: no linux/vfio.h on this machine");
    }
    assert_eq!(installed.c("tests/c/containers.c").unwrap(), "containers: all as expected\n");
}

#[test]
fn threads_map_while_another_registers_and_unregisters() {
    let Some(installed) = Installed::new() else { return };
    assert!(installed.c("tests/c/threads.c").unwrap().starts_with("threads: 2000 registrations"));
}

#[test]
fn the_example_that_pins_once_shows_ebusy() {
    let Some(installed) = Installed::new() else { return };
    let Some(said) = installed.c("examples/c/pin_once.c") else { return };
    assert!(said.contains("1000000 maps and unmaps"), "{said}");
    assert!(said.contains("unregister: -16, 2 mappings"), "{said}");
    assert!(said.contains("anything left: 0"), "{said}");
}

#[test]
fn the_example_with_pins_of_its_own_leaves_nothing() {
    let Some(installed) = Installed::new() else { return };
    let said = installed.c("examples/c/own_pins.c").unwrap();
    assert!(said.contains("page 9 was written by the device"), "{said}");
    assert!(said.ends_with("pinned 0, charged 0, contexts released 2\n"), "{said}");
}

#[test]
fn the_program_on_the_page_about_c_runs() {
    let Some(installed) = Installed::new() else { return };
    let page = std::fs::read_to_string(package().join("../../docs/c.md")).unwrap();
    let (_, rest) = page.split_once("```c\n").unwrap();
    let source = installed.root.path().join("page.c");
    std::fs::write(&source, rest.split_once("```").unwrap().0).unwrap();
    let Some(said) = installed.c(source.to_str().unwrap()) else { return };
    assert!(said.starts_with("the device finds it at 0x"), "{said}");
}

#[test]
fn the_header_is_cxx_and_strict_c_too() {
    let Some(installed) = Installed::new() else { return };
    must(
        installed
            .cc()
            .args(["-std=c99", "-pedantic", "-Wconversion", "-fsyntax-only", "-x", "c"])
            .arg(installed.root.path().join("usr/include/prereg.h")),
    );
    if !is_here("g++") {
        return;
    }
    let mut cxx = Command::new("g++");
    cxx.args(["-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror"]);
    cxx.arg("-I").arg(installed.root.path().join("usr/include"));
    let said = installed.compiled(&mut cxx, "tests/c/header.cc", &installed.shared()).unwrap();
    assert!(said.starts_with("C++ with prereg"), "{said}");
}

#[test]
fn pkg_config_finds_the_library_and_its_soname_is_the_abi_version() {
    let Some(installed) = Installed::new() else { return };
    let numbers: Vec<&str> = env!("CARGO_PKG_VERSION").split('.').collect();
    let abi = if numbers[0] == "0" { format!("0.{}", numbers[1]) } else { numbers[0].to_owned() };
    let link = std::fs::read_link(installed.lib().join("libprereg.so")).unwrap();
    assert_eq!(link, PathBuf::from(format!("libprereg.so.{abi}")));
    let link = std::fs::read_link(installed.lib().join(link)).unwrap();
    assert_eq!(link, PathBuf::from(format!("libprereg.so.{}", env!("CARGO_PKG_VERSION"))));
    if is_here("readelf") {
        let output = must(Command::new("readelf").arg("-d").arg(installed.lib().join("libprereg.so")));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(&format!("[libprereg.so.{abi}]")), "{said}");
    }
    if !is_here("pkg-config") {
        return;
    }
    let ask = |question: &str| {
        let output = must(
            Command::new("pkg-config")
                .args([question, "prereg"])
                .env("PKG_CONFIG_PATH", installed.lib().join("pkgconfig"))
                .env("PKG_CONFIG_SYSROOT_DIR", installed.root.path())
                .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1")
                .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1"),
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(ask("--modversion"), env!("CARGO_PKG_VERSION"));
    let flags: Vec<String> =
        [ask("--cflags"), ask("--libs")].join(" ").split_whitespace().map(str::to_owned).collect();
    assert!(flags.contains(&"-lprereg".to_owned()), "{flags:?}");
    let said = installed.compiled(&mut Command::new("cc"), "examples/c/own_pins.c", &flags);
    assert!(said.unwrap().contains("charged 32"));
}

#[test]
fn only_names_of_ours_are_exported() {
    let Some(installed) = Installed::new() else { return };
    if !is_here("nm") {
        return;
    }
    let output =
        must(Command::new("nm").args(["-D", "--defined-only"]).arg(installed.lib().join("libprereg.so")));
    let said = String::from_utf8_lossy(&output.stdout);
    let names: Vec<&str> = said.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    assert!(names.len() > 90, "{names:?}");
    for name in names {
        assert!(name.starts_with("prereg_"), "{name}");
    }
}
