//! `outboard`.

fn main() {}
