//! `gso`: checks the guest's frames that are to be cut, with what their header says about it, and answers
//! each with one of the same kind.

use crate::lengths::{OWN, Quiet, send, sender};
use crate::options::{Options, Outcome};
use crate::raw::Raw;
use guest_logic::datagram::{Body, FROM_GUEST, FROM_HOST, SEGMENTS_STREAM};
use guest_logic::packet::{End, Offload};
use guest_logic::segment::Segment;
use std::collections::BTreeSet;
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Counts {
    sizes: BTreeSet<u16>,
    v4: u64,
    v6: u64,
    ecn: u64,
    bytes: u64,
    longest: usize,
    wrong: u64,
}

fn check(segment: &Segment, offload: &Offload, data: &[u8]) -> Result<(), String> {
    let kind = if segment.v6 {
        Offload::TCPV6
    } else {
        Offload::TCPV4
    };
    let ecn = if segment.ecn { Offload::ECN } else { 0 };
    if offload.gso_type != kind | ecn || offload.gso_size != segment.gso_size {
        return Err(format!("{offload:?} for {segment:?}"));
    }
    if data.len() != segment.total as usize || segment.offset != 0 {
        return Err(format!("{} bytes of {segment:?}", data.len()));
    }
    let body = Body::new(SEGMENTS_STREAM + FROM_GUEST, u64::from(segment.number));
    match body.first_wrong(data, 0) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} of {segment:?}")),
    }
}

/// `gso`
pub fn run(options: &Options) -> Outcome {
    let mut raw = Raw::open(options.needed("tap")?, true)?;
    let mut quiet = Quiet::new(options)?;
    let mut counts = Counts::default();
    let mut answer = Vec::new();
    println!("PEER ready");
    while !quiet.is_over() {
        let Some((offload, frame)) = raw.receive(LOOK)? else {
            continue;
        };
        let outcome = match Segment::parse(frame, &offload) {
            Ok(None) => continue,
            Ok(Some((segment, data))) => {
                check(&segment, &offload, data).map(|()| (segment, data.len()))
            }
            Err(wrong) => Err(wrong.to_owned()),
        };
        quiet.note();
        let (segment, length) = match outcome {
            Ok(good) => good,
            Err(wrong) => {
                counts.wrong += 1;
                if counts.wrong < 5 {
                    eprintln!("wrong: {wrong}, frame of {}, {offload:?}", frame.len());
                }
                continue;
            }
        };
        counts.sizes.insert(segment.gso_size);
        *(if segment.v6 {
            &mut counts.v6
        } else {
            &mut counts.v4
        }) += 1;
        counts.ecn += u64::from(segment.ecn);
        counts.bytes += length as u64;
        counts.longest = counts.longest.max(frame.len());
        let (from, to) = ends(frame);
        let headers = segment.headers();
        let segment = Segment {
            total: segment.answer_total(),
            ..segment
        };
        answer.resize(headers + segment.total as usize, 0);
        let body = Body::new(SEGMENTS_STREAM + FROM_HOST, u64::from(segment.number));
        body.fill(&mut answer[headers..], 0);
        let offload = segment.write(&mut answer, &from, &to);
        send(&raw, &offload, &answer, &quiet)?;
    }
    let line = format!(
        "sizes={} v4={} v6={} ecn={} bytes={} longest={} wrong={}",
        counts.sizes.len(),
        counts.v4,
        counts.v6,
        counts.ecn,
        counts.bytes,
        counts.longest,
        counts.wrong
    );
    match (counts.sizes.len(), counts.wrong) {
        (0, _) => Err(format!("reason=no-frames {line}")),
        (_, 0) => Ok(line),
        _ => Err(format!("reason=wrong-data {line}")),
    }
}

fn ends(frame: &[u8]) -> (End, End) {
    let from = End {
        mac: OWN,
        ip: [10, 0, 2, 254],
        port: 0,
    };
    let to = End {
        mac: sender(frame),
        ip: [10, 0, 2, 2],
        port: 0,
    };
    (from, to)
}
