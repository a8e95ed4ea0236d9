//! The inflight region (vhost-user, "Inflight I/O tracking").
