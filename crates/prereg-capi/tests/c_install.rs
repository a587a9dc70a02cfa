//! Tests of `make install`: a header that compiles without a warning in every version of C and C++, a shared and a static library that
//! pkg-config links, only versioned symbols with our prefix, and nothing after `make uninstall`.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use installed::{Installed, is_here, must, package, run};

mod installed;

const WARNINGS: [&str; 6] =
    ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wredundant-decls", "-Werror"];

/// Whether the compiler supports a version of the language.
fn knows(compiler: &str, standard: &str, language: &str) -> bool {
    let output = run(Command::new(compiler).args([standard, "-fsyntax-only", "-x", language, "/dev/null"]));
    if !output.status.success() {
        eprintln!("skipped: {compiler} does not know {standard}");
    }
    output.status.success()
}

fn compiles(installed: &Installed, compiler: &str, standards: &[&str], language: &str, more: &[&str]) {
    if !is_here(compiler) {
        return;
    }
    let mut compiled = 0;
    for version in standards {
        let standard = format!("-std={version}");
        if !knows(compiler, &standard, language) {
            continue;
        }
        let mut command = Command::new(compiler);
        command.args([&standard, "-fsyntax-only", "-x", language]).args(WARNINGS).args(more);
        must(command.arg("-I").arg(installed.include()).arg(package().join("tests/c/header.inc")));
        compiled += 1;
    }
    assert!(compiled >= 3, "{compiler} knows none of {standards:?}");
}

#[test]
fn the_header_is_every_c_and_cxx() {
    let Some(installed) = Installed::new() else { return };
    let c = ["c90", "c99", "c11", "c17", "c2x", "c23"];
    let cxx = ["c++11", "c++14", "c++17", "c++20", "c++23"];
    for compiler in ["gcc", "clang"] {
        // Long long is not in C90, and <stdint.h> needs it there.
        compiles(&installed, compiler, &c, "c", &["-Wstrict-prototypes", "-Wno-long-long"]);
    }
    for compiler in ["g++", "clang++"] {
        compiles(&installed, compiler, &cxx, "c++", &[]);
    }
}

#[test]
fn a_program_in_cxx_links_and_runs() {
    let Some(installed) = Installed::new() else { return };
    if !is_here("g++") {
        return;
    }
    let mut cxx = Command::new("g++");
    cxx.arg("-std=c++11").args(WARNINGS).arg("-I").arg(installed.include());
    let said = installed.compiled(&mut cxx, "tests/c/header.cc", &installed.shared()).unwrap();
    assert!(said.starts_with("C++ with prereg"), "{said}");
}

#[test]
fn pkg_config_links_the_shared_and_the_static_library() {
    let Some(installed) = Installed::new() else { return };
    if !is_here("pkg-config") {
        return;
    }
    assert_eq!(installed.pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let flags = installed.pkg_config(&["--cflags", "--libs"]);
    let said = installed.compiled(&mut Command::new("cc"), "examples/c/own_pins.c", &flags);
    assert!(said.unwrap().contains("charged 32"));
    let flags = installed.pkg_config(&["--static", "--cflags", "--libs"]);
    for how in [&["-static"][..], &["-static-pie", "-fPIE"], &[]] {
        let mut cc = Command::new("cc");
        let said = installed.compiled(cc.args(how), "examples/c/own_pins.c", &flags);
        assert!(said.unwrap().contains("charged 32"), "{how:?}");
    }
}

#[test]
fn a_prefix_of_its_own_is_what_pkg_config_says() {
    let Some(installed) = Installed::new() else { return };
    if !is_here("pkg-config") {
        return;
    }
    let prefix = format!("{}/opt/prereg", installed.root().display());
    must(&mut installed.make_to(&prefix, "install"));
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.args(["--static", "--cflags", "--libs", "prereg"]);
    let output = must(pkg_config.env("PKG_CONFIG_PATH", format!("{prefix}/lib/pkgconfig")));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains(&format!("-I{prefix}/include")) && said.contains(&format!("-L{prefix}/lib")),
        "{said}"
    );
    let flags: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
    let said = installed.compiled(Command::new("cc").arg("-static"), "examples/c/own_pins.c", &flags);
    assert!(said.unwrap().contains("charged 32"));
    must(&mut installed.make_to(&prefix, "uninstall"));
    assert_eq!(files_below(std::path::Path::new(&prefix)), Vec::<PathBuf>::new());
}

#[test]
fn the_soname_is_the_major_version() {
    let Some(installed) = Installed::new() else { return };
    let version = env!("CARGO_PKG_VERSION");
    let soname = format!("libprereg.so.{}", version.split('.').next().unwrap());
    let link = std::fs::read_link(installed.lib().join("libprereg.so")).unwrap();
    assert_eq!(link, PathBuf::from(&soname));
    let link = std::fs::read_link(installed.lib().join(link)).unwrap();
    assert_eq!(link, PathBuf::from(format!("libprereg.so.{version}")));
    if is_here("readelf") {
        let output = must(Command::new("readelf").arg("-d").arg(installed.lib().join("libprereg.so")));
        assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("[{soname}]")));
    }
}

#[test]
fn every_symbol_is_declared_and_has_a_version() {
    let Some(installed) = Installed::new() else { return };
    if !is_here("nm") {
        return;
    }
    let output =
        must(Command::new("nm").args(["-D", "--defined-only"]).arg(installed.lib().join("libprereg.so")));
    let said = String::from_utf8_lossy(&output.stdout);
    let symbols = said.lines().filter_map(|line| line.split_whitespace().nth(2));
    let functions: BTreeSet<&str> = symbols.filter(|symbol| *symbol != "PREREG_0.1").collect();
    let unversioned: Vec<_> = functions.iter().filter(|name| !name.contains("@@PREREG_")).collect();
    assert!(unversioned.is_empty(), "{unversioned:?}");
    let exported: BTreeSet<&str> = functions.iter().filter_map(|name| name.split('@').next()).collect();
    let header = std::fs::read_to_string(package().join("include/prereg.h")).unwrap();
    let declared: BTreeSet<&str> = header
        .lines()
        .filter(|line| !line.starts_with([' ', '/', '#']) && !line.starts_with("typedef"))
        .filter_map(|line| line.split_once('(')?.0.split([' ', '*']).next_back())
        .filter(|name| name.starts_with("prereg_"))
        .collect();
    assert_eq!(exported, declared);
    assert!(exported.len() > 100, "{}", exported.len());
}

#[test]
fn uninstall_leaves_no_file() {
    let Some(installed) = Installed::new() else { return };
    let usr = installed.root().join("usr");
    assert_eq!(files_below(&usr).len(), 6);
    must(&mut installed.make("uninstall"));
    assert_eq!(files_below(&usr), Vec::<PathBuf>::new());
}

fn files_below(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
