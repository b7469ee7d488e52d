//! A client that cuts its connection off at random: before its request, within it, before the answer, or within that.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;
use support::host::daemon::TIMEOUT;

use crate::random::pause;

/// Where a connection is cut off.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    Never,
    BeforeRequest,
    /// After so many thousandths of the request.
    InRequest(u64),
    /// Before the answer, after so many microseconds.
    BeforeAnswer(u64),
    /// After so many bytes of the answer.
    InAnswer(u64),
}

/// A request, without its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub method: &'static str,
    pub path: String,
    /// For this generation only.
    pub generation: Option<u64>,
    pub body: Option<Value>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Generation of its `ETag`.
    pub generation: Option<u64>,
    pub body: Value,
}

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// It was not sent: nobody listens.
    Unsent,
    /// It was sent, in part or completely, and its answer is not known.
    Unknown {
        /// The answer began with a status of success.
        is_acknowledged: bool,
    },
    Answered(Answer),
}

/// A client with one connection at a time, which it may use again.
pub struct Client {
    pub socket: PathBuf,
    kept: Option<UnixStream>,
}

impl Request {
    pub fn get(path: impl Into<String>) -> Request {
        Request { method: "GET", path: path.into(), generation: None, body: None }
    }

    /// With a further key of its query.
    pub fn with(mut self, key: &str) -> Request {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        self.path = format!("{}{mark}{key}", self.path);
        self
    }

    fn text(&self, id: &str) -> String {
        let condition = self.generation.map(|of| format!("If-Match: \"{of}\"\r\n")).unwrap_or_default();
        let body = self.body.as_ref().map(Value::to_string).unwrap_or_default();
        format!(
            "{} {} HTTP/1.1\r\nHost: vifswitch\r\nX-Request-Id: {id}\r\n{condition}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.method,
            self.path,
            body.len()
        )
    }
}

impl Answer {
    /// The answer in these bytes, if it is complete.
    fn of(bytes: &[u8]) -> Option<Answer> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let status = head[9..12].parse().unwrap();
        assert_eq!(header("transfer-encoding"), None, "{head}");
        let length = header("content-length").map_or(0, |length| length.parse().unwrap());
        assert!(status == 204 || length > 0, "{head}");
        let body = bytes[end + 4..].get(..length)?;
        assert_eq!(bytes.len(), end + 4 + length, "more than one answer: {head}");
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).unwrap() };
        let generation = header("etag").map(|tag| tag.trim_matches('"').parse().unwrap());
        Some(Answer { status, generation, body })
    }

    /// Kind of an error.
    pub fn kind(&self) -> &str {
        self.body["kind"].as_str().unwrap_or_default()
    }
}

impl Client {
    pub fn new(socket: PathBuf) -> Client {
        Client { socket, kept: None }
    }

    /// Sends a request, and calls `acknowledged` as soon as its answer begins with a status of success.
    pub fn send(&mut self, request: &Request, id: &str, cut: Cut, acknowledged: impl FnOnce()) -> Outcome {
        let stream = match self.kept.take() {
            Some(stream) => stream,
            None => match UnixStream::connect(&self.socket) {
                Ok(stream) => stream,
                Err(_) => return Outcome::Unsent,
            },
        };
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut is_acknowledged = false;
        let acknowledged = || {
            is_acknowledged = true;
            acknowledged();
        };
        match exchange(&stream, &request.text(id), cut, acknowledged) {
            Some(answer) => {
                self.kept = Some(stream);
                Outcome::Answered(answer)
            }
            None => Outcome::Unknown { is_acknowledged },
        }
    }
}

/// Sends a request and receives its answer, as far as `cut` lets it.
fn exchange(mut stream: &UnixStream, text: &str, cut: Cut, acknowledged: impl FnOnce()) -> Option<Answer> {
    let (mut length, mut most) = (text.len(), usize::MAX);
    match cut {
        Cut::Never | Cut::BeforeAnswer(_) => {}
        Cut::BeforeRequest => return None,
        Cut::InRequest(share) => length = length * usize::try_from(share).unwrap() / 1000,
        Cut::InAnswer(bytes) => most = usize::try_from(bytes).unwrap(),
    }
    stream.write_all(&text.as_bytes()[..length]).ok()?;
    if let Cut::BeforeAnswer(micros) = cut {
        pause(micros);
        return None;
    }
    if length < text.len() {
        return None;
    }
    let (mut received, mut acknowledged) = (Vec::new(), Some(acknowledged));
    let mut buffer = [0; 8192];
    while received.len() < most {
        let room = buffer.len().min(most - received.len());
        let length = match stream.read(&mut buffer[..room]) {
            Ok(0) => return None,
            Ok(length) => length,
            Err(e) => {
                assert_ne!(e.kind(), ErrorKind::WouldBlock, "no answer to {text}");
                return None;
            }
        };
        received.extend_from_slice(&buffer[..length]);
        if received.len() > 9 && received[9] == b'2' {
            acknowledged.take().into_iter().for_each(|acknowledged| acknowledged());
        }
        if let Some(answer) = Answer::of(&received) {
            return Some(answer);
        }
    }
    None
}
