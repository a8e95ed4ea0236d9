//! Files of a crate that name one another, over any number of steps.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::names;
use crate::tree::Tree;

/// Files of which each reaches each.
#[derive(Debug)]
pub struct Circle {
    /// More than one.
    pub files: BTreeSet<PathBuf>,
    /// The steps from one of them to another.
    pub steps: Vec<Step>,
}

/// A file names something that another one defines.
#[derive(Clone, Debug)]
pub struct Step {
    pub from: PathBuf,
    pub to: PathBuf,
    /// The first line that does so, from 1 on, and the path as it stands there.
    pub line: usize,
    pub path: String,
}

/// Every circle of a crate.
pub fn of(tree: &Tree) -> Vec<Circle> {
    let steps = steps(tree);
    let files = 0..tree.files.len();
    let reached: Vec<_> = files.clone().map(|file| reached(&steps, file)).collect();
    let mut circles = Vec::new();
    for file in files.clone() {
        let both = |&to: &usize| reached[file].contains(&to) && reached[to].contains(&file);
        let members: BTreeSet<usize> = files.clone().filter(both).collect();
        // Once, as that of its first file.
        if members.first() == Some(&file) {
            let within =
                |(from, to): &(usize, usize)| members.contains(from) && members.contains(to);
            let steps = steps.iter().filter(|(ends, _)| within(ends));
            circles.push(Circle {
                files: members
                    .iter()
                    .map(|&file| tree.files[file].path.clone())
                    .collect(),
                steps: steps.map(|(_, step)| step.clone()).collect(),
            });
        }
    }
    circles
}

/// Every step of a crate, by the numbers of its files.
pub fn steps(tree: &Tree) -> BTreeMap<(usize, usize), Step> {
    let mut steps: BTreeMap<_, Step> = BTreeMap::new();
    for mention in &tree.mentions {
        let from = tree.modules[mention.module].file;
        for to in names::files(tree, mention) {
            let parent = |file: usize| tree.files[file].parent;
            if from == to || parent(from) == Some(to) || parent(to) == Some(from) {
                continue;
            }
            let step = Step {
                from: tree.files[from].path.clone(),
                to: tree.files[to].path.clone(),
                line: mention.line,
                path: mention.path.join("::"),
            };
            match steps.entry((from, to)) {
                Entry::Occupied(first) if first.get().line <= step.line => {}
                entry => drop(entry.insert_entry(step)),
            }
        }
    }
    steps
}

/// The files that can be reached from one in one step or more.
fn reached(steps: &BTreeMap<(usize, usize), Step>, from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        for (_, to) in steps.range((file, 0)..(file + 1, 0)).map(|(ends, _)| ends) {
            if reached.insert(*to) {
                next.push(*to);
            }
        }
    }
    reached
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "circle of {} files:", self.files.len())?;
        self.steps
            .iter()
            .try_for_each(|step| write!(f, "\n  {step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.display(), self.to.display());
        write!(f, "{from} -> {to} (line {}: {})", self.line, self.path)
    }
}
