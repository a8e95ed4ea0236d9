//! What a change must not make slower or larger, beside another build's programs.

use anyhow::{Result, ensure};
use clap::Args;

use crate::Products;
use crate::beside::{self, Figures, Table};
use crate::reads::Disk;
use crate::{doorbell, footprint, net, startup};

/// Beside what, and for how long.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    beside: beside::Options,
    /// Milliseconds of each run's load.
    #[arg(long, default_value_t = 700)]
    millis: u64,
}

/// Runs all rows, prints them, and fails when one did not run.
pub fn run(products: &Products, options: &Options) -> Result<()> {
    let Options { beside, millis } = options;
    let theirs = beside.against.join("outboard");
    ensure!(theirs.is_file(), "there is no {}", theirs.display());
    let other = products.beside(&beside.against);
    let millis = match beside.quick {
        true => 100,
        false => (*millis).clamp(50, 60_000),
    };
    println!("median (p10–p90); of what is counted a second more is better, of all else less");
    let mut table = Table::new([products, &other], beside);
    table.row("start-up", &startup::Image::new(), |image, products| {
        let time = image.outboard(products)?;
        Ok(vec![("ms".into(), time.as_secs_f64() * 1e3)])
    });
    table.row("private memory", &Ok(()), |(), products| {
        let held = footprint::once(products, &footprint::BUSY)?;
        Ok(kib(held.into_iter()))
    });
    table.row("memory of 16 idle rings", &Ok(()), |(), products| {
        let held = footprint::once(products, &footprint::IDLE)?.into_iter();
        Ok(kib(held.filter(|(role, _)| role == "outboard-blk")))
    });
    reads(&mut table, millis);
    table.row("doorbell and interrupt", &Ok(()), |(), products| {
        let time = doorbell::round_trip(products, millis)?;
        Ok(vec![("µs".into(), time)])
    });
    // Last, as this process leaves the machine's network for it.
    frames(&mut table, millis);
    table.finish()
}

/// Of each process its private memory.
fn kib(held: impl Iterator<Item = (String, u64)>) -> Figures {
    held.map(|(role, size)| (format!("{role} KiB"), size as f64))
        .collect()
}

/// A disk's rows.
fn reads(table: &mut Table<Products>, millis: u64) {
    type Make = fn() -> Result<Disk>;
    let disks: [(&str, Make); 3] = [
        ("null", Disk::null),
        ("tmpfs", Disk::tmpfs),
        ("cached file", Disk::cached),
    ];
    for (name, make) in disks {
        let disk = make();
        for depth in [1, 32] {
            table.row(
                &format!("{name}, depth {depth}"),
                &disk,
                |disk, products| {
                    let reads = disk.reads_a_second(products, depth, millis)?;
                    Ok(vec![("4 KiB reads/s".into(), reads)])
                },
            );
        }
    }
}

/// A card's rows.
fn frames(table: &mut Table<Products>, millis: u64) {
    let link = net::Link::new();
    for row in net::small_and_full_frames() {
        table.row(&row.name(), &link, |link, products| {
            let packets = net::packets_a_second(products, link, &row, millis)?;
            Ok(vec![("packets/s".into(), packets)])
        });
    }
}
