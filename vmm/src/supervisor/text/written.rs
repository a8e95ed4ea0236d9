//! A text that somebody has written to a file, or writes to a pipe.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::PollFlags;
use outboard_protocol::Deadline;

/// The most that is read, in bytes: far more than any VM needs.
const MOST: usize = 1 << 20;

/// Reads what is at `path` to its end: a file, or a pipe such as /dev/stdin,
/// whose writer has `wait` to be there and to finish.
///
/// # Errors
/// Those of open(2) and read(2); `TimedOut`, `FileTooLarge` and `InvalidData`
/// say what was wrong and what to do.
pub(crate) fn read(path: &Path, wait: Duration) -> io::Result<String> {
    let deadline = Deadline::after(wait);
    let mut file = OpenOptions::new()
        .read(true)
        // To open a FIFO would wait otherwise, and a terminal become ours.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if deadline.passed() {
            return Err(unfinished(wait));
        }
        // A FIFO that nobody has opened yet is not ready, and would read as empty.
        let ready = deadline.wait_for(file.as_fd(), PollFlags::POLLIN);
        let count = match ready.and_then(|()| file.read(&mut piece)) {
            Ok(count) => count,
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(error),
        };
        match piece.get(..count) {
            Some([]) | None => break,
            Some(read) => bytes.extend_from_slice(read),
        }
        if bytes.len() > MOST {
            let text = format!("it has more than {MOST} bytes; give a configuration");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
    }
    String::from_utf8(bytes).map_err(|_| {
        let text = "it is not text in UTF-8";
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::TimedOut
    )
}

fn unfinished(wait: Duration) -> io::Error {
    let text = format!(
        "nobody has written it to its end within {wait:?}; start its writer first, or give a file"
    );
    io::Error::new(io::ErrorKind::TimedOut, text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use nix::sys::stat::Mode;
    use nix::unistd::{mkfifo, pipe};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_file_is_read_whole_and_so_is_a_pipe_whose_writer_is_slow() {
        let text = "x = 1\n".repeat(10_000);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        assert_eq!(read(file.path(), SHORT).unwrap(), text);
        let (reader, writer) = pipe().unwrap();
        let mut writer = std::fs::File::from(writer);
        let sent = text.clone();
        let writing = std::thread::spawn(move || {
            for line in sent.split_inclusive('\n') {
                writer.write_all(line.as_bytes()).unwrap();
            }
        });
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        assert_eq!(read(path.as_ref(), LONG).unwrap(), text);
        writing.join().unwrap();
    }

    #[test]
    fn who_does_not_write_or_does_not_end_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let error = read(&path, SHORT).unwrap_err();
        assert!(
            error.to_string().contains("start its writer first"),
            "{error}"
        );
        let writer = OpenOptions::new().read(true).write(true).open(&path);
        writer.unwrap().write_all(b"a").unwrap();
        let _writer = OpenOptions::new().read(true).write(true).open(&path);
        assert_eq!(
            read(&path, SHORT).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        let error = read(Path::new("/dev/zero"), LONG).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
