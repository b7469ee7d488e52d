//! How the CLI asks a running switch: HTTP over the unix socket, one connection per question.

use std::fmt::Write;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// How long a question may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a change may take: it is answered when it is true, and many ports take their time.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a switch that has too much to do is asked again, and after how long.
const RETRY: (usize, Duration) = (30, Duration::from_secs(1));

/// All that is not an unreserved character of a URL.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens at the socket.
    #[error("no switch is listening at {}: {cause}", socket.display())]
    NoSwitch {
        /// The socket.
        socket: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
    /// The switch said no.
    #[error("{message}")]
    Refused {
        /// Its HTTP status.
        status: u16,
        /// The reason, by name.
        kind: String,
        /// The reason, in a sentence.
        message: String,
    },
    /// There was no talking to what is there.
    #[error("the switch at {}: {why}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// The way to the switch that listens at a socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// A name as a part of a URL's path or query.
pub fn escaped(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

impl Client {
    /// A client of the switch at `socket`. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// What is at `path`, which begins with a slash and is escaped as a URL is.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.parse(&self.fetch(Method::GET, path, None).await?)
    }

    /// What is at `path`, as JSON to be passed on: nothing is lost that this program does not know.
    pub async fn get_json(&self, path: &str) -> Result<String, Error> {
        let body = self.fetch(Method::GET, path, None).await?;
        self.json(&body)
    }

    /// Asks for a change with a body of JSON, and gives the answer as JSON.
    pub async fn request(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<String, Error> {
        let body = self.fetch(method, path, body.map(|body| Bytes::from(body.to_string()))).await?;
        self.json(&body)
    }

    /// Makes something of an answer of this switch.
    pub fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|e| self.broken(format_args!("its answer makes no sense: {e}")))
    }

    /// Hands each line at `path` to `each` as it comes, until the switch has no more or `each` has
    /// enough. Lines come without their ends.
    pub async fn lines(&self, path: &str, mut each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), Error> {
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
        self.round_trip(stream, request(Method::GET, path, None), READ_TIMEOUT, answer).await
    }

    fn json(&self, body: &[u8]) -> Result<String, Error> {
        let _: IgnoredAny = self.parse(body)?;
        Ok(String::from_utf8_lossy(body).into_owned())
    }

    /// Asks, and asks again while the switch says that it has too much to do.
    async fn fetch(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes, Error> {
        let (mut tries, pause) = RETRY;
        loop {
            match self.fetch_once(method.clone(), path, body.clone()).await {
                Err(Error::Refused { status: 429, .. }) if tries > 0 => {
                    tries -= 1;
                    sleep(pause).await;
                }
                answer => return answer,
            }
        }
    }

    async fn fetch_once(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Bytes, Error> {
        let patience = if method == Method::GET { READ_TIMEOUT } else { CHANGE_TIMEOUT };
        let all = async {
            let stream = self.connect().await?;
            let whole = async |answer: Response<Incoming>| Ok(answer.into_body().collect().await?.to_bytes());
            self.round_trip(stream, request(method, path, body), patience, whole).await
        };
        timeout(patience, all).await.map_err(|_| self.timeout(patience))?
    }

    async fn connect(&self) -> Result<UnixStream, Error> {
        UnixStream::connect(&self.socket).await.map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NoSwitch { socket: self.socket.clone(), cause }
            }
            io::ErrorKind::PermissionDenied => self.broken("only its owner and group may talk to it; try as root"),
            _ => self.broken(format_args!("cannot connect: {cause}")),
        })
    }

    /// Says a question over `stream` and reads the answer: an error, or what `read` makes of it. Its
    /// head must come within `timeout`.
    async fn round_trip<T>(
        &self,
        stream: UnixStream,
        request: Result<Request<Full<Bytes>>, hyper::http::Error>,
        patience: Duration,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, hyper::Error>,
    ) -> Result<T, Error> {
        let request = request.map_err(|e| self.broken(format_args!("cannot be asked that: {e}")))?;
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
        // The connection is driven for as long as the answer is of interest. What goes wrong with it,
        // the answer says.
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

    /// The error for what went wrong on the way to the switch.
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

/// An error and what is behind it.
fn causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(e) = next {
        // Writing to a string does not fail.
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
