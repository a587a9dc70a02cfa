//! Sets the soname of the shared library built by cargo to that of the installed one: `libprereg.so.MAJOR`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libprereg.so.{major}");
}
