//! A flush: see [`crate::durability`].

use std::io;

use super::{FAILED, Progress, Rules, Step};
use crate::data::Data;
use crate::durability::{Ticket, Verdict};
use crate::engine::{Job, Operation};

/// How far it is.
#[derive(Debug)]
pub enum Flush {
    Begin,
    Running(Ticket),
    /// Succeeded; others that ran beside it have not told yet.
    Checking(u64),
    Over,
}

impl Flush {
    pub fn start(&mut self, rules: Rules<'_>) -> Progress {
        let Some(ticket) = rules.durability.begin() else {
            return FAILED;
        };
        *self = Self::Running(ticket);
        Some(Step::Next(Job {
            operation: Operation::Sync,
            offset: 0,
            data: Data::Nothing,
        }))
    }

    pub fn complete(&mut self, job: Job, result: io::Result<u64>, rules: Rules<'_>) -> Progress {
        let this = std::mem::replace(self, Self::Over);
        let verdict = match (this, result) {
            (_, Err(_)) => {
                rules.durability.lose();
                return FAILED;
            }
            (Self::Running(ticket), Ok(_)) => ticket.end(),
            (Self::Checking(before), Ok(_)) => rules.durability.judge(before),
            (Self::Begin | Self::Over, Ok(_)) => return FAILED,
        };
        match verdict {
            Verdict::Durable => None,
            Verdict::Lost => FAILED,
            Verdict::Unsure(before) => {
                *self = Self::Checking(before);
                Some(Step::Next(job))
            }
        }
    }
}
