//! The parent.
