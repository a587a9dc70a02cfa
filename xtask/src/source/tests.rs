//! Facts of small sources.

use super::*;

fn paths(source: &str) -> Vec<String> {
    SourceFacts::of(source).uses.iter().map(|u| u.segments.join("::")).collect()
}

#[test]
fn use_trees_unfold_into_leaves_with_the_names_they_bind() {
    let facts = SourceFacts::of("pub(crate) use crate::{a::{self, B as C}, d::*, e::f::{g, H}};");
    let leaves: Vec<(String, Option<String>)> =
        facts.uses.iter().map(|u| (u.segments.join("::"), u.import.clone().unwrap().name)).collect();
    let name = |text: &str| Some(text.to_owned());
    assert_eq!(
        leaves,
        [
            ("crate::a".to_owned(), name("a")),
            ("crate::a::B".to_owned(), name("C")),
            ("crate::d".to_owned(), None),
            ("crate::e::f::g".to_owned(), name("g")),
            ("crate::e::f::H".to_owned(), name("H")),
        ]
    );
    assert!(facts.uses.iter().all(|u| u.import.as_ref().unwrap().public));
}

#[test]
fn paths_in_code_are_found_and_method_chains_and_turbofish_are_not_paths() {
    let found = paths("fn f() { crate::a::b::<u8>(); x.c::<d::E>(); <T as g::H>::i(); let _: super::J; }");
    assert_eq!(found, ["crate::a::b", "d::E", "g::H", "super::J"]);
}

#[test]
fn visibility_paths_and_precise_captures_are_no_imports() {
    assert!(paths("pub(in crate::a::b) fn f() -> impl Sized + use<'static> { 1 }").is_empty());
}

#[test]
fn test_only_items_leave_no_facts_but_lines() {
    let source = "use crate::a::A;\n#[cfg(test)]\nmod tests {\n use crate::b::B;\n}\n#[cfg(all(test, not(loom)))]\nmod more;\n\
                  #[cfg(any(test, loom))]\nuse crate::c::C;\n";
    let facts = SourceFacts::of(source);
    assert_eq!(paths(source), ["crate::a::A", "crate::c::C"]);
    assert_eq!(facts.test_lines, [(2, 5), (6, 7)]);
    assert!(facts.mods.iter().all(|m| m.test_only));
    assert_eq!(facts.mods.len(), 2);
}

#[test]
fn not_test_is_ordinary_code() {
    assert_eq!(paths("#[cfg(not(test))] use crate::a::A;"), ["crate::a::A"]);
    assert_eq!(paths("#[cfg(not(not(test)))] use crate::a::A;"), Vec::<String>::new());
}

#[test]
fn a_test_only_statement_field_or_function_ends_where_it_ends() {
    let source = "struct S {\n #[cfg(test)] a: Vec<crate::no::N>,\n b: crate::yes::Y,\n}\n\
                  #[cfg(test)]\nfn t<A, B>(a: A, b: B) -> crate::no::N { crate::no::n() }\n\
                  fn g() {\n #[cfg(test)]\n let x = if true { crate::no::a() } else { crate::no::b() };\n crate::yes::z();\n}\n\
                  #[cfg(test)]\nconst X: [u8; 2] = [crate::no::C; 2];\nfn h() { crate::yes::h(); }";
    assert_eq!(paths(source), ["crate::yes::Y", "crate::yes::z", "crate::yes::h"]);
}

#[test]
fn inline_modules_scope_their_paths_and_end() {
    let facts =
        SourceFacts::of("mod a { pub(crate) mod b { use super::C; } fn f() { if x { } } } use crate::d::D;");
    let within: Vec<String> = facts.uses.iter().map(|u| u.within.join("::")).collect();
    assert_eq!(within, ["a::b", ""]);
    assert_eq!(facts.mods.len(), 2);
}

#[test]
fn items_are_those_of_modules_not_of_bodies() {
    let facts = SourceFacts::of(
        "pub struct A; const fn b() { struct C; } static mut D: u8 = 0; macro_rules! e { () => {} } mod m { enum F {} }",
    );
    let names: Vec<&str> = facts.items.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["A", "D", "b", "e", "F"]);
}

#[test]
fn unsafe_counts_code_only() {
    let facts = SourceFacts::of(
        "// unsafe\nconst A: &str = \"unsafe\";\n#![deny(unsafe_code)]\nunsafe fn f() { unsafe { g() } }",
    );
    assert_eq!(facts.unsafe_lines, [4, 4]);
}

#[test]
fn an_ignored_test_wants_a_reason() {
    assert_eq!(SourceFacts::of("#[test]\n#[ignore]\nfn a() {}").unexplained_ignores, [2]);
    assert!(
        SourceFacts::of("#[test]\n#[ignore = \"needs a group\"]\nfn a() {}").unexplained_ignores.is_empty()
    );
}

#[test]
fn path_attributes_and_exported_macros_are_kept() {
    let facts = SourceFacts::of(
        "#[path = \"x/y.rs\"] mod z; #[macro_export] macro_rules! m { () => { $crate::a::B } }",
    );
    assert_eq!(facts.mods[0].path.as_deref(), Some("x/y.rs"));
    assert!(facts.exported_macros.contains("m"));
    assert_eq!(facts.uses[0].segments, ["crate", "a", "B"]);
}

#[test]
fn broken_source_ends() {
    for source in [
        "use a::{b",
        "use",
        "#[cfg(test)",
        "#[cfg(test)]",
        "mod",
        "mod x {",
        "}}}",
        "use a::{$x, b};",
        "pub(",
        "#[",
    ] {
        let _ = SourceFacts::of(source);
    }
}
