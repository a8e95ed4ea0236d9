//! The storm of swaps: what was done, what is wrong, and how long nobody served the disk
//! while it went from one back-end to another.

use std::collections::BTreeMap;

use anyhow::Result;
use outboard_contract::program::in_path;
use outboard_e2e::storm::Shape;
use outboard_e2e::storm::daemon::PROGRAM;
use outboard_e2e::storm::swaps::{self, Gap, Plan};

use super::{Sum, distribution};
use crate::Products;
use crate::spread::Spread;

/// Runs so many swaps of a disk like that of the shape, prints what became of them, and
/// fails when anything is wrong.
pub fn run(products: &Products, swaps: u32, shape: &Shape) -> Result<()> {
    let mut plan = Plan::new(swaps, shape.seed);
    plan.shape = plan.shape.disk(&shape.disk).guest(&shape.guest);
    plan.shape.folder.clone_from(&shape.folder);
    plan.shape.within = shape.within;
    plan.foreign = in_path(PROGRAM).is_ok();
    let Plan { shape, foreign, .. } = &plan;
    let among = match foreign {
        true => "outboard-blk and qemu-storage-daemon",
        false => "outboard-blk alone (there is no qemu-storage-daemon)",
    };
    println!("{swaps} swaps among {among}, seed {}", shape.seed);
    println!(
        "the image in {}, --disk path=…,queues=2{}, guest:{}",
        shape.folder.display(),
        shape.disk,
        shape.guest
    );
    let programs = products.for_a_storm();
    let (mut sum, mut steps, mut gaps) = (Sum::default(), BTreeMap::new(), Vec::new());
    for vm in plan.vms() {
        let (outcome, done) = swaps::run(&programs, &vm)?;
        for (step, count) in done.steps {
            *steps.entry(step).or_default() += count;
        }
        gaps.extend(done.gaps);
        sum.add(outcome)?;
    }
    print(&sum, &steps, &gaps);
    sum.is_right()
}

fn print(sum: &Sum, steps: &BTreeMap<String, u32>, gaps: &[Gap]) {
    let (vms, requests, checked) = (sum.vms, sum.requests, sum.checked);
    println!("{vms} VMs: requests {requests}, blocks looked at {checked}");
    for (step, count) in steps {
        println!("  {count:5} {step}");
    }
    sum.print_wrong();
    if gaps.is_empty() {
        return;
    }
    println!(
        "gaps of the {} swaps under a guest that ran, ms:",
        gaps.len()
    );
    let print = |name: &str, part: fn(&Gap) -> u64| {
        let millis = gaps.iter().map(|gap| part(gap) as f64 / 1e3);
        let spread = distribution(&Spread::new(millis.collect()));
        println!("  {name:6} {spread}");
    };
    print("all", |gap| gap.total);
    print("stop", |gap| gap.stop);
    print("drain", |gap| gap.drain);
    print("rest", |gap| gap.rest);
    print("start", |gap| gap.start);
}
