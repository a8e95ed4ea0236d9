//! What is true of every back-end program on this runtime and stands below the
//! options in its `--help`, and in its man page, which is made of that.

/// How such a program ends.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  the front-end has gone (with --fd), or SIGTERM or SIGINT ended it
  1  it could not start or go on; the message says why
  2  the command line is wrong, or names no socket, or names two";

/// What such a program reads of its environment.
pub const ENVIRONMENT: &str = "\
Environment:
  RUST_LOG
      What is logged on standard error, such as `debug` or `warn`, where neither
      --log-level nor -v is given
  LISTEN_PID, LISTEN_FDS
      Set by a service manager that passes the socket to serve; then neither
      --socket-path nor --fd is given (sd_listen_fds(3))
  OUTBOARD_LAUNCH
      Set by `outboard run`: the oldest version of its launch contract that a
      program may know; one that does not know it refuses to start
  OUTBOARD_LINE
      Set by `outboard run`: the descriptor of the line to it; without one, a
      child of this process does what `outboard run` does for others
  OUTBOARD_LABEL
      Set by `outboard run`: the VM and the device, for the beginning of each
      line that is logged";

/// What stands below the options: the program's examples, and the rest.
pub fn after_help(examples: &str) -> String {
    format!("{examples}\n\n{EXIT_CODES}\n\n{ENVIRONMENT}")
}
