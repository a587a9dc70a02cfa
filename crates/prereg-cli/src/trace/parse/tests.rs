//! Valid lines become records; every invalid line is refused with its file and number.

use std::io::Write;

use super::*;
use crate::trace::read::read_from;

const HEAD: &str = "# guest RAM: guest-physical 0 to 20000000 (bytes, hex)\nW 80000000 0 12 262144\n";

fn parse(text: &str) -> Result<Trace, String> {
    read_from(text.as_bytes(), "t.tce", &Limits::default()).map_err(|error| error.to_string())
}

/// The trace of `lines` after a head of two lines.
fn after_head(lines: &str) -> Result<Trace, String> {
    parse(&format!("{HEAD}{lines}"))
}

#[test]
fn each_kind_of_line_becomes_its_record() {
    let trace = after_head(
        "M == put\nP 80000000 1000 2003 0\nI 80000000 200000 500000 4 -4 1000003:2 9000 1003003\n\
         S 80000000 0 0 18446744073709551615 -4\nG 180000000 1fff 2003 0\nX 80000000 1000 2000 3 7\n\
         R 2026 0 8000000 : 0 1 : 0\nD 80000000\n# end: 4 hypercalls\n",
    )
    .unwrap();
    assert_eq!(trace.ram_bytes, 0x2000_0000);
    assert_eq!((trace.hypercalls, trace.claimed_hypercalls), (4, Some(4)));
    assert_eq!(&*trace.marks[0], "== put");
    assert_eq!(
        trace.records,
        [
            Record::Window(0),
            Record::Mark(0),
            Record::Put { ret: 0, liobn: 0x8000_0000, ioba: BusAddr::new(0x1000), tce: 0x2003 },
            Record::Indirect { ret: -4, liobn: 0x8000_0000, ioba: BusAddr::new(0x20_0000), list: 0 },
            Record::Stuff { ret: -4, liobn: 0x8000_0000, ioba: BusAddr::new(0), tce: 0, count: u64::MAX },
            Record::Get { ret: 0, liobn: 0x1_8000_0000, ioba: BusAddr::new(0x1fff), tce: 0x2003 },
            Record::Lookup(0),
            Record::Remove { liobn: 0x8000_0000 },
        ]
    );
    assert_eq!(trace.values(&trace.lists[0]), [0x100_0003, 0x100_1003, 0x9000, 0x100_3003]);
    assert_eq!(trace.lines, [2, 3, 4, 5, 6, 7, 8, 10]);
}

#[test]
fn runs_step_by_the_page_of_their_window() {
    let trace =
        after_head("W 80000001 800000000000000 24 8\nI 80000001 800000000000000 500000 2 0 2000003:2\n");
    assert_eq!(trace.unwrap().values, [0x200_0003, 0x300_0003]);
    let unknown = after_head("I 80000042 0 500000 2 -4 2000003:2\n");
    assert_eq!(unknown.unwrap().values, [0x200_0003, 0x200_1003], "4 KiB for a table that does not exist");
}

#[test]
fn a_list_outside_memory_and_a_list_too_long_have_no_contents() {
    let trace =
        after_head("I 80000000 0 7fff00000000 4 0 ?\nI 80000000 0 500000 513 -4 \nI 80000000 0 0 0 -4\n");
    let trace = trace.unwrap();
    assert_eq!(
        trace.lists.iter().map(|list| (list.recorded, list.readable)).collect::<Vec<_>>(),
        [(0, false), (0, true), (0, true)]
    );
}

#[test]
fn every_bad_line_is_refused_with_file_and_line() {
    let bad: &[(&str, &str)] = &[
        ("Q 1 2 3\n", "unknown record 'Q'"),
        ("p 80000000 1000 2003 0\n", "unknown record 'p'"),
        ("\u{1b}[2J\n", "unknown record '\\u{1b}[2J'"),
        ("P 80000000 1000 2003\n", "P takes liobn ioba tce ret, found 3 fields"),
        ("P 80000000 1000 2003 0 0\n", "found 5 fields"),
        ("P 0x80000000 1000 2003 0\n", "liobn '0x80000000' is not a hexadecimal number"),
        ("P 80000000 10000000000000000 2003 0\n", "ioba '10000000000000000' is not a hexadecimal"),
        ("P 80000000 +1000 2003 0\n", "ioba '+1000' is not a hexadecimal"),
        ("P 80000000 -1 2003 0\n", "ioba '-1' is not a hexadecimal"),
        ("P 80000000 1000 xyz 0\n", "tce 'xyz' is not a hexadecimal"),
        ("P 80000000 1000 2003 zero\n", "ret 'zero' is not a decimal return code"),
        ("P 80000000 1000 2003 --4\n", "ret '--4' is not"),
        ("P 80000000 1000 2003 99999999999\n", "ret '99999999999' is not"),
        ("S 80000000 0 0 1f 0\n", "n '1f' is not a decimal number"),
        ("S 80000000 0 0 18446744073709551616 0\n", "n '18446744073709551616' is not a decimal number"),
        ("G 80000000\n", "G takes liobn ioba tce ret, found 1 fields"),
        ("D 80000001\n", "D names table 80000001, which does not exist here"),
        ("D\n", "D takes liobn, found 0 fields"),
        ("X 80000001 0 0 3 1\n", "X names table 80000001"),
        ("X 80000000 0 0 4 1\n", "permission 4 is not"),
        ("W 80000001 0 11 16\n", "page shift 11 is not in 12..=34"),
        ("W 80000001 0 35 16\n", "page shift 35"),
        ("W 80000001 0 4294967308 16\n", "page shift 4294967308"),
        ("W 80000001 800000000000000 16 0\n", "at least one entry"),
        ("W 80000001 800000000001000 16 4\n", "not a multiple of its page"),
        ("W 80000001 ffffffffffff0000 16 1\n", "reaches or passes the end of the bus"),
        ("W 80000001 ffffffffffff0000 16 2\n", "reaches or passes the end of the bus"),
        ("W 80000001 0 12 18446744073709551615\n", "reaches or passes the end of the bus"),
        ("W 180000001 0 12 1\n", "wider than 32 bits"),
        ("W 80000000 800000000000000 12 1\n", "overlaps window 80000000 of line 2"),
        ("W 80000001 3ffff000 12 2\n", "overlaps window 80000000 of line 2"),
        ("I 80000000 0 500000 4 0 1000003:3\n", "the call has 4 entries and the line lists 3"),
        ("I 80000000 0 500000 4 0 1000003:5\n", "the call has 4 entries and the line lists 5"),
        ("I 80000000 0 500000 4 0 1000003:18446744073709551615 1000003:2\n", "the call has 4 entries"),
        ("I 80000000 0 500000 4 0 ? 1000003:4\n", "the call has 4 entries and the line lists 4"),
        ("I 80000000 0 500000 4 0 1000003:0\n", "the run's length '1000003:0'"),
        ("I 80000000 0 500000 4 0 1000003:\n", "the run's length '' is not a decimal"),
        ("I 80000000 0 500000 2 0 fffffffffffff003:2\n", "the run 'fffffffffffff003:2' passes 2^64"),
        ("I 80000000 0 500000 513 -4 1000003:513\n", "the call has 513 entries and the line lists 513"),
        ("R call : 0 : 0\n", "the RTAS token 'call'"),
        ("R 2026 0 0\n", "R takes token args"),
        ("# guest RAM: guest-physical 0 to 40000000\n", "an earlier line gave another size"),
    ];
    for (lines, wanted) in bad {
        let message = after_head(lines).unwrap_err();
        assert!(message.starts_with("t.tce:3: "), "{lines:?} gave {message:?}");
        assert!(message.contains(wanted), "{lines:?} gave {message:?}, not {wanted:?}");
    }
}

#[test]
fn a_trace_needs_memory_and_records() {
    assert!(parse("W 80000000 0 12 1\n").unwrap_err().starts_with("t.tce:1: no line '# guest RAM"));
    assert!(parse("").unwrap_err().contains("no record"));
    assert!(parse("# guest RAM: guest-physical 0 to 0\n").unwrap_err().contains("needs memory"));
    assert!(parse("# guest RAM: guest-physical 0 to 1001\n").unwrap_err().contains("multiple of 4 KiB"));
    assert!(
        parse("# guest RAM: guest-physical 0 to fffffffffffff000\n").unwrap_err().contains("more than a")
    );
}

#[test]
fn windows_of_two_host_bridges_and_of_virtual_devices_may_start_at_the_same_address() {
    after_head("W 80000100 0 12 262144\nW 71000000 0 12 65536\nW 71000001 0 12 65536\n").unwrap();
    after_head("D 80000000\nW 80000000 0 21 512\nD 80000000\nW 80000001 0 12 4\n").unwrap();
}

#[test]
fn a_window_that_would_not_fit_this_host_filled_is_refused() {
    let limits = Limits { host_bytes: 1 << 30, ..Limits::default() };
    let text = format!("{HEAD}W 80000001 800000000000000 12 1125899906842624\n");
    let message = read_from(text.as_bytes(), "t.tce", &limits).unwrap_err().to_string();
    assert!(message.starts_with("t.tce:3: window 80000001 has 1125899906842624 entries"), "{message}");
    // Each would fit; both do not.
    let entries = (1u64 << 30) / 24 - 262_144;
    let text = format!("{HEAD}W 80000100 0 12 {entries}\nW 80000200 0 12 1\n");
    let message = read_from(text.as_bytes(), "t.tce", &limits).unwrap_err().to_string();
    assert!(message.starts_with("t.tce:4: window 80000200"), "{message}");
}

#[test]
fn a_guest_larger_than_this_host_is_refused() {
    let limits = Limits { host_bytes: 0x1fff_ffff, ..Limits::default() };
    let message = read_from(HEAD.as_bytes(), "t.tce", &limits).unwrap_err().to_string();
    assert!(
        message.starts_with("t.tce:1: guest RAM of 536870912 bytes is more than this host has"),
        "{message}"
    );
}

#[test]
fn windows_without_end_are_refused() {
    let windows: String = (0..2000).map(|liobn| format!("W {liobn:x} 0 12 1\n")).collect();
    let message = after_head(&windows).unwrap_err();
    assert!(message.starts_with("t.tce:1026: more than 1024 windows at once"), "{message}");
}

#[test]
fn limits_hold_against_endless_files() {
    let limits = Limits { line_bytes: 64, records: 3, values: 8, host_bytes: u64::MAX };
    let refuse = |lines: &str| {
        read_from(format!("{HEAD}{lines}").as_bytes(), "t.tce", &limits).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refuse("M a\nM b\nM c\n").contains("t.tce:5: more than 3 records"));
    assert!(refuse("I 80000000 0 0 9 0 1003:9\n").contains("more than 8 list entries"));
    assert!(refuse(&format!("M {}\n", "x".repeat(63))).contains("t.tce:3: the line is longer than 64 bytes"));
    let longest = format!("{HEAD}M {}\n", "x".repeat(62));
    read_from(longest.as_bytes(), "t.tce", &limits).unwrap();
}

#[test]
fn a_truncated_or_damaged_zstd_file_is_refused_with_the_line_reached() {
    let mut text = HEAD.to_owned();
    for page in 0..200_000u64 {
        text.push_str(&format!("P 80000000 {:x} {:x}003 0\n", page << 12, page * 7919 % 0x1ffff));
    }
    let packed = zstd::encode_all(text.as_bytes(), 3).unwrap();
    assert_eq!(read_from(&packed[..], "t.tce.zst", &Limits::default()).unwrap().hypercalls, 200_000);
    for cut in [5, 100, packed.len() / 2, packed.len() - 1] {
        let message = read_from(&packed[..cut], "t.tce.zst", &Limits::default()).unwrap_err().to_string();
        let (line, rest) = message.strip_prefix("t.tce.zst:").unwrap().split_once(": ").unwrap();
        assert!(line.parse::<u64>().unwrap() >= 1, "{message}");
        assert!(rest.starts_with("the file ends early or is damaged"), "{message}");
    }
    let mut damaged = packed.clone();
    damaged.truncate(packed.len() / 2);
    damaged.write_all(&[0xff; 1000]).unwrap();
    read_from(&damaged[..], "t.tce.zst", &Limits::default()).unwrap_err();
}

#[test]
fn bytes_that_are_not_text_are_refused() {
    let message = read_from(&[0xff, 0xfe, 0x00, b'\n'][..], "t.tce", &Limits::default()).unwrap_err();
    assert!(message.to_string().starts_with("t.tce:1: the line is not text"));
}

#[test]
fn marks_cannot_control_a_terminal() {
    let trace = after_head("M \u{1b}]0;owned\u{7} done\n").unwrap();
    assert_eq!(&*trace.marks[0], "?]0;owned? done");
}
