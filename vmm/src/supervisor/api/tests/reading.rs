//! The event stream: who reads it, fast, slowly or not at all.

use serde_json::Value;

use super::super::model::{DeviceState, Event};
use super::super::openapi;
use super::super::stream::{ROOM, Stream};
use super::{Client, Served, device, schema};

impl Served {
    fn reader(&mut self) -> Client {
        let mut client = self.connect();
        client.say("GET /api/v1/events HTTP/1.1\r\n\r\n");
        self.turn();
        client
    }
}

impl Client {
    /// The lines that have come; each is as it is described.
    fn events(&mut self) -> Vec<Value> {
        self.listen();
        let text = String::from_utf8(std::mem::take(&mut self.heard)).unwrap();
        let lines = match text.split_once("\r\n\r\n") {
            Some((_, lines)) => lines,
            None => &text,
        };
        assert!(lines.is_empty() || lines.ends_with('\n'), "{lines}");
        let root = openapi::description();
        let lines = lines.lines().map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            let event = serde_json::json!({ "$ref": "#/components/schemas/Event" });
            schema::validate(&root, &event, &value).unwrap();
            serde_json::from_str::<Event>(line).unwrap();
            value
        });
        lines.collect()
    }
}

#[test]
fn a_stream_begins_with_where_everything_is_and_goes_on_with_each_change() {
    let mut served = Served::new();
    served.api.tell(device(DeviceState::Restarting), served.now);
    let mut reader = served.reader();
    served.turn();
    let told = reader.events();
    let words = |of: &Value| (of["event"].clone(), of["state"].clone());
    let expected = [("vm", "running"), ("device", "restarting")];
    let expected = expected.map(|(event, state)| (event.into(), state.into()));
    assert_eq!(told.iter().map(words).collect::<Vec<_>>(), expected);
    assert_eq!(told[1]["device"], "disk0");
    served.api.tell(device(DeviceState::Running), served.now);
    served.turn();
    let told = reader.events();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["state"], "running");
    drop(reader);
    served.turn();
    assert!(served.api.connections.is_empty());
}

#[test]
fn a_reader_that_never_reads_is_cut_off_and_told_so_and_nobody_else_is() {
    let mut served = Served::new();
    let (mut idle, mut busy) = (served.reader(), served.reader());
    let (mut count, mut heard) = (0, 0);
    while served.api.connections.len() == 2 {
        served.api.tell(device(DeviceState::Restarting), served.now);
        served.turn();
        count += 1;
        heard += busy.events().len();
        assert!(count < 100_000);
    }
    served.turn();
    served.turn();
    heard += busy.events().len();
    assert_eq!(heard, count + 2, "with the two that a stream begins with");
    let told = idle.events();
    assert!(idle.listen(), "it has ended");
    let (last, rest) = told.split_last().unwrap();
    assert_eq!(last["event"], "cut_off");
    assert!(last["reason"].as_str().unwrap().contains("too slow"));
    assert!(rest.iter().all(|event| event["event"] != "cut_off"));
    assert!(rest.len() > 10 && rest.len() < count, "{}", rest.len());
}

/// Whatever part of a line was sent when there is no more room.
#[test]
fn a_line_that_was_begun_is_finished_before_the_last() {
    let (beginning, last) = ("HTTP/1.1 200 OK\r\n\r\nfirst\n", "LAST\n");
    for sent in 0..60 {
        let mut stream = Stream::new(beginning.into());
        stream.tell(b"second\n", last.as_bytes());
        stream.tell(b"third, which is longer\n", last.as_bytes());
        let mut all = stream.outgoing().to_vec();
        all.truncate(sent);
        stream.sent(sent);
        while !stream.is_cut() {
            stream.tell(&[b'x'; ROOM / 2], last.as_bytes());
        }
        all.extend(stream.outgoing());
        let text = String::from_utf8(all).unwrap();
        let lines = text.strip_prefix(beginning).unwrap();
        let whole = ["", "second\n", "second\nthird, which is longer\n"];
        assert!(
            whole.iter().any(|whole| lines == whole.to_string() + last),
            "{lines:?}"
        );
    }
}
