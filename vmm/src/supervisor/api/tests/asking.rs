//! One client: what it sends, in whatever pieces, and what it is told.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use outboard_protocol::deadline::limits;
use serde_json::{Value, json};

use super::super::conversation::Conversation;
use super::super::http::{MOST_BODY, MOST_HEAD, Request, Response};
use super::{Call, Client, Served, reply};

const MOMENT: Duration = Duration::from_millis(1);

#[test]
fn everything_is_answered_as_it_is_described() {
    let mut served = Served::new();
    assert_eq!(served.get("/api/v1/vm")["name"], "web");
    assert_eq!(served.get("/api/v1/devices")[1]["id"], "disk1");
    assert_eq!(served.get("/api/v1/devices/disk1")["restarts"], 3);
    let explained = served.get("/api/v1/devices/disk0/explain");
    assert_eq!(explained["recovery"]["exact"], true);
    assert_eq!(served.get("/api/v1/openapi.json")["openapi"], "3.1.0");
    for path in ["/api/v1/vm/shutdown", "/api/v1/devices/disk0/restart"] {
        assert_eq!(served.asks("PUT", path), Value::Null);
    }
    assert_eq!(served.asks("PUT", "/api/v1/vm/pause")["error"], "not yet");
    assert_eq!(served.asks("PUT", "/api/v1/vm/resume")["error"], "it runs");
    let restart = Call::Restart("disk0".into());
    assert!(served.calls.contains(&restart) && served.calls.contains(&Call::Shutdown));
}

#[test]
fn the_metrics_are_as_prometheus_reads_them() {
    let (status, text) = Served::new().ask("GET /metrics HTTP/1.1\r\n\r\n");
    assert_eq!(status, 200);
    for line in [
        "outboard_vm_info{name=\"web\",version=\"0\"} 1",
        "outboard_vm_running 1",
        "outboard_vm_uptime_seconds 2.5",
        "outboard_vm_memory_bytes 1073741824.0",
        "# TYPE outboard_device_restarts counter",
        "outboard_device_up{device=\"disk0\",kind=\"blk\"} 1",
        "outboard_device_restarts_total{device=\"disk1\"} 3",
        "outboard_device_last_outage_seconds{device=\"disk0\"} 0.0015",
        "outboard_queue_requests_total{device=\"disk0\",queue=\"0\"} 12",
        "outboard_queue_latency_seconds_total{device=\"disk0\",queue=\"0\"} 2.0",
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\n{text}");
    }
    // What is not counted is not said to be 0.
    assert!(!text.contains("queue=\"1\"") && !text.contains("queue_read_bytes_total{"));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_there_is_not_is_told_with_what_there_is() {
    let mut served = Served::new();
    for (request, status, words) in [
        ("GET /api/v2/vm", 404, "GET /api/v1/openapi.json tells what"),
        ("GET /api/v1/devices/", 404, "there is no /api/v1/devices/"),
        (
            "GET /api/v1/devices/x",
            404,
            "no device `x`; there are: disk0, disk1",
        ),
        (
            "PUT /api/v1/devices/x/restart",
            404,
            "there are: disk0, disk1",
        ),
        (
            "GET /api/v1/devices/x/explain",
            404,
            "there are: disk0, disk1",
        ),
        ("DELETE /api/v1/vm", 405, "/api/v1/vm takes GET, not DELETE"),
        ("GET /api/v1/vm/pause", 405, "takes PUT, not GET"),
    ] {
        let (found, body) = served.ask(&format!("{request} HTTP/1.1\r\n\r\n"));
        let error: Value = serde_json::from_str(&body).unwrap();
        let error = error["error"].as_str().unwrap();
        assert!(error.contains(words), "{request}: {error}");
        assert_eq!(found, status, "{request}");
    }
    let mut client = served.connect();
    client.say("DELETE /api/v1/vm HTTP/1.1\r\n\r\n");
    served.turn();
    served.turn();
    client.listen();
    let text = String::from_utf8(client.heard.clone()).unwrap();
    assert!(text.contains("\r\nAllow: GET\r\n"), "{text}");
}

#[test]
fn a_body_is_an_empty_object_and_an_error_has_its_place() {
    let mut served = Served::new();
    let mut put = |body: &str| {
        let length = body.len();
        let head = "PUT /api/v1/vm/shutdown HTTP/1.1\r\nContent-Length:";
        served.ask(&format!("{head} {length}\r\n\r\n{body}"))
    };
    for right in ["", "{}", " { } "] {
        assert_eq!(put(right), (204, String::new()), "{right}");
    }
    for (wrong, words) in [
        ("{\n \"now\": 1}", "unknown field `now`"),
        ("{\n \"now\": 1}", "at line 2 column 6"),
        ("{\"a", "at line 1 column 3"),
        ("[[[[", "at line 1 column"),
        ("\u{0}", "at line 1 column 1"),
    ] {
        let (status, text) = put(wrong);
        assert_eq!(status, 400, "{wrong}");
        assert!(text.contains(words), "{wrong}: {text}");
    }
}

/// Two requests in a row, cut into three pieces in every way, and byte by byte.
#[test]
fn a_request_may_come_in_any_pieces() {
    let text = "PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET /b HTTP/1.1\r\nX: y\r\n\r\n";
    let now = Instant::now();
    let read = |pieces: &[&str]| {
        let mut conversation = Conversation::new(now);
        let (mut requests, mut waiting) = (Vec::new(), String::new());
        for piece in pieces {
            waiting += piece;
            while conversation.reads() && !waiting.is_empty() {
                conversation.hear(std::mem::take(&mut waiting).as_bytes(), now);
                while let Some(request) = conversation.request() {
                    requests.push(request);
                    conversation.reply(&Response::done(), now);
                    let count = conversation.outgoing().len();
                    conversation.sent(count, now);
                }
            }
        }
        requests
    };
    let expected = [("PUT", "/a", "{}"), ("GET", "/b", "")].map(|(method, path, body)| Request {
        method: method.into(),
        path: path.into(),
        body: body.into(),
        keep: true,
    });
    for first in 0..=text.len() {
        for second in first..=text.len() {
            let pieces = [&text[..first], &text[first..second], &text[second..]];
            assert_eq!(read(&pieces), expected, "{pieces:?}");
        }
    }
    let bytes: Vec<_> = (0..text.len()).map(|at| &text[at..=at]).collect();
    assert_eq!(read(&bytes), expected);
}

#[test]
fn requests_in_a_row_are_answered_one_after_the_other() {
    let mut served = Served::new();
    let mut client = served.connect();
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\n\r\n");
    client.say(&(one("/api/v1/vm") + &one("/x") + &one("/api/v1/devices/disk1")));
    // The VM is asked once, and the client waits.
    let first = served.api.attend(served.now);
    assert_eq!(first.len(), 1);
    assert!(served.api.attend(served.now).is_empty());
    served.answer(first[0].0, first[0].1.clone());
    let statuses = [(); 3].map(|()| served.response(&mut client).0);
    assert_eq!(statuses, [200, 404, 200]);
    assert!(!client.listen());
}

#[test]
fn a_connection_is_kept_unless_somebody_wants_it_closed() {
    for (request, kept) in [
        ("GET /x HTTP/1.1\r\n\r\n", true),
        ("GET /x HTTP/1.0\r\n\r\n", false),
        ("GET /x HTTP/1.1\r\nConnection: close\r\n\r\n", false),
        ("GET /x HTTP/1.1\r\nconnection: TE, Close\r\n\r\n", false),
    ] {
        let mut served = Served::new();
        let mut client = served.connect();
        client.say(request);
        assert_eq!(served.response(&mut client).0, 404);
        served.turn();
        assert_eq!(!client.listen(), kept, "{request}");
    }
}

#[test]
fn half_a_request_and_silence_is_told_and_cut_off() {
    for half in [
        "G",
        "GET /api/v1/vm HTTP/1.1\r\n",
        "PUT /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    ] {
        let mut served = Served::new();
        let mut client = served.connect();
        client.say(half);
        served.turn();
        assert_eq!(served.api.due(), Some(served.now + limits::MESSAGE));
        served.now += limits::MESSAGE - MOMENT;
        served.turn();
        assert!(!client.listen() && client.heard.is_empty());
        served.now += MOMENT;
        let (status, text) = served.response(&mut client);
        assert!(
            status == 408 && text.contains("not complete within 10 s"),
            "{text}"
        );
        // It may still be sending, for a while.
        client.say("more");
        served.now += limits::LAG;
        served.turn();
        assert!(served.api.connections.is_empty());
        assert!(served.calls.is_empty());
    }
}

#[test]
fn silence_alone_is_cut_off_without_a_word() {
    let mut served = Served::new();
    let mut client = served.connect();
    served.turn();
    served.now += limits::MESSAGE;
    served.turn();
    assert!(client.listen() && client.heard.is_empty());
    assert_eq!(served.api.due(), None);
}

#[test]
fn an_answer_that_nobody_takes_is_given_up() {
    let mut served = Served::new();
    let mut client = served.connect();
    let one = "GET /api/v1/openapi.json HTTP/1.1\r\n\r\n";
    client.say(&one.repeat(100));
    for _ in 0..100 {
        served.turn();
    }
    assert_eq!(served.api.connections.len(), 1);
    served.now += limits::MESSAGE;
    served.turn();
    assert!(served.api.connections.is_empty());
}

#[test]
fn what_is_too_large_or_no_request_is_refused_with_the_reason() {
    let put = |fields: &str| format!("PUT /api/v1/vm/shutdown HTTP/1.1\r\n{fields}\r\n\r\n");
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MOST_HEAD));
    let fields = "a: b\r\n".repeat(65);
    let too_large = format!("Content-Length: {}", MOST_BODY + 1);
    for (request, status, words) in [
        (long, 431, "at most 8192 bytes"),
        (put(fields.trim_end()), 431, "at most 64 header fields"),
        (put(&too_large), 413, "at most 65536 bytes"),
        (
            put("Content-Length: 99999999999999999999999"),
            413,
            "at most",
        ),
        (put("Content-Length: -1"), 400, "a decimal number"),
        (
            put("Content-Length: 1\r\nContent-Length: 2"),
            400,
            "contradict",
        ),
        (put("Transfer-Encoding: chunked"), 411, "send it whole"),
        (put("Expect: miracles"), 417, "100-continue"),
        ("\u{1b}[2J\r\n\r\n".into(), 400, "no HTTP/1.1 request"),
        ("GET /x HTTP/2.0\r\n\r\n".into(), 400, "no HTTP/1.1 request"),
        ("GET /x\r\n\r\n".into(), 400, "no HTTP/1.1 request"),
    ] {
        let mut served = Served::new();
        let (found, text) = served.ask(&request);
        assert_eq!(found, status, "{request}: {text}");
        assert!(text.contains(words), "{text}");
        assert!(served.calls.is_empty());
    }
}

/// As large as it may be, and not JSON.
#[test]
fn the_largest_body_is_read() {
    let (head, body) = ("PUT /api/v1/vm/pause HTTP/1.1\r\n", "x".repeat(MOST_BODY));
    let request = format!("{head}Content-Length: {MOST_BODY}\r\n\r\n{body}");
    let (status, text) = Served::new().ask(&request);
    assert!(
        status == 400 && text.contains("at line 1 column 1"),
        "{text}"
    );
}

#[test]
fn a_client_that_asks_before_it_sends_its_body_is_told_to_go_on_once() {
    let mut served = Served::new();
    let mut client = served.connect();
    let put = "PUT /api/v1/vm/shutdown HTTP/1.1\r\n";
    client.say(&format!(
        "{put}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    ));
    for _ in 0..3 {
        served.turn();
    }
    client.listen();
    assert_eq!(client.heard, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.heard.clear();
    client.say("{");
    served.turn();
    client.say("}");
    assert_eq!(served.response(&mut client).0, 204);
}

#[test]
fn a_client_that_sends_no_more_is_answered_and_one_that_has_gone_is_forgotten() {
    let mut served = Served::new();
    let ask = |client: &mut Client| client.say("GET /api/v1/vm HTTP/1.1\r\n\r\n");
    let mut half = served.connect();
    ask(&mut half);
    half.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(served.response(&mut half).0, 200);

    let mut gone = served.connect();
    ask(&mut gone);
    let calls = served.api.attend(served.now);
    drop((gone, half));
    served.turn();
    assert!(served.api.connections.is_empty());
    for (ticket, call) in calls {
        served.api.answer(ticket, reply(call), served.now);
    }
    assert_eq!(served.get("/api/v1/vm")["pid"], json!(1));
}
