//! A directed graph of modules, and a shortest cycle of each strongly connected component.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Edges by source, each with its evidence.
#[derive(Default, Debug)]
pub(crate) struct Graph {
    edges: BTreeMap<String, BTreeMap<String, String>>,
}

impl Graph {
    /// Adds an edge; the first evidence for it is kept.
    pub(crate) fn add(&mut self, from: &str, to: &str, evidence: impl FnOnce() -> String) {
        self.edges.entry(from.to_owned()).or_default().entry(to.to_owned()).or_insert_with(evidence);
    }

    pub(crate) fn evidence(&self, from: &str, to: &str) -> &str {
        self.edges.get(from).and_then(|targets| targets.get(to)).map_or("", String::as_str)
    }

    /// One shortest cycle per strongly connected component, as its nodes; empty without cycles.
    ///
    /// The graphs have a few dozen nodes, so a search from every node is fast enough.
    pub(crate) fn cycles(&self) -> Vec<Vec<String>> {
        let mut reported = BTreeSet::new();
        let mut cycles = Vec::new();
        for start in self.edges.keys() {
            if reported.contains(start) {
                continue;
            }
            if let Some(cycle) = self.shortest_cycle(start) {
                let reachable = self.reachable(start);
                reported
                    .extend(reachable.iter().filter(|node| self.reachable(node).contains(start)).cloned());
                cycles.push(cycle);
            }
        }
        cycles
    }

    fn targets(&self, node: &str) -> impl Iterator<Item = &String> {
        self.edges.get(node).into_iter().flat_map(BTreeMap::keys)
    }

    fn reachable(&self, start: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&String> = self.targets(start).collect();
        while let Some(node) = open.pop() {
            if seen.insert(node.clone()) {
                open.extend(self.targets(node));
            }
        }
        seen
    }

    /// Breadth-first search from `start` to itself.
    fn shortest_cycle(&self, start: &str) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<&String, &str> = BTreeMap::new();
        let mut open = VecDeque::from([start]);
        while let Some(node) = open.pop_front() {
            for target in self.targets(node) {
                if target == start {
                    let mut cycle = vec![node.to_owned()];
                    let mut at = node;
                    while at != start {
                        at = came_from.get(&at.to_owned())?;
                        cycle.push(at.to_owned());
                    }
                    cycle.reverse();
                    return Some(cycle);
                }
                if !came_from.contains_key(target) {
                    came_from.insert(target, node);
                    open.push_back(target);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::default();
        for (from, to) in edges {
            graph.add(from, to, || format!("{from} uses {to}"));
        }
        graph
    }

    #[test]
    fn a_tree_and_a_diamond_have_no_cycle() {
        assert!(graph(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]).cycles().is_empty());
    }

    #[test]
    fn each_knot_is_reported_once_by_a_shortest_cycle() {
        let found =
            graph(&[("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"), ("x", "y"), ("y", "x"), ("c", "x")]);
        assert_eq!(found.cycles(), [vec!["a", "b"], vec!["x", "y"]]);
        assert_eq!(found.evidence("a", "b"), "a uses b");
    }

    #[test]
    fn what_only_leads_into_a_cycle_is_not_part_of_it() {
        assert_eq!(graph(&[("in", "a"), ("a", "b"), ("b", "a")]).cycles(), [vec!["a", "b"]]);
    }
}
