//! What the user wrote, as it was written: [`settings`] from the command line or
//! a file, [`options`] of the form `key=value,…`, and what was [`meant`] by a word
//! that is not known. Nothing is checked here beyond types.

pub(crate) mod meant;
pub(crate) mod options;
pub(crate) mod settings;
pub(crate) mod units;
pub(crate) mod written;
