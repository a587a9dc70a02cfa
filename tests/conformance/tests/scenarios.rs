//! The kernel's scenarios over prereg's containers: every line is equal to the recorded answer, or explained.

use std::fs;
use std::path::{Path, PathBuf};

use prereg::Granule;
use prereg_conformance::compare::{Answers, Comparator, Totals, Verdict};
use prereg_conformance::deviations::Deviations;
use prereg_conformance::machine::Machine;
use prereg_conformance::run::run;
use prereg_conformance::transcript::Transcript;
use prereg_scenario::script::Script;

fn conformance(path: &str) -> PathBuf {
    Path::new("../../conformance").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(conformance(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn transcripts(text: &str, granule: Granule) -> Vec<Transcript> {
    let script = Script::parse(text);
    let machine = Machine::of_script(&script);
    script.scenarios.iter().map(|scenario| run(scenario, machine, granule).expect("memory")).collect()
}

/// Compares a scenario set; no line may be unexplained, and no page may stay pinned or charged.
fn judge(set: &str, granule: Granule) -> Totals {
    let deviations = Deviations::parse(Deviations::BUILT_IN).expect("the rules built in");
    let suffix = if granule == Granule::K4 { "4k" } else { "64k" };
    let answers = Answers::parse(&read(&format!("answers/{set}-{suffix}.txt")));
    let mut comparator = Comparator::new(&deviations, answers);
    for transcript in transcripts(&read(&format!("scenarios/{set}.scn")), granule) {
        assert_eq!(transcript.leak, None, "{}", transcript.name);
        for difference in comparator.compare(&transcript) {
            assert_ne!(difference.verdict, Verdict::Unexplained, "{}: {difference:#?}", transcript.name);
        }
    }
    assert_eq!(comparator.unused(), 0, "every recorded scenario is run");
    println!("{set} {suffix}: {:?}", comparator.totals);
    comparator.totals
}

#[test]
fn container_scenarios_get_the_kernels_answers_with_4k_pages() {
    let totals = judge("vfio", Granule::K4);
    assert_eq!((totals.scenarios, totals.lines), (88, 892));
    assert!(totals.after_deviation < 20, "{totals:?}");
}

#[test]
fn container_scenarios_get_the_kernels_answers_with_64k_pages() {
    let totals = judge("vfio", Granule::K64);
    assert_eq!((totals.scenarios, totals.lines), (88, 892));
    assert!(totals.after_deviation < 30, "{totals:?}");
}

#[test]
fn region_scenarios_get_the_kernels_answers() {
    for granule in [Granule::K4, Granule::K64] {
        let totals = judge("regions", granule);
        assert_eq!((totals.scenarios, totals.lines), (19, 215));
    }
}

#[test]
fn huge_page_scenarios_get_the_kernels_answers() {
    for granule in [Granule::K4, Granule::K64] {
        let totals = judge("huge2m", granule);
        assert_eq!((totals.scenarios, totals.lines, totals.after_deviation), (8, 116, 0));
    }
}

#[test]
fn larger_huge_pages_get_the_kernels_answers() {
    let totals = judge("huge16m", Granule::K64);
    assert_eq!((totals.scenarios, totals.lines), (6, 84));
}

#[test]
fn random_container_scenarios_get_the_kernels_answers() {
    for granule in [Granule::K4, Granule::K64] {
        let totals = judge("random-vfio", granule);
        assert_eq!((totals.scenarios, totals.lines), (100, 2373));
    }
}

#[test]
fn random_region_scenarios_get_the_kernels_answers() {
    let totals = judge("random-regions", Granule::K4);
    assert_eq!((totals.scenarios, totals.after_deviation), (333, 0));
}

#[test]
fn regions_of_many_chunks_get_the_kernels_answers() {
    let totals = judge("chunk", Granule::K4);
    assert_eq!((totals.scenarios, totals.equal), (3, 15));
}

#[test]
fn what_corrupts_the_kernel_is_refused_with_einval() {
    for granule in [Granule::K4, Granule::K64] {
        let transcripts = transcripts(&read("scenarios/unsafe.scn"), granule);
        assert_eq!(transcripts.len(), 4);
        for transcript in transcripts {
            let lines: Vec<String> = transcript.lines.iter().map(|(_, line)| line.to_string()).collect();
            assert!(lines[3].contains("=> -EINVAL"), "{lines:?}");
            // The first request that needs the default window charges it; nothing else changes.
            let locked = lines[3].split(' ').find(|word| word.starts_with("lck=")).unwrap();
            assert!(lines[4].contains(&format!("{locked} ")), "{lines:?}");
            assert_eq!(transcript.leak, None);
        }
    }
}

#[test]
fn a_wrong_answer_is_unexplained() {
    let deviations = Deviations::parse(Deviations::BUILT_IN).unwrap();
    let scenario = "scenario x\nv2 c0 0\nmem A 4P\nregister c0 A 4P\n";
    for (answer, expected) in [
        ("ok lck=16", Verdict::Equal),
        ("ok lck=20", Verdict::Unexplained),
        ("-EINVAL lck=16", Verdict::Unexplained),
        ("4 lck=16", Verdict::Unexplained),
        ("ok lck=16 more=1", Verdict::Unexplained),
        ("ok", Verdict::Unexplained),
    ] {
        let text = format!(
            "== x\nv2 c0 0 => ok lck=0\nmem A 4P => ok lck=0 at=0x200000000\nregister c0 A 4P => {answer}\n"
        );
        let mut comparator = Comparator::new(&deviations, Answers::parse(&text));
        let differences = comparator.compare(&transcripts(scenario, Granule::K4)[0]);
        let verdict = differences.first().map_or(Verdict::Equal, |difference| difference.verdict.clone());
        assert_eq!(verdict, expected, "{answer}");
    }
    let mut comparator = Comparator::new(&deviations, Answers::default());
    comparator.compare(&transcripts(scenario, Granule::K4)[0]);
    assert_eq!(comparator.totals.unexplained, 3, "a scenario that was not recorded is not explained");
}

#[test]
fn only_the_leak_is_forgiven_after_a_leak() {
    let deviations = Deviations::parse(Deviations::BUILT_IN).unwrap();
    let scenario =
        "scenario x\nv2 c0 0\nremove c0 0\ncreate c0 16 1G 6\ncreate c0 16 0x8000000000000000 1\nstatus\n";
    let head = "== x\nv2 c0 0 => ok lck=0\nremove c0 0 => ok lck=0\ncreate c0 16 1G 6 => -EINVAL lck=0\n\
                create c0 16 0x8000000000000000 1 => -EINVAL lck=1000\n";
    for (locked, unexplained) in [(1000, 0), (1004, 1)] {
        let text = format!("{head}status => ok lck={locked} pin=0\n");
        let mut comparator = Comparator::new(&deviations, Answers::parse(&text));
        comparator.compare(&transcripts(scenario, Granule::K4)[0]);
        assert_eq!(comparator.totals.unexplained, unexplained, "{:?}", comparator.totals);
    }
}

#[test]
fn any_text_is_a_scenario() {
    let mut lines: Vec<&str> = Vec::new();
    let texts: Vec<String> =
        ["vfio", "regions", "huge2m"].map(|set| read(&format!("scenarios/{set}.scn"))).into();
    for text in &texts {
        lines.extend(text.lines().filter(|line| !line.starts_with("scenario")));
    }
    // Lines in random order, cut and spliced.
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for _ in 0..200 {
        let mut text = String::from("scenario s\nv2 c0 0\nv2 c1 1\nmem A 16P\nregister c0 A 16P\n");
        for _ in 0..60 {
            let line = lines[random(lines.len())];
            let mut words: Vec<&str> = line.split(' ').collect();
            if random(3) == 0 {
                let other = lines[random(lines.len())];
                let at = random(words.len());
                words[at] = other.split(' ').next_back().unwrap_or("");
            }
            if random(9) == 0 {
                words.truncate(random(words.len()) + 1);
            }
            text.push_str(&words.join(" "));
            text.push('\n');
        }
        for granule in [Granule::K4, Granule::K64] {
            for transcript in transcripts(&text, granule) {
                assert_eq!(transcript.leak, None, "{text}\n{transcript}");
            }
        }
    }
}

#[test]
fn numbers_at_their_limits_are_answered() {
    let edge = ["0", "1", "0-1", "0-P", "0x8000000000000000", "P", "A", "64", "4294967296"];
    let forms = [
        "mem B # at=#",
        "mem C # huge=#",
        "memrep D # #",
        "munmap # #",
        "mprotect # # r",
        "mlock # #",
        "munlock # #",
        "dontneed # #",
        "nohuge # #",
        "rlimit_memlock #",
        "register c0 # #",
        "unregister c0 # #",
        "create c0 # # #",
        "create c0 16 # #",
        "remove c0 #",
        "map c0 # # P rw",
        "map c0 A # # rw",
        "unmap c0 # #",
        "set_iommu c0 #",
        "check_ext c0 #",
        "info c0 argsz=# flags=#",
        "raw c0 # #",
        "raw g0 # #",
        "group h #",
        "device d g0 #",
        "v2 z #",
        "m.new # A #",
        "m.newdev 1 # # #",
        "m.get # #",
        "m.put #",
        "m.lookup # #",
        "m.ua_to_hpa # A #",
        "m.is_devmem # #",
        "m.inc #",
        "m.dec #",
    ];
    for form in forms {
        let holes = form.matches('#').count();
        for pick in 0..edge.len().pow(holes as u32) {
            let mut line = form.to_owned();
            for hole in 0..holes {
                line = line.replacen('#', edge[pick / edge.len().pow(hole as u32) % edge.len()], 1);
            }
            let text =
                format!("scenario s\nv2 c0 0\nmem A 4P\nregister c0 A 4P\nm.new 0 A+2P 1\n{line}\nstatus\n");
            for transcript in transcripts(&text, Granule::K4) {
                assert_eq!(transcript.leak, None, "{line}");
            }
        }
    }
}
