//! Build script of every back-end: what it runs of libc lies side by side.
//!
//! libc.a is 40% of a back-end's text, and little of it is ever run; but the kernel
//! maps 64 KiB and more around whatever is, so that all of it would be private memory
//! of the process.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let order = Path::new(env!("CARGO_MANIFEST_DIR")).join("../link/order");
    println!("cargo::rerun-if-changed=../link/build.rs");
    println!("cargo::rerun-if-changed={}", order.display());
    // Only rustc's own linker is known to take an order: others leave it as it is.
    let Some(linker) = rustc_linker() else { return };
    for argument in [
        "-fuse-ld=lld".to_owned(),
        format!("-B{}", linker.display()),
        format!("-Wl,--symbol-ordering-file={}", order.display()),
        "-Wl,--no-warn-symbol-ordering".to_owned(),
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}

/// The folder of the linker that comes with rustc, if one does.
fn rustc_linker() -> Option<PathBuf> {
    let mut rustc = Command::new(env::var_os("RUSTC")?);
    let printed = rustc.args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(printed.stdout).ok()?;
    let target = env::var("TARGET").ok()?;
    let folder = Path::new(sysroot.trim_end())
        .join("lib/rustlib")
        .join(target)
        .join("bin/gcc-ld");
    folder.join("ld.lld").exists().then_some(folder)
}
