//! C programs under valgrind and the sanitizers of the compilers. AddressSanitizer checks the library itself only if it is built with it; `.ci/run c_sanitizers` does so and names the library in `PREREG_INSTRUMENTED`.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::path::{Path, PathBuf};
use std::process::Command;

use installed::{Installed, SKIPPED, is_here, must, package, run};

mod installed;

/// Programs that run on any machine and free everything.
const PROGRAMS: [&str; 6] = [
    "tests/c/core.c",
    "tests/c/dirty.c",
    "tests/c/sizes.c",
    "tests/c/kernel.c",
    "tests/c/hostile.c",
    "examples/c/own_pins.c",
];

fn programs() -> Vec<&'static str> {
    let mut programs = PROGRAMS.to_vec();
    if Path::new("/usr/include/linux/vfio.h").exists() {
        programs.push("tests/c/containers.c");
    } else {
        eprintln!("skipped: no linux/vfio.h on this machine, for tests/c/containers.c");
    }
    programs
}

#[test]
fn valgrind_finds_no_fault_and_no_leak() {
    let Some(installed) = Installed::new() else { return };
    if !is_here("valgrind") {
        return;
    }
    for source in programs() {
        let program = installed.root().join(Path::new(source).file_stem().unwrap());
        must(installed.cc().arg("-o").arg(&program).arg(package().join(source)).args(installed.shared()));
        must(
            Command::new("valgrind")
                .args(["--quiet", "--error-exitcode=9", "--leak-check=full"])
                .arg("--errors-for-leak-kinds=definite,indirect,possible")
                .arg(&program)
                .env("LD_LIBRARY_PATH", installed.lib()),
        );
    }
}

/// Whether a program can be built and run with the sanitizer.
fn has_sanitizer(compiler: &str, flag: &str, folder: &Path) -> bool {
    if !is_here(compiler) {
        return false;
    }
    let (source, program) = (folder.join("empty.c"), folder.join("empty"));
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let built = run(Command::new(compiler).arg(flag).arg("-o").arg(&program).arg(&source));
    let works = built.status.success() && run(&mut Command::new(&program)).status.success();
    if !works {
        eprintln!("skipped: {compiler} has no working {flag} here");
    }
    works
}

#[test]
fn undefined_behaviour_is_not_met_on_the_side_of_c() {
    let Some(installed) = Installed::new() else { return };
    for compiler in ["gcc", "clang"] {
        if !has_sanitizer(compiler, "-fsanitize=undefined", installed.root()) {
            continue;
        }
        for source in programs() {
            let mut command = Command::new(compiler);
            command.args(["-std=gnu99", "-O1", "-g", "-pthread"]).arg("-I").arg(installed.include());
            command.args(["-fsanitize=undefined", "-fno-sanitize-recover=all"]);
            installed.compiled(&mut command, source, &installed.shared());
        }
    }
}

#[test]
fn address_sanitizer_inside_the_library_finds_no_fault_and_no_leak() {
    let Some(library) = std::env::var_os("PREREG_INSTRUMENTED").map(PathBuf::from) else {
        return eprintln!("skipped: PREREG_INSTRUMENTED names no library built with AddressSanitizer");
    };
    let Some(installed) = Installed::new() else { return };
    if !has_sanitizer("clang", "-fsanitize=address", installed.root()) {
        return;
    }
    for source in programs() {
        let program = installed.root().join(Path::new(source).file_stem().unwrap());
        must(
            Command::new("clang")
                .args(["-std=gnu99", "-O1", "-g", "-pthread", "-fsanitize=address,undefined"])
                .args(["-fno-sanitize-recover=all", "-I"])
                .arg(installed.include())
                .arg("-o")
                .arg(&program)
                .arg(package().join(source))
                .arg(&library)
                .args(["-lpthread", "-ldl", "-lm", "-lgcc_s"]),
        );
        // Huge allocations must return -ENOMEM, not end the program.
        let options = "detect_leaks=1:allocator_may_return_null=1:detect_stack_use_after_return=1";
        let output = run(Command::new(&program).env("ASAN_OPTIONS", options));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | SKIPPED)), "{source}: {}\n{said}", output.status);
    }
}
