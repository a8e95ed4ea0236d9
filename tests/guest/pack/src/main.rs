//! Packs the guest's ELF file for the three ways to boot it: with its PVH note, without it (64-bit entry
//! after the Linux boot protocol), and as a bzImage.

mod bzimage;
mod elf;

use std::path::Path;
use std::process::ExitCode;

fn pack(input: &Path, output: &Path) -> Result<(), String> {
    let file = std::fs::read(input)
        .map_err(|error| format!("cannot read {}: {error}", input.display()))?;
    let image = elf::image(&file)?;
    write(output, "guest-pvh", &file)?;
    write(
        output,
        "guest-elf64",
        &elf::without_note(&file, image.address + bzimage::ENTRY64)?,
    )?;
    write(output, "guest.bzimage", &bzimage::pack(&image)?)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), String> {
    let path = folder.join(name);
    std::fs::write(&path, bytes)
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        eprintln!("usage: guest-pack ELF OUTDIR");
        return ExitCode::from(2);
    };
    match pack(Path::new(input), Path::new(output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("guest-pack: {message}");
            ExitCode::FAILURE
        }
    }
}
