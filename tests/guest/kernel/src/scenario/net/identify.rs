//! `scenario=net-identify`: one line for each network device; `link=up`, `link=down` or a list of these waits
//! until the chosen one's link is so, and says that it is.

use super::super::{Machine, Outcome, options};
use crate::net::{self, Net};
use crate::platform::clock;
use crate::say;
use alloc::string::String;

fn describe(net: &Net, mask: u64) -> String {
    let says = &net.configuration;
    let [a, b, c, d, e, f] = says.mac;
    alloc::format!(
        "slot={} mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu={} link={} pairs={} queues={} features={:#x} \
         agreed={:#x}",
        net.transport.function.slot,
        says.mtu,
        if says.link { "up" } else { "down" },
        says.pairs,
        net.transport.queues(),
        net.transport.offered() & mask,
        net.features
    )
}

/// Prints what there is.
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    let mask = options::number(words, "features_mask", u64::MAX)?;
    let mut count = 0;
    for transport in machine.devices()?.iter().filter(|d| d.kind == net::KIND) {
        let net = Net::open(transport, mask)?;
        say!("net {}", describe(&net, mask));
        transport.reset()?;
        count += 1;
    }
    let mut run = super::Run::open(machine, 1, 0)?;
    for wanted in words
        .get("link")
        .into_iter()
        .flat_map(|list| list.split(','))
    {
        let up = match wanted {
            "up" => true,
            "down" => false,
            other => return Err(alloc::format!("reason=bad-value key=link value={other}")),
        };
        wait_for_link(&mut run.net, up, run.patience.limit)?;
        say!("link {wanted}");
    }
    Ok(alloc::format!(
        "devices={count} {}",
        describe(&run.net, mask)
    ))
}

fn wait_for_link(net: &mut Net, up: bool, limit: u64) -> Result<(), String> {
    let begin = clock::now();
    loop {
        net.refresh()?;
        if net.configuration.link == up {
            return Ok(());
        }
        if clock::now().wrapping_sub(begin) > limit {
            return Err(alloc::format!(
                "reason=link link={} wanted={}",
                u8::from(!up),
                u8::from(up)
            ));
        }
        let pause = clock::now();
        while clock::now().wrapping_sub(pause) < 20 * clock::kilohertz() {
            core::hint::spin_loop();
        }
    }
}
