//! A back-end's end of the line to its supervisor (`outboard_protocol::launch`).
//!
//! ```text
//! meet() = `start` is heard ── ready() ──► talks ── closed, or nonsense ──► alone
//! ```
//! One that waits ([`Supervisor::waits`]) says nothing of what it keeps before it has
//! taken over.
//! Who is alone goes on serving, is told nothing more and says nothing. Any thread
//! may speak; one, that of the sessions, listens.

use std::env;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use outboard_log::Rarely;
use outboard_protocol::Deadline;
use outboard_protocol::deadline::limits;
use outboard_protocol::kept::Kept;
use outboard_protocol::launch::{
    Channel, FromBackend, IMAGE_ENV, InFlight, LINE_ENV, LONGEST_TEXT, Link, Replay, ToBackend,
    VERSION,
};

use crate::inherited;

/// What happens behind a device, as its supervisor tells it.
#[derive(Debug)]
pub enum News {
    /// The interface behind a card has become this.
    Link(Link),
    /// A peer for a card that wants one: connected, and never used.
    Peer(UnixStream),
    /// A disk is to have another size, in bytes; [`Supervisor::resized`] is the answer.
    Resize(u64),
    /// What is held back since it has failed ([`Supervisor::io_error`]) is to be
    /// executed again.
    Retry,
    /// There will be no more news: nobody is listened to any more.
    Alone,
    /// This process, which has waited, is to go on with the device, of which this was
    /// kept, and whose requests in flight are to be executed again so.
    TakeOver(Kept, Replay),
}

impl News {
    /// Says that it is no business of the device that hears it.
    pub fn pass_over(&self) {
        static STRANGE: Rarely = Rarely::new();
        if matches!(self, Self::Alone) {
            return;
        }
        if let Some(times) = STRANGE.again() {
            log::warn!("the supervisor says what does not concern this device: {self:?}{times}");
        }
    }

    /// # Errors
    /// Says what is wrong with the message.
    fn of(message: ToBackend, fds: Vec<OwnedFd>) -> Result<Self, String> {
        let mut fds = fds.into_iter();
        match (message, fds.next(), fds.next()) {
            (ToBackend::Link { link }, None, _) => Ok(Self::Link(link)),
            (ToBackend::Resize { size }, None, _) => Ok(Self::Resize(size)),
            (ToBackend::Retry, None, _) => Ok(Self::Retry),
            (ToBackend::TakeOver { kept, replay }, None, _) => Ok(Self::TakeOver(kept, replay)),
            (ToBackend::Peer, Some(socket), None) => {
                let is_stream = getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream);
                let peer = UnixStream::from(socket);
                match is_stream && peer.peer_addr().is_ok() {
                    true => Ok(Self::Peer(peer)),
                    false => Err("it sends a peer that is no connected stream socket".into()),
                }
            }
            (ToBackend::Start { .. }, ..) => Err("it says `start` twice".into()),
            _ => Err("it sends a message with too many descriptors, or too few".into()),
        }
    }
}

/// See the module. The default is alone from the start: a device that is tested.
#[derive(Debug, Default)]
pub struct Supervisor {
    channel: Option<Channel>,
    is_alone: AtomicBool,
    /// Another process serves the device.
    waits: AtomicBool,
    kept: Kept,
    link: Link,
    replay: Replay,
    /// What a successor has been told to know.
    told: Mutex<Kept>,
}

/// Whether this process was started with a line to a supervisor.
pub fn is_there() -> bool {
    env::var_os(LINE_ENV).is_some()
}

/// The line that this process was started with, if it was. To be called before
/// anything else opens descriptors ([`inherited::take`]).
///
/// # Errors
/// The environment names no open descriptor.
pub fn inherited() -> anyhow::Result<Option<OwnedFd>> {
    named(LINE_ENV)
}

/// The description of its image that this process was given for itself, if it has a
/// line and was. To be called before anything else opens descriptors.
///
/// # Errors
/// The environment names no open descriptor.
pub fn own_image() -> anyhow::Result<Option<OwnedFd>> {
    match is_there() {
        true => named(IMAGE_ENV),
        false => Ok(None),
    }
}

fn named(variable: &str) -> anyhow::Result<Option<OwnedFd>> {
    let Some(text) = env::var_os(variable) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    let number = number.with_context(|| format!("{variable} is {text:?}, and no descriptor"))?;
    let taken = inherited::take(number).with_context(|| format!("{variable}={number}"))?;
    Ok(Some(taken))
}

impl Supervisor {
    /// Hears the first message on `line`, before `deadline`.
    ///
    /// # Errors
    /// It does not come, or is another one, or of a version that is not known.
    pub fn meet(line: OwnedFd, deadline: Deadline) -> anyhow::Result<Self> {
        let channel = Channel::new(line);
        let heard = channel.recv::<serde_json::Value>(deadline);
        let heard = heard.context("the supervisor does not say `start` (see OUTBOARD_LINE)")?;
        let (message, fds) = heard.context("the supervisor has closed the line before `start`")?;
        let version = message.get("version").and_then(serde_json::Value::as_u64);
        if let Some(version) = version.filter(|version| *version != u64::from(VERSION)) {
            bail!(
                "the supervisor keeps version {version} of the launch contract, but this program \
                 knows only version {VERSION}: use programs of the same release"
            );
        }
        let ToBackend::Start {
            kept,
            link,
            replay,
            waits,
            ..
        } = serde_json::from_value(message).context("the supervisor's first message")?
        else {
            bail!("the supervisor's first message is not `start`");
        };
        ensure!(
            fds.is_empty(),
            "the supervisor sends descriptors with `start`"
        );
        Ok(Self {
            channel: Some(channel),
            is_alone: AtomicBool::new(false),
            waits: AtomicBool::new(waits),
            told: Mutex::new(kept.clone()),
            kept,
            link,
            replay,
        })
    }

    /// What a predecessor has left, to be restored before the first ring.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// What the interface behind a card was at the start.
    pub fn link(&self) -> Link {
        self.link
    }

    /// How requests that a predecessor had taken are to be executed again.
    pub fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Says that whoever connects will be served; the first word, and once. `kept`
    /// is what a device begins with, `counters` its page of counters.
    pub fn ready(&self, kept: Kept, counters: Option<BorrowedFd<'_>>) {
        *self.told() = kept;
        let sandbox = Default::default();
        let ready = FromBackend::Ready {
            version: VERSION,
            sandbox,
            release: outboard_version::VERSION.to_owned(),
            waits: self.waits(),
        };
        self.tell(&ready, counters);
    }

    /// Whether another process serves the device, until this one is told to take over.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// It has taken over, and has restored what was `kept`.
    pub fn has_taken_over(&self, kept: Kept) {
        *self.told() = kept;
        self.waits.store(false, Ordering::Release);
    }

    /// Says what a successor must know, unless it was said last. To be called before
    /// the driver is answered whose command or request has changed it; of two that
    /// call it at once, neither is answered before what is true has been said.
    pub fn keeps(&self, kept: impl FnOnce() -> Kept) {
        let mut told = self.told();
        if self.channel().is_none() || self.waits() {
            return;
        }
        let kept = kept();
        if *told != kept && self.tell(&FromBackend::Keeps { kept: kept.clone() }, None) {
            *told = kept;
        }
    }

    /// Says this; it can be read, whatever becomes of this process, when this returns.
    pub(crate) fn says(&self, message: &FromBackend) {
        self.tell(message, None);
    }

    /// Says that a card is without its peer, and wants another.
    pub fn wants_peer(&self) {
        self.tell(&FromBackend::WantsPeer, None);
    }

    /// Says that a request of this queue has failed and is held back until
    /// [`News::Retry`] comes, or [`News::Alone`]. Whether that was said: if not, it is
    /// not to be held back.
    pub fn io_error(&self, queue: u16, text: &str) -> bool {
        let text = bounded(text);
        self.tell(&FromBackend::IoError { queue, text }, None)
    }

    /// Says that a disk has so many bytes, and that no request beyond them is in flight any
    /// more: the answer to [`News::Resize`].
    pub fn resized(&self, size: u64) {
        self.tell(&FromBackend::Resized { size }, None);
    }

    /// Says that this request, of which that can be said, is ended in an error as ordered.
    pub(crate) fn refused(&self, request: InFlight, text: &str) {
        let InFlight {
            queue,
            head,
            counter,
        } = request;
        self.says(&FromBackend::Refused {
            queue,
            head,
            counter,
            text: bounded(text),
        });
    }

    /// Readable when there is something to [`Self::hear`]; `None`: never again.
    pub fn channel(&self) -> Option<&Channel> {
        let talks = !self.is_alone.load(Ordering::Acquire);
        self.channel.as_ref().filter(|_| talks)
    }

    /// The next thing that has been said, if there is any.
    pub fn hear(&self) -> Option<News> {
        let channel = self.channel()?;
        let heard = match channel.recv::<ToBackend>(Deadline::after(Duration::ZERO)) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return None,
            Err(error) => Err(format!("it is not understood: {error}")),
            Ok(None) => {
                self.closed();
                return Some(News::Alone);
            }
            Ok(Some((message, fds))) => News::of(message, fds),
        };
        if let Err(why) = &heard {
            self.is_alone.store(true, Ordering::Release);
            log::warn!("the supervisor is not heard any more: {why}; this device goes on alone");
        }
        Some(heard.unwrap_or(News::Alone))
    }

    /// Whether it was said.
    fn tell(&self, message: &FromBackend, fd: Option<BorrowedFd<'_>>) -> bool {
        let Some(channel) = self.channel() else {
            return false;
        };
        let Err(error) = channel.send(message, fd.as_slice(), Deadline::after(limits::MESSAGE))
        else {
            return true;
        };
        static UNREAD: Rarely = Rarely::new();
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.closed();
        } else if let Some(times) = UNREAD.again() {
            log::warn!("cannot tell the supervisor what it must know: {error}{times}");
        }
        false
    }

    fn closed(&self) {
        if !self.is_alone.swap(true, Ordering::AcqRel) {
            log::info!("the supervisor has closed the line: this device goes on alone");
        }
    }

    fn told(&self) -> MutexGuard<'_, Kept> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As much of a text as a message has room for.
fn bounded(text: &str) -> String {
    let most = text.floor_char_boundary(LONGEST_TEXT);
    text.get(..most).unwrap_or_default().to_owned()
}
