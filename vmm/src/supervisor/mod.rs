//! The parent: it reads the configuration, opens every resource, starts the
//! machine and the back-ends with the descriptors of their contract, watches
//! them and ends them. It holds no guest memory and no device.
//!
//! ```text
//!  text ─────▶ device, plan ──▶ host ──▶ launch ──▶ watch ──▶ end
//! (as written)   (checked)    (opened)     ▲                  │
//!                                          └── guest reset ───┘
//! ```
//! A restart policy, the control API and the sandbox have their places in
//! [`watch`], beside it, and in [`spawn`].
#![deny(unsafe_code)]

pub mod child;
pub mod connect;
pub mod console;
pub mod device;
pub mod end;
pub mod host;
pub mod launch;
pub mod plan;
pub mod say;
pub mod signals;
#[allow(unsafe_code)]
pub mod spawn;
pub mod terminal;
pub mod text;
pub mod verdict;
pub mod watch;

use std::path::PathBuf;

use anyhow::{Context, Result};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use outboard_protocol::launch::Ending;

use crate::exit::Exit;
use console::Console;
use host::resources::Resources;
use plan::VmPlan;
use say::say;
use signals::Signals;
use text::settings::{self, OnReset, Settings};
use verdict::Verdict;

/// Runs one VM to its end: `outboard run`.
pub fn run(file: Option<PathBuf>, settings: Settings) -> Exit {
    let config = match configure(file, settings) {
        Ok(config) => config,
        Err(error) => {
            say(&error);
            say("for more information, try `outboard run --help`");
            return Exit::Usage;
        }
    };
    config.logging.start();
    let result = run_config(config);
    child::end_strays(Deadline::after(limits::KILLED));
    result.unwrap_or_else(|error| {
        say(&format!("{error:#}"));
        Exit::CannotStart
    })
}

fn configure(file: Option<PathBuf>, settings: Settings) -> Result<VmPlan, String> {
    let Some(path) = file else {
        return VmPlan::new(settings);
    };
    let (written, text) = Settings::read(&path)?;
    VmPlan::new(settings.over(written.clone())).map_err(|error| {
        // What is wrong with the file alone has its place there.
        match VmPlan::new(written) {
            Err(same) if same == error => settings::placed(&path, &text, &error),
            _ => error,
        }
    })
}

fn run_config(config: VmPlan) -> Result<Exit> {
    let signals = Signals::block().context("signals cannot be blocked")?;
    // What a back-end leaves behind becomes ours, to be ended with the rest.
    nix::sys::prctl::set_child_subreaper(true).context("becoming a subreaper failed")?;
    let on_reset = config.on_reset;
    let (mut resources, output) = Resources::open(config)?;
    let mut console = Console::new(output);
    loop {
        let Some(mut vm) = launch::launch(&mut resources, &mut console, &signals)? else {
            return Ok(Exit::Success);
        };
        let verdict = watch::watch(&mut vm, &mut console, &signals);
        // From here on a key is a signal again.
        console.ended();
        let asked = end::end(vm, &verdict, &signals);
        let reset = matches!(verdict, Verdict::Ended(Ending::Reset));
        if reset && on_reset == OnReset::Restart && !asked {
            continue;
        }
        // The terminal is put back before the last word.
        drop(console);
        match (verdict.text(), &verdict) {
            // Of a guest that KVM gave up on there is more than a line.
            (Some(text), Verdict::Ended(Ending::KvmError { .. })) => text.lines().for_each(say),
            (Some(text), _) => say(&text),
            (None, _) => {}
        }
        return Ok(verdict.exit());
    }
}
