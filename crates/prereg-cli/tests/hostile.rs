//! Damaged and hostile traces are refused, or replay without a leak.

use prereg_cli::backend::ReplayBackend;
use prereg_cli::interrupt::Interrupt;
use prereg_cli::progress::Progress;
use prereg_cli::replay::{Options, Replay, RuleChoice, Verify};
use prereg_cli::trace::parse::Limits;
use prereg_cli::trace::read::read_from;

/// A pseudo-random sequence that is the same in each run.
struct Random(u64);

impl Random {
    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        // The generator of Knuth's MMIX; its high bits are good enough to choose places in a file.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// Fields of hostile and damaged files.
const BAD_FIELDS: [&str; 16] = [
    "0",
    "1",
    "-1",
    "-4",
    "ffffffffffffffff",
    "18446744073709551615",
    "8000000000000000",
    "fffffffffffff003",
    "1000",
    "80000000",
    "12",
    "34",
    "?",
    "3:512",
    "ffffffffffffe003:2",
    "4503599627370496",
];

/// Replaces, repeats, removes or swaps fields and lines, a few times.
fn damage(lines: &[&str], random: &mut Random) -> String {
    let mut lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
    for _ in 0..=random.below(4) {
        let at = random.below(lines.len());
        match random.below(5) {
            0 => drop(lines.remove(at)),
            1 => {
                let line = lines[at].clone();
                let to = random.below(lines.len());
                lines.insert(to, line);
            }
            2 => {
                let other = random.below(lines.len());
                lines.swap(at, other);
            }
            _ => {
                let mut fields: Vec<&str> = lines[at].split(' ').collect();
                let field = random.below(fields.len());
                fields[field] = BAD_FIELDS[random.below(BAD_FIELDS.len())];
                lines[at] = fields.join(" ");
            }
        }
    }
    lines.join("\n") + "\n"
}

fn errors() -> String {
    std::fs::read_to_string("../../conformance/traces/errors.tce").expect("the bundled trace is there")
}

#[test]
fn a_damaged_trace_is_refused_or_replays_without_a_leak() {
    let text = errors();
    let lines: Vec<&str> = text.lines().collect();
    let limits = Limits { host_bytes: 1 << 30, ..Limits::default() };
    let (mut refused, mut replayed) = (0, 0);
    for seed in 0..600 {
        let mut random = Random(seed);
        let damaged = damage(&lines, &mut random);
        let trace = match read_from(damaged.as_bytes(), "damaged.tce", &limits) {
            Ok(trace) => trace,
            Err(error) => {
                assert!(error.to_string().starts_with("damaged.tce:"), "{error}");
                refused += 1;
                continue;
            }
        };
        let options = Options {
            rules: if seed % 2 == 0 { RuleChoice::Qemu } else { RuleChoice::Kvm },
            backend: ReplayBackend::Sim,
            verify: Verify::Sample,
            compare: seed % 8 == 0,
            print_calls: false,
            iterations: 1,
        };
        let interrupt = Interrupt::default();
        let replay = Replay::set_up(&trace, &options, &interrupt, Progress::none()).expect("simulated pins");
        let report = replay.run().expect("an accepted trace replays to its end");
        assert_eq!(report.leaked_pages, 0, "seed {seed}");
        replayed += 1;
    }
    // Both outcomes must occur, or the damage is not suitable.
    assert!(refused > 50 && replayed > 50, "{refused} refused, {replayed} replayed");
}

#[test]
fn a_trace_cut_at_any_byte_is_read_or_refused() {
    let text = errors();
    for end in (0..text.len()).step_by(7) {
        if let Err(error) = read_from(&text.as_bytes()[..end], "cut.tce", &Limits::default()) {
            assert!(error.to_string().starts_with("cut.tce:"), "{error}");
        }
    }
}

#[test]
fn a_compressed_trace_with_a_flipped_byte_is_read_or_refused() {
    let packed = zstd::encode_all(errors().as_bytes(), 3).expect("compressing in memory");
    for at in 0..packed.len() {
        let mut flipped = packed.clone();
        flipped[at] ^= 1 << (at % 8);
        if let Err(error) = read_from(&flipped[..], "flipped.tce.zst", &Limits::default()) {
            assert!(error.to_string().starts_with("flipped.tce.zst:"), "{error}");
        }
    }
}
