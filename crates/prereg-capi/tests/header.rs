//! The committed header is what cbindgen makes of the source; `PREREG_WRITE_HEADER=1 cargo test -p prereg-capi --test
//! header` writes it anew.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config, Language, LineEndingStyle, Style};

/// In the order of the header.
const SOURCES: [&str; 16] = [
    "version",
    "failure",
    "words",
    "region",
    "ports",
    "options",
    "space",
    "state",
    "registration",
    "translator",
    "entries",
    "table",
    "guest",
    "container",
    "iova",
    "vfio",
];

/// The folder of the package, in which cargo runs its tests. Not known at compile time: a cached build may come from another checkout.
fn package() -> PathBuf {
    std::env::current_dir().unwrap()
}

fn config() -> Config {
    let mut config = Config {
        language: Language::C,
        style: Style::Both,
        cpp_compat: true,
        usize_is_size_t: true,
        include_guard: Some("PREREG_H".to_owned()),
        header: Some(std::fs::read_to_string(package().join("include/preamble.txt")).unwrap()),
        no_includes: true,
        sys_includes: ["stddef.h", "stdint.h"].map(str::to_owned).to_vec(),
        line_length: 110,
        line_endings: LineEndingStyle::LF,
        ..Config::default()
    };
    config.function.args = cbindgen::Layout::Auto;
    config
}

fn generated() -> String {
    let mut builder = Builder::new().with_config(config());
    for source in SOURCES {
        builder = builder.with_src(package().join(format!("src/{source}.rs")));
    }
    let mut bytes = Vec::new();
    builder.generate().unwrap().write(&mut bytes);
    tidy(&String::from_utf8(bytes).unwrap())
}

/// Comments of one sentence on one line and none of C++, negative numbers in parentheses, no two empty lines.
fn tidy(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = if line.starts_with("#endif") { "#endif" } else { line };
        let line = if line.starts_with("}  // extern") { "}" } else { line };
        let bare = line.trim_start();
        let indent = &line[..line.len() - bare.len()];
        let opened = lines.len() >= 2 && lines[lines.len() - 2].trim_start() == "/**";
        if bare == "*/" && opened {
            let sentence = lines.pop().unwrap();
            lines.pop();
            let sentence = sentence.trim_start().trim_start_matches('*').trim();
            lines.push(format!("{}/** {sentence} */", indent.strip_suffix(' ').unwrap_or(indent)));
            continue;
        }
        let negative = line.strip_prefix("#define ").and_then(|rest| rest.split_once(" -"));
        match negative {
            Some((name, number)) => lines.push(format!("#define {name} (-{number})")),
            None if bare.is_empty() && lines.last().is_some_and(String::is_empty) => {}
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n") + "\n"
}

fn compare(path: &Path, wanted: &str) {
    if std::env::var_os("PREREG_WRITE_HEADER").is_some() {
        std::fs::write(path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).enumerate().find(|(_, (found, wanted))| found != wanted);
    if let Some((line, (found, wanted))) = differs {
        panic!("line {}: the header has {found:?}, the source {wanted:?}; set PREREG_WRITE_HEADER", line + 1);
    }
    assert_eq!(found.lines().count(), wanted.lines().count(), "set PREREG_WRITE_HEADER to write it anew");
}

#[test]
fn the_header_is_the_one_of_the_source() {
    compare(&package().join("include/prereg.h"), &generated());
}

#[test]
fn every_exported_function_is_declared_once() {
    let header = generated();
    let mut functions = 0;
    for file in std::fs::read_dir(package().join("src")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for part in text.split("extern \"C\" fn prereg_").skip(1) {
            let name = part.split('(').next().unwrap();
            let call = format!("prereg_{name}(");
            let declares = |line: &&str| !line.starts_with([' ', '/']) && line.contains(&call);
            let declared = header.lines().filter(declares).count();
            assert_eq!(declared, 1, "prereg_{name} is declared {declared} times");
            functions += 1;
        }
    }
    assert!(functions > 90, "{functions}");
}
