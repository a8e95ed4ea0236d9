//! Why a run is over: what to say, and with which code to exit.

use outboard_protocol::launch::Ending;

use crate::exit::Exit;
use crate::supervisor::process::child::Death;

/// Why a run is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The machine said how the guest ended.
    Ended(Ending),
    /// The machine cannot be built, or cannot go on.
    Failed {
        /// What it said.
        error: String,
        /// Whether the guest had been started.
        running: bool,
    },
    /// A back-end's process ended.
    BackEndDied {
        /// The device's id.
        id: String,
        /// The program's name.
        program: String,
        /// How.
        death: Death,
        /// What the machine said of its session, if it did.
        cause: Option<String>,
        /// Whether the guest had been started.
        running: bool,
    },
    /// A back-end's session ended, or could not begin.
    BackEndLost {
        /// The device's id.
        id: String,
        /// What the machine said.
        cause: String,
        /// Whether the guest had been started.
        running: bool,
    },
    /// The machine process ended without a word.
    MachineDied(Option<Death>),
    /// A signal, or Ctrl-A x.
    Interrupted,
}

impl Verdict {
    /// The exit code of `outboard run`.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Ended(Ending::PowerOff | Ending::Reset | Ending::Stopped) => Exit::Success,
            Self::Ended(Ending::TripleFault) => Exit::TripleFault,
            Self::Ended(Ending::KvmError { .. }) => Exit::KvmError,
            Self::Failed { running: true, .. } => Exit::MachineDied,
            Self::Failed { running: false, .. } => Exit::CannotStart,
            Self::BackEndDied { running, .. } | Self::BackEndLost { running, .. } => {
                match running {
                    true => Exit::BackEndDied,
                    false => Exit::CannotStart,
                }
            }
            Self::MachineDied(_) => Exit::MachineDied,
            Self::Interrupted => Exit::Success,
        }
    }

    /// The reason in a few words, for whoever asks why the VM ends.
    pub(crate) fn reason(&self) -> String {
        let reason = match self {
            Self::Ended(Ending::PowerOff) => "the guest powered off",
            Self::Ended(Ending::Reset) => "the guest asked for a reset",
            Self::Ended(_) | Self::Interrupted => "somebody asked for the end",
            _ => "it cannot go on",
        };
        self.text().unwrap_or_else(|| reason.to_owned())
    }

    /// What the user is told, if anything.
    pub(crate) fn text(&self) -> Option<String> {
        let when = |running: &bool| match running {
            true => "",
            false => " before the guest was started",
        };
        match self {
            Self::Ended(Ending::TripleFault) => Some(
                "the guest crashed: triple fault (an exception that it could not handle)".into(),
            ),
            Self::Ended(Ending::KvmError { detail }) => {
                Some(format!("KVM cannot go on with this guest: {detail}"))
            }
            Self::Ended(_) | Self::Interrupted => None,
            Self::Failed { error, running } => Some(match running {
                true => format!("the machine process cannot go on: {error}"),
                false => error.clone(),
            }),
            Self::BackEndDied {
                id,
                program,
                death,
                cause,
                running,
            } => {
                // Who exits may have been cut off before, and for that reason.
                let cause = match (death, cause) {
                    (Death::Exited(_), Some(cause)) => format!(" (its session: {cause})"),
                    _ => String::new(),
                };
                // Whether it is one is not known of a program that only ended.
                let advice = match (death, running) {
                    (Death::Exited(_), false)
                        if program != "outboard-blk" && program != "outboard-net" =>
                    {
                        "; what it said is above; a back-end serves the socket that `--fd=N` names"
                    }
                    _ => "",
                };
                Some(format!(
                    "{id}: the back-end {program} {death}{}{cause}{advice}",
                    when(running)
                ))
            }
            Self::BackEndLost { id, cause, running } => match running {
                true => Some(format!("{id}: the back-end is lost: {cause}")),
                false => Some(format!("{id}: the back-end cannot be used: {cause}")),
            },
            Self::MachineDied(Some(death)) => Some(format!("the machine process {death}")),
            Self::MachineDied(None) => Some("the machine process hung and was killed".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn a_back_end_s_death_has_its_name_its_cause_and_its_code() {
        let death = |running| Verdict::BackEndDied {
            id: "disk0".into(),
            program: "outboard-blk".into(),
            death: Death::Killed(Signal::SIGKILL),
            cause: Some("it closed its connection".into()),
            running,
        };
        assert_eq!(
            death(true).text().unwrap(),
            "disk0: the back-end outboard-blk was killed by SIGKILL"
        );
        assert_eq!(death(true).exit(), Exit::BackEndDied);
        assert!(
            death(false)
                .text()
                .unwrap()
                .ends_with("before the guest was started")
        );
        assert_eq!(death(false).exit(), Exit::CannotStart);
    }

    #[test]
    fn a_back_end_that_left_when_it_was_refused_is_named_with_the_refusal() {
        let left = Verdict::BackEndDied {
            id: "disk0".into(),
            program: "blk".into(),
            death: Death::Exited(0),
            cause: Some("use queues=1".into()),
            running: false,
        };
        assert_eq!(
            left.text().unwrap(),
            "disk0: the back-end blk exited with status 0 before the guest was started \
             (its session: use queues=1); what it said is above; a back-end serves the socket \
             that `--fd=N` names"
        );
    }

    #[test]
    fn an_orderly_end_is_silent_and_a_broken_guest_is_not() {
        for ending in [Ending::PowerOff, Ending::Reset, Ending::Stopped] {
            let verdict = Verdict::Ended(ending);
            assert_eq!((verdict.exit(), verdict.text()), (Exit::Success, None));
        }
        assert_eq!(Verdict::Interrupted.exit(), Exit::Success);
        let fault = Verdict::Ended(Ending::TripleFault);
        assert_eq!(fault.exit(), Exit::TripleFault);
        assert!(fault.text().unwrap().contains("triple fault"));
    }
}
