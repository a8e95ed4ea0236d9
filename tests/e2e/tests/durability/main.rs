//! Whether data is where it is said to be: flushes, the write cache and direct
//! I/O of whole VMs, by each of the back-end's engines.
//!
//! - [`syncs`], [`direct`]: what the kernel did with the image, seen by its
//!   tracepoints ([`trace`]), since no one else sees what io_uring does;
//! - [`power_cut`]: what is left on a disk whose power was cut, in an emulated
//!   host that logs what reaches its disk ([`block_log`]);
//! - [`foreign`]: the write cache of a back-end that others wrote, or started;
//! - [`killed`]: what is left when a process is killed;
//! - [`corruption`]: one byte that is not what was written.
//!
//! Each kind of check is made to fail, too, with a back-end that has that one
//! fault (tests/hostile).

mod block_log;
mod corruption;
mod direct;
mod foreign;
mod killed;
mod power_cut;
mod served;
mod syncs;
mod trace;

use std::fs::OpenOptions;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Trial};

use crate::served::Way;

/// Why there can be no VM on this machine.
fn no_kvm() -> Option<String> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm.err().map(|error| format!("/dev/kvm: {error}"))
}

/// A test that is run for each way to serve a disk, by its sentence.
type ByWay = (&'static str, fn(Way) -> Result<()>);

/// A test by its sentence, unless there is a reason why it cannot run here.
fn trial(
    name: String,
    missing: impl FnOnce() -> Option<String> + Send + 'static,
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name.replace(' ', "_"), move || {
        if let Some(reason) = missing() {
            return Ok(Completion::ignored_with(format!(
                "cannot run here: {reason}"
            )));
        }
        match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(format!("{error:?}").into()),
        }
    })
}

/// The same, for a test that needs a VM, tracepoints, and this way to serve.
fn traced(name: &str, way: Way, test: impl FnOnce(Way) -> Result<()> + Send + 'static) -> Trial {
    let missing = move || no_kvm().or_else(trace::unusable).or_else(|| way.missing());
    trial(format!("{name} {way}"), missing, move || test(way))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    trace::prepare();
    let trials = [
        syncs::trials(),
        direct::trials(),
        foreign::trials(),
        corruption::trials(),
        killed::trials(),
        power_cut::trials(),
    ];
    let trials = trials.into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
