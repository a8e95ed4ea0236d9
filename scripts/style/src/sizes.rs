//! Whether files and functions, and the whole, are as small as they are to be.

use std::collections::BTreeMap;

use crate::Outcome;
use crate::tree::File;

/// Lines of a file, of any kind, without its tests.
pub const FILE_LINES: usize = 400;
/// Lines of a function, from its `fn` to its closing brace.
pub const FUNCTION_LINES: usize = 60;
/// Lines of code of the whole product, so that it stays small enough to be read
/// as a whole. Comments are not counted: nobody is to save on them.
pub const PRODUCT_LINES: usize = 36_100;

/// No file and no function is too large.
pub fn check(files: &[&File]) -> Outcome {
    let mut outcome = Outcome::default();
    for file in files {
        let path = file.path.display();
        if file.measures.all > FILE_LINES {
            let lines = file.measures.all;
            outcome.wrong.push(format!(
                "{path}: {lines} lines without tests, more than {FILE_LINES}"
            ));
        }
        for function in &file.measures.functions {
            if function.lines > FUNCTION_LINES {
                let (line, name, lines) = (function.line, &function.name, function.lines);
                outcome.wrong.push(format!(
                    "{path} line {line}: fn {name} has {lines} lines, more than {FUNCTION_LINES}"
                ));
            }
        }
    }
    outcome
}

/// The product has at most so many lines of code.
pub fn count(files: &[&File], most: usize) -> Outcome {
    let (_, all) = by_folder(files, |file| file.measures.all);
    let (sum, code) = by_folder(files, |file| file.measures.code);
    let told = vec![
        format!(
            "all lines of {} files, with blank ones and comments, without tests: {all}",
            files.len()
        ),
        format!("lines of code, those neither blank nor comment alone, without tests: {code}"),
    ];
    let wrong = match sum > most {
        true => vec![format!("{sum} lines of code, more than {most}")],
        false => Vec::new(),
    };
    Outcome { told, wrong }
}

/// A sum, and how it is told: with that of each folder at the top.
fn by_folder(files: &[&File], count: fn(&File) -> usize) -> (usize, String) {
    let mut folders: BTreeMap<_, usize> = BTreeMap::new();
    for file in files {
        let folder = file.path.iter().next().unwrap_or_default();
        *folders.entry(folder).or_default() += count(file);
    }
    let sum = folders.values().sum();
    let each = folders
        .iter()
        .map(|(folder, lines)| format!("{} {lines}", folder.display()));
    let each: Vec<_> = each.collect();
    (sum, format!("{sum} ({})", each.join(", ")))
}
