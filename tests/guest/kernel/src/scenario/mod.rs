//! Scenarios: what the command line asks for. Each ends with exactly one result line.

mod bars;
mod cases;
mod chaos;
mod crew;
mod identify;
mod mastering;
mod measure;
mod net;
mod options;
mod plan;
mod registers;
mod rings;
mod rng;
mod slots;
mod storm;
mod verifier;
mod verify;

use crate::cpu::{apic, smp};
use crate::pci;
use crate::platform::acpi::Platform;
use crate::platform::boot::Region;
use crate::platform::canary;
use crate::platform::phys::Span;
use crate::platform::{power, ring0};
use crate::say;
use crate::virtio::transport::{self, Transport};
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::words::Words;

/// The `key=value` words of a result line: of a success, or `reason=` and more for a failure.
pub type Outcome = Result<String, String>;

/// What a scenario runs on.
pub struct Machine<'a> {
    /// The command line.
    pub words: Words<'a>,
    /// What ACPI said.
    pub platform: &'a Platform,
    /// RAM.
    pub ram: &'a [Region],
}

impl Machine<'_> {
    /// All virtio devices.
    pub fn devices(&self) -> Result<Vec<Transport>, String> {
        transport::find_all(&pci::scan(self.platform, &self.words)?)
    }

    /// Starts the other processors and lets time interrupt all of them now and then.
    pub fn start_processors(&self) -> Result<usize, String> {
        let wanted = options::number(&self.words, "cpus", smp::MAX_PROCESSORS as u64)?;
        smp::start_others(&self.platform.processors, wanted as usize)?;
        smp::on_each(smp::running(), &|_| apic::tick(true));
        Ok(smp::running())
    }
}

/// Runs the scenarios, one after the other, and ends as the command line says.
pub fn run(machine: &Machine<'_>) -> ! {
    let keep = machine.words.number("canary", 0).unwrap_or(0).min(1024);
    canary::start(keep as usize);
    for name in machine.words.text("scenario", "idle").split(',') {
        let checked = |words| Ok(words + canary::finish()?.as_str());
        match outcome(machine, name).and_then(checked) {
            Ok(words) => say!("OUTBOARD {name} result=pass {words}"),
            Err(words) => say!("OUTBOARD {name} result=fail {words}"),
        }
    }
    match machine.words.text("exit", "poweroff") {
        "reset" => power::reset(),
        "halt" => power::halt(),
        "triple" => ring0::triple_fault(),
        _ => power::off(),
    }
}

fn outcome(machine: &Machine<'_>, name: &str) -> Outcome {
    match name {
        "identify" => identify::run(machine),
        "rings" => rings::run(machine),
        "registers" => registers::run(machine),
        "measure" => measure::run(machine),
        "verify" => verify::run(machine),
        "load" => verify::load(machine),
        "storm" => storm::run(machine),
        "net-identify" => net::identify::run(machine),
        "net-echo" => net::echo::run(machine),
        "net-blast" => net::blast::run(machine),
        "net-sink" => net::sink::run(machine),
        "net-ping" => net::ping::run(machine),
        "net-lengths" => net::lengths::run(machine),
        "net-gso" => net::gso::run(machine),
        "net-canary" => net::canary::run(machine),
        "net-heard" => net::heard::run(machine),
        "net-storm" => net::storm::run(machine),
        "net-hostile" => net::hostile::run(machine),
        "rng" => rng::run(machine),
        "slots" => slots::run(machine),
        "idle" => {
            say!("OUTBOARD idle result=pass");
            power::halt()
        }
        "triple" => ring0::triple_fault(),
        "reset" => power::reset(),
        "poweroff" => power::off(),
        "fault" => fault(),
        "panic" => panic!("as wanted"),
        _ => Err("reason=unknown-scenario".into()),
    }
}

/// `scenario=fault`: touches an address that is not mapped, to show that exceptions are reported.
fn fault() -> Outcome {
    const NOWHERE: u64 = 0x7f00_dead_0000;
    // SAFETY: deliberately not mapped; the exception that follows ends the guest.
    let nowhere = unsafe { Span::new(NOWHERE, 8) };
    Err(alloc::format!(
        "reason=no-fault value={:#x}",
        nowhere.read::<u64>(0)
    ))
}
