//! The parent: it reads the configuration, opens every resource, starts the
//! machine and the back-ends with the descriptors of their contract, watches
//! them and ends them. It holds no guest memory and no device.
//!
//! ```text
//!  text ─────▶ device, plan ──▶ host ──▶ vm
//! (as written)   (checked)    (opened)   (alive, to its end)
//! ```

pub(crate) mod api;
pub(crate) mod console;
pub(crate) mod device;
pub mod host;
pub(crate) mod plan;
pub mod process;
pub mod say;
pub(crate) mod signals;
pub(crate) mod terminal;
pub(crate) mod text;
pub(crate) mod vm;

use std::path::PathBuf;

use anyhow::{Context, Result};
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use outboard_protocol::devices::BLK;
use outboard_protocol::launch::Ending;

use crate::exit::Exit;
use api::Api;
use console::Console;
use host::resources::Resources;
use plan::VmPlan;
use process::child::{self, Parent};
use say::say;
use signals::Signals;
use text::settings::{self, OnReset, Settings};
use vm::actions::Hands;
use vm::device::{Device, Server};
use vm::life::Life;
use vm::verdict::Verdict;

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

fn run_config(mut config: VmPlan) -> Result<Exit> {
    let signals = Signals::block().context("signals cannot be blocked")?;
    // What a back-end leaves behind becomes ours, to be ended with the rest.
    nix::sys::prctl::set_child_subreaper(true).context("becoming a subreaper failed")?;
    let restarts = config.on_reset == OnReset::Restart;
    let api = config.api.take();
    let (mut resources, output) = Resources::open(config)?;
    let api = api.as_deref().map(Api::listen).transpose()?;
    let devices = resources.devices.iter().enumerate();
    let devices = devices.map(|(place, opened)| {
        Device::served_by(place, &opened.spec.id, Server::of(opened))
            .on_failure(opened.on_failure)
            .with_standby(opened.standby)
            .for_a_disk(opened.spec.kind.virtio_id == BLK)
    });
    let life = Life::new(devices.collect(), restarts);
    let life = if api.is_some() { life.with_api() } else { life };
    let mut console = Console::new(output);
    let parent = Parent::of_all();
    let hands = Hands::new(&mut resources, &mut console, &signals, &parent)?.with_api(api);
    let verdict = vm::live(life, hands);
    // The terminal is put back before the last word.
    drop(console);
    match (verdict.text(), &verdict) {
        // Of a guest that KVM gave up on there is more than a line.
        (Some(text), Verdict::Ended(Ending::KvmError { .. })) => text.lines().for_each(say),
        (Some(text), _) => say(&text),
        (None, _) => {}
    }
    Ok(verdict.exit())
}
