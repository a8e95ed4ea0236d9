//! A back-end that works is replaced by another on command, under a guest that checks
//! every block and every completion.

use anyhow::{Context, Result, ensure};
use outboard_e2e::storm::{Outcome, Programs, Shape, Storm};
use serde_json::Value;

use crate::storm::seed;
use crate::{KVM, Test, test};

pub fn tests() -> Vec<Test> {
    vec![test(
        "nothing is wrong after swaps among our own",
        KVM,
        among_our_own,
    )]
}

fn swap(storm: &Storm, words: &[&str]) -> Result<Value> {
    let mut all = vec!["swap", "disk0"];
    all.extend(words);
    let text = storm.ctl(&all).with_context(|| storm.vm.messages())?;
    serde_json::from_str(&text).context(text)
}

fn goes_on(storm: &mut Storm) -> Result<()> {
    storm.killer.note();
    storm.killer.until_it_goes_on(&mut storm.vm)
}

fn checked(storm: &mut Storm) -> Result<Outcome> {
    let outcome = storm.end()?.nothing_is_wrong()?;
    ensure!(
        outcome.result.number("requests")? > 1000,
        "{}",
        outcome.ended
    );
    Ok(outcome)
}

fn among_our_own() -> Result<()> {
    let mut storm = Storm::begin(&Programs::get()?, &Shape::new(0, seed()))?;
    for _ in 0..10 {
        let before = storm.killer.newest(&storm.vm);
        let swapped = swap(&storm, &[])?;
        eprintln!("{swapped}");
        ensure!(
            swapped["gap"]["total_us"]
                .as_u64()
                .is_some_and(|gap| gap > 0)
        );
        ensure!(storm.killer.newest(&storm.vm) != before);
        goes_on(&mut storm)?;
    }
    checked(&mut storm).map(drop)
}
