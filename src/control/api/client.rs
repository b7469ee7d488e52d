//! API client of the CLI: HTTP over the unix socket, one connection per request.

use std::fmt::Write;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::sending::SendingStream;

/// Timeout of a request that reads.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of a change, which is answered when active; many ports take long.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// Maximum retries when rejected with 429, and the pause before each.
const RETRY: (usize, Duration) = (30, Duration::from_secs(1));

/// All characters but the unreserved ones of a URL.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens at the socket.
    #[error("no switch is listening at {}: {cause}", socket.display())]
    NoSwitch {
        /// Path of the socket.
        socket: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// The switch refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Kind.
        kind: String,
        /// Message.
        message: String,
    },
    /// The connection failed, or the response is no valid API response.
    #[error("the switch at {}: {why}", socket.display())]
    Broken {
        /// Path of the socket.
        socket: PathBuf,
        /// Error.
        why: String,
    },
}

/// Client of the switch at a socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    /// Passed with each request.
    descriptors: Vec<Arc<OwnedFd>>,
}

/// Escapes a name for a URL's path or query.
pub fn escaped(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

impl Client {
    /// Creates a client of the switch at `socket`; connects per request.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into(), descriptors: Vec::new() }
    }

    /// Passes this descriptor with each request, as the next one of its connection.
    pub fn passing(mut self, descriptor: OwnedFd) -> Client {
        self.descriptors.push(descriptor.into());
        self
    }

    /// Gets `path`, which begins with a slash and is URL-escaped.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.parse(&self.fetch(Method::GET, path, None).await?)
    }

    /// Gets `path` as JSON, including fields unknown to this program.
    pub async fn get_json(&self, path: &str) -> Result<String, Error> {
        let body = self.fetch(Method::GET, path, None).await?;
        self.json(&body)
    }

    /// Requests a change with a JSON body, and returns the JSON response; empty if there was nothing to delete.
    pub async fn request(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<String, Error> {
        let body = self.fetch(method, path, body.map(|body| Bytes::from(body.to_string()))).await?;
        if body.is_empty() { Ok(String::new()) } else { self.json(&body) }
    }

    /// The same, only if the desired configuration has this generation: refused with 412 if it has another one by now.
    pub async fn request_at(
        &self,
        generation: u64,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<String, Error> {
        let body = body.map(|body| Bytes::from(body.to_string()));
        let body = self.fetch_at(Some(generation), method, path, body).await?;
        if body.is_empty() { Ok(String::new()) } else { self.json(&body) }
    }

    /// Parses a response of this switch.
    pub fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|e| self.broken(format_args!("invalid response: {e}")))
    }

    /// Calls `each` with every line of `path` as it arrives, without line end, until the response or `each` ends.
    pub async fn lines(&self, path: &str, each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), Error> {
        self.lines_of(request(Method::GET, path, None), each).await
    }

    /// The same with the lines of an event stream.
    pub async fn event_stream(&self, path: &str, each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), Error> {
        let request = request(Method::GET, path, None).map(|mut request| {
            request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
            request
        });
        self.lines_of(request, each).await
    }

    async fn lines_of(
        &self,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let answer = async |answer: Response<Incoming>| {
            let mut body = answer.into_body();
            let mut rest = Vec::new();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                rest.extend_from_slice(&data);
                let mut begin = 0;
                while let Some(length) = rest[begin..].iter().position(|byte| *byte == b'\n') {
                    if each(&rest[begin..begin + length]).is_break() {
                        return Ok(());
                    }
                    begin += length + 1;
                }
                rest.drain(..begin);
            }
            Ok(())
        };
        let stream = self.connect().await?;
        self.round_trip(stream, request, READ_TIMEOUT, answer).await
    }

    /// Gets the first `max` bytes of `path`, and whether there are more.
    pub async fn get_at_most(&self, path: &str, max: usize) -> Result<(Vec<u8>, bool), Error> {
        let read = async |answer: Response<Incoming>| {
            let mut body = answer.into_body();
            let mut all = Vec::new();
            while let Some(frame) = body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                let room = max - all.len();
                all.extend_from_slice(&data[..data.len().min(room)]);
                if data.len() > room {
                    return Ok((all, true));
                }
            }
            Ok((all, false))
        };
        let all = async {
            let stream = self.connect().await?;
            self.round_trip(stream, request(Method::GET, path, None), READ_TIMEOUT, read).await
        };
        timeout(READ_TIMEOUT, all).await.map_err(|_| self.timeout(READ_TIMEOUT))?
    }

    fn json(&self, body: &[u8]) -> Result<String, Error> {
        let _: IgnoredAny = self.parse(body)?;
        Ok(String::from_utf8_lossy(body).into_owned())
    }

    async fn fetch(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes, Error> {
        self.fetch_at(None, method, path, body).await
    }

    /// Sends a request, with `If-Match` for a generation, and retries while it is rejected with 429.
    async fn fetch_at(
        &self,
        generation: Option<u64>,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Bytes, Error> {
        let (mut tries, pause) = RETRY;
        loop {
            match self.fetch_once(generation, method.clone(), path, body.clone()).await {
                Err(Error::Refused { status: 429, .. }) if tries > 0 => {
                    tries -= 1;
                    sleep(pause).await;
                }
                answer => return answer,
            }
        }
    }

    async fn fetch_once(
        &self,
        generation: Option<u64>,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Bytes, Error> {
        let request = |body| {
            let mut request = request(method.clone(), path, body)?;
            if let Some(generation) = generation {
                let tag = HeaderValue::try_from(format!("\"{generation}\""))?;
                request.headers_mut().insert(header::IF_MATCH, tag);
            }
            Ok(request)
        };
        let patience = if method == Method::GET { READ_TIMEOUT } else { CHANGE_TIMEOUT };
        let all = async {
            let stream = self.connect().await?;
            let whole = async |answer: Response<Incoming>| Ok(answer.into_body().collect().await?.to_bytes());
            self.round_trip(stream, request(body), patience, whole).await
        };
        timeout(patience, all).await.map_err(|_| self.timeout(patience))?
    }

    async fn connect(&self) -> Result<SendingStream, Error> {
        let connected = UnixStream::connect(&self.socket).await;
        connected.map(|stream| SendingStream::new(stream, self.descriptors.clone())).map_err(|cause| {
            match cause.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Error::NoSwitch { socket: self.socket.clone(), cause }
                }
                io::ErrorKind::PermissionDenied => self.broken("only its owner and group may connect; try as root"),
                _ => self.broken(format_args!("cannot connect: {cause}")),
            }
        })
    }

    /// Sends a request over `stream` and reads the response: an error, or the result of `read`. The head must arrive
    /// within `timeout`.
    async fn round_trip<T>(
        &self,
        stream: SendingStream,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
        patience: Duration,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, hyper::Error>,
    ) -> Result<T, Error> {
        let request = request.map_err(|e| self.broken(format_args!("invalid request: {e}")))?;
        let broke = |e: hyper::Error| self.broken(format_args!("the connection broke: {}", causes(&e)));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let answer = async move {
            let answer = match timeout(patience, sender.send_request(request)).await {
                Ok(answer) => answer.map_err(broke)?,
                Err(_) => return Err(self.timeout(patience)),
            };
            let status = answer.status();
            if status.is_success() {
                return read(answer).await.map_err(broke);
            }
            let body = answer.into_body().collect().await.map_err(broke)?.to_bytes();
            Err(self.refused(status, &body))
        };
        // Drives the connection while the response is read; reading reports its errors.
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Error {
        match serde_json::from_slice(body) {
            Ok(ErrorBody { error: ErrorDetail { kind, message } }) => {
                Error::Refused { status: status.as_u16(), kind, message }
            }
            Err(_) => self.broken(format_args!("it answered {status}")),
        }
    }

    fn timeout(&self, timeout: Duration) -> Error {
        self.broken(format_args!("no answer within {} seconds", timeout.as_secs()))
    }

    /// Error of the connection.
    pub(crate) fn broken(&self, why: impl ToString) -> Error {
        Error::Broken { socket: self.socket.clone(), why: why.to_string() }
    }
}

fn request(method: Method, path: &str, body: Option<Bytes>) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "vifswitch")
        .header(header::CONNECTION, "close");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request.body(Full::new(body.unwrap_or_default()))
}

/// An error with its causes.
fn causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {e}");
        next = e.source();
    }
    text
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    kind: String,
    message: String,
}
