//! Many clients at once.

use outboard_protocol::deadline::limits;

use super::super::{MOST, MOST_READERS};
use super::{Client, Served};
use crate::supervisor::host::descriptors;

#[test]
fn a_thousand_clients_are_all_answered() {
    descriptors::raise();
    let mut served = Served::new();
    let mut clients: Vec<_> = (0..1000).map(|_| served.connect()).collect();
    for client in &mut clients {
        client.say("GET /api/v1/vm HTTP/1.1\r\nConnection: close\r\n\r\n");
    }
    let mut answered = 0;
    // Each takes a turn to ask and one to be told, and so many go together.
    for _ in 0..(1000 / MOST + 1) * 4 {
        served.turn();
        assert!(served.api.connections.len() <= MOST);
        clients.retain_mut(|client: &mut Client| {
            client.listen();
            match client.response() {
                Some((status, _)) => {
                    assert_eq!(status, 200);
                    answered += 1;
                    false
                }
                None => true,
            }
        });
    }
    assert_eq!(answered, 1000);
}

#[test]
fn who_says_nothing_keeps_others_waiting_for_ten_seconds_at_most() {
    let mut served = Served::new();
    let silent: Vec<_> = (0..MOST).map(|_| served.connect()).collect();
    served.turn();
    let mut late = served.connect();
    late.say("GET /api/v1/vm HTTP/1.1\r\n\r\n");
    served.turn();
    assert_eq!(served.api.connections.len(), MOST);
    // Nobody is woken for the one who waits, until time has passed.
    assert_eq!(served.api.watched().count(), MOST);
    served.now += limits::MESSAGE;
    assert_eq!(served.response(&mut late).0, 200);
    drop(silent);
}

#[test]
fn readers_of_the_stream_leave_room_for_others() {
    let mut served = Served::new();
    let ask = "GET /api/v1/events HTTP/1.1\r\n\r\n";
    let mut readers = Vec::new();
    for _ in 0..MOST_READERS {
        let mut client = served.connect();
        client.say(ask);
        readers.push(client);
        served.turn();
    }
    let (status, text) = served.ask(ask);
    assert!(status == 503 && text.contains("32 clients read"), "{text}");
    assert_eq!(served.get("/api/v1/vm")["name"], "web");
    readers.pop();
    served.turn();
    let mut another = served.connect();
    another.say(ask);
    served.turn();
    served.turn();
    another.listen();
    assert!(another.heard.starts_with(b"HTTP/1.1 200 OK\r\n"));
}
