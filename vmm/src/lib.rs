//! Outboard.
pub mod machine;
pub mod supervisor;
