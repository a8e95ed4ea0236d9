//! Bus mastering, off and on in the midst of a verified run (`mastering=`): while it is off nothing of
//! what devices were given is written, and when it is on again they go on.

use super::options;
use crate::pci::{BUS_MASTER, Function};
use crate::platform::{canary, clock, dma};
use crate::virtio::transport::Doorbell;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::words::Words;

/// Devices that are stopped and let go together, every so many steps.
pub struct Pauses {
    /// The devices.
    pub functions: Vec<Function>,
    /// What is rung when they may go on.
    pub doorbells: Vec<Doorbell>,
    /// How often that was done.
    pub count: u64,
    every: u64,
    steps: u64,
    hold: u64,
}

impl Pauses {
    /// What `mastering=` (steps) and `hold_us=` say, if anything. What devices were given is looked at by
    /// the one processor that would write it, too.
    pub fn read(words: &Words<'_>, processors: usize) -> Result<Option<Pauses>, String> {
        let every = options::number(words, "mastering", 0)?;
        let hold = options::within(words, "hold_us", 2000, 1, 10_000_000)?;
        if every != 0 && processors != 1 {
            return Err("reason=mastering-needs-one-processor".into());
        }
        Ok((every != 0).then(|| Pauses {
            functions: Vec::new(),
            doorbells: Vec::new(),
            count: 0,
            every,
            steps: 0,
            hold: clock::microseconds(hold),
        }))
    }

    /// Another step was done.
    pub fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if !self.steps.is_multiple_of(self.every) {
            return Ok(());
        }
        self.count += 1;
        for function in &self.functions {
            function.set_command(function.command() & !BUS_MASTER);
        }
        let given = dma::given();
        let before: Vec<_> = given.iter().map(canary::sum).collect();
        let begin = clock::now();
        while clock::now().wrapping_sub(begin) < self.hold {
            core::hint::spin_loop();
        }
        for (span, before) in given.iter().zip(before) {
            if canary::sum(span) != before {
                return Err(alloc::format!(
                    "reason=written-without-bus-mastering base={:#x} length={} pause={}",
                    span.address(),
                    span.length(),
                    self.count
                ));
            }
        }
        for function in &self.functions {
            function.set_command(function.command() | BUS_MASTER);
        }
        self.doorbells.iter().for_each(Doorbell::ring);
        Ok(())
    }
}
