//! Cases whose ring is unsound (BAD-INPUTS C).

use super::build::{buffer, chain, data, free_sector, header, link, status, transfer};
use crate::blk::kind;
use crate::platform::clock;
use crate::platform::phys::Span;
use crate::scenario::rings::Bench;
use crate::virtio::ring::{Ring, flag};
use crate::virtio::transport::common;
use alloc::string::String;

pub fn read_to(bench: &mut Bench, address: u64, length: u32) -> Result<(), String> {
    // From memory to the disk: a device that believed in it would not overwrite this guest.
    chain(
        bench,
        kind::WRITE,
        &[header(bench), buffer(address, length, false), status(bench)],
    )
}

pub fn nothing_at_bad_address(bench: &mut Bench) -> Result<(), String> {
    chain(
        bench,
        kind::READ,
        &[
            header(bench),
            buffer(bench.hole, 0, true),
            data(bench, 512, true),
            status(bench),
        ],
    )
}

pub fn looped(bench: &mut Bench, members: u16, length: u32) -> Result<(), String> {
    for index in 0..members {
        let next = (index + 1) % members;
        bench.describe(
            index,
            buffer(bench.header().address(), length, false),
            flag::NEXT,
            next,
        );
    }
    bench.offer(0);
    bench.ring_with(0);
    Ok(())
}

pub fn next_is(bench: &mut Bench, next: u16) -> Result<(), String> {
    bench.describe(0, header(bench), flag::NEXT, next);
    bench.offer(0);
    bench.ring_with(0);
    Ok(())
}

pub fn head_is(bench: &mut Bench, head: u16) -> Result<(), String> {
    bench.offer(head);
    bench.ring_with(0);
    Ok(())
}

pub fn lengths_past_4_gib(bench: &mut Bench) -> Result<(), String> {
    let whole = buffer(bench.data().address(), u32::MAX, false);
    chain(
        bench,
        kind::WRITE,
        &[header(bench), whole, whole, whole, status(bench)],
    )
}

pub fn index_jumps(bench: &mut Bench, by: u16) -> Result<(), String> {
    bench.ask(kind::READ, free_sector(bench));
    link(
        bench,
        &[header(bench), data(bench, 512, true), status(bench)],
    );
    bench.offer(0);
    bench.ring_with(by);
    Ok(())
}

pub fn index_goes_back(bench: &mut Bench) -> Result<(), String> {
    transfer(bench, kind::READ, free_sector(bench), 512)?;
    bench.answered(1);
    bench.ring_with(1u16.wrapping_neg());
    bench.ring_with(2u16.wrapping_neg());
    // There is an answer already, and another thing to come.
    bench.broken();
    Ok(())
}

pub fn same_head_twice(bench: &mut Bench) -> Result<(), String> {
    bench.ask(kind::READ, free_sector(bench));
    link(
        bench,
        &[header(bench), data(bench, 4096, true), status(bench)],
    );
    for _ in 0..8 {
        bench.offer(0);
    }
    bench.ring_with(0);
    Ok(())
}

// The header and the descriptors change while the device looks at them.
pub fn changing_request(bench: &mut Bench) -> Result<(), String> {
    let (good, bad) = (data(bench, 512, true), buffer(bench.hole, u32::MAX, true));
    for round in 1..=200u16 {
        bench.ask(kind::READ, free_sector(bench));
        link(bench, &[header(bench), good, status(bench)]);
        bench.offer(0);
        bench.ring_with(0);
        let begin = clock::now();
        while bench.used() != round
            && clock::now().wrapping_sub(begin) < clock::microseconds(20_000)
        {
            bench.describe(1, bad, flag::NEXT, 0xffff);
            bench.header().write(0, 0xffff_ffffu32);
            bench.header().write(8, u64::MAX);
            bench.describe(1, good, flag::NEXT, 2);
            bench.ask(kind::READ, free_sector(bench));
        }
        if bench.used() != round {
            break;
        }
    }
    Ok(())
}

// Many times the ring's size, never looking at the used ring's entries.
pub fn endless(bench: &mut Bench) -> Result<(), String> {
    bench.ask(kind::READ, free_sector(bench));
    link(
        bench,
        &[header(bench), data(bench, 512, true), status(bench)],
    );
    for round in 1..=4 * bench.ring.size {
        bench.offer(0);
        bench.ring_with(0);
        if !bench.answered(round) {
            break;
        }
    }
    Ok(())
}

// The ring's registers change after it was enabled.
pub fn ring_changed(bench: &mut Bench, register: u64, value: u32) -> Result<(), String> {
    bench.device.common.write(common::QUEUE_SELECT, 0u16);
    if register == common::QUEUE_SIZE {
        bench.device.common.write(register, value as u16);
    } else {
        bench.device.common.write(register, value);
    }
    transfer(bench, kind::READ, free_sector(bench), 512)
}

pub fn ring_in_hole(bench: &mut Bench) -> Result<(), String> {
    let mut layout = bench.ring;
    // SAFETY: the span only serves to give its address to the device; nothing here touches it.
    layout.used = unsafe { Span::new(bench.hole, layout.used.length()) };
    let wanted = bench.features;
    bench.start(&layout, wanted)?;
    transfer(bench, kind::READ, free_sector(bench), 512)
}

pub fn indirect(bench: &mut Bench, length: u32, inner: u16, outer: u16) -> Result<(), String> {
    let table = bench.table();
    bench.ask(kind::READ, free_sector(bench));
    Ring::describe(&table, 0, &header(bench), flag::NEXT, 1);
    Ring::describe(&table, 1, &data(bench, 512, true), flag::NEXT | inner, 2);
    Ring::describe(&table, 2, &status(bench), 0, 0);
    bench.describe(0, buffer(table.address(), length, false), outer, 1);
    bench.describe(1, status(bench), 0, 0);
    bench.offer(0);
    bench.ring_with(0);
    Ok(())
}

pub fn indirect_loop(bench: &mut Bench) -> Result<(), String> {
    let table = bench.table();
    for index in 0..256 {
        Ring::describe(&table, index, &header(bench), flag::NEXT, (index + 1) % 256);
    }
    indirect_at(bench, table.address())
}

pub fn indirect_at(bench: &mut Bench, address: u64) -> Result<(), String> {
    bench.describe(0, buffer(address, 4096, false), flag::INDIRECT, 0);
    bench.offer(0);
    bench.ring_with(0);
    Ok(())
}
