//! A running `outboard run`: its console, its processes, its end.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::processes::{self, MARK, Process};
use crate::products::Products;
use crate::{PATIENCE, eventually};

/// What to start.
#[derive(Clone, Debug)]
pub struct Run {
    program: PathBuf,
    args: Vec<OsString>,
}

impl Run {
    /// `outboard run` with the bundled guest and its command line.
    ///
    /// # Errors
    /// The products are missing.
    pub fn guest(cmdline: &str) -> Result<Self> {
        Self::packed("guest-pvh", cmdline)
    }

    /// The same, with one of the guest's packagings.
    ///
    /// # Errors
    /// The products are missing.
    pub fn packed(packaging: &str, cmdline: &str) -> Result<Self> {
        let kernel = Products::get()?.guest(packaging);
        let run = Self::plain()?.with("--kernel", kernel);
        Ok(run.with("--cmdline", cmdline))
    }

    /// `outboard run` and nothing more.
    ///
    /// # Errors
    /// The products are missing.
    pub fn plain() -> Result<Self> {
        Ok(Self {
            program: Products::get()?.program("outboard"),
            args: vec!["run".into()],
        })
    }

    /// A shell script, in whose environment the programs are in PATH.
    ///
    /// # Errors
    /// The products are missing.
    pub fn script(text: &str) -> Result<Self> {
        let programs = Products::get()?.program("");
        let text = format!("PATH={}:$PATH\n{text}", programs.display());
        Ok(Self {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), text.into()],
        })
    }

    /// Another program, such as another VMM.
    pub fn program(name: impl Into<PathBuf>) -> Self {
        Self {
            program: name.into(),
            args: Vec::new(),
        }
    }

    /// Adds an option with its value.
    pub fn with(mut self, option: &str, value: impl Into<OsString>) -> Self {
        self.args.extend([option.into(), value.into()]);
        self
    }

    /// Adds a switch.
    pub fn switch(mut self, option: &str) -> Self {
        self.args.push(option.into());
        self
    }

    /// The whole command, as words.
    pub fn words(&self) -> Vec<OsString> {
        let mut words = vec![self.program.clone().into_os_string()];
        words.extend(self.args.iter().cloned());
        words
    }

    /// The same, started by another program, whose words come first.
    pub fn under(self, words: &[&str]) -> Self {
        let mut all = words.iter().map(OsString::from).chain(self.words());
        Self {
            program: all.next().map(PathBuf::from).unwrap_or_default(),
            args: all.collect(),
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(self) -> Result<Vm> {
        Vm::start(self)
    }

    /// Starts it and waits for its end.
    ///
    /// # Errors
    /// It cannot be started, or does not end.
    pub fn to_the_end(self) -> Result<Ended> {
        self.start()?.wait()
    }
}

/// A running VM. Dropped, it is killed.
#[derive(Debug)]
pub struct Vm {
    supervisor: Child,
    mark: String,
    lines: Receiver<String>,
    heard: String,
    messages: Arc<Mutex<String>>,
    listener: Option<JoinHandle<()>>,
    memory: BTreeSet<u64>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The supervisor's status.
    pub status: ExitStatus,
    /// What came on standard output: the guest's console.
    pub console: String,
    /// What came on standard error.
    pub messages: String,
}

impl Vm {
    fn start(run: Run) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}.{number}", std::process::id());
        let mut supervisor = Command::new(&run.program)
            .args(&run.args)
            .env(MARK, &mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {run:?}"))?;
        let (sender, lines) = channel();
        let stdout = supervisor.stdout.take().context("no output")?;
        // It ends when the last process has closed its end.
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut stderr = supervisor.stderr.take().context("no error output")?;
        let messages = Arc::new(Mutex::new(String::new()));
        let heard = messages.clone();
        let listener = thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut piece) {
                let text = String::from_utf8_lossy(piece.get(..count).unwrap_or_default());
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.push_str(&text);
            }
        });
        Ok(Self {
            supervisor,
            mark,
            lines,
            heard: String::new(),
            messages,
            listener: Some(listener),
            memory: BTreeSet::new(),
        })
    }

    /// The supervisor.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.supervisor.id() as i32)
    }

    /// Whether the supervisor has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub fn is_over(&mut self) -> Result<bool> {
        Ok(self.supervisor.try_wait()?.is_some())
    }

    /// Everything said on standard error so far.
    pub fn messages(&self) -> String {
        let messages = self.messages.lock();
        messages.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a console line that contains `words`, as long as there are
    /// others, and answers it.
    ///
    /// # Errors
    /// It does not come, or the console ends first; with all that was said.
    pub fn console_line(&mut self, words: &str) -> Result<String> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.heard.push_str(&line);
                    self.heard.push('\n');
                    if line.contains(words) {
                        return Ok(line);
                    }
                }
                Err(why) => {
                    let why = match why {
                        RecvTimeoutError::Timeout => "in time",
                        RecvTimeoutError::Disconnected => "before the console's end",
                    };
                    bail!(
                        "the guest did not say {words:?} {why}; it said:\n{}\nmessages:\n{}",
                        self.heard,
                        self.messages()
                    );
                }
            }
        }
    }

    /// The processes of the VM as they are now, the supervisor among them.
    /// Notes the memory they hold, for [`Self::check_nothing_is_left`].
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn processes(&mut self) -> Result<Vec<Process>> {
        let found = processes::marked(&self.mark)?;
        for process in &found {
            self.memory.extend(processes::memfds(process.pid));
        }
        Ok(found)
    }

    /// Waits for the machine process, or a back-end's, and answers it.
    ///
    /// # Errors
    /// None comes up.
    pub fn process(&mut self, is: fn(&Process) -> bool) -> Result<Process> {
        eventually("the process is there", || {
            if self.supervisor.try_wait()?.is_some() {
                bail!("the run is over before; it said:\n{}", self.messages());
            }
            Ok(self.processes()?.into_iter().find(is))
        })
    }

    /// Sends the supervisor a signal.
    ///
    /// # Errors
    /// It has gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).context("the supervisor has gone")
    }

    /// Waits for the supervisor's end.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(&mut self) -> Result<Ended> {
        let status = match eventually("the run ends", || Ok(self.supervisor.try_wait()?)) {
            Ok(status) => status,
            Err(error) => {
                let processes = self.processes()?;
                return Err(anyhow!(
                    "{error}; it said:\n{}{}\nprocesses: {processes:?}",
                    self.heard,
                    self.messages()
                ));
            }
        };
        // The outputs end when the last process that could write has gone.
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.heard.push_str(&line);
            self.heard.push('\n');
        }
        if let Some(listener) = self.listener.take()
            && eventually("standard error ends", || {
                Ok(listener.is_finished().then_some(()))
            })
            .is_ok()
        {
            let _ = listener.join();
        }
        Ok(Ended {
            status,
            console: std::mem::take(&mut self.heard),
            messages: self.messages(),
        })
    }

    /// After the end: no process of the VM is there, and nobody holds memory
    /// of its guest that was seen by [`Self::processes`].
    ///
    /// # Errors
    /// Who is left, and with what.
    pub fn check_nothing_is_left(&self) -> Result<()> {
        let mut left = Vec::new();
        let gone = eventually("every process is gone", || {
            left = processes::marked(&self.mark)?;
            Ok(left.is_empty().then_some(()))
        });
        gone.with_context(|| format!("{left:?} is left"))?;
        let gone = eventually("guest memory is gone", || {
            left = processes::holders(&self.memory)?;
            Ok(left.is_empty().then_some(()))
        });
        gone.with_context(|| format!("guest memory is held by {left:?}"))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = eventually("the supervisor is gone", || {
            Ok(self.supervisor.try_wait()?)
        });
    }
}

impl Ended {
    /// Checks the supervisor's exit code.
    ///
    /// # Errors
    /// It is another; with all that was said.
    pub fn with_code(self, code: i32) -> Result<Self> {
        self.with_one_of(&[code])
    }

    /// Checks that the supervisor's exit code is one of several.
    ///
    /// # Errors
    /// It is none of them; with all that was said.
    pub fn with_one_of(self, codes: &[i32]) -> Result<Self> {
        match self.status.code() {
            Some(code) if codes.contains(&code) => Ok(self),
            _ => bail!("not status {codes:?} but {self}"),
        }
    }

    /// Checks that a signal ended the supervisor.
    ///
    /// # Errors
    /// None did, or another.
    pub fn by(self, signal: Signal) -> Result<Self> {
        match self.status.signal() {
            Some(number) if number == signal as i32 => Ok(self),
            _ => bail!("not killed by {signal} but {self}"),
        }
    }

    /// Checks that each of these was said on standard error.
    ///
    /// # Errors
    /// One was not.
    pub fn saying(self, texts: &[&str]) -> Result<Self> {
        match texts.iter().find(|text| !self.messages.contains(**text)) {
            None => Ok(self),
            Some(text) => bail!("no word of {text:?}: {self}"),
        }
    }

    /// The guest's result line for a scenario, as `key=value` words.
    ///
    /// # Errors
    /// There is none.
    pub fn result(&self, scenario: &str) -> Result<GuestResult> {
        let start = format!("OUTBOARD {scenario} ");
        let line = self.console.lines().find_map(|line| {
            let place = line.find(&start)?;
            line.get(place + start.len()..)
        });
        let line = line.with_context(|| format!("no result line of {scenario}: {self}"))?;
        Ok(GuestResult(line.to_owned()))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (status, console, messages) = (self.status, &self.console, &self.messages);
        write!(f, "{status}\nconsole:\n{console}\nmessages:\n{messages}")
    }
}

/// The words of a guest's result line.
#[derive(Clone, Debug)]
pub struct GuestResult(String);

impl GuestResult {
    /// Reads a line that ends with such words, after `start` and a name.
    ///
    /// # Errors
    /// It is another kind of line.
    pub fn from_line(line: &str, start: &str) -> Result<Self> {
        let words = line
            .strip_prefix(start)
            .filter(|words| words.contains(" result="));
        let words = words.with_context(|| format!("no result: {line:?}"))?;
        Ok(Self(words.trim_start().to_owned()))
    }

    /// Takes any line with such words.
    pub fn from_words(line: &str) -> Self {
        Self(line.to_owned())
    }

    /// The value of a word.
    ///
    /// # Errors
    /// There is none.
    pub fn word(&self, key: &str) -> Result<&str> {
        self.0
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .find_map(|(name, value)| (name == key).then_some(value))
            .with_context(|| format!("no {key}= in {:?}", self.0))
    }

    /// The value of a word that is a number, decimal or 0x….
    ///
    /// # Errors
    /// There is none.
    pub fn number(&self, key: &str) -> Result<u64> {
        let word = self.word(key)?;
        let number = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        number.with_context(|| format!("{key}={word}"))
    }

    /// Checks that the guest passed.
    ///
    /// # Errors
    /// It did not; the reason.
    pub fn passed(self) -> Result<Self> {
        match self.word("result")? {
            "pass" => Ok(self),
            _ => bail!("the guest failed: {}", self.0),
        }
    }
}
