//! Many cells of one boot: booting takes longer than what is tried.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};
use outboard_peers::table::Outcome;

/// What came of the cells of a boot, by peer and by what was tried.
#[derive(Debug, Default)]
pub struct Steps {
    results: HashMap<(&'static str, &'static str), Result<Outcome, String>>,
    broken: Option<String>,
    told: AtomicBool,
}

impl Steps {
    /// The next step. Once one has failed, the guest is in no known state:
    /// what follows fails too, and says so.
    pub fn step(
        &mut self,
        peer: &'static str,
        tried: &'static str,
        run: impl FnOnce() -> Result<Outcome>,
    ) {
        let result = match &self.broken {
            Some(why) => Err(format!("not tried: {why}")),
            None => run().map_err(|error| format!("{error:#}")),
        };
        if result.is_err() && self.broken.is_none() {
            self.broken = Some(format!("{tried:?} of {peer} failed before"));
        }
        self.results.insert((peer, tried), result);
    }

    /// No step can be tried any more.
    pub fn broke(&mut self, why: String) {
        self.broken = Some(why);
    }

    /// The result of a step.
    ///
    /// # Errors
    /// It failed, or there was none.
    pub fn result(&self, peer: &str, tried: &str) -> Result<Outcome> {
        let found = self.results.iter();
        let found = found.filter(|((name, what), _)| (*name, *what) == (peer, tried));
        match found.map(|(_, result)| result).next() {
            Some(result) => result.clone().map_err(|why| anyhow!(why)),
            None => {
                let why = self.broken.as_deref().unwrap_or("it is no step");
                // In full in the first of the tests that ask.
                let lines = match self.told.swap(true, Ordering::Relaxed) {
                    false => why,
                    true => why.lines().next().unwrap_or(why),
                };
                Err(anyhow!("not tried: {lines}"))
            }
        }
    }
}
