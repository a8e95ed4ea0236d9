//! HTTP/1.1 as bytes: a request out of what has come in so far, and a response. No
//! socket, no time, no state.
//!
//! A request may have a body of [`MOST_BODY`] bytes with a length that is said before;
//! a body in chunks is refused.

use super::model::Error;

/// Most bytes of a request's head.
pub(super) const MOST_HEAD: usize = 8 << 10;
/// Most bytes of a request's body.
pub(super) const MOST_BODY: usize = 64 << 10;
/// Most header fields of a request.
const MOST_FIELDS: usize = 64;

/// What a client that waits to be asked for its body is told.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// `GET`, `PUT` or another.
    pub(super) method: String,
    /// As it was sent.
    pub(super) path: String,
    /// Empty if there is none.
    pub(super) body: Vec<u8>,
    /// The client may send another request on the same connection.
    pub(super) keep: bool,
}

/// What the bytes that have come in so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The beginning of a request; nothing can be more before there are `until` bytes.
    More {
        /// Bytes from the first.
        until: usize,
        /// The client waits for [`CONTINUE`].
        asks: bool,
    },
    /// A request, and how many bytes it had.
    Whole(Request, usize),
    /// No request: what is to be said, after which nothing else is understood.
    Wrong(Response),
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    status: u16,
    content: &'static str,
    /// The methods that there are, for status 405.
    allow: Option<String>,
    body: Vec<u8>,
}

/// Reads a request from its first byte on.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    // An empty line before a request does not count (RFC 9112, section 2.2).
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let seen = bytes.get(..MOST_HEAD).unwrap_or(bytes);
    let length = match head.parse(seen) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MOST_HEAD => {
            let until = bytes.len().saturating_add(1);
            return Parsed::More { until, asks: false };
        }
        Ok(httparse::Status::Partial) => {
            let text = format!("the head of a request has at most {MOST_HEAD} bytes");
            return Parsed::Wrong(Response::error(431, text));
        }
        Err(httparse::Error::TooManyHeaders) => {
            let text = format!("a request has at most {MOST_FIELDS} header fields");
            return Parsed::Wrong(Response::error(431, text));
        }
        Err(error) => {
            let text = format!("this is no HTTP/1.1 request: {error}");
            return Parsed::Wrong(Response::error(400, text));
        }
    };
    match Framing::of(&head) {
        Err(response) => Parsed::Wrong(response),
        Ok(framing) => framing.body(&head, length, bytes),
    }
}

/// What a head says of what follows it.
#[derive(Default)]
struct Framing {
    body: Option<usize>,
    close: bool,
    asks: bool,
}

impl Framing {
    fn of(head: &httparse::Request<'_, '_>) -> Result<Self, Response> {
        let mut framing = Self {
            // HTTP/1.0 closes.
            close: head.version != Some(1),
            ..Self::default()
        };
        for field in head.headers.iter() {
            let value = str::from_utf8(field.value).unwrap_or_default().trim();
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let length = length(value)?;
                if framing.body.is_some_and(|other| other != length) {
                    let text = "two Content-Length fields contradict one another; send one";
                    return Err(Response::error(400, text));
                }
                framing.body = Some(length);
            } else if is("transfer-encoding") {
                let text = "a body in chunks is not taken; send it whole, with Content-Length";
                return Err(Response::error(411, text));
            } else if is("expect") {
                if !value.eq_ignore_ascii_case("100-continue") {
                    let text = "nothing but `Expect: 100-continue` can be expected";
                    return Err(Response::error(417, text));
                }
                framing.asks = true;
            } else if is("connection") {
                let mut words = value.split(',').map(str::trim);
                framing.close |= words.any(|word| word.eq_ignore_ascii_case("close"));
            }
        }
        Ok(framing)
    }

    fn body(self, head: &httparse::Request<'_, '_>, start: usize, bytes: &[u8]) -> Parsed {
        let until = start.saturating_add(self.body.unwrap_or_default());
        let Some(body) = bytes.get(start..until) else {
            let asks = self.asks && bytes.len() == start;
            return Parsed::More { until, asks };
        };
        let request = Request {
            method: head.method.unwrap_or_default().to_owned(),
            path: head.path.unwrap_or_default().to_owned(),
            body: body.to_owned(),
            keep: !self.close,
        };
        Parsed::Whole(request, until)
    }
}

/// The value of Content-Length.
fn length(value: &str) -> Result<usize, Response> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        let text = "Content-Length must be a decimal number";
        return Err(Response::error(400, text));
    }
    // One that no integer holds is too large as well.
    let length = value.parse().unwrap_or(usize::MAX);
    if length > MOST_BODY {
        let text = format!("the body of a request has at most {MOST_BODY} bytes");
        return Err(Response::error(413, text));
    }
    Ok(length)
}

impl Response {
    /// A JSON value.
    pub(super) fn json(status: u16, value: &impl serde::Serialize) -> Self {
        let mut body = serde_json::to_vec(value).unwrap_or_default();
        body.push(b'\n');
        Self::text(status, "application/json", body)
    }

    /// Some other text.
    pub(super) fn text(status: u16, content: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            content,
            allow: None,
            body: body.into(),
        }
    }

    /// It is done, and there is nothing to say.
    pub(super) fn done() -> Self {
        Self::text(204, "", Vec::new())
    }

    /// An [`Error`].
    pub(super) fn error(status: u16, text: impl Into<String>) -> Self {
        let error = text.into();
        let (step, gap) = (None, None);
        Self::json(status, &Error { error, step, gap })
    }

    /// The error that there is no such method here, but these.
    pub(super) fn wrong_method(text: String, allow: String) -> Self {
        let allow = Some(allow);
        Self {
            allow,
            ..Self::error(405, text)
        }
    }

    /// As it is sent; `keep`: the connection is kept.
    pub(super) fn bytes(&self, keep: bool) -> Vec<u8> {
        let mut head = start(self.status);
        if self.status != 204 {
            let (content, length) = (self.content, self.body.len());
            head += &format!("Content-Type: {content}\r\nContent-Length: {length}\r\n");
        }
        if let Some(allow) = &self.allow {
            head += &format!("Allow: {allow}\r\n");
        }
        if !keep {
            head += "Connection: close\r\n";
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend(&self.body);
        bytes
    }
}

/// The head of a response whose body ends with the connection.
pub(super) fn endless(content: &str) -> Vec<u8> {
    let mut head = start(200);
    head += &format!("Content-Type: {content}\r\nCache-Control: no-store\r\n");
    (head + "Connection: close\r\n\r\n").into_bytes()
}

fn start(status: u16) -> String {
    let reason = match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    format!("HTTP/1.1 {status} {reason}\r\nServer: outboard\r\n")
}
