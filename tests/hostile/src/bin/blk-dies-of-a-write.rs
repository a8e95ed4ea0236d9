//! A disk that a request kills: whoever takes the guest's write number 5,000 aborts, and so
//! does each successor that takes it again.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use outboard_blk::cli::Cli;
use outboard_hostile::{Deed, Fault, Faulty, number_of_write};
use outboard_runtime::{Chain, Memory};

/// Which write it is.
const GUILTY: u64 = 5_000;

struct Dies;

impl Fault for Dies {
    fn request(&self, memory: &Arc<Memory>, chain: &Chain) -> Deed {
        if number_of_write(memory, chain) == Some(GUILTY) {
            std::process::abort();
        }
        Deed::Nothing
    }
}

fn main() -> ExitCode {
    Cli::parse().serve(|disk| Faulty::new(disk, Dies))
}
