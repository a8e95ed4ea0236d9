//! A disk that a request hangs: whoever takes the guest's write number 5,000 does nothing
//! else any more, and nor does a successor that takes it again.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use outboard_blk::cli::Cli;
use outboard_hostile::{Deed, Fault, Faulty, number_of_write};
use outboard_runtime::{Chain, Memory};

/// Which write it is.
const GUILTY: u64 = 5_000;

struct Hangs;

impl Fault for Hangs {
    fn request(&self, memory: &Arc<Memory>, chain: &Chain) -> Deed {
        if number_of_write(memory, chain) == Some(GUILTY) {
            loop {
                std::hint::spin_loop();
            }
        }
        Deed::Nothing
    }
}

fn main() -> ExitCode {
    Cli::parse().serve(|disk| Faulty::new(disk, Hangs))
}
