//! Which file defines what a path names.

use crate::tree::{Bound, Mention, Tree};

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// An item that this file defines, or what is within that item.
    Item(usize),
    /// A module, by its number.
    Module(usize),
}

/// An import that is being followed: it may lead to itself. By module, name
/// and position, or by module and position of one with a star.
type Following = (usize, Option<String>, usize);

/// The files that define what is named; none if it is of another crate, or a
/// module: what is meant of that is named behind it.
pub fn files(tree: &Tree, mention: &Mention) -> Vec<usize> {
    let found = resolve(tree, mention.module, &mention.path, &mut Vec::new());
    let items = found.into_iter().filter_map(|found| match found {
        Found::Item(file) => Some(file),
        Found::Module(_) => None,
    });
    items.collect()
}

fn resolve(
    tree: &Tree,
    module: usize,
    path: &[String],
    following: &mut Vec<Following>,
) -> Vec<Found> {
    let Some((first, rest)) = path.split_first() else {
        return Vec::new();
    };
    let mut found = match keyword(tree, module, first) {
        Some(module) => vec![Found::Module(module)],
        None => look(tree, module, first, following)
            .or_else(|| exported(tree, first))
            .unwrap_or_default(),
    };
    for name in rest {
        // A function may be called like a module, but nothing is within it.
        if found.iter().any(|found| matches!(found, Found::Module(_))) {
            found.retain(|found| matches!(found, Found::Module(_)));
        }
        let mut next = Vec::new();
        for found in found {
            match found {
                Found::Item(_) => next.push(found),
                Found::Module(module) => match keyword(tree, module, name) {
                    Some(module) => next.push(Found::Module(module)),
                    None => next.extend(
                        look(tree, module, name, following)
                            .or_else(|| exported(tree, &format!("{name}!")))
                            // One that a macro makes, which cannot be seen.
                            .unwrap_or_else(|| vec![Found::Item(tree.modules[module].file)]),
                    ),
                },
            }
        }
        found = next;
    }
    found
}

/// A macro, as `name!`. It is in sight of whatever comes behind it, and may be
/// exported to the top of the crate.
fn exported(tree: &Tree, name: &str) -> Option<Vec<Found>> {
    tree.macros.get(name).map(|file| vec![Found::Item(*file)])
}

/// The module that a word means which is not a name.
fn keyword(tree: &Tree, module: usize, word: &str) -> Option<usize> {
    match word {
        "crate" => Some(0),
        "self" => Some(module),
        "super" => tree.modules[module].parent,
        _ => None,
    }
}

/// What a module knows by a name: `None` if nothing, an empty list if something
/// of another crate.
fn look(
    tree: &Tree,
    module: usize,
    name: &str,
    following: &mut Vec<Following>,
) -> Option<Vec<Found>> {
    let here = &tree.modules[module];
    let mut known = None;
    for (position, bound) in here.names.get(name).into_iter().flatten().enumerate() {
        let known: &mut Vec<Found> = known.get_or_insert_default();
        match bound {
            Bound::Item => known.push(Found::Item(here.file)),
            Bound::Module(module) => known.push(Found::Module(*module)),
            Bound::Import(path) => {
                let this = (module, Some(name.to_owned()), position);
                if !following.contains(&this) {
                    following.push(this);
                    known.extend(resolve(tree, module, path, following));
                    following.pop();
                }
            }
        }
    }
    if known.is_some() {
        return known;
    }
    for (position, path) in here.stars.iter().enumerate() {
        let this = (module, None, position);
        if following.contains(&this) {
            continue;
        }
        following.push(this);
        for found in resolve(tree, module, path, following) {
            if let Found::Module(module) = found
                && let Some(found) = look(tree, module, name, following)
            {
                known.get_or_insert_default().extend(found);
            }
        }
        following.pop();
    }
    known
}
