//! Plain UDP sockets, and the control port.

use crate::options::{Options, Outcome};
use crate::raw;
use guest_logic::datagram::CONTROL_PORT;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How often a question is asked, for a minute, and the time between two.
const QUESTIONS: u32 = 400;
const ASK_AGAIN: Duration = Duration::from_millis(150);

/// A socket on this port that gives up waiting after `patience`.
pub fn open(bind: Ipv4Addr, port: u16, patience: Duration) -> Result<UdpSocket, String> {
    let fail = |error| format!("reason=bind address={bind}:{port} error=\"{error}\"");
    let socket = UdpSocket::bind((bind, port)).map_err(fail)?;
    socket.set_read_timeout(Some(patience)).map_err(fail)?;
    raw::enlarge(&socket)?;
    Ok(socket)
}

/// Waits for a datagram; `None` if none came in time.
pub fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> Result<Option<(usize, SocketAddr)>, String> {
    use std::io::ErrorKind::{ConnectionRefused, Interrupted, TimedOut, WouldBlock};
    match socket.recv_from(buffer) {
        Ok(got) => Ok(Some(got)),
        // Refused: what an earlier datagram met on the other side.
        Err(error)
            if matches!(
                error.kind(),
                ConnectionRefused | Interrupted | TimedOut | WouldBlock
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(format!("reason=receive error=\"{error}\"")),
    }
}

/// Says something to the control port until it is answered.
pub fn tell(options: &Options, text: &str) -> Result<Option<String>, String> {
    let to = options.address("to")?;
    let socket = open(options.bind()?, 0, ASK_AGAIN)?;
    let mut buffer = [0; 2048];
    for _ in 0..QUESTIONS {
        // What goes wrong here shows in the missing answer.
        let _ = socket.send_to(text.as_bytes(), (to, CONTROL_PORT));
        let end = Instant::now() + ASK_AGAIN;
        while Instant::now() < end {
            if let Some((length, _)) = receive(&socket, &mut buffer)? {
                return Ok(Some(
                    String::from_utf8_lossy(&buffer[..length]).into_owned(),
                ));
            }
        }
    }
    Ok(None)
}

/// `stop`: ends the guest's scenario and prints what it counted.
pub fn stop(options: &Options) -> Outcome {
    tell(options, "stop")?.ok_or_else(|| "reason=no-answer".to_owned())
}

/// The value of a word in what the guest says.
pub fn word(answer: &str, key: &str) -> Option<u64> {
    let mut words = answer.split_ascii_whitespace();
    words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}
