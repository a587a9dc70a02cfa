//! `cargo xtask mutants`: makes small changes to the code, and fails if no test notices one.
//!
//! `options` parses the command line, `policy` is `mutants.toml`; `tree` keeps copies of the workspace for the mutants; `logic`
//! runs cargo-mutants in them, `orders` makes memory-order mutants and `trial` runs those; `changes` and `sample` choose
//! mutants; `process` starts programs; `report` compares the results with the list of accepted mutants.

mod changes;
mod error;
mod logic;
mod name;
mod options;
mod orders;
mod policy;
mod process;
mod report;
mod sample;
mod tree;
mod trial;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::changes::Changes;
use self::error::Error;
use self::logic::LogicMutant;
use self::name::MutantName;
use self::options::{Kind, Options, Selection};
use self::orders::OrderMutant;
use self::policy::Policy;
use self::process::seconds_until;
use self::report::{Count, Verdict};
use self::tree::Trees;
use crate::sources;
use prereg_vm::cache::Cache;

/// Seconds per mutant and job on a busy machine: a build and the tests.
const SECONDS_A_MUTANT: u64 = 10;
/// Seconds of a job before its first mutant: a build and the tests without a change.
const SECONDS_BEFORE: u64 = 40;
const POLICY: &str = "mutants.toml";
/// The test programs for loom.
const MODELS: &str = "models/tests";
const DOCUMENT: &str = "docs/mutation-testing.md";

/// Runs the command; `words` follow `mutants` on the command line.
pub(crate) fn command(root: &Path, words: &[String]) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(what) => {
            eprint!("xtask mutants: {what}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(root, &options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask mutants: {error}");
            ExitCode::from(2)
        }
    }
}

/// Tries the mutants that `options` choose; true if the results match `mutants.toml`.
fn run(root: &Path, options: &Options) -> Result<bool, Error> {
    let begin = Instant::now();
    let file = root.join(POLICY);
    let policy = Policy::parse(&fs::read_to_string(&file).map_err(Error::file(&file))?)?;
    let cache = Cache::open("mutants")?;
    let trees = Trees::open(&cache, root, options.jobs)?;
    let (all, mut diagnostics) = Mutants::list(&trees.folders[0], &policy)?;
    let names: BTreeSet<MutantName> = all.names().cloned().collect();
    let mut chosen = all.only(options);
    let mut deadline = None;
    if let Selection::Changed { base } = &options.selection {
        let changes = Changes::since(root, base)?;
        let diff = cache.folder("changes")?.join("diff");
        fs::write(&diff, &changes.diff).map_err(Error::file(&diff))?;
        chosen = chosen.changed(&trees.folders[0], &policy, &changes, &diff)?;
        println!("mutants: {} mutants of lines changed since {base}", chosen.len());
        deadline = Some(begin + Duration::from_secs(options.minutes * 60));
        chosen = chosen.fitted(deadline, options.jobs);
    }
    if options.selection == Selection::List {
        chosen.names().for_each(|name| println!("{name}"));
        println!(
            "mutants: {} of cargo-mutants, {} of memory orderings",
            chosen.logic.len(),
            chosen.orders.len()
        );
        return Ok(true);
    }
    // Memory-order mutants first, because there are few; they may take half of the time.
    let half = deadline.map(|deadline| begin + (deadline - begin) / 2);
    let orders = trial::run(&cache, &trees, &policy, &chosen.orders, half)?;
    let between = Instant::now();
    let logic = logic::run(&cache, &trees, &policy, &chosen.logic, deadline)?;
    let end = Instant::now();
    diagnostics.extend(report::diagnostics(
        Some(&names),
        &[orders.clone(), logic.clone()].concat(),
        &policy.accepted,
    ));
    for diagnostic in &diagnostics {
        eprintln!("error: {diagnostic}");
    }
    for (what, results, took) in
        [("memory orderings", &orders, between - begin), ("cargo-mutants", &logic, end - between)]
    {
        let seconds = took.as_secs_f64();
        println!("mutants: {what}: {} in {seconds:.0} s", Count::of(results, &policy.accepted, |_| true));
    }
    if options.record {
        record(root, &policy, &logic, &orders)?;
    }
    let verdict = if diagnostics.is_empty() { "ok" } else { "FAILED" };
    println!("mutants result: {verdict}, {} diagnostics", diagnostics.len());
    Ok(diagnostics.is_empty())
}

/// Mutants of both kinds.
#[derive(Clone, Debug)]
struct Mutants {
    logic: Vec<LogicMutant>,
    orders: Vec<OrderMutant>,
}

impl Mutants {
    /// All mutants of the copy at `tree`, and entries of `policy` that exclude nothing or give no reason.
    fn list(tree: &Path, policy: &Policy) -> Result<(Self, Vec<String>), Error> {
        let mut orders = Vec::new();
        let mut files = BTreeSet::new();
        for folder in &policy.orders.folders {
            let path = tree.join(folder);
            for (name, source) in sources::read_tree(&path).map_err(Error::file(&path))? {
                let file = format!("{folder}/{}", name.display());
                orders.extend(orders::mutants(&file, &source, &policy.orders).map_err(Error::Source)?);
                files.insert(file);
            }
        }
        if let Some(exchange) = policy.orders.exchange.iter().find(|exchange| !files.contains(&exchange.file))
        {
            return Err(Error::Source(format!(
                "an exchange names {}, which is in none of the folders",
                exchange.file
            )));
        }
        let models = tree.join(MODELS);
        for name in sources::read_tree(&models).map_err(Error::file(&models))?.into_keys() {
            let test = name.with_extension("").to_string_lossy().into_owned();
            if name.components().count() == 1 && !policy.orders.loom_tests.contains(&test) {
                return Err(Error::Source(format!(
                    "{MODELS}/{test}.rs is not among the loom tests of mutants.toml"
                )));
            }
        }
        let (logic, idle) = logic::list(tree, policy, None)?;
        let unexplained = policy.excluded.iter().filter(|class| class.reason.trim().is_empty());
        let diagnostics = unexplained.map(|class| format!("excluded without a reason: {}", class.text));
        let diagnostics = diagnostics
            .chain(idle.iter().map(|class| format!("excluded, but there is no such mutant: {}", class.text)));
        Ok((Self { logic, orders }, diagnostics.collect()))
    }

    fn names(&self) -> impl Iterator<Item = &MutantName> {
        let orders = self.orders.iter().map(|mutant| &mutant.name);
        orders.chain(self.logic.iter().map(|mutant| &mutant.name))
    }

    fn len(&self) -> usize {
        self.logic.len() + self.orders.len()
    }

    /// The mutants of the kind and the files of `options`.
    fn only(&self, options: &Options) -> Self {
        let mut only = self.clone();
        only.logic.retain(|mutant| options.wants(Kind::Logic) && mutant.name.file.contains(&options.file));
        only.orders.retain(|mutant| options.wants(Kind::Orders) && mutant.name.file.contains(&options.file));
        only
    }

    /// The mutants of changed lines; `diff` is a file with the difference.
    fn changed(
        mut self,
        tree: &Path,
        policy: &Policy,
        changes: &Changes,
        diff: &Path,
    ) -> Result<Self, Error> {
        let touched = if self.logic.iter().any(|mutant| changes.touch_file(&mutant.name.file)) {
            logic::list(tree, policy, Some(diff))?.0
        } else {
            Vec::new()
        };
        // By identity and not by name, because the numbers in names depend on the list.
        self.logic.retain(|mutant| touched.iter().any(|touched| touched.is(mutant)));
        self.orders
            .retain(|mutant| mutant.lines.iter().any(|&line| changes.touches(&mutant.name.file, line)));
        Ok(self)
    }

    /// A sample that can be tried until `deadline`; prints how many are left out.
    fn fitted(mut self, deadline: Option<Instant>, jobs: usize) -> Self {
        let Some(seconds) = seconds_until(deadline) else { return self };
        let room = seconds.saturating_sub(SECONDS_BEFORE) as usize * jobs / SECONDS_A_MUTANT as usize;
        let all = self.len();
        let orders = self.orders.len().min(room / 2);
        self.orders = sample::sample(self.orders, orders);
        self.logic = sample::sample(self.logic, room.saturating_sub(orders));
        if self.len() < all {
            println!("mutants: too many for the time: {} of them are left out", all - self.len());
        }
        self
    }
}

/// Writes the results to the document.
fn record(
    root: &Path,
    policy: &Policy,
    logic: &[(MutantName, Verdict)],
    orders: &[(MutantName, Verdict)],
) -> Result<(), Error> {
    let path = root.join(DOCUMENT);
    let mut text = fs::read_to_string(&path).map_err(Error::file(&path))?;
    let accepted = &policy.accepted;
    let parts = [
        ("cargo-mutants", report::table(logic, accepted)),
        ("memory orderings", report::table(orders, accepted)),
        ("memory orderings by name", report::list(orders, accepted)),
    ];
    for (what, part) in parts {
        text = report::replaced(&text, what, &part).ok_or(Error::Document { path: DOCUMENT, what })?;
    }
    fs::write(&path, text).map_err(Error::file(&path))
}
