//! The measurements that `scripts/bench` prints.
//!
//! Both sides of a comparison run in one go, interleaved, and the answer is a
//! ratio with its spread: absolute times on a shared machine are noise.

mod beside;
mod chaos;
mod compare;
mod continuity;
mod doorbell;
mod footprint;
mod host;
mod net;
mod processes;
mod program;
mod reads;
mod restart;
mod slots;
mod spread;
mod startup;
mod swap_demo;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(
    about,
    after_help = "scripts/bench builds everything first and calls this program."
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Time from execve of `outboard run` to the guest's first instructions,
    /// beside QEMU's microvm with the same guest and disk.
    Startup {
        #[command(flatten)]
        products: Products,
        /// Starts of each side.
        #[arg(long, default_value_t = 30)]
        runs: usize,
        #[command(flatten)]
        other: Other,
    },
    /// Private memory of each process after a verified workload.
    Footprint {
        #[command(flatten)]
        products: Products,
        #[command(flatten)]
        other: Other,
    },
    /// Start-up, memory, reads, frames and round trips, beside another build's
    /// programs.
    Compare {
        #[command(flatten)]
        products: Products,
        #[command(flatten)]
        options: compare::Options,
    },
    /// From GET_VRING_BASE to the first completion after the queue's restart,
    /// beside another build's programs.
    Restart {
        /// Directory of `outboard-blk`.
        #[arg(long)]
        bin: PathBuf,
        #[command(flatten)]
        options: restart::Options,
    },
    /// outboard-blk is killed again and again under a guest that checks every
    /// block and every completion; what is wrong, and how long each outage was.
    Chaos {
        #[command(flatten)]
        products: Products,
        #[command(flatten)]
        options: chaos::Options,
    },
    /// How long a guest waits when outboard-blk is killed, and when it is replaced by
    /// plan, beside QEMU with the same back-end.
    Continuity {
        #[command(flatten)]
        products: Products,
        #[command(flatten)]
        options: continuity::Options,
    },
    /// What a register costs to read in the last of 31 slots, beside the first.
    Slots {
        #[command(flatten)]
        products: Products,
        /// VMs of each side.
        #[arg(long, default_value_t = 15)]
        runs: usize,
        #[command(flatten)]
        other: Other,
    },
    /// What a doorbell costs, in KVM and by an exit; round trips; a disk by who
    /// rings.
    Doorbell {
        #[command(flatten)]
        products: Products,
        #[command(flatten)]
        options: doorbell::Options,
    },
    /// Packets and bytes a second through outboard-net and what they cost,
    /// beside QEMU's own tap back-end with the same guest.
    Net {
        #[command(flatten)]
        products: Products,
        #[command(flatten)]
        options: net::Options,
    },
    /// What `scripts/demo swap` shows.
    SwapDemo(swap_demo::Options),
}

/// Where the things that are measured lie.
#[derive(Args)]
pub struct Products {
    /// Directory of `outboard` and its back-ends.
    #[arg(long)]
    bin: PathBuf,
    /// The bundled guest with its PVH note.
    #[arg(long)]
    guest: PathBuf,
}

impl Products {
    /// The same, as the storms of the end-to-end tests take them.
    fn for_a_storm(&self) -> outboard_e2e::storm::Programs {
        outboard_e2e::storm::Programs {
            bin: self.bin.clone(),
            guest: self.guest.clone(),
        }
    }

    /// Another build's programs, with the same guest.
    fn beside(&self, bin: &Path) -> Self {
        Self {
            bin: bin.to_owned(),
            guest: self.guest.clone(),
        }
    }
}

/// What they are compared with.
#[derive(Args)]
pub struct Other {
    /// Directory of another build's programs, run in turn with these.
    #[arg(long)]
    against: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().what {
        What::Startup {
            products,
            runs,
            other,
        } => startup::run(&products, runs, &other),
        What::Footprint { products, other } => footprint::run(&products, &other),
        What::Compare { products, options } => compare::run(&products, &options),
        What::Restart { bin, options } => restart::run(&bin, &options),
        What::Chaos { products, options } => chaos::run(&products, &options),
        What::Continuity { products, options } => continuity::run(&products, &options),
        What::Slots {
            products,
            runs,
            other,
        } => slots::run(&products, runs, &other),
        What::Doorbell { products, options } => doorbell::run(&products, &options),
        What::Net { products, options } => net::run(&products, &options),
        What::SwapDemo(options) => swap_demo::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
