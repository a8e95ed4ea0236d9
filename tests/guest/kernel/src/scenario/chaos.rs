//! A worker whose device is disturbed between its steps: vectors masked, moved and switched off, and
//! doorbells rung for nothing. No interrupt may be lost by it, and no request.

use super::crew::Worker;
use super::verifier::Verifier;
use crate::cpu::{apic, smp};
use crate::platform::sync::Spin;
use crate::virtio::ring::Ring;
use crate::virtio::transport::Transport;
use alloc::string::String;
use alloc::vec::Vec;
use guest_logic::random::Random;

/// Steps between two disturbances.
const EVERY: u64 = 3;

/// A verifier and its device.
pub struct Disturbed {
    worker: Verifier,
    transport: Transport,
    random: Random,
    steps: u64,
    processor: usize,
    vector: u8,
    masked: bool,
}

impl Disturbed {
    /// Takes a worker over.
    pub fn new(
        worker: Spin<Verifier>,
        transport: Transport,
        processors: usize,
        seed: u64,
    ) -> Disturbed {
        let worker = worker.into_inner();
        let processor = usize::from(worker.queue.index) % processors;
        Disturbed {
            worker,
            transport,
            random: Random::new(seed),
            steps: 0,
            processor,
            vector: apic::device_vector(),
            masked: false,
        }
    }

    fn disturb(&mut self) {
        let Some(msix) = &self.transport.msix else {
            return;
        };
        let entry = self.worker.queue.index + 1;
        if entry >= msix.vectors {
            return;
        }
        if self.masked {
            msix.mask(entry, false);
            self.masked = false;
            return;
        }
        match self.random.below(7) {
            0 => {
                msix.mask(entry, true);
                msix.mask(entry, false);
            }
            1 => {
                msix.mask(entry, true);
                self.masked = true;
            }
            2 | 3 => msix.route(entry, smp::processor(self.processor).apic_id, self.vector),
            4 => {
                // For all queues of the device at once; entry by entry it stays as it was.
                msix.mask_all(true);
                msix.mask_all(false);
            }
            5 => self
                .worker
                .queue
                .doorbell
                .iter()
                .for_each(|doorbell| doorbell.ring()),
            _ => {}
        }
    }
}

impl Worker for Disturbed {
    fn step(&mut self) -> Result<bool, String> {
        self.steps += 1;
        if self.steps.is_multiple_of(EVERY) || self.masked {
            self.disturb();
        }
        let busy = self.worker.step()?;
        if self.worker.finished() && self.masked {
            self.disturb();
        }
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.worker.finished()
    }

    fn ring(&mut self) -> &mut Ring {
        self.worker.ring()
    }
}

/// For `crew::run`.
pub fn wrap(workers: Vec<Disturbed>) -> Vec<Spin<Disturbed>> {
    workers.into_iter().map(Spin::new).collect()
}

/// The verifiers again.
pub fn unwrap(workers: Vec<Spin<Disturbed>>) -> Vec<Spin<Verifier>> {
    workers
        .into_iter()
        .map(|worker| Spin::new(worker.into_inner().worker))
        .collect()
}
