//! Random reads and writes of 4 KiB through `outboard-blk`, its image in
//! memory, by who rings and where the doorbell is: the question of 2018. The
//! guest polls, so that its vCPU is outside for nothing but the doorbell.

use super::report::{Kind, What};

/// Who signals the kick, as `--kick-path` names it.
pub const RINGS: [&str; 3] = ["exit", "worker", "kvm"];

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `--kick-path`.
    pub ring: &'static str,
    /// `--doorbell`.
    pub doorbell: &'static str,
    /// The guest's `rw=`.
    pub rw: &'static str,
    /// Requests in flight.
    pub depth: u16,
    /// The guest heeds it when the device needs no kick.
    pub suppression: bool,
}

impl Disk {
    fn name(&self) -> String {
        format!(
            "{}, depth {}, {}, {}, ring {}",
            self.rw,
            self.depth,
            if self.suppression {
                "kicks when wanted"
            } else {
                "kicks always"
            },
            match self.doorbell {
                "pio" => "PIO",
                _ => "MMIO",
            },
            self.ring
        )
    }
}

/// All of them, each beside the same with an exit.
pub fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for rw in ["randread", "randwrite"] {
        for depth in [1, 32] {
            for suppression in [true, false] {
                for doorbell in ["mmio", "pio"] {
                    let disk = |ring| Disk {
                        ring,
                        doorbell,
                        rw,
                        depth,
                        suppression,
                    };
                    kinds.extend(RINGS.map(|ring| Kind {
                        what: What::Disk(disk(ring)),
                        name: disk(ring).name(),
                        reference: disk("exit").name(),
                        text: None,
                    }));
                }
            }
        }
    }
    kinds
}
