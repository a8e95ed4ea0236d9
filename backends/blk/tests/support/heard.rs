//! The program under trying circumstances, and what it says about them.
#![allow(dead_code, reason = "not every test file needs all of it")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use outboard_contract::client::Client;
use outboard_contract::soon;

use crate::support::{Driver, program, stop};

/// The program behind commands that arrange what it lives in; ended when
/// dropped.
pub struct Heard {
    child: Child,
    folder: tempfile::TempDir,
}

impl Heard {
    /// Runs `sh -c script`, in which `"$@"` is the program with its arguments
    /// and `$folder` a folder of the test's own. The script must `exec`.
    pub fn start(script: &str, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let child = Command::new("timeout")
            .args(["120", "sh", "-ec", script, "sh"])
            .arg(program())
            .arg(format!("--socket-path={}", socket.display()))
            .args(arguments)
            .env("folder", folder.path())
            .stdin(Stdio::null())
            .stderr(File::create(folder.path().join("messages")).unwrap())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The image, if the script has put it there.
    pub fn image(&self) -> PathBuf {
        self.folder().join("image")
    }

    /// A driver with every feature.
    pub fn driver(&mut self) -> Driver {
        let socket = self.folder().join("socket");
        let deadline = soon();
        while !socket.exists() {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{status}: {}", self.said());
            }
            assert!(!deadline.passed(), "{}", self.said());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Driver::new(
            Client::connect(&socket).unwrap(),
            crate::support::EVERYTHING,
        )
    }

    /// Everything that was said on standard error so far.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder().join("messages")).unwrap()
    }

    /// Waits until all of this has been said in one line.
    pub fn says(&self, words: &[&str]) {
        let deadline = soon();
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        while !self.said().lines().any(has) {
            assert!(!deadline.passed(), "no {words:?} in {}", self.said());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = soon();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(!deadline.passed(), "it does not end: {}", self.said());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The program's own id.
    pub fn pid(&mut self) -> u32 {
        let pid = outboard_contract::timeout::pid(&mut self.child).unwrap();
        pid.unwrap().as_raw() as u32
    }

    /// Asks it to end.
    pub fn ask_to_stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) {
        stop(&mut self.child);
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.stop();
    }
}
