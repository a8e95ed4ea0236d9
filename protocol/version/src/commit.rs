//! Which commit is checked out: asked of git while the programs are built.
//! Everything here comes of the checkout, so that two builds of one commit say
//! the same: no time of the build, and nothing that a user's git configuration
//! or environment could change.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A commit.
#[derive(Debug, PartialEq, Eq)]
pub struct Commit {
    /// The first 12 digits of its hash: git would choose their number by what
    /// else the clone holds.
    pub hash: String,
    /// The committer's day, `YYYY-MM-DD`.
    pub date: String,
}

/// The commit that is checked out at `top`; `None` if that is no checkout, such
/// as an unpacked archive, also one within somebody else's checkout; or if
/// there is no git.
pub fn of(top: &Path) -> Option<Commit> {
    parse(&git(
        top,
        &["-c", "log.showSignature=false", "log", "-1", FORMAT, "HEAD"],
    )?)
}

/// Hash and day.
const FORMAT: &str = "--format=%H %cs";

fn parse(line: &str) -> Option<Commit> {
    let (hash, date) = line.trim_end().split_once(' ')?;
    let is_hash = hash.len() >= 40 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_date = date.len() == 10
        && date
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
    (is_hash && is_date).then_some(Commit {
        hash: hash.get(..12)?.to_owned(),
        date: date.to_owned(),
    })
}

/// The files of which at least one changes when another commit is checked out.
/// Each of them exists: one that does not would count as changed every time.
pub fn tell_tales(top: &Path) -> Vec<PathBuf> {
    let file = |name: &str| {
        let path = git(top, &["rev-parse", "--git-path", name])?;
        Some(top.join(path.trim_end())).filter(|path| path.is_file())
    };
    let head = ["HEAD", "packed-refs", "reftable/tables.list"];
    let mut files: Vec<_> = head.into_iter().filter_map(file).collect();
    // HEAD names a branch, or is the commit itself.
    if let Some(branch) = git(top, &["symbolic-ref", "--quiet", "HEAD"]) {
        // A packed branch gets a file with its next commit. Until then the
        // reflog tells of that commit.
        files.extend(file(branch.trim_end()).or_else(|| file("logs/HEAD")));
    }
    files
}

/// What git says of this checkout and no other. It is named, so that git looks
/// neither above `top` nor at the environment of a hook that builds.
fn git(top: &Path, arguments: &[&str]) -> Option<String> {
    let directory = top.join(".git");
    if !directory.exists() {
        return None;
    }
    let output = Command::new("git")
        .current_dir(top)
        .arg("--git-dir")
        .arg(directory)
        .args(arguments)
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use super::*;

    /// A checkout, or a worktree of it, in a folder of its own.
    struct Checkout(PathBuf);

    impl Checkout {
        fn new(at: &Path) -> Self {
            let checkout = Self(at.to_owned());
            fs::create_dir(at).unwrap();
            checkout.git(&["init", "--quiet", "--initial-branch=main"]);
            checkout.commits();
            checkout
        }

        fn git(&self, arguments: &[&str]) -> String {
            let output = Command::new("git")
                .current_dir(&self.0)
                .args(["-c", "user.name=A", "-c", "user.email=a@example.org"])
                .args(arguments)
                .output()
                .unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        }

        fn commits(&self) {
            self.git(&["commit", "--quiet", "--allow-empty", "--message=work"]);
        }

        /// What cargo looks at: were it the same after a commit, the programs
        /// would go on to name the old one.
        fn told(&self) -> Vec<(PathBuf, Vec<u8>)> {
            let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
            let told: Vec<_> = tell_tales(&self.0).into_iter().map(read).collect();
            assert!(!told.is_empty());
            told
        }

        fn names_its_commit_and_notices_the_next(&self) {
            for _ in 0..2 {
                let hash = self.git(&["rev-parse", "HEAD"]);
                let date = self.git(&["log", "-1", "--format=%cd", "--date=short"]);
                let commit = of(&self.0).unwrap();
                assert!(hash.starts_with(&commit.hash), "{hash} {commit:?}");
                assert_eq!(commit.date, date.trim_end());
                let told = self.told();
                assert_eq!(told, self.told(), "nothing has happened");
                self.commits();
                let changed =
                    |(path, before): &(PathBuf, Vec<u8>)| fs::read(path).unwrap() != *before;
                assert!(told.iter().any(changed), "{told:?}");
            }
        }
    }

    fn there_is_git() -> bool {
        let there = Command::new("git").arg("--version").output().is_ok();
        if !there {
            println!("SKIP: there is no git");
        }
        there
    }

    #[test]
    fn a_checkout_tells_its_commit_and_the_next_is_noticed() {
        if !there_is_git() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let main = Checkout::new(&folder.path().join("main"));
        main.names_its_commit_and_notices_the_next();
        main.git(&["pack-refs", "--all"]);
        main.names_its_commit_and_notices_the_next();
        main.git(&["checkout", "--quiet", "--detach"]);
        main.names_its_commit_and_notices_the_next();
        let beside = folder.path().join("beside");
        main.git(&["worktree", "add", "--quiet", beside.to_str().unwrap()]);
        Checkout(beside).names_its_commit_and_notices_the_next();
    }

    #[test]
    fn an_archive_within_a_checkout_of_others_has_no_commit() {
        let folder = tempfile::tempdir().unwrap();
        if there_is_git() {
            Checkout::new(&folder.path().join("theirs"));
        }
        let archive = folder.path().join("theirs/outboard");
        fs::create_dir_all(&archive).unwrap();
        assert_eq!(of(&archive), None);
        assert_eq!(tell_tales(&archive), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn only_a_hash_and_a_day_are_a_commit() {
        let hash = "0123456789abcdef0123456789abcdef01234567";
        let commit = parse(&format!("{hash} 2026-01-31\n")).unwrap();
        assert_eq!(commit.hash, "0123456789ab");
        assert_eq!(commit.date, "2026-01-31");
        for wrong in [
            String::new(),
            hash.to_owned(),
            format!("{hash} yesterday"),
            format!("{hash} 2026-01-31 12:00"),
            format!("g{hash} 2026-01-31"),
            "0123456 2026-01-31".to_owned(),
        ] {
            assert_eq!(parse(&wrong), None, "{wrong:?}");
        }
    }
}
