//! Cases whose request is unsound, or only unusual (BAD-INPUTS D).

use super::build::{buffer, chain, data, header, status, transfer};
use crate::blk::kind;
use crate::scenario::rings::Bench;
use alloc::string::String;

pub fn header_split(bench: &mut Bench) -> Result<(), String> {
    let address = bench.header().address();
    let (first, second) = (buffer(address, 7, false), buffer(address + 7, 9, false));
    chain(
        bench,
        kind::READ,
        &[first, second, data(bench, 512, true), status(bench)],
    )
}

pub fn many_pieces(bench: &mut Bench) -> Result<(), String> {
    let mut buffers = alloc::vec![header(bench)];
    buffers.extend((0..64).map(|piece| buffer(bench.data().address() + piece * 8, 8, true)));
    buffers.push(status(bench));
    chain(bench, kind::READ, &buffers)
}

pub fn segment(
    bench: &mut Bench,
    kind: u32,
    sector: u64,
    sectors: u32,
    flags: u32,
) -> Result<(), String> {
    let data_page = bench.data();
    data_page.write(0, sector);
    data_page.write(8, sectors);
    data_page.write(12, flags);
    transfer(bench, kind, 0, 16)
}

/// A failed read must not leave bytes in the guest's buffer that it never asked for: what a past-the-end
/// read leaves there is either what was there or zero.
pub fn nothing_leaks(bench: &mut Bench) -> Result<(), String> {
    let layout = bench.ring;
    bench.start(&layout, 0)?;
    let before: u64 = bench.data().read(0);
    transfer(bench, kind::READ, bench.capacity, 4096)?;
    bench.answered(1);
    for at in (0..4096).step_by(8) {
        let found: u64 = bench.data().read(at);
        if found != before && found != 0 {
            return Err(alloc::format!("reason=leak offset={at} found={found:#x}"));
        }
    }
    Ok(())
}
