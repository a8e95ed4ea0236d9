//! Whole VMs, tested from outside.
