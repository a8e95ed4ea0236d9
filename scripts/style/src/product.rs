//! The source of the product: its crates, and its files without their tests.

use std::collections::BTreeSet;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, bail};

use crate::tree::{self, File, Tree};

/// Reads every crate: the library and the program of each package, in order.
///
/// # Errors
///
/// `top` is no checkout, or there is a source file that no module names.
pub fn read(top: &Path) -> Result<Vec<Tree>> {
    let sources = sources(top)?;
    // Side by side, since `syn` takes its time where it was built for tests.
    let trees: Result<Vec<_>> = thread::scope(|scope| {
        let each = sources
            .iter()
            .map(|source| scope.spawn(|| package(top, source)));
        let each: Vec<_> = each.collect();
        let join = |reading: ScopedJoinHandle<'_, _>| {
            reading.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        each.into_iter().map(join).collect()
    });
    Ok(trees?.into_iter().flatten().collect())
}

fn package(top: &Path, source: &Path) -> Result<Vec<Tree>> {
    let first = ["lib.rs", "main.rs"].map(|name| source.join(name));
    let first = first.iter().filter(|file| top.join(file).is_file());
    let crates: Vec<_> = first
        .map(|file| tree::read(top, file))
        .collect::<Result<_>>()?;
    all_are_named(top, source, &crates)?;
    Ok(crates)
}

/// Every file once, by its path.
pub fn files(trees: &[Tree]) -> Vec<&File> {
    let mut files: Vec<&File> = trees.iter().flat_map(|tree| &tree.files).collect();
    files.sort_by_key(|file| &file.path);
    files.dedup_by_key(|file| &file.path);
    files
}

/// The folders `src` of the product's packages.
fn sources(top: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut sources = BTreeSet::new();
    for folder in ["vmm", "backends", "protocol"] {
        let within = entries(top, Path::new(folder))?;
        let sources_of = within.iter().map(|folder| folder.join("src"));
        let folders = sources_of.chain([Path::new(folder).join("src")]);
        sources.extend(folders.filter(|source| top.join(source).is_dir()));
    }
    Ok(sources)
}

/// What is in a folder of `top`.
fn entries(top: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || {
        fs::read_dir(top.join(folder))?
            .map(|entry| Ok(folder.join(entry?.file_name())))
            .collect()
    };
    let entries: std::io::Result<_> = read();
    entries.with_context(|| {
        let folder = folder.display();
        format!(
            "cannot read the folder {folder} of {}: is that a checkout?",
            top.display()
        )
    })
}

/// Fails if a file is neither part of a crate nor of tests: its lines would not
/// be counted, and nobody would be told.
fn all_are_named(top: &Path, source: &Path, crates: &[Tree]) -> Result<()> {
    let mut folders = vec![source.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(top, &folder)? {
            let named = |tree: &Tree| tree.files.iter().any(|file| file.path == path);
            let for_tests = |tree: &Tree| {
                let mut modules = tree.tests.iter();
                modules.any(|test| *test == path || path.starts_with(test.with_extension("")))
            };
            if top.join(&path).is_dir() {
                if path.file_name() != Some("tests".as_ref()) {
                    folders.push(path);
                }
            } else if path.extension() == Some("rs".as_ref())
                && !crates.iter().any(|tree| named(tree) || for_tests(tree))
            {
                bail!(
                    "{}: no module of the product, nor of its tests, is there",
                    path.display()
                );
            }
        }
    }
    Ok(())
}
