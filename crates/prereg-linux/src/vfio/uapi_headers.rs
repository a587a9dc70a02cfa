//! Compares structs and request numbers with the kernel's headers through a C compiler.

use std::fmt::Write;
use std::process::Command;

use super::{kernel, uapi};

/// The preprocessor condition for structs that older headers lack.
fn guard(name: &str) -> &'static str {
    match name {
        "vfio_device_bind_iommufd" => "defined(VFIO_DEVICE_BIND_IOMMUFD)",
        "vfio_device_attach_iommufd_pt" => "defined(VFIO_DEVICE_ATTACH_IOMMUFD_PT)",
        "vfio_device_detach_iommufd_pt" => "defined(VFIO_DEVICE_DETACH_IOMMUFD_PT)",
        name if name.starts_with("iommu_") => "defined(IOMMU_HWPT_ALLOC)",
        _ => "1",
    }
}

/// The field's name in C; `None` for padding.
fn field(name: &str, ours: &str) -> Option<String> {
    match (name, ours) {
        (_, "pad" | "resv1" | "resv2" | "reserved") => None,
        ("vfio_iommu_spapr_tce_info", "windows") => Some("ddw.max_dynamic_windows_supported".to_owned()),
        ("vfio_iommu_spapr_tce_info", "pgsizes" | "levels") => Some(format!("ddw.{ours}")),
        _ => Some(ours.to_owned()),
    }
}

/// A C program that prints one fact of the headers per line.
fn source() -> String {
    let mut text = String::from(
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/vfio.h>\n#if __has_include(<linux/iommufd.h>)\n\
         #include <linux/iommufd.h>\n#endif\nint main(void) {\n",
    );
    for (name, _, fields) in uapi::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "#if {}", guard(name));
        let _ = writeln!(text, "printf(\"size {name} %zu\\n\", sizeof(struct {name}));");
        for field in fields.iter().filter_map(|(ours, _)| field(name, ours)) {
            let _ =
                writeln!(text, "printf(\"offset {name} {field} %zu\\n\", offsetof(struct {name}, {field}));");
        }
        let _ = writeln!(text, "#endif");
    }
    for request in kernel::ALL {
        let name = request.name;
        let _ =
            writeln!(text, "#ifdef {name}\nprintf(\"request {name} %u\\n\", (unsigned)({name}));\n#endif");
    }
    text + "return 0; }\n"
}

#[test]
fn structs_and_numbers_are_those_of_the_kernels_headers() {
    let folder = tempfile::tempdir().unwrap();
    let (file, program) = (folder.path().join("headers.c"), folder.path().join("headers"));
    std::fs::write(&file, source()).unwrap();
    let compiled = Command::new("cc").arg("-o").arg(&program).arg(&file).output();
    let Some(output) = compiled.ok().filter(|output| output.status.success()) else {
        eprintln!("skipped: there is no C compiler with linux/vfio.h here");
        return;
    };
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let facts = Command::new(&program).output().unwrap().stdout;
    let facts = String::from_utf8(facts).unwrap();
    let mut seen = 0;
    for line in facts.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["size", name, bytes] => {
                let bytes: usize = bytes.parse().unwrap();
                let (_, ours, fields) = uapi::ALL.iter().find(|known| known.0 == name).unwrap();
                // A later header may name the padding at the end, or append fields.
                let padded = fields.last().is_some_and(|&(last, at)| last == "pad" && at == bytes);
                assert!(*ours <= bytes || padded, "{name} has {bytes} bytes, and {ours} here");
            }
            ["offset", name, theirs, at] => {
                let (.., fields) = uapi::ALL.iter().find(|known| known.0 == name).unwrap();
                let ours = fields.iter().find(|known| field(name, known.0).as_deref() == Some(theirs));
                assert_eq!(at.parse::<usize>().unwrap(), ours.unwrap().1, "{name}.{theirs}");
            }
            ["request", name, number] => {
                let request = kernel::ALL.iter().find(|known| known.name == name).unwrap();
                assert_eq!(number.parse::<u32>().unwrap(), request.raw(), "{name}");
            }
            _ => panic!("{line}"),
        }
        seen += 1;
    }
    assert!(seen > 60, "{seen} facts are too few");
}
