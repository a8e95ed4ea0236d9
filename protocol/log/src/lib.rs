//! What Outboard's programs say on standard error, which all processes of a VM
//! share: how a line looks, which lines are said, and how often.
//!
//! - [`mod@line`]: who speaks, and text that cannot make a line of its own;
//! - [`level`]: `--log-level`, `--verbose` and `RUST_LOG`;
//! - [`mod@rarely`]: what others can cause again and again;
//! - [`output`]: that nobody waits for whoever reads it.
//!
//! ```text
//! outboard[web]: disk0: the back-end is lost: …      what the user is told in any case: `say`
//! outboard-machine[web]: WARN disk0: it needs …      what is logged: log::warn!
//! outboard-blk[web/disk0]: WARN cut a front-end off: …
//! ```
//! The names of the VM and of the device come by the launch contract
//! (`PROTOCOL.md`, section 1).
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod level;
pub mod line;
pub mod output;
pub mod rarely;

use std::io::Write;
use std::sync::OnceLock;

use outboard_protocol::launch::LABEL_ENV;

pub use level::{Level, Verbosity, filters};
pub use line::{OneLine, Speaker};
pub use rarely::Rarely;

/// Whose words these are, once that is known.
static SPEAKER: OnceLock<Speaker> = OnceLock::new();

/// Begins to log, as `speaker`, what `filters` let through (`RUST_LOG`'s
/// language). The first call counts; to be made early.
pub fn start(speaker: Speaker, filters: &str) {
    let shown = SPEAKER.get_or_init(|| speaker);
    // Only if a logger is there already, as in a test.
    let _ = env_logger::Builder::new()
        .parse_filters(filters)
        .target(env_logger::Target::Pipe(Box::new(output::Output)))
        .format(move |out, record| {
            let text = OneLine(record.args());
            writeln!(out, "{shown}: {} {text}", record.level())
        })
        .try_init();
}

/// The label that this process was started with, if it has one.
pub fn label() -> Option<String> {
    let label = std::env::var_os(LABEL_ENV)?;
    let label = label.to_string_lossy().into_owned();
    (!label.is_empty()).then_some(label)
}

/// Tells the user one line, whatever the level of logging; standard error may
/// be closed.
pub fn say(text: &str) {
    let unnamed = Speaker::new("outboard", None);
    let speaker = SPEAKER.get().unwrap_or(&unnamed);
    let line = format!("{speaker}: {}\n", OneLine(text));
    let _ = output::Output.write_all(line.as_bytes());
}
