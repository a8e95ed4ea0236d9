//! `echo`: sends every datagram to port 7 back, until "stop" on port 9.

use crate::options::{Options, Outcome};
use crate::udp;
use guest_logic::datagram::{CONTROL_PORT, ECHO_PORT};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(100);

/// `echo`
pub fn run(options: &Options) -> Outcome {
    let deadline = options.deadline()?;
    let echo = udp::open(options.bind()?, ECHO_PORT, LOOK)?;
    let control = udp::open(options.bind()?, CONTROL_PORT, LOOK)?;
    let stop = AtomicBool::new(false);
    let (echoed, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    println!("PEER ready");
    let words = || {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!("echoed={} bytes={}", count(&echoed), count(&bytes))
    };
    thread::scope(|scope| {
        let listener = scope.spawn(|| -> Result<(), String> {
            let mut buffer = [0; 2048];
            while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
                if let Some((length, from)) = udp::receive(&control, &mut buffer)?
                    && buffer[..length].starts_with(b"stop")
                {
                    let _ = control.send_to(words().as_bytes(), from);
                    stop.store(true, Ordering::Relaxed);
                }
            }
            stop.store(true, Ordering::Relaxed);
            Ok(())
        });
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Relaxed) {
            let Some((length, from)) = udp::receive(&echo, &mut buffer)? else {
                continue;
            };
            if echo.send_to(&buffer[..length], from).is_ok() {
                echoed.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
        listener.join().map_err(|_| "reason=panic".to_owned())?
    })?;
    Ok(words())
}
