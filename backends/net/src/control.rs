//! The control queue (virtio 1.3, section 5.1.6.5): commands read, obeyed by
//! the card, and answered.

use std::sync::Arc;

use outboard_runtime::chain::{Buffer, Chain};
use outboard_runtime::device::{Done, Memory, Outcome, Queue};
use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_OK};
use vm_memory::Bytes;

use crate::card::Card;
use crate::command::Command;
use crate::counters::Count;

/// Longest command that is read: a table of some 10,000 addresses.
const MOST_BYTES: usize = 64 * 1024;

/// The control queue.
#[derive(Debug)]
pub struct ControlQueue {
    card: Arc<Card>,
    features: u64,
    /// Where the chains lie.
    memory: Arc<Memory>,
    /// What has not been counted yet.
    done: Done,
}

impl ControlQueue {
    /// The control queue of a card whose driver has negotiated `features`.
    pub fn new(card: Arc<Card>, features: u64) -> Self {
        let memory = Arc::default();
        Self {
            card,
            features,
            memory,
            done: Done::default(),
        }
    }
}

impl Queue for ControlQueue {
    fn map(&mut self, memory: Arc<Memory>) {
        self.memory = memory;
    }

    fn take(&mut self, chain: &Chain) -> Outcome {
        let Some(answer) = chain.writable.iter().find(|buffer| buffer.length > 0) else {
            self.card.counters().add(Count::BadCommand, 1);
            return Outcome::Done(0);
        };
        let command = read(&self.memory, &chain.readable)
            .and_then(|bytes| Command::parse(&bytes, self.features))
            .filter(|command| self.card.obey(command, self.features));
        self.card.tell_kept();
        let status = match command {
            Some(_) => VIRTIO_NET_OK,
            None => VIRTIO_NET_ERR,
        };
        if command.is_none() {
            self.done.errors = self.done.errors.wrapping_add(1);
            self.card.counters().add(Count::BadCommand, 1);
        }
        match self.memory.write_obj(status as u8, answer.address) {
            Ok(()) => Outcome::Done(1),
            Err(_) => {
                self.card.counters().add(Count::Unmapped, 1);
                Outcome::Done(0)
            }
        }
    }

    fn done(&mut self) -> Done {
        std::mem::take(&mut self.done)
    }
}

/// Reads a whole command; `None` when it is too long or not in memory.
fn read(memory: &Memory, buffers: &[Buffer]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for buffer in buffers {
        let begin = bytes.len();
        let end = begin.checked_add(usize::try_from(buffer.length).ok()?)?;
        if end > MOST_BYTES {
            return None;
        }
        bytes.resize(end, 0);
        let part = bytes.get_mut(begin..)?;
        memory.read_slice(part, buffer.address).ok()?;
    }
    Some(bytes)
}
