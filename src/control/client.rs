//! How the CLI asks a running switch: HTTP over the unix socket, one connection per question.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(5);

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

impl Client {
    /// A client of the switch at `socket`. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What is at `path`, which begins with a slash and is escaped as a URL is.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.parse(&self.fetch(path).await?)
    }

    /// What is at `path`, as JSON to be passed on: nothing is lost that this program does not know.
    pub async fn get_json(&self, path: &str) -> Result<String, Error> {
        let body = self.fetch(path).await?;
        let _: IgnoredAny = self.parse(&body)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(body).map_err(|e| self.broken(format_args!("its answer makes no sense: {e}")))
    }

    async fn fetch(&self, path: &str) -> Result<Bytes, Error> {
        let (status, body) = match timeout(PATIENCE, self.ask(path)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.broken(format_args!("no answer within {} seconds", PATIENCE.as_secs()))),
        };
        if status.is_success() {
            return Ok(body);
        }
        Err(match serde_json::from_slice(&body) {
            Ok(Refusal { error: Reason { kind, message } }) => {
                Error::Refused { status: status.as_u16(), kind, message }
            }
            Err(_) => self.broken(format_args!("it answered {status}")),
        })
    }

    async fn ask(&self, path: &str) -> Result<(StatusCode, Bytes), Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NoSwitch { socket: self.socket.clone(), cause }
            }
            io::ErrorKind::PermissionDenied => self.broken("only its owner and group may talk to it; try as root"),
            _ => self.broken(format_args!("cannot connect: {cause}")),
        })?;
        self.exchange(stream, path).await.map_err(|e| self.broken(format_args!("the connection broke: {e}")))
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        path: &str,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let question = Request::get(path)
            .header(header::HOST, "vifswitch")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let answer = async move {
            let (head, body) = sender.send_request(question).await?.into_parts();
            Ok::<_, hyper::Error>((head.status, body.collect().await?.to_bytes()))
        };
        // The connection ends when the answer is complete and the sender gone. What went wrong with it, the answer says.
        let (answer, _) = tokio::join!(answer, connection);
        Ok(answer?)
    }

    /// The error for what went wrong on the way to the switch.
    pub(crate) fn broken(&self, why: impl ToString) -> Error {
        Error::Broken { socket: self.socket.clone(), why: why.to_string() }
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    kind: String,
    message: String,
}
