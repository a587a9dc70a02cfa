//! The modules of one crate, their uses of each other, and the cycles among them.
//!
//! A node is a file; an inline module belongs to its file. An edge means: code of this file names an item that the other file
//! defines. Paths are followed through re-exports to the defining module, so `pub use` in `lib.rs` neither hides nor makes an
//! edge: a re-export counts only if its own file uses the name. `mod x;` is no edge. Test modules are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::diagnostic::Diagnostic;
use crate::graph::Graph;
use crate::source::{PathUse, SourceFacts};

/// Reads a file; `None` if there is none.
pub(crate) type ReadFile<'a> = dyn Fn(&Path) -> Option<String> + 'a;

/// The path of a module from the crate root: `["space", "lookup"]`; empty for the root.
type ModPath = Vec<String>;

/// Longer chains of re-exports are loops.
const LONGEST_CHAIN: usize = 32;

#[derive(Default, Debug)]
struct Module {
    /// Index into `ModuleTree::files`.
    file: usize,
    children: BTreeSet<String>,
    items: BTreeSet<String>,
    imports: Vec<PathUse>,
}

/// A crate's module tree.
#[derive(Debug)]
pub(crate) struct ModuleTree {
    name: String,
    files: Vec<(PathBuf, ModPath)>,
    modules: BTreeMap<ModPath, Module>,
    /// `#[macro_export]` macros, by name, with their defining modules.
    exported_macros: BTreeMap<String, ModPath>,
    /// Paths outside of imports by module, and the words of each file.
    paths: Vec<(ModPath, PathUse)>,
    words: BTreeMap<usize, BTreeSet<String>>,
}

/// The target of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Resolution {
    /// An item of this module, or the module itself.
    To(ModPath),
    /// Another crate, or something local.
    Elsewhere,
    /// One of several globs.
    Unclear,
}

impl ModuleTree {
    /// Reads the module tree of `root` (a `lib.rs` or `main.rs`).
    ///
    /// # Errors
    /// A diagnostic for every `mod` without a file.
    pub(crate) fn read(name: &str, root: &Path, read: &ReadFile<'_>) -> Result<Self, Vec<Diagnostic>> {
        let mut this = Self {
            name: name.to_owned(),
            files: Vec::new(),
            modules: BTreeMap::new(),
            exported_macros: BTreeMap::new(),
            paths: Vec::new(),
            words: BTreeMap::new(),
        };
        let mut missing = Vec::new();
        let dir = root.parent().unwrap_or(Path::new("")).to_owned();
        this.add_file(root.to_owned(), Vec::new(), &dir, read, &mut missing);
        if missing.is_empty() { Ok(this) } else { Err(missing) }
    }

    /// `children_dir` has the files of its `mod x;`.
    fn add_file(
        &mut self,
        file: PathBuf,
        path: ModPath,
        children_dir: &Path,
        read: &ReadFile<'_>,
        missing: &mut Vec<Diagnostic>,
    ) {
        let Some(source) = read(&file) else {
            missing.push(Diagnostic::in_file(
                &file,
                format!("no such file, but `mod {}` names it", path.join("::")),
            ));
            return;
        };
        let facts = SourceFacts::of(&source);
        if facts.test_only {
            return;
        }
        let index = self.files.len();
        self.files.push((file.clone(), path.clone()));
        self.modules.entry(path.clone()).or_default().file = index;
        for decl in facts.mods.iter().filter(|decl| !decl.test_only) {
            let parent = joined(&path, &decl.within);
            self.modules.entry(parent.clone()).or_default().children.insert(decl.name.clone());
            let child = joined(&parent, std::slice::from_ref(&decl.name));
            if decl.inline {
                self.modules.entry(child).or_default().file = index;
                continue;
            }
            let inner = decl.within.iter().fold(children_dir.to_owned(), |dir, part| dir.join(part));
            let below = inner.join(&decl.name);
            match &decl.path {
                Some(given) => {
                    let at = file.parent().unwrap_or(Path::new("")).join(given);
                    let dir = at.parent().unwrap_or(Path::new("")).to_owned();
                    self.add_file(at, child, &dir, read, missing);
                }
                None => {
                    let flat = inner.join(format!("{}.rs", decl.name));
                    let nested = below.join("mod.rs");
                    let at = if read(&flat).is_some() || read(&nested).is_none() { flat } else { nested };
                    self.add_file(at, child, &below, read, missing);
                }
            }
        }
        for (within, item) in &facts.items {
            self.modules.entry(joined(&path, within)).or_default().items.insert(item.clone());
        }
        for name in &facts.exported_macros {
            self.exported_macros.insert(name.clone(), path.clone());
        }
        for found in facts.uses {
            let module = joined(&path, &found.within);
            if found.import.is_some() {
                self.modules.entry(module).or_default().imports.push(found);
            } else {
                self.paths.push((module, found));
            }
        }
        self.words.insert(index, facts.words);
    }

    /// The cycles among the files, and the ambiguous paths.
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut graph = Graph::default();
        let mut diagnostics = Vec::new();
        let imports = self.modules.iter().flat_map(|(path, module)| {
            module.imports.iter().filter(|import| self.binds(path, import)).map(move |import| (path, import))
        });
        for (module, found) in imports.chain(self.paths.iter().map(|(path, found)| (path, found))) {
            let from = self.file_of(module);
            match self.resolve(module, &found.segments, Some(found), LONGEST_CHAIN) {
                Resolution::To(target) => {
                    let to = self.file_of(&target);
                    if to != from {
                        graph.add(&self.file_name(from), &self.file_name(to), || {
                            format!("line {} uses {}", found.line, found.segments.join("::"))
                        });
                    }
                }
                Resolution::Elsewhere => {}
                Resolution::Unclear => diagnostics.push(Diagnostic::at(
                    &self.files[from].0,
                    found.line,
                    format!(
                        "{} could come from more than one glob re-export; name the module that defines it",
                        found.segments.join("::")
                    ),
                )),
            }
        }
        for cycle in graph.cycles() {
            let mut text =
                String::from("modules use each other in a circle; move what they share into a lower module:");
            for (at, node) in cycle.iter().enumerate() {
                let next = &cycle[(at + 1) % cycle.len()];
                text.push_str(&format!("\n    {node} -> {next}   ({})", graph.evidence(node, next)));
            }
            diagnostics.push(Diagnostic::in_crate(&self.name, text));
        }
        diagnostics
    }

    /// Whether an import is a use: a private one always, a re-export only if its own file uses the name.
    fn binds(&self, module: &ModPath, found: &PathUse) -> bool {
        let Some(import) = found.import.as_ref().filter(|import| import.public) else { return true };
        let Some(words) = self.words.get(&self.file_of(module)) else { return true };
        match &import.name {
            Some(name) => words.contains(name),
            None => match self.resolve(module, &found.segments, Some(found), LONGEST_CHAIN) {
                Resolution::To(target) => self
                    .modules
                    .get(&target)
                    .is_some_and(|t| t.items.iter().chain(&t.children).any(|name| words.contains(name))),
                Resolution::Elsewhere | Resolution::Unclear => false,
            },
        }
    }

    fn file_of(&self, module: &ModPath) -> usize {
        self.modules.get(module).map_or(0, |module| module.file)
    }

    fn file_name(&self, file: usize) -> String {
        let (path, module) = &self.files[file];
        let shown = if module.is_empty() { "the crate root".to_owned() } else { module.join("::") };
        format!(
            "{shown} ({})",
            path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        )
    }

    /// Follows `segments` from the module `from`. `via` is the import being followed, which must not resolve through itself.
    fn resolve(&self, from: &ModPath, segments: &[String], via: Option<&PathUse>, fuel: usize) -> Resolution {
        let Some(first) = segments.first() else { return Resolution::To(from.clone()) };
        if fuel == 0 {
            return Resolution::Elsewhere;
        }
        match first.as_str() {
            "crate" => self.walk(&Vec::new(), &segments[1..], via, fuel),
            "self" => self.walk(from, &segments[1..], via, fuel),
            "super" => {
                let mut above = from.clone();
                above.pop();
                if segments.get(1).is_some_and(|next| next == "super") {
                    self.resolve(&above, &segments[1..], via, fuel)
                } else {
                    self.walk(&above, &segments[1..], via, fuel)
                }
            }
            "" | "Self" => Resolution::Elsewhere,
            name => {
                let Some(module) = self.modules.get(from) else { return Resolution::Elsewhere };
                if module.children.contains(name) || self.import_named(module, name, via).is_some() {
                    self.walk(from, segments, via, fuel)
                } else {
                    Resolution::Elsewhere
                }
            }
        }
    }

    fn import_named<'m>(&self, module: &'m Module, name: &str, via: Option<&PathUse>) -> Option<&'m PathUse> {
        module.imports.iter().find(|found| {
            Some(*found) != via
                && found.import.as_ref().is_some_and(|import| import.name.as_deref() == Some(name))
        })
    }

    /// Looks up the first of `segments` in `module` and continues from there.
    fn walk(
        &self,
        module_path: &ModPath,
        segments: &[String],
        via: Option<&PathUse>,
        fuel: usize,
    ) -> Resolution {
        let Some(name) = segments.first() else { return Resolution::To(module_path.clone()) };
        let Some(module) = self.modules.get(module_path) else { return Resolution::Elsewhere };
        if fuel == 0 {
            return Resolution::Elsewhere;
        }
        if module.children.contains(name) {
            let child = joined(module_path, std::slice::from_ref(name));
            // A child that exists only in tests is not in the tree.
            return self.walk(&child, &segments[1..], via, fuel - 1);
        }
        if module.items.contains(name) {
            return Resolution::To(module_path.clone());
        }
        if let Some(found) = self.import_named(module, name, via) {
            let onward: Vec<String> = found.segments.iter().chain(&segments[1..]).cloned().collect();
            return self.resolve(module_path, &onward, Some(found), fuel - 1);
        }
        if module_path.is_empty() {
            if let Some(writer) = self.exported_macros.get(name) {
                return Resolution::To(writer.clone());
            }
        }
        self.through_globs(module_path, module, segments, via, fuel)
    }

    fn through_globs(
        &self,
        module_path: &ModPath,
        module: &Module,
        segments: &[String],
        via: Option<&PathUse>,
        fuel: usize,
    ) -> Resolution {
        let globs: Vec<ModPath> = module
            .imports
            .iter()
            .filter(|found| {
                Some(*found) != via && found.import.as_ref().is_some_and(|import| import.name.is_none())
            })
            .filter_map(|found| match self.resolve(module_path, &found.segments, Some(found), fuel - 1) {
                Resolution::To(target) => Some(target),
                Resolution::Elsewhere | Resolution::Unclear => None,
            })
            .collect();
        let definers: Vec<&ModPath> =
            globs.iter().filter(|target| self.offers(target, &segments[0], via, fuel - 1)).collect();
        let mut leads: Vec<Resolution> =
            definers.iter().map(|target| self.walk(target, segments, via, fuel - 1)).collect();
        leads.dedup();
        match (leads.as_slice(), globs.as_slice()) {
            ([only], _) => only.clone(),
            // A name that a macro defines.
            ([], []) => Resolution::To(module_path.clone()),
            ([], [only]) => self.walk(only, segments, via, fuel - 1),
            _ => Resolution::Unclear,
        }
    }

    /// Whether a glob import of `module` binds `name`, as far as the source shows.
    fn offers(&self, module_path: &ModPath, name: &str, via: Option<&PathUse>, fuel: usize) -> bool {
        let Some(module) = self.modules.get(module_path).filter(|_| fuel > 0) else { return false };
        module.items.contains(name)
            || module.children.contains(name)
            || module.imports.iter().filter(|found| Some(*found) != via).any(|found| {
                match found.import.as_ref().filter(|import| import.public) {
                    None => false,
                    Some(import) => match &import.name {
                        Some(bound) => bound == name,
                        None => match self.resolve(module_path, &found.segments, Some(found), fuel - 1) {
                            Resolution::To(target) => self.offers(&target, name, Some(found), fuel - 1),
                            Resolution::Elsewhere | Resolution::Unclear => false,
                        },
                    },
                }
            })
    }
}

fn joined(path: &[String], more: &[String]) -> ModPath {
    path.iter().chain(more).cloned().collect()
}

#[cfg(test)]
mod tests;
