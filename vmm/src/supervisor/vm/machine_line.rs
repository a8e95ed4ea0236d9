//! The supervisor's end of the socket to the machine process. (The line to a back-end
//! is another: `outboard_line::Line`.)

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use outboard_protocol::Deadline;
use outboard_protocol::descriptors::discard;
use outboard_protocol::launch::{Channel, FromMachine, ToMachine};

use super::event::Event;
use super::machine;
use crate::supervisor::say::say;

/// Messages that are taken before anything else is looked at: a machine that never
/// stops speaking must not keep us from hearing a signal.
const AT_ONCE: usize = 64;

/// The line to one machine process.
#[derive(Debug)]
pub(crate) struct MachineLine {
    channel: Channel,
    /// It was closed, or brought what no machine says: nobody listens any more.
    is_over: bool,
    /// What the socket has not taken yet: a machine that is being built reads nothing.
    unsent: VecDeque<(ToMachine, Vec<OwnedFd>)>,
}

impl MachineLine {
    /// Our end of the socket of a process that has just been started.
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            channel,
            is_over: false,
            unsent: VecDeque::new(),
        }
    }

    /// Nobody is at its other end: closes it, with whatever was not read.
    pub(crate) fn end(self) {
        discard(vec![self.channel.into()]);
    }

    /// What is polled of its socket.
    pub(crate) fn watched(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let flags = match self.unsent.is_empty() {
            true => PollFlags::POLLIN,
            false => PollFlags::POLLIN | PollFlags::POLLOUT,
        };
        (!self.is_over).then(|| (self.channel.as_fd(), flags))
    }

    /// Sends this, now or when the machine reads. One that is gone is found by its
    /// pidfd, with how it ended; so a failure to send says nothing more.
    pub(crate) fn send(&mut self, message: ToMachine, fds: Vec<OwnedFd>) {
        self.unsent.push_back((message, fds));
        self.flush();
    }

    /// Sends what the socket takes.
    fn flush(&mut self) {
        if self.is_over {
            self.unsent.clear();
        }
        while let Some((message, fds)) = self.unsent.front() {
            let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
            let sent = self
                .channel
                .send(message, &fds, Deadline::after(Duration::ZERO));
            if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::TimedOut) {
                return;
            }
            self.unsent.pop_front();
        }
    }

    /// What it has sent, 64 messages at most, after what it had no room for before.
    pub(crate) fn listen(&mut self) -> Vec<Event> {
        self.flush();
        let mut events = Vec::new();
        while !self.is_over && events.len() < AT_ONCE {
            match self
                .channel
                .recv::<FromMachine>(Deadline::after(Duration::ZERO))
            {
                Ok(Some((message, fds))) => {
                    discard(fds);
                    events.push(Event::Said(message));
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                closed_or_nonsense => {
                    if let Err(error) = closed_or_nonsense {
                        say(&format!("the machine process sent nonsense: {error}"));
                    }
                    self.is_over = true;
                    events.push(Event::Machine(machine::Event::HungUp));
                }
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, poll};
    use nix::sys::socket::setsockopt;
    use nix::sys::socket::sockopt::SndBuf;
    use outboard_protocol::launch::{Ending, Restored, Whose};

    use super::*;
    use crate::supervisor::vm::tests::lingering;

    fn pair() -> (MachineLine, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (MachineLine::new(ours), theirs)
    }

    /// Waits as the loop does.
    fn wait(line: &MachineLine) {
        let (fd, flags) = line.watched().unwrap();
        let soon = Deadline::after(Duration::from_secs(60));
        assert_eq!(
            poll(&mut [PollFd::new(fd, flags)], soon.poll_timeout()),
            Ok(1)
        );
    }

    fn attach(session: u64) -> ToMachine {
        ToMachine::Attach {
            device: "disk0".into(),
            session,
            asked: false,
            whose: Whose::Own,
            restored: Restored::Nothing,
        }
    }

    #[test]
    fn what_a_machine_does_not_read_yet_waits_and_comes_in_order() {
        const COUNT: u64 = 100;
        let (mut line, theirs) = pair();
        setsockopt(&line.channel, SndBuf, &1).unwrap();
        assert_eq!(line.watched().unwrap().1, PollFlags::POLLIN);
        for session in 0..COUNT {
            let fd = std::fs::File::open("/dev/null").unwrap().into();
            line.send(attach(session), vec![fd]);
        }
        assert!(!line.unsent.is_empty(), "the socket took them all");
        for session in 0..COUNT {
            let now = Deadline::after(Duration::ZERO);
            let (message, fds) = match theirs.recv::<ToMachine>(now) {
                Ok(message) => message.unwrap(),
                Err(_) => {
                    wait(&line);
                    assert_eq!(line.listen(), []);
                    theirs.recv(now).unwrap().unwrap()
                }
            };
            assert_eq!((message, fds.len()), (attach(session), 1));
        }
        assert!(line.unsent.is_empty());
    }

    #[test]
    fn its_words_are_heard_to_the_last_and_its_end_once() {
        let (mut line, theirs) = pair();
        let ending = Ending::PowerOff;
        let words = [FromMachine::Running, FromMachine::Ended { ending }];
        for word in &words {
            theirs
                .send(word, &[], Deadline::after(Duration::ZERO))
                .unwrap();
        }
        drop(theirs);
        let [running, ended] = words.map(Event::Said);
        let hung_up = Event::Machine(machine::Event::HungUp);
        assert_eq!(line.listen(), [running, ended, hung_up]);
        assert_eq!(line.listen(), []);
        assert!(line.watched().is_none(), "it would be readable for ever");
        line.send(ToMachine::Stop, Vec::new());
        assert!(line.unsent.is_empty());
    }

    #[test]
    fn no_descriptor_that_it_has_sent_holds_us_up_whether_or_not_it_is_read() {
        for reads in [true, false] {
            let events = lingering::handed_over(move |socket| {
                let (mut line, theirs) = pair();
                let soon = Deadline::after(Duration::from_secs(60));
                let fds = [socket.as_fd()];
                theirs.send(&FromMachine::Running, &fds, soon).unwrap();
                drop(socket);
                let events = if reads { line.listen() } else { Vec::new() };
                line.end();
                events.len()
            });
            assert_eq!(events, usize::from(reads));
        }
    }

    #[test]
    fn nonsense_ends_the_line_and_what_never_ends_is_taken_in_turns() {
        let (mut line, theirs) = pair();
        let now = || Deadline::after(Duration::ZERO);
        theirs.send(&"nonsense", &[], now()).unwrap();
        theirs.send(&FromMachine::Running, &[], now()).unwrap();
        assert_eq!(line.listen(), [Event::Machine(machine::Event::HungUp)]);
        let (mut line, theirs) = pair();
        let mut sent = 0;
        while sent <= AT_ONCE && theirs.send(&FromMachine::Running, &[], now()).is_ok() {
            sent += 1;
        }
        assert_eq!(line.listen().len(), sent.min(AT_ONCE));
        assert_eq!(line.listen().len(), sent.saturating_sub(AT_ONCE));
    }
}
