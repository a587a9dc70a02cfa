//! Tests of the program: output, exit codes, refused input.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn prereg() -> Command {
    Command::new(env!("CARGO_BIN_EXE_prereg"))
}

fn run(arguments: &[&str]) -> Output {
    prereg().args(arguments).output().unwrap()
}

fn bundled(name: &str) -> String {
    format!("../../conformance/traces/{name}")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {:?} {:?}", text(&output.stdout), text(&output.stderr));
    })
}

/// Name, calls, TCEs written, mapping TCEs.
const BUNDLED: [(&str, u64, u64, u64); 2] =
    [("nvme4k", 202_891, 1_027_282, 382_569), ("e1000e64k", 118_018, 393_532, 65_694)];

#[test]
fn the_bundled_traces_replay_without_a_mismatch_under_both_rule_sets() {
    for rules in ["qemu", "kvm"] {
        let paths = BUNDLED.map(|(name, ..)| bundled(&format!("{name}.tce.zst")));
        let output = run(&[
            "replay",
            "--backend",
            "sim",
            "--rules",
            rules,
            "--json",
            "--iterations",
            "1",
            &paths[0],
            &paths[1],
        ]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let reports = json(&output);
        for (report, (name, calls, tces, mapping)) in reports.as_array().unwrap().iter().zip(BUNDLED) {
            assert_eq!(report["trace"], name);
            assert_eq!(report["rules"], rules);
            assert_eq!(report["backend"], "sim");
            assert_eq!(report["hypercalls"], calls);
            assert_eq!(report["tces_written"], tces);
            assert_eq!(report["mapping_tces"], mapping);
            for key in ["return_mismatches", "get_mismatches", "xlate_mismatches", "pagemap_mismatches"] {
                assert_eq!(report[key], 0, "{name} {rules} {key}");
            }
            assert_eq!((&report["too_hard"], &report["leaked_pages"]), (&0.into(), &0.into()));
            assert_eq!((&report["pages_pinned"], &report["pin_calls"]), (&262_144.into(), &1.into()));
            assert!(report["ns_per_tce"].as_f64().unwrap() > 0.0);
            assert!(report["baseline_ns_per_tce"].is_null() && report["speedup"].is_null());
        }
    }
}

#[test]
fn one_trace_is_an_object_with_the_documented_keys_in_order() {
    let output = run(&["replay", "--backend", "sim", "--json", &bundled("errors.tce")]);
    let report = json(&output);
    let keys = [
        "trace",
        "rules",
        "backend",
        "hypercalls",
        "tces_written",
        "return_mismatches",
        "get_mismatches",
        "xlate_checked",
        "xlate_mismatches",
        "pagemap_checked",
        "pagemap_mismatches",
        "pages_pinned",
        "pin_calls",
        "ns_per_call",
        "ns_per_tce",
        "baseline_ns_per_tce",
        "speedup",
        "leaked_pages",
    ];
    let printed = text(&output.stdout);
    let places: Vec<_> = keys.iter().map(|key| printed.find(&format!("\n  \"{key}\": ")).unwrap()).collect();
    assert!(places.is_sorted());
    assert_eq!(report["tces_written"], 268_888);
    assert_eq!(report["mapping_tces"], 569);
}

/// The calls of errors.tce, each with its results under both rule sets.
fn answers() -> Vec<[String; 4]> {
    let table = std::fs::read_to_string(bundled("errors-answers.tsv")).unwrap();
    let rows: Vec<[String; 4]> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap())
        .collect();
    assert_eq!(rows.len(), 132);
    rows
}

#[test]
fn every_invalid_call_has_qemus_recorded_result_under_qemus_rules() {
    let output = run(&["replay", "--backend", "sim", "--json", "--print-calls", &bundled("errors.tce")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report = json(&output);
    let given = report["answers"].as_array().unwrap();
    assert_eq!(given.len(), 132);
    for (given, [call, qemu, _, _]) in given.iter().zip(answers()) {
        assert_eq!(given["mark"], *call);
        assert_eq!(given["recorded"], *qemu, "{call}");
        assert_eq!(given["ours"], *qemu, "{call}");
        assert!(given.get("handler").is_none());
    }
}

#[test]
fn every_invalid_call_has_the_kernels_result_under_kvms_rules() {
    let output = run(&[
        "replay",
        "--backend",
        "sim",
        "--json",
        "--print-calls",
        "--rules",
        "kvm",
        &bundled("errors.tce"),
    ]);
    let report = json(&output);
    let (mut codes, mut values, mut hard) = (0, 0, 0);
    for (given, [call, qemu, handler, guest]) in report["answers"].as_array().unwrap().iter().zip(answers()) {
        assert_eq!(given["mark"], *call);
        assert_eq!(given["handler"], *handler, "{call}");
        assert_eq!(given["ours"], *guest, "{call}");
        let same_code = qemu.split(',').next() == guest.split(',').next();
        codes += u64::from(!same_code);
        values += u64::from(same_code && qemu != guest);
        hard += u64::from(handler == "H_TOO_HARD");
    }
    // Results that differ from QEMU's are mismatches, which the exit code reports.
    assert_eq!((&report["return_mismatches"], &report["get_mismatches"]), (&codes.into(), &values.into()));
    assert_eq!(report["too_hard"], hard);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn calls_are_printed_one_per_line_before_the_table() {
    let output =
        run(&["replay", "--backend", "sim", "--rules", "kvm", "--print-calls", &bundled("errors.tce")]);
    let lines: Vec<_> = text(&output.stdout).lines().filter(|line| line.contains("\trecorded ")).collect();
    assert_eq!(lines.len(), 132);
    assert!(
        lines[2].ends_with("errors.tce:12\tget: unaligned ioba\trecorded 0, 2003\tours -4\thandler -4"),
        "{}",
        lines[2]
    );
}

#[test]
fn a_wrong_recording_is_a_mismatch_with_file_and_line_and_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let head = "# guest RAM: guest-physical 0 to 100000\nW 80000000 0 12 256\n";
    for (name, lines, key) in [
        ("return.tce", "P 80000000 1000 2003 -4\n", "return_mismatches"),
        ("get.tce", "P 80000000 1000 2003 0\nG 80000000 1000 3003 0\n", "get_mismatches"),
        ("page.tce", "P 80000000 1000 2003 0\nX 80000000 1000 3000 3 2\n", "xlate_mismatches"),
        ("permission.tce", "P 80000000 1000 2001 0\nX 80000000 1000 2000 3 2\n", "xlate_mismatches"),
        ("unmapped.tce", "X 80000000 1000 2000 3 2\n", "xlate_mismatches"),
    ] {
        let path = write(folder.path(), name, format!("{head}{lines}"));
        let output = run(&["replay", "--backend", "sim", "--json", &path]);
        assert_eq!(output.status.code(), Some(1), "{name}: {}", text(&output.stderr));
        let report = json(&output);
        assert!(report[key].as_u64().unwrap() > 0, "{name}: {report}");
        assert_eq!(report["leaked_pages"], 0);
        let notes = report["notes"].to_string();
        assert!(notes.contains(&format!("{name}:")), "{name}: {notes}");
    }
    let right = write(
        folder.path(),
        "right.tce",
        format!("{head}P 80000000 1000 2003 0\nX 80000000 1000 2000 3 2\n"),
    );
    let output = run(&["replay", "--backend", "sim", "--json", &right]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(json(&output)["xlate_checked"], 2);
}

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_device_reaches_every_page_of_a_window_page_by_its_own_address() {
    let folder = tempfile::tempdir().unwrap();
    let trace = "# guest RAM: guest-physical 0 to 1000000\nW 80000001 800000000000000 16 16\n\
                 P 80000001 800000000010000 20003 0\nX 80000001 800000000010000 20000 3 1\n\
                 X 80000001 80000000001f000 20000 3 1\n";
    let path = write(folder.path(), "large.tce", trace);
    let report = json(&run(&["replay", "--backend", "sim", "--json", &path]));
    assert_eq!((&report["xlate_checked"], &report["xlate_mismatches"]), (&2.into(), &0.into()));
}

#[test]
fn a_pin_at_every_map_is_measured_on_request() {
    let report =
        json(&run(&["replay", "--backend", "sim", "--compare", "--json", &bundled("e1000e64k.tce.zst")]));
    assert!(report["baseline_ns_per_tce"].as_f64().unwrap() > 0.0);
    assert!(report["speedup"].as_f64().unwrap() > 0.0);
    assert_eq!(report["baseline_pins"], 65_694);
    assert_eq!(report["leaked_pages"], 0);
}

#[test]
fn pinned_pages_are_where_pagemap_says_and_all_are_released() {
    let doctor = json(&run(&["doctor", "--json"]));
    let folder = tempfile::tempdir().unwrap();
    // 4 MiB, so that an ordinary user's limit allows it.
    let mut trace = "# guest RAM: guest-physical 0 to 400000\nW 80000000 0 12 1024\n".to_owned();
    for page in 0..1024 {
        trace.push_str(&format!("P 80000000 {:x} {:x} 0\n", page << 12, (page * 37 % 1024) << 12 | 3));
    }
    let path = write(folder.path(), "pins.tce", trace);
    let output = run(&["replay", "--backend", "io-uring", "--verify", "all", "--compare", "--json", &path]);
    if output.status.code() == Some(2) {
        eprintln!("skipped: {}", text(&output.stderr));
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{} {}", text(&output.stdout), text(&output.stderr));
    let report = json(&output);
    assert_eq!(
        (&report["backend"], &report["pages_pinned"], &report["pin_calls"]),
        (&"io-uring".into(), &1024.into(), &1.into())
    );
    assert_eq!((&report["live_at_end"], &report["leaked_pages"]), (&1024.into(), &0.into()));
    assert_eq!(report["baseline_pins"], 1024);
    if doctor["pagemap"] == "frames" {
        // Each entry is compared after its call and at the end.
        assert_eq!((&report["pagemap_checked"], &report["pagemap_mismatches"]), (&2048.into(), &0.into()));
    } else {
        eprintln!("skipped: comparing with pagemap: physical addresses are hidden from this user");
        assert_eq!((&report["addresses"], &report["pagemap_checked"]), (&"slot-offset".into(), &0.into()));
    }
}

#[test]
fn bad_traces_are_refused_with_file_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let head = "# guest RAM: guest-physical 0 to 100000\nW 80000000 0 12 256\n";
    let zstd = std::fs::read(bundled("e1000e64k.tce.zst")).unwrap();
    let corpus: &[(&str, Vec<u8>, &str)] = &[
        ("unknown.tce", format!("{head}Z 1 2 3\n").into(), "unknown.tce:3: unknown record 'Z'"),
        ("number.tce", format!("{head}P 80000000 10x0 2003 0\n").into(), "number.tce:3: ioba '10x0' is not"),
        ("fields.tce", format!("{head}S 80000000 0 0 0\n").into(), "fields.tce:3: S takes"),
        (
            "overlap.tce",
            format!("{head}W 80000001 ff000 12 2\n").into(),
            "overlap.tce:3: window 80000001 overlaps",
        ),
        (
            "overflow.tce",
            format!("{head}W 80000001 fffffffffffff000 12 2\n").into(),
            "overflow.tce:3: window 80000001",
        ),
        (
            "entries.tce",
            format!("{head}W 80000001 800000000000000 12 281474976710656\n").into(),
            "entries.tce:3: window 80000001 has 281474976710656 entries",
        ),
        ("ram.tce", "# guest RAM: guest-physical 0 to 4000000000000\n".into(), "ram.tce:1: guest RAM of"),
        ("noram.tce", "W 80000000 0 12 256\n".into(), "noram.tce:1: no line '# guest RAM"),
        ("empty.tce", Vec::new(), "empty.tce:1: the file has no record"),
        ("cut.tce.zst", zstd[..zstd.len() / 2].into(), "the file ends early or is damaged"),
        ("binary.tce", vec![0xff; 100], "binary.tce:1: the line is not text"),
        ("long.tce", vec![b'#'; 1 << 20], "long.tce:1: the line is longer than"),
    ];
    for (name, bytes, wanted) in corpus {
        let path = write(folder.path(), name, bytes);
        // After a valid trace: nothing may be pinned or printed before all are read.
        let output = run(&["replay", &bundled("errors.tce"), &path]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert_eq!(text(&output.stdout), "", "{name}");
        let message = text(&output.stderr);
        assert!(message.starts_with("prereg: ") && message.contains(wanted), "{name}: {message}");
        let place = message.split_once(name).unwrap().1;
        assert!(place.starts_with(':') && place.as_bytes()[1].is_ascii_digit(), "{name}: {message}");
    }
    let output = run(&["replay", &folder.path().join("missing.tce").display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("missing.tce: cannot open the trace"));
    let output = run(&["replay", &folder.path().display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn ctrl_c_ends_the_program_with_130_after_everything_is_released() {
    // The report of the first trace means that the handler is installed; the second trace takes longer than the signal.
    let mut child = prereg()
        .args([
            "replay",
            "--backend",
            "sim",
            "--iterations",
            "1000",
            &bundled("errors.tce"),
            &bundled("nvme4k.tce.zst"),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    // Kept open: the program ends when its output is closed.
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut first).unwrap();
    assert!(first.starts_with("errors: qemu rules"), "{first}");
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let status = child.wait().unwrap();
    drop(output);
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(status.code(), Some(130), "{message}");
    assert!(message.contains("interrupted"), "{message}");
}

#[test]
fn doctor_reports_every_back_end_with_a_verdict() {
    let output = run(&["doctor"]);
    assert_eq!(output.status.code(), Some(0));
    let report = json(&run(&["doctor", "--json"]));
    for key in ["kernel", "memlock", "huge_pages", "iommu_groups", "pagemap", "compact_unevictable_allowed"] {
        assert!(report.get(key).is_some(), "{key}");
    }
    let names: Vec<_> =
        report["backends"].as_array().unwrap().iter().map(|backend| &backend["name"]).collect();
    assert_eq!(names, ["io-uring", "mlock", "fixed", "vfio-type1", "vfio-spapr-v2", "iommufd", "sim"]);
    for name in names {
        assert!(text(&output.stdout).contains(name.as_str().unwrap()));
    }
}

#[test]
fn bench_measures_registration_next_to_the_raw_calls() {
    let output = run(&["bench", "registration", "--size", "2M", "--iterations", "2", "--json"]);
    if output.status.code() == Some(2) {
        eprintln!("skipped: {}", text(&output.stderr));
        return;
    }
    let results = json(&output);
    let rows = results["memories"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| &row["memory"]).collect::<Vec<_>>(),
        ["memfd", "anonymous", "thp", "hugetlb"]
    );
    for row in rows {
        if let Some(why) = row.get("skipped") {
            assert!(!why.as_str().unwrap().is_empty());
            continue;
        }
        for key in
            ["register", "raw_pin", "raw_pagemap", "unregister", "absent_one_thread", "absent_two_threads"]
        {
            assert!(row[key]["median"].as_f64().unwrap() > 0.0, "{key} of {row}");
        }
        assert!(row["ratio"].as_f64().unwrap() > 0.0);
    }
    for size in ["0", "3M", "1", "x"] {
        assert_eq!(run(&["bench", "registration", "--size", size]).status.code(), Some(2), "{size}");
    }
}

#[test]
fn completions_and_the_manual_page_have_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("registration"), "{shell}");
    }
    let output = run(&["man"]);
    assert_eq!(output.status.code(), Some(0));
    let page = text(&output.stdout);
    for heading in
        ["PREREG REPLAY", "PREREG DOCTOR", "PREREG BENCH REGISTRATION", "PREREG COMPLETIONS", "EXIT STATUS"]
    {
        assert!(page.lines().any(|line| line.starts_with(".SH ") && line.contains(heading)), "{heading}");
    }
    assert!(page.contains("verify"));
    assert_eq!(page.matches("EXIT STATUS").count() + page.matches("Exit status").count(), 1, "one section");
    assert!(!page.contains("EXTRA") && page.contains(".SH EXAMPLES") && page.contains(".SS EXAMPLES"));
}

#[test]
fn help_is_short_and_arguments_are_checked() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    assert!(help.lines().count() < 40 && help.contains("Examples:"), "{help}");
    for arguments in [&[][..], &["replay"], &["replay", "--rules", "xen", "a.tce"], &["bench"], &["nonsense"]]
    {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_closed_output_is_no_error() {
    let mut child = prereg()
        .args(["replay", "--backend", "sim", "--print-calls", &bundled("errors.tce")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!((status.code(), &*message), (Some(0), ""));
}
