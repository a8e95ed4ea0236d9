//! Puts release and commit together, for `src/lib.rs`. It runs again when the
//! checkout is at another commit, and only what depends on this crate is then
//! built again: the programs.

use std::path::Path;

#[path = "src/commit.rs"]
mod commit;

fn main() {
    let release = env!("CARGO_PKG_VERSION");
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Named, so that it is not every file of this crate that matters.
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/commit.rs");
    for file in commit::tell_tales(&top) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let (version, date) = match commit::of(&top) {
        Some(commit) => (
            format!("{release} ({} {})", commit.hash, commit.date),
            commit.date,
        ),
        None => (release.to_owned(), String::new()),
    };
    println!("cargo::rustc-env=OUTBOARD_VERSION={version}");
    println!("cargo::rustc-env=OUTBOARD_COMMIT_DATE={date}");
}
