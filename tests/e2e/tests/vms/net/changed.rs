//! What is changed of a card on command, while its guest uses it: the link is held down,
//! another tap is put behind it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use outboard_e2e::network::{self, ip};
use outboard_e2e::vm::{Ended, Vm};
use serde_json::Value;
use tempfile::TempDir;

use super::{NET, in_network, vm};
use crate::Test;
use crate::api::{complained, ctl, said};

pub fn tests() -> Vec<Test> {
    vec![
        in_network("a link is held down on command", NET, link),
        in_network("another tap is put behind a card", NET, tap),
    ]
}

/// A VM with a card on tap0, whose guest waits for these states of its link.
struct Watching {
    vm: Vm,
    api: PathBuf,
    _folder: TempDir,
}

impl Watching {
    fn start(links: &str) -> Result<Self> {
        network::tap("tap0", "")?;
        let folder = tempfile::tempdir()?;
        let api = folder.path().join("api");
        let cmdline = format!("scenario=net-identify link={links}");
        let run = vm("tap=tap0", 1, &cmdline)?.with("--api", &api);
        let mut vm = run.start()?;
        vm.console_line("link up")?;
        Ok(Self {
            vm,
            api,
            _folder: folder,
        })
    }

    fn does(&self, words: &[&str]) -> Result<String> {
        said(ctl(&self.api, words)?)
    }

    fn card(&self) -> Result<Value> {
        let status: Value = serde_json::from_str(&self.does(&["--json", "status"])?)?;
        Ok(status["devices"][0].clone())
    }

    fn ends(mut self) -> Result<Ended> {
        let ended = self.vm.wait()?.with_code(0)?;
        ended.result("net-identify")?.passed()?;
        Ok(ended)
    }
}

fn link() -> Result<()> {
    let mut card = Watching::start("up,down,up,down,up")?;
    card.does(&["link", "net0", "down"])?;
    card.vm.console_line("link down")?;
    ensure!(card.card()?["reason"] == "its link is held down");
    // Whoever serves it next holds it down, too.
    card.does(&["swap", "net0"])?;
    card.does(&["link", "net0", "up"])?;
    card.vm.console_line("link up")?;
    ensure!(card.card()?["reason"].is_null());
    // It is what the interface is.
    ip("link set tap0 down")?;
    card.vm.console_line("link down")?;
    card.does(&["link", "net0", "up"])?;
    ip("link set tap0 up")?;
    card.ends()?;
    Ok(())
}

fn tap() -> Result<()> {
    let mut card = Watching::start("up,down,up,down")?;
    // One that is down.
    ip("tuntap add dev tap1 mode tap vnet_hdr")?;
    let swapped: Value =
        serde_json::from_str(&card.does(&["--json", "peer", "net0", "tap=tap1"])?)?;
    ensure!(swapped["device"] == "net0", "{swapped}");
    card.vm.console_line("link down")?;
    ip("link set tap1 up")?;
    card.vm.console_line("link up")?;
    for (words, complaint) in [
        (vec!["peer", "net0", "tap=no-such-tap"], "no-such-tap"),
        (
            vec!["peer", "net0", "tap=a", "peer=/b"],
            "exclude one another",
        ),
        (vec!["swap", "net0", "path=/dev/null"], "has no image"),
    ] {
        let said = complained(ctl(&card.api, &words)?, 1)?;
        ensure!(said.contains(complaint), "{said}");
        ensure!(card.card()?["state"] == "running");
    }
    // The first one is nobody's now, and can be had.
    ip("link del tap0")?;
    ip("link set tap1 down")?;
    card.vm.console_line("link down")?;
    ensure!(!Path::new("/sys/class/net/tap0").exists());
    card.ends()?;
    Ok(())
}
