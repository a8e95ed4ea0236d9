//! What is said of requests that are refused.

use outboard_log::Rarely;

/// Requests by number, and all that have no name for one.
const KINDS: usize = 64;

/// Which requests a session has refused so far.
#[derive(Default)]
pub(super) struct Refusals(u64);

impl Refusals {
    /// Says why a request is refused: in a session the first of its kind is a
    /// warning, for somebody has to change something; a front-end, and for some a
    /// guest, can go on for ever.
    pub fn say(&mut self, request: u32, why: &str) {
        static FIRST: [Rarely; KINDS] = [const { Rarely::new() }; KINDS];
        static LATER: Rarely = Rarely::new();
        let kind = usize::try_from(request).unwrap_or(KINDS).min(KINDS - 1);
        let bit = 1u64 << kind;
        if self.0 & bit != 0 {
            if let Some(times) = LATER.again() {
                log::debug!("refused again: {why}{times}");
            }
            return;
        }
        self.0 |= bit;
        if let Some(times) = FIRST.get(kind).and_then(Rarely::again) {
            log::warn!("refused what the front-end asked for: {why}{times}");
        }
    }
}
