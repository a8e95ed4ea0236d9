//! What the API says, for people.

use outboard_log::line::OneLine;

use crate::supervisor::api::model::{
    Change, Device, Error, Event, Exactness, Explanation, GapTimes, QueueCounters, Served, Standby,
    SwapStep, Swapped, Vm,
};

/// A VM and its devices.
pub(super) fn vm(vm: &Vm) -> String {
    let name = vm
        .name
        .as_ref()
        .map_or(String::new(), |name| format!(" {name}"));
    let mut text = format!(
        "VM{name} is {}{}: {} CPUs, {} MiB, process {}, up for {}\n",
        vm.state,
        because(vm.reason.as_ref()),
        vm.vcpus,
        vm.memory >> 20,
        vm.pid,
        time(vm.uptime_ms),
    );
    if !vm.devices.is_empty() {
        text += "\n";
        text += &devices(&vm.devices);
    }
    for device in &vm.devices {
        let id = &device.id;
        let reasons = [("", &device.reason), ("last error: ", &device.last_error)];
        for (what, reason) in reasons {
            if let Some(reason) = reason {
                text += &format!("{id}: {what}{}\n", OneLine(reason));
            }
        }
        match device.standby {
            Standby::None => {}
            Standby::Starting => text += &format!("{id}: its standby is being started\n"),
            Standby::Ready => text += &format!("{id}: its standby is ready to take over\n"),
        }
        if let Some(last) = &device.last_refused {
            let count = device.refused_requests;
            text += &format!("{id}: requests refused: {count}, the last one {last}\n");
        }
    }
    text
}

fn devices(devices: &[Device]) -> String {
    let head = [
        "DEVICE", "KIND", "STATE", "PID", "PROGRAM", "QUEUES", "REQUESTS", "ERRORS", "CALLS",
        "RESTARTS", "OUTAGE",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for device in devices {
        let sum = |of: fn(&QueueCounters) -> Option<u64>| {
            let counts = device.counters.iter().filter_map(of);
            counts.reduce(u64::wrapping_add)
        };
        rows.push(vec![
            device.id.clone(),
            device.kind.clone(),
            device.state.to_string(),
            or_none(device.pid),
            OneLine(&device.program).to_string(),
            device.queues.to_string(),
            or_none(sum(|queue| queue.requests)),
            or_none(sum(|queue| queue.errors)),
            or_none(sum(|queue| queue.calls)),
            device.restarts.to_string(),
            device.last_outage_us.map_or("-".into(), milliseconds),
        ]);
    }
    table(&rows)
}

/// Rows of as many cells each, in columns.
fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Whether a device can be taken over exactly.
pub(super) fn explanation(explanation: &Explanation) -> String {
    let line = |what: &str, exactness: &Exactness| {
        let exact = if exactness.exact {
            "exact"
        } else {
            "not exact"
        };
        format!("  {what}: {exact}: {}\n", OneLine(&exactness.why))
    };
    let device = &explanation.device;
    let recovery = line("recovery", &explanation.recovery);
    format!("{device}\n{recovery}{}", line("swap", &explanation.swap))
}

/// A line of the event stream.
pub(super) fn event(event: &Event) -> String {
    let clock = clock(event.time_ms);
    let (subject, state, reason) = match &event.change {
        Change::Vm { state, reason } => ("VM", state.to_string(), reason.as_ref()),
        Change::Device {
            device,
            state,
            reason,
            ..
        } => (device.as_str(), state.to_string(), reason.as_ref()),
        Change::Refused { device, refused } => {
            return format!("{clock}  {device}  refused {refused}\n");
        }
        Change::Swapped {
            device,
            program,
            gap,
        } => {
            let gap = gap.map(|gap| format!(", not served for {}", milliseconds(gap.total_us)));
            let gap = gap.unwrap_or_default();
            return format!(
                "{clock}  {device}  served by {} now{gap}\n",
                OneLine(program)
            );
        }
        Change::CutOff { reason } => ("stream", "cut off".to_owned(), Some(reason)),
    };
    format!("{clock}  {subject}  {state}{}\n", because(reason))
}

/// A swap that was done, or tried.
pub(super) fn swapped(swapped: &Swapped) -> String {
    let Swapped {
        device,
        from,
        to,
        gap,
    } = swapped;
    let name = |served: &Served| match &served.version {
        Some(version) => format!("{} {}", OneLine(&served.program), OneLine(version)),
        None => OneLine(&served.program).to_string(),
    };
    let (from, to) = (name(from), name(to));
    match gap {
        Some(gap) => format!("{device}: {from} -> {to}, {}\n", times(gap)),
        None => format!("{device}: {from} -> {to}\n"),
    }
}

/// Why something was not done; of a swap, how far it had come.
pub(super) fn not_done(error: &Error) -> String {
    let Error { error, step, gap } = error;
    let step = match step {
        None => return error.clone(),
        Some(SwapStep::Prepare) => "while the successor was made ready",
        Some(SwapStep::Stop) => "while the back-end was stopped",
        Some(SwapStep::Start) => "while the successor was started",
    };
    let gap = gap.as_ref().map(times).unwrap_or_default();
    let comma = if gap.is_empty() { "" } else { ", " };
    format!("not done, {step}{comma}{gap}: {error}")
}

/// How long a device was not served.
pub(super) fn times(gap: &GapTimes) -> String {
    let parts = [
        ("stop", gap.stop_us),
        ("drain", gap.drain_us),
        ("rest", gap.rest_us),
        ("start", gap.start_us),
    ];
    let parts = parts.map(|(name, micros)| format!("{name} {}", milliseconds(micros)));
    let total = milliseconds(gap.total_us);
    format!("not served for {total} ({})", parts.join(", "))
}

/// A reason behind what it is the reason of.
pub(super) fn because(reason: Option<&String>) -> String {
    reason.map_or(String::new(), |reason| format!(" ({})", OneLine(reason)))
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

fn time(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// The time of day in Greenwich.
fn clock(millis: u64) -> String {
    let (seconds, rest) = (millis / 1000, millis % 1000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{rest:03}Z", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::api::model::DeviceState;
    use crate::supervisor::api::model::Refused;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_a_word() {
        let rows = [["A", "B", "C"], ["long", "", "x"], ["ä", "yy", "-"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "A     B   C\nlong      x\nä     yy  -\n");
    }

    #[test]
    fn times_are_as_people_say_them() {
        for (millis, text) in [
            (0, "0.0 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min 0 s"),
            (3_661_000, "1 h 1 min"),
        ] {
            assert_eq!(time(millis), text);
        }
        assert_eq!(clock(1_700_000_001_007), "22:13:21.007Z");
        assert_eq!(milliseconds(12_034), "12.034 ms");
    }

    #[test]
    fn what_was_refused_is_told_with_its_place_and_its_reason() {
        let refused = Refused {
            queue: 1,
            head: 3,
            request: "a write of 4096 bytes at sector 77".into(),
            deaths: 3,
        };
        let device = "disk0".into();
        let change = Change::Refused { device, refused };
        let expected = "00:00:00.000Z  disk0  refused a write of 4096 bytes at sector 77 (queue \
                        1, head 3): ended in an I/O error and not executed, since 3 back-ends had \
                        died of it\n";
        let event = Event { time_ms: 0, change };
        assert_eq!(super::event(&event), expected);
        let json = serde_json::to_string(&event).unwrap();
        let told = r#"{"time_ms":0,"event":"refused","device":"disk0","refused":{"queue":1,"head":3,"request":"a write of 4096 bytes at sector 77","deaths":3}}"#;
        assert_eq!(json, told);
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn what_a_back_end_says_moves_no_cursor() {
        let told = event(&Event {
            time_ms: 0,
            change: Change::Device {
                device: "disk0".into(),
                state: DeviceState::WaitingForIo,
                reason: Some("a\n\u{1b}[2J".into()),
                pid: None,
                restarts: 0,
            },
        });
        assert!(
            told.starts_with("00:00:00.000Z  disk0  waiting_for_io (a"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1);
        assert!(!told.contains('\u{1b}'));
    }
}
