//! Module trees from small maps of files.

use super::*;

fn diagnostics(files: &[(&str, &str)]) -> Vec<String> {
    let files: BTreeMap<PathBuf, String> =
        files.iter().map(|(path, source)| (PathBuf::from(path), (*source).to_owned())).collect();
    let read = |path: &Path| files.get(path).cloned();
    match ModuleTree::read("toy", Path::new("src/lib.rs"), &read) {
        Ok(tree) => tree.diagnostics().iter().map(ToString::to_string).collect(),
        Err(missing) => missing.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn imports_that_run_one_way_pass() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod addr; mod region; mod space; pub use space::Space;"),
        ("src/addr.rs", "pub struct Addr;"),
        ("src/region.rs", "use crate::addr::Addr; pub struct Region(Addr);"),
        ("src/space.rs", "use crate::region::Region; pub struct Space(Vec<Region>, crate::addr::Addr);"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn two_modules_that_use_each_other_are_reported_with_both_lines() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "\nuse crate::b::B;\npub struct A;"),
        ("src/b.rs", "pub struct B;\nfn f() -> crate::a::A { loop {} }"),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("a (a.rs) -> b (b.rs)   (line 2 uses crate::b::B)"), "{}", found[0]);
    assert!(found[0].contains("b (b.rs) -> a (a.rs)   (line 2 uses crate::a::A)"), "{}", found[0]);
}

#[test]
fn root_reexports_are_followed_and_make_no_cycle_of_their_own() {
    let good = [
        ("src/lib.rs", "mod a; mod b; pub use a::A; pub use b::{B, make};"),
        ("src/a.rs", "pub struct A;"),
        ("src/b.rs", "use crate::A; pub struct B(A); pub fn make() {}"),
    ];
    assert!(diagnostics(&good).is_empty());
    let mut bad = good;
    bad[1] = ("src/a.rs", "use crate::make; pub struct A;");
    let found = diagnostics(&bad);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("a (a.rs) -> b (b.rs)") && found[0].contains("uses crate::A"), "{}", found[0]);
}

#[test]
fn a_child_that_uses_an_item_of_its_parents_file_closes_a_circle_only_if_the_parent_uses_it_too() {
    let child = ("src/table/cell.rs", "use super::Table; pub struct Cell(*const Table);");
    let declares = [("src/lib.rs", "mod table;"), ("src/table.rs", "mod cell; pub struct Table;"), child];
    assert!(diagnostics(&declares).is_empty());
    let uses =
        [("src/lib.rs", "mod table;"), ("src/table.rs", "mod cell; pub struct Table(cell::Cell);"), child];
    assert_eq!(diagnostics(&uses).len(), 1);
    let reexports = [
        ("src/lib.rs", "mod table;"),
        ("src/table.rs", "mod cell; pub use cell::Cell; pub struct Table;"),
        child,
    ];
    assert!(diagnostics(&reexports).is_empty());
    let reexports_and_uses = [
        ("src/lib.rs", "mod table;"),
        ("src/table.rs", "mod cell; pub use cell::Cell; pub struct Table(Cell);"),
        child,
    ];
    assert_eq!(diagnostics(&reexports_and_uses).len(), 1);
}

#[test]
fn a_childs_use_of_what_the_parent_imported_leads_to_the_definer() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod addr; mod table;"),
        ("src/addr.rs", "pub struct Addr;"),
        ("src/table.rs", "use crate::addr::Addr; mod cell; pub struct Table(Addr, cell::Cell);"),
        ("src/table/cell.rs", "use super::Addr; pub struct Cell(Addr);"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn aliases_of_modules_are_followed_in_code() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "use crate::b as other; fn f() { other::deep::g(); }"),
        ("src/b.rs", "pub mod deep;"),
        ("src/b/deep.rs", "pub fn g() { crate::a::h(); }"),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("b::deep"), "{}", found[0]);
}

#[test]
fn tests_may_use_anything() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod a; mod b;"),
        (
            "src/a.rs",
            "pub struct A; #[cfg(test)] mod tests { use crate::b::B; } #[cfg(all(test, not(loom)))] mod more;",
        ),
        ("src/b.rs", "use crate::a::A; pub struct B(A);"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn inline_modules_belong_to_their_file_and_see_super() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod sync; mod gate;"),
        (
            "src/sync.rs",
            "pub(crate) mod atomic { pub(crate) use core::sync::atomic::AtomicU64; fn f() { super::g(); } } fn g() {}",
        ),
        ("src/gate.rs", "use crate::sync::atomic::AtomicU64; pub struct Gate(AtomicU64);"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn mod_rs_nested_files_and_path_attributes_are_found() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod a; #[path = \"elsewhere/c.rs\"] mod c;"),
        ("src/a/mod.rs", "pub mod b; pub struct A;"),
        ("src/a/b.rs", "use crate::c::C; pub struct B(C);"),
        ("src/elsewhere/c.rs", "use crate::a::b::B; pub struct C(*const B);"),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("a::b") && found[0].contains("c (c.rs)"), "{}", found[0]);
}

#[test]
fn a_missing_module_file_is_named() {
    let found = diagnostics(&[("src/lib.rs", "mod gone;")]);
    assert_eq!(found, ["src/gone.rs: no such file, but `mod gone` names it"]);
}

#[test]
fn globs_are_followed_to_the_definer_and_doubt_is_reported() {
    let base = [
        ("src/lib.rs", "mod a; mod b; mod c; pub use a::*; pub use b::*;"),
        ("src/a.rs", "pub struct A;"),
        ("src/b.rs", "pub struct B; made! { Made }"),
        ("src/c.rs", "use crate::{A, B};"),
    ];
    assert!(diagnostics(&base).is_empty());
    let mut doubtful = base;
    doubtful[3] = ("src/c.rs", "use crate::Made;");
    let found = diagnostics(&doubtful);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("src/c.rs:1: crate::Made could come from"), "{}", found[0]);
}

#[test]
fn exported_macros_lead_to_their_own_file() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod m; mod a; fn root() { a::f(); }"),
        ("src/m.rs", "#[macro_export] macro_rules! twice { () => {} }"),
        ("src/a.rs", "pub fn f() { crate::twice!(); }"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn an_item_that_lives_in_lib_rs_ties_the_root_into_the_circle() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod a; pub struct Root; fn f() { a::g(); }"),
        ("src/a.rs", "use crate::Root; pub fn g() {}"),
    ]);
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("the crate root"), "{}", found[0]);
}

#[test]
fn imports_that_name_each_other_end() {
    let found = diagnostics(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "pub use crate::b::X; fn f() { X::y(); }"),
        ("src/b.rs", "pub use crate::a::X;"),
    ]);
    assert!(found.len() <= 1, "{found:?}");
}
