//! Messages in random legal orders: each is obeyed, and the rings serve when the
//! specification says that they must, and only then ("Ring states").
//!
//! A failure names its seed and its steps. `OUTBOARD_WALK_SEED=N` walks one
//! again, `OUTBOARD_WALKS=N` walks more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use anyhow::Result;
use outboard_contract::ours;
use outboard_contract::traffic::{Card, DISK, Disk, Entropy};
use outboard_contract::walk::walk;

const STEPS: usize = 250;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Walks from seeds that time chooses, which a failure tells.
fn walks(one: impl Fn(u64) -> Result<u64>) {
    if let Some(seed) = number("OUTBOARD_WALK_SEED") {
        one(seed).unwrap();
        return;
    }
    let mut served = 0;
    let time = std::time::UNIX_EPOCH.elapsed().unwrap();
    let first = time.as_nanos() as u64 >> 10;
    for seed in (first..).take(number("OUTBOARD_WALKS").unwrap_or(40) as usize) {
        match one(seed) {
            Ok(requests) => served += requests,
            Err(error) => panic!("{error:#}"),
        }
    }
    println!("{served} requests served");
    assert!(served > 1000, "hardly any ring ran: {served} requests");
}

#[test]
fn a_disk_obeys_every_legal_order() {
    walks(|seed| {
        let engine = ["--engine=auto", "--engine=threads"][seed as usize % 2];
        let program = ours::blk(&[0; DISK], &["--num-queues=3", engine])?;
        walk(&program, Disk::new(3), seed, STEPS)
    });
}

#[test]
fn a_card_obeys_every_legal_order() {
    walks(|seed| {
        let (program, peer) = ours::net()?;
        walk(&program, Card::new(peer), seed, STEPS)
    });
}

/// As far as the stock daemon obeys ([`outboard_contract::model::Daemon`]).
#[test]
fn a_source_of_entropy_obeys_legal_orders() {
    walks(|seed| walk(&ours::rng()?, Entropy, seed, STEPS));
}
