//! A socket whose last close(2) waits for an hour.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::Linger};

/// What comes of it when it is handed over, which waits for nobody.
pub(crate) fn handed_over<T: Send + 'static>(
    to: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 1 << 16]).is_ok() {}
    let hour = nix::libc::linger {
        l_onoff: 1,
        l_linger: 3600,
    };
    setsockopt(&socket, Linger, &hour).unwrap();
    let (done, is_done) = channel();
    thread::spawn(move || done.send(to(socket)));
    let limit = Duration::from_secs(60);
    is_done.recv_timeout(limit).expect("it is held up")
}
