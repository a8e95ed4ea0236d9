//! The devices of a VM, each kind in a file: from what was written of one to its
//! plan ([`plan::Plan`]).
//!
//! A new kind is a file here with its [`DeviceOption`], a line in [`plans`], and a
//! list in [`Settings`].

pub(crate) mod blk;
pub(crate) mod net;
pub(crate) mod other;
pub(crate) mod plan;
pub(crate) mod rng;
mod swap;

use std::mem::take;

use crate::supervisor::text::settings::Settings;
use plan::{DeviceOption, Plan};

/// The plans of all devices, in the order of their slots, taken out of the
/// settings of a VM with so many CPUs.
///
/// # Errors
/// A message that names the device and the key and says what would be right.
pub(crate) fn plans(settings: &mut Settings, cpus: u64) -> Result<Vec<Plan>, String> {
    let mut plans = Vec::new();
    add(take(&mut settings.disk), cpus, &mut plans)?;
    add(take(&mut settings.net), cpus, &mut plans)?;
    add(take(&mut settings.rng), cpus, &mut plans)?;
    add(take(&mut settings.device), cpus, &mut plans)?;
    Ok(plans)
}

fn add<O: DeviceOption>(written: Vec<O>, cpus: u64, plans: &mut Vec<Plan>) -> Result<(), String> {
    let option = O::OPTION;
    for (index, device) in written.into_iter().enumerate() {
        let named = device.id().map(str::to_owned);
        let id = named.unwrap_or_else(|| format!("{option}{index}"));
        let plan = device.plan(id.clone(), cpus);
        plans.push(plan.map_err(|error| format!("--{option} {id}: {error}"))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::supervisor::text::options;

    /// The keys of an option, as it tells who has none of them.
    fn keys<O: DeserializeOwned>() -> Vec<String> {
        let error = options::read::<O>("-").map(drop).unwrap_err();
        let (_, known) = error.split_once("known are ").unwrap();
        let (known, _) = known.split_once(" (").unwrap();
        known.split(", ").map(str::to_owned).collect()
    }

    /// What stands between backquotes, in words.
    fn code(help: &str) -> BTreeSet<&str> {
        let quoted = help.split('`').skip(1).step_by(2);
        let in_key = |letter: char| letter.is_ascii_lowercase() || letter == '-';
        quoted
            .flat_map(|code| code.split(move |letter| !in_key(letter)))
            .collect()
    }

    fn its_help_has_every_key<O: DeviceOption + DeserializeOwned>() {
        let known = code(O::HELP);
        for key in keys::<O>() {
            assert!(known.contains(key.as_str()), "--{}: {key}", O::OPTION);
        }
    }

    #[test]
    fn the_help_of_an_option_has_every_key() {
        its_help_has_every_key::<blk::DiskSettings>();
        its_help_has_every_key::<net::NetSettings>();
        its_help_has_every_key::<rng::RngSettings>();
        its_help_has_every_key::<other::OtherSettings>();
        assert_eq!(keys::<rng::RngSettings>().len(), 9);
    }

    /// A back-end that somebody else runs is asked for these, and decides the rest.
    const WITH_A_SOCKET: &[&str] = &[
        "socket",
        "wait",
        "queues",
        "queue-size",
        "hang-timeout",
        "on-failure",
        "id",
    ];

    fn the_rest_is_refused_with_a_socket<O: DeviceOption + DeserializeOwned>() {
        for key in keys::<O>() {
            if WITH_A_SOCKET.contains(&key.as_str()) {
                continue;
            }
            // Whatever its type.
            let values = ["on", "1", "raw", "report", "native"];
            let given = values.map(|value| format!("socket=s,{key}={value}"));
            let device = given.iter().find_map(|text| options::read::<O>(text).ok());
            let error = device.unwrap().plan("x".into(), 1).unwrap_err();
            let words = format!("`{key}` and `socket` exclude each other");
            assert!(error.starts_with(&words), "--{}: {error}", O::OPTION);
        }
    }

    #[test]
    fn what_a_back_end_decides_is_refused_with_its_socket() {
        the_rest_is_refused_with_a_socket::<blk::DiskSettings>();
        the_rest_is_refused_with_a_socket::<net::NetSettings>();
        the_rest_is_refused_with_a_socket::<rng::RngSettings>();
    }
}
