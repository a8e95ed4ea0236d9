//! `outboard-blk`.

fn main() {}
