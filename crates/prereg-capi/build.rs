//! Gives the shared library the name that programs ask for at run time: `libprereg.so.MAJOR`, and `.MINOR` too while the
//! major version is 0, because then each minor version is an ABI of its own.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let part = |name: &str| std::env::var(format!("CARGO_PKG_VERSION_{name}")).unwrap_or_default();
    let version = match part("MAJOR").as_str() {
        "0" => format!("0.{}", part("MINOR")),
        major => major.to_owned(),
    };
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libprereg.so.{version}");
}
