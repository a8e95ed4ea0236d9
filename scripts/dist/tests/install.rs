//! What `scripts/install` installs, and that it leaves nothing; what programs
//! say of themselves; a service that its socket starts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use outboard_contract::client::Client;
use serde_json::Value;

const PROGRAMS: [&str; 4] = ["outboard", "outboard-blk", "outboard-net", "outboard-rng"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of the programs: that of `OUTBOARD_BIN`, which the scripts set, or
/// they are built here.
fn programs() -> &'static Path {
    static PROGRAMS_AT: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS_AT.get_or_init(|| {
        if let Some(directory) = std::env::var_os("OUTBOARD_BIN") {
            return directory.into();
        }
        let mut cargo = Command::new("cargo");
        cargo
            .args(["build", "--quiet", "--locked"])
            .current_dir(top());
        cargo.args(PROGRAMS.iter().flat_map(|name| ["-p", name]));
        assert!(cargo.status().unwrap().success());
        let this = std::env::current_exe().unwrap();
        this.ancestors().nth(2).unwrap().to_owned()
    })
}

/// A folder with the programs, and beside them the one that writes man pages.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let link = std::os::unix::fs::symlink::<PathBuf, PathBuf>;
        for name in PROGRAMS {
            link(programs().join(name), bin.join(name)).unwrap();
        }
        let dist = env!("CARGO_BIN_EXE_outboard-dist");
        link(dist.into(), bin.join("outboard-dist")).unwrap();
        Self(folder)
    }

    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    fn install(&self, arguments: &[&str]) -> Output {
        Command::new(top().join("scripts/install"))
            .args(arguments)
            .env("OUTBOARD_BIN", self.0.path().join("bin"))
            .env("TMPDIR", self.0.path())
            .output()
            .unwrap()
    }

    fn installed(&self, arguments: &[&str]) -> String {
        let destdir = format!("--destdir={}", self.root().display());
        let output = self.install(&[&[destdir.as_str()], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Every file below a directory, by its path from there; directories end in /.
fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            match path.is_dir() {
                true => {
                    found.push(format!("{name}/"));
                    left.push(path);
                }
                false => found.push(name),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_installed_is_said_works_twice_and_is_removed() {
    let place = Place::new();
    let said = place.installed(&["--prefix=/usr"]);
    assert!(!said.contains("systemd does not look"), "{said}");
    let usr = place.root().join("usr");
    let files = tree(&place.root());
    for name in PROGRAMS {
        for file in [format!("bin/{name}"), format!("share/man/man1/{name}.1")] {
            assert!(files.contains(&format!("usr/{file}")), "{file}: {files:#?}");
            assert!(said.contains(&format!("installed {}/{file}\n", usr.display())));
        }
        let mode = fs::metadata(usr.join("bin").join(name)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o755);
    }
    assert!(files.contains(&"usr/share/man/man1/outboard-run.1".to_owned()));
    for hidden in ["machine", "help"] {
        let page = format!("usr/share/man/man1/outboard-{hidden}.1");
        assert!(!files.contains(&page), "{page}");
    }
    place.installed(&["--prefix=/usr"]);
    assert_eq!(tree(&place.root()), files);
    let said = place.installed(&["--prefix=/usr", "--uninstall"]);
    assert!(said.contains("removed "), "{said}");
    assert_eq!(tree(&place.root()), [""; 0]);
    // There is nothing left to remove, and that is said.
    let destdir = format!("--destdir={}", place.root().display());
    let again = place.install(&[&destdir, "--uninstall"]);
    let words = String::from_utf8(again.stderr).unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(words.contains("nothing was installed in"), "{words}");
}

#[test]
fn what_others_have_put_there_stays() {
    let place = Place::new();
    let bin = place.root().join("usr/local/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("other"), "theirs").unwrap();
    place.installed(&[]);
    let man = place.root().join("usr/local/share/man/man1/other.1");
    fs::write(&man, "theirs").unwrap();
    place.installed(&["--uninstall"]);
    let theirs = [
        "usr/",
        "usr/local/",
        "usr/local/bin/",
        "usr/local/bin/other",
    ];
    let mans = [
        "share/",
        "share/man/",
        "share/man/man1/",
        "share/man/man1/other.1",
    ];
    let mans = mans.map(|path| format!("usr/local/{path}"));
    let expected: Vec<_> = theirs.map(String::from).into_iter().chain(mans).collect();
    assert_eq!(tree(&place.root()), expected);
}

#[test]
fn wrong_use_says_what_to_do() {
    let place = Place::new();
    for (arguments, status, words) in [
        (&["--prefix=here"][..], 1, "give an absolute path"),
        (&["--speed"], 2, "unknown argument --speed"),
        (&["--prefix="], 2, "unknown argument --prefix="),
    ] {
        let output = place.install(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(words), "{said}");
    }
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP: only root can become somebody who has no rights");
        return;
    }
    let root = place.root();
    fs::create_dir(&root).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "bash"])
        .arg(top().join("scripts/install"))
        .arg(format!("--destdir={}", root.display()))
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if said.contains("Permission denied") {
        println!("SKIP: the checkout cannot be read by others");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be written by"), "{said}");
    assert!(said.contains("sudo scripts/install"), "{said}");
    assert_eq!(tree(&root), [""; 0]);
}

/// Programs of these names before all others; what they do.
fn in_path(folder: &Path, programs: &[(&str, &str)]) -> String {
    for (name, script) in programs {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

#[test]
fn an_old_compiler_is_told_before_anything_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let installs = |rustc: &str| {
        let programs = [("rustc", rustc), ("cargo", "echo building; exit 1")];
        let output = Command::new(top().join("scripts/install"))
            .arg(format!(
                "--destdir={}",
                folder.path().join("root").display()
            ))
            .env_remove("OUTBOARD_BIN")
            .env("PATH", in_path(folder.path(), &programs))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for old in ["1.63.0", "1.94.1 (0123456789 2026-01-01)", "1.9.0-nightly"] {
        let said = installs(&format!("echo 'rustc {old}'"));
        assert!(said.contains("is too old: Outboard needs 1."), "{said}");
        assert!(said.contains("rustup update stable"), "{said}");
        assert!(!said.contains("building"), "{said}");
    }
    let said = installs("echo broken >&2; exit 1");
    assert!(said.contains("rustc does not run"), "{said}");
    for new in [
        env!("CARGO_PKG_RUST_VERSION"),
        "1.95.0",
        "2.0.0-nightly (0 2030-01-01)",
    ] {
        let said = installs(&format!("echo 'rustc {new}'"));
        assert!(said.contains("building"), "{said}");
    }
}

/// QEMU's docs/interop/vhost-user.json, VHostUserBackendCapabilities and
/// VHostUserBackend, as far as our types go: no member is unknown, none that is
/// needed is missing.
fn fits_capabilities(value: &Value) -> Result<(), String> {
    let members = value.as_object().ok_or("not an object")?;
    let features: Option<&[&str]> = match value["type"].as_str() {
        Some("block") => Some(&["read-only", "blk-file"]),
        Some("net" | "rng") => None,
        other => return Err(format!("type {other:?}")),
    };
    for (name, value) in members {
        match (name.as_str(), features) {
            ("type", _) => {}
            ("features", Some(known)) => {
                for feature in value.as_array().ok_or("features are no list")? {
                    let feature = feature.as_str().ok_or("a feature is no string")?;
                    if !known.contains(&feature) {
                        return Err(format!("unknown feature {feature}"));
                    }
                }
            }
            _ => return Err(format!("unknown member {name}")),
        }
    }
    match features.is_some() && !members.contains_key("features") {
        true => Err("features are missing".into()),
        false => Ok(()),
    }
}

#[test]
fn capabilities_and_discovery_files_fit_the_schema_and_each_other() {
    let place = Place::new();
    let said = place.installed(&["--prefix=/opt/outboard"]);
    // libvirt needs none of them, so nothing is to be done for it; for systemd
    // there is.
    assert!(!said.contains("libvirt"), "{said}");
    assert!(said.contains("systemd does not look in /opt/outboard/lib/systemd/system"));
    for name in ["blk", "net", "rng"] {
        let program = format!("outboard-{name}");
        let output = Command::new(programs().join(&program))
            .arg("--print-capabilities")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        fits_capabilities(&printed).unwrap();
        let file = format!("opt/outboard/share/qemu/vhost-user/50-{program}.json");
        let text = fs::read_to_string(place.root().join(file)).unwrap();
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["type"], printed["type"]);
        assert_eq!(found["binary"], format!("/opt/outboard/bin/{program}"));
        assert!(!found["description"].as_str().unwrap().is_empty());
        assert_eq!(found.as_object().unwrap().len(), 3);
    }
    // The check can fail.
    for wrong in [
        serde_json::json!({ "type": "rng", "features": [] }),
        serde_json::json!({ "type": "block" }),
        serde_json::json!({ "type": "block", "features": ["fast"] }),
        serde_json::json!({ "type": "disk" }),
    ] {
        assert!(fits_capabilities(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn man_pages_say_what_the_help_says() {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_outboard-dist"))
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    for (page, words) in [
        ("outboard", &["outboard\\-run"][..]),
        ("outboard-run", &["on\\-reset", "max\\-bytes", "SIGHUP"]),
        ("outboard-blk", &["blk\\-file", "socket\\-path", "truncate"]),
        ("outboard-net", &["tap\\-fd", "print\\-capabilities"]),
        ("outboard-rng", &["max\\-bytes", "LISTEN_FDS"]),
    ] {
        let text = fs::read_to_string(folder.path().join(format!("{page}.1"))).unwrap();
        assert!(
            text.contains(&format!(".TH {} 1 ", page.replace('-', r"\-"))),
            "{page}: {text}"
        );
        for word in words {
            assert!(text.contains(word), "{page} has no {word}:\n{text}");
        }
    }
}

/// Release, and of a checkout its commit: one that git knows, of the day that
/// git says. All four say the same.
#[test]
fn every_program_says_its_release_and_commit() {
    let version = |name: &str| {
        let output = Command::new(programs().join(name))
            .arg("--version")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let version = said.strip_prefix(&format!("{name} ")).unwrap().trim_end();
        version.to_owned()
    };
    let versions = PROGRAMS.map(version);
    let [first, ..] = &versions;
    assert!(versions.iter().all(|other| other == first), "{versions:?}");
    let release = env!("CARGO_PKG_VERSION");
    let Some(commit) = first.strip_prefix(&format!("{release} ")) else {
        assert_eq!(first, release);
        println!("SKIP: the programs were built of an archive, or without git");
        return;
    };
    let (hash, date) = commit[1..commit.len() - 1].split_once(' ').unwrap();
    let git = Command::new("git")
        .arg("-C")
        .arg(top())
        .args(["log", "-1", "--format=(%H %cs)", hash])
        .output();
    let Some(git) = git.ok().filter(|output| output.status.success()) else {
        println!("SKIP: git does not know {hash} here");
        return;
    };
    let known = String::from_utf8(git.stdout).unwrap();
    assert!(known.starts_with(&format!("({hash}")), "{known}");
    assert!(known.trim_end().ends_with(&format!(" {date})")), "{known}");
}

/// A program that was started by its socket; killed when dropped.
struct Activated(Child);

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects as soon as somebody listens.
fn connect(socket: &Path) -> Client {
    let deadline = outboard_contract::soon();
    loop {
        match Client::connect(socket) {
            Ok(client) => return client,
            Err(error) => assert!(!deadline.passed(), "{error:#}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_service_is_started_by_its_socket() {
    if Command::new("systemd-socket-activate")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIP: there is no systemd-socket-activate (package systemd)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    fs::write(&image, [0; 512]).unwrap();
    let disk = format!("--blk-file={}", image.display());
    let port = format!("--peer={},listen", folder.path().join("peer").display());
    for arguments in [
        &["outboard-blk", &disk][..],
        &["outboard-net", &port],
        &["outboard-rng"],
    ] {
        let socket = folder.path().join(arguments[0]);
        let mut activate = Command::new("systemd-socket-activate");
        activate
            .arg(format!("--listen={}", socket.display()))
            .arg(programs().join(arguments[0]))
            .args(&arguments[1..])
            .stdin(Stdio::null());
        let _program = Activated(activate.spawn().unwrap());
        // The first starts it, the second finds it running.
        for _ in 0..2 {
            let mut client = connect(&socket);
            assert_ne!(client.negotiate(1 << 32).unwrap() & 1 << 32, 0);
        }
    }
}

#[test]
fn the_sample_units_are_right() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIP: there is no systemd-analyze (package systemd)");
        return;
    }
    let place = Place::new();
    let prefix = format!("--prefix={}", place.root().display());
    assert!(place.install(&[&prefix]).status.success());
    let units = place.root().join("lib/systemd/system");
    let service = fs::read_to_string(units.join("outboard-blk@.service")).unwrap();
    let program = place.root().join("bin/outboard-blk");
    assert!(service.contains(&format!("ExecStart={} ", program.display())));
    for unit in ["outboard-blk@.socket", "outboard-blk@.service"] {
        let named = units.join(unit.replace('@', "@disk"));
        fs::copy(units.join(unit), &named).unwrap();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&named)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let about_it: Vec<_> = said
            .lines()
            .filter(|line| line.contains("outboard"))
            .collect();
        assert!(about_it.is_empty(), "{said}");
    }
}
