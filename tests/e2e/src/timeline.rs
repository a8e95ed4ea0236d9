//! Who said what to whom, and when, while a VM lived: strace(1) sees every message
//! that a process of Outboard's sends, and this reads what it wrote.
//!
//! A process is known by the program that it executed; a message by its content:
//! JSON between the supervisor and another, vhost-user between the machine and a
//! back-end. Answers of vhost-user are left out, since each follows its request.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Display};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::vm::Run;

/// The words before a command that has its messages written to `file`.
pub fn traced(run: Run, file: &Path) -> Run {
    let calls = "trace=execve,execveat,clone,clone3,fork,vfork,sendmsg";
    let file = file.display().to_string();
    run.under(&[
        "strace",
        "-f",
        "-ttt",
        "-xx",
        "-s",
        "65536",
        "-e",
        calls,
        "-e",
        "signal=none",
        "-o",
        &file,
    ])
}

/// A process of Outboard's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// `outboard run`.
    Supervisor,
    /// `outboard machine`.
    Machine,
    /// A program that serves a device.
    BackEnd,
}

impl Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Supervisor => "supervisor",
            Self::Machine => "machine",
            Self::BackEnd => "back-end",
        })
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// One process has said this to another.
    Said(Who, Who, String),
    /// A process has become its program.
    Began(Who),
    /// A process has ended.
    Ended(Who),
    /// Something outside has happened.
    Outside(String),
}

/// What happened at a time, in seconds since 1970.
#[derive(Clone, Debug)]
pub struct Event {
    at: f64,
    what: What,
}

impl Event {
    /// Something outside happens now.
    pub fn now(what: &str) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            at: at.unwrap_or_default().as_secs_f64(),
            what: What::Outside(what.into()),
        }
    }
}

/// A VM's life.
#[derive(Debug)]
pub struct Timeline(Vec<Event>);

impl Timeline {
    /// Reads what strace has written, and adds what happened `outside`.
    ///
    /// # Errors
    /// It cannot be read, or says nothing.
    pub fn read(file: &Path, outside: Vec<Event>) -> Result<Self> {
        let text = fs::read_to_string(file)?;
        let mut reader = Reader::default();
        // What strace is still writing of the last line is not looked at.
        let whole = text.rfind('\n').and_then(|end| text.get(..end));
        for line in whole.unwrap_or_default().lines() {
            reader
                .line(line)
                .with_context(|| format!("what strace wrote: {line:.200}"))?;
        }
        let mut events = reader.events;
        if events.is_empty() {
            bail!("strace has seen nothing:\n{text:.1000}");
        }
        events.extend(outside);
        events.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(Self(events))
    }

    /// What one said to another, in order: of the same again and again one, and of the
    /// messages of several rings those of one.
    pub fn said(&self, from: Who, to: Who) -> Vec<String> {
        let said = self.0.iter().filter_map(|event| match &event.what {
            What::Said(a, b, text) if (*a, *b) == (from, to) => Some(text.clone()),
            _ => None,
        });
        let mut said: Vec<_> = said.collect();
        distinct(&mut said);
        said
    }

    /// The same, read from a timeline that was written ([`Display`]).
    pub fn said_in(written: &str, from: Who, to: Who) -> Vec<String> {
        let between = format!("{from} → {to}");
        let (mut said, mut is_meant) = (Vec::new(), false);
        for line in written.lines() {
            let text = match line.split_at_checked(BEFORE) {
                Some((before, text)) if before.trim().is_empty() => text,
                _ => {
                    is_meant = line.contains(&between);
                    line.split(&between).nth(1).unwrap_or_default()
                }
            };
            let words = split(text.trim().trim_end_matches(','));
            said.extend(is_meant.then_some(words).into_iter().flatten());
        }
        distinct(&mut said);
        said
    }
}

/// Leaves of the same message again and again one, and of the messages of several
/// rings those of one.
fn distinct<T: AsRef<str> + Clone + PartialEq>(said: &mut Vec<T>) {
    let mut of_rings: Vec<T> = Vec::new();
    said.retain(|message| {
        if !message.as_ref().contains("_VRING_") {
            of_rings.clear();
            return true;
        }
        let is_new = !of_rings.contains(message);
        of_rings.push(message.clone());
        is_new
    });
    said.dedup();
}

/// Columns before what was said.
const BEFORE: usize = 32;

/// At each comma that is not in brackets.
fn split(text: &str) -> Vec<String> {
    let mut depth = 0;
    let parts = text.split(|character| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        character == ',' && depth == 0
    });
    parts
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect()
}

/// A row for a person: when, in milliseconds since the first event, who to whom, what.
struct Row<'a> {
    at: f64,
    between: String,
    said: Vec<&'a str>,
}

impl<'a> Row<'a> {
    fn of(event: &'a Event) -> Self {
        let (between, text) = match &event.what {
            What::Said(from, to, text) => (format!("{from} → {to}"), text.as_str()),
            What::Began(who) => (who.to_string(), "(begins)"),
            What::Ended(who) => (who.to_string(), "(has ended)"),
            What::Outside(text) => (String::new(), text.as_str()),
        };
        Self {
            at: event.at,
            between,
            said: vec![text],
        }
    }
}

/// What one says to the same one, with nothing between, is one row.
impl Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<Row<'_>> = Vec::new();
        for event in &self.0 {
            let next = Row::of(event);
            match rows.last_mut() {
                Some(row) if row.between == next.between => row.said.extend(next.said),
                _ => rows.push(next),
            }
        }
        let begin = rows.first().map_or(0.0, |row| row.at);
        for mut row in rows {
            distinct(&mut row.said);
            let mut before = format!("{:7.1}  {:<23}", (row.at - begin) * 1000.0, row.between);
            let mut line = String::new();
            for text in row.said {
                if !line.is_empty() && line.len() + text.len() > 78 {
                    writeln!(f, "{before}{line},")?;
                    before = " ".repeat(BEFORE);
                    line.clear();
                }
                let comma = if line.is_empty() { "" } else { ", " };
                line = format!("{line}{comma}{text}");
            }
            writeln!(f, "{before}{line}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Reader {
    /// Whose thread it is.
    threads: HashMap<String, Process>,
    /// Those that are making a thread, not a process.
    making_threads: HashSet<String>,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
struct Process {
    who: Option<Who>,
    /// The thread that strace saw first of it, by whose end it ends.
    main: String,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<()> {
        let parts = line.split_once(' ');
        let parts =
            parts.and_then(|(thread, rest)| Some((thread, rest.trim_start().split_once(' ')?)));
        let Some((thread, (at, call))) = parts else {
            return Ok(());
        };
        let at: f64 = at.parse().context("no time")?;
        let call = call.trim_start();
        if call.starts_with("execve") {
            let words: Vec<_> = strings(call)?;
            let who = who(&words);
            let main = thread.to_owned();
            self.threads.insert(main.clone(), Process { who, main });
            self.push(at, who.map(What::Began));
        } else if call.contains("clone") || call.contains("fork") {
            // In two lines, if another thread was seen meanwhile: the flags are in the
            // first, the child in the second.
            if call.contains("CLONE_THREAD") {
                self.making_threads.insert(thread.to_owned());
            }
            if !call.ends_with("<unfinished ...>") {
                let child = call.rsplit(" = ").next().unwrap_or_default().trim();
                self.child(thread, child);
            }
        } else if let Some(call) = call.strip_prefix("sendmsg(") {
            let bytes = call.split("iov_base=").nth(1).context("no bytes")?;
            let bytes = hex(bytes)?;
            let from = self.threads.get(thread).and_then(|process| process.who);
            let said = from.and_then(|from| said(from, &bytes));
            self.push(at, said);
        } else if call.starts_with("+++") {
            let ended = self.threads.remove(thread);
            let ended = ended.filter(|process| process.main == thread);
            let who = ended.and_then(|process| process.who);
            self.push(at, who.map(What::Ended));
        }
        Ok(())
    }

    fn child(&mut self, parent: &str, child: &str) {
        let is_thread = self.making_threads.remove(parent);
        let Some(mut process) = self.threads.get(parent).cloned() else {
            return;
        };
        if !is_thread {
            process.main = child.to_owned();
        }
        // It may have executed its program before this line was written.
        self.threads.entry(child.to_owned()).or_insert(process);
    }

    fn push(&mut self, at: f64, what: Option<What>) {
        self.events.extend(what.map(|what| Event { at, what }));
    }
}

/// Which process executes this: its name, and its arguments.
fn who(words: &[Vec<u8>]) -> Option<Who> {
    // The first is the path, which may be a descriptor's.
    let name = words.get(1)?;
    let name = name.rsplit(|byte| *byte == b'/').next()?;
    match (name, words.get(2).map(Vec::as_slice)) {
        (b"outboard", Some(b"run")) => Some(Who::Supervisor),
        (b"outboard", Some(b"machine")) => Some(Who::Machine),
        (name, _) if name.starts_with(b"outboard-") => Some(Who::BackEnd),
        _ => None,
    }
}

/// What a message says, and to whom.
fn said(from: Who, bytes: &[u8]) -> Option<What> {
    if bytes.first() == Some(&b'{') {
        let text = String::from_utf8_lossy(bytes);
        let word = |key: &str| {
            let value = text.split(&format!("\"{key}\":")).nth(1)?;
            let end = value.find([',', '}']).unwrap_or(value.len());
            value
                .get(..end)
                .map(|value| value.trim_matches('"').to_owned())
        };
        let message = word("message")?;
        // Told whenever it changes, beside all else.
        if message == "agreed" {
            return None;
        }
        let to = match (from, message.as_str()) {
            (Who::Supervisor, "start") if text.contains("\"machine\":") => Who::Machine,
            (Who::Supervisor, "attach" | "vacant" | "stop") => Who::Machine,
            (Who::Supervisor, _) => Who::BackEnd,
            (Who::Machine | Who::BackEnd, _) => Who::Supervisor,
        };
        let more = ["session", "link", "cause", "how"].map(word);
        let more: Vec<_> = more.into_iter().flatten().collect();
        let text = match more.is_empty() {
            true => message,
            false => format!("{message}({})", more.join(", ")),
        };
        return Some(What::Said(from, to, text));
    }
    let number = |at: usize| {
        bytes
            .get(at..)?
            .first_chunk()
            .map(|four| u32::from_le_bytes(*four))
    };
    const ANSWER: u32 = 4;
    let (request, flags) = (number(0)?, number(4)?);
    match from {
        Who::Machine => Some(What::Said(from, Who::BackEnd, front_end(request)?.into())),
        // On a channel of its own: a change of the configuration.
        Who::BackEnd if flags & ANSWER == 0 => {
            let name = if request == 2 {
                "CONFIG_CHANGE_MSG"
            } else {
                "another request"
            };
            Some(What::Said(from, Who::Machine, name.into()))
        }
        _ => None,
    }
}

/// A front-end's request by its number (vhost-user, "Front-end message types").
fn front_end(request: u32) -> Option<&'static str> {
    const NAMES: [&str; 41] = [
        "",
        "GET_FEATURES",
        "SET_FEATURES",
        "SET_OWNER",
        "RESET_OWNER",
        "SET_MEM_TABLE",
        "SET_LOG_BASE",
        "SET_LOG_FD",
        "SET_VRING_NUM",
        "SET_VRING_ADDR",
        "SET_VRING_BASE",
        "GET_VRING_BASE",
        "SET_VRING_KICK",
        "SET_VRING_CALL",
        "SET_VRING_ERR",
        "GET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES",
        "GET_QUEUE_NUM",
        "SET_VRING_ENABLE",
        "SEND_RARP",
        "NET_SET_MTU",
        "SET_BACKEND_REQ_FD",
        "IOTLB_MSG",
        "SET_VRING_ENDIAN",
        "GET_CONFIG",
        "SET_CONFIG",
        "CREATE_CRYPTO_SESSION",
        "CLOSE_CRYPTO_SESSION",
        "POSTCOPY_ADVISE",
        "POSTCOPY_LISTEN",
        "POSTCOPY_END",
        "GET_INFLIGHT_FD",
        "SET_INFLIGHT_FD",
        "GPU_SET_SOCKET",
        "RESET_DEVICE",
        "VRING_KICK",
        "GET_MAX_MEM_SLOTS",
        "ADD_MEM_REG",
        "REM_MEM_REG",
        "SET_STATUS",
        "GET_STATUS",
    ];
    NAMES.get(request as usize).copied()
}

/// Every string of a call's arguments.
fn strings(call: &str) -> Result<Vec<Vec<u8>>> {
    let quoted = call.split('"').skip(1).step_by(2);
    quoted.map(|text| hex(&format!("\"{text}\""))).collect()
}

/// The bytes of the string that begins here, as `-xx` writes them.
fn hex(quoted: &str) -> Result<Vec<u8>> {
    let text = quoted.split('"').nth(1).context("no string")?;
    let digits = text.split("\\x").skip(1);
    let bytes = digits.map(|digits| u8::from_str_radix(digits, 16));
    bytes
        .collect::<Result<_, _>>()
        .context("no hexadecimal digits")
}
