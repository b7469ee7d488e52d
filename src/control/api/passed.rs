//! Network namespaces that clients of the unix socket pass as descriptors.
//!
//! A descriptor is passed with the bytes of a request (SCM_RIGHTS): `"netns": "fd:N"` in its body is the N-th of the
//! connection, from 0. Before the body is parsed, it is replaced by a path that stays valid
//! ([`netns_files`](crate::sys::netns_files)). Descriptors are closed when their connection ends, by a thread of their own,
//! as is everything done with them: what a client passes may be a file of a file system that hangs.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

use super::error::ApiError;
use super::peer::{Peer, PeerGroups, PeerOf};
use crate::control::background;
use crate::control::config::kind;
use crate::control::problem::Problem;
use crate::sys::netns_files::{self, FileUser};
use crate::sys::passing::{self, MAX_PASSED};

/// Begin of the value of `netns` that names a descriptor; its number follows.
const PREFIX: &str = "fd:";

/// Key of the path in errors.
const KEY: &str = "device.netns";

/// Descriptors that a client has passed. Clones share them.
#[derive(Debug, Clone)]
pub struct Passed(Arc<Descriptors>);

#[derive(Debug)]
struct Descriptors {
    /// Where namespaces without a name are bound to files.
    directory: PathBuf,
    received: Mutex<Received>,
}

#[derive(Debug, Default)]
struct Received {
    descriptors: Vec<Arc<OwnedFd>>,
    /// Those beyond the maximum, which are not used.
    surplus: usize,
    /// Keep files until the connection ends: by then they are in the configuration, or not used.
    users: HashMap<PathBuf, FileUser>,
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        let received = std::mem::take(self.received.get_mut().unwrap_or_else(PoisonError::into_inner));
        close(received.descriptors);
    }
}

/// Closes descriptors without blocking, unless no thread can be created.
fn close<T: Send + 'static>(descriptors: Vec<T>) {
    if !descriptors.is_empty() {
        let _ = thread::Builder::new().name("close".into()).spawn(move || drop(descriptors));
    }
}

tokio::task_local! {
    /// Those of the connection whose request this task handles.
    static PASSED: Option<Passed>;
}

/// Middleware: provides a request with the descriptors of its connection.
pub async fn provide(request: Request, next: Next) -> Response {
    let passed = request.extensions().get::<Option<Passed>>().cloned().flatten();
    PASSED.scope(passed, next.run(request)).await
}

/// A body in which descriptors are replaced by paths.
pub async fn resolve(text: String) -> Result<String, ApiError> {
    let passed = PASSED.try_with(Clone::clone).ok().flatten();
    let Some(passed) = passed.filter(|_| text.contains("\"fd:")) else { return Ok(text) };
    let resolved = background::run(move || passed.resolve(text)).await;
    resolved.map_err(|why| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", why.to_string()))?
}

impl Passed {
    /// None so far.
    pub fn new(directory: PathBuf) -> Passed {
        Passed(Arc::new(Descriptors { directory, received: Mutex::default() }))
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.0.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, descriptors: Vec<OwnedFd>) {
        if descriptors.is_empty() {
            return;
        }
        let mut received = self.received();
        let free = MAX_PASSED.saturating_sub(received.descriptors.len());
        let mut descriptors = descriptors;
        let surplus = descriptors.split_off(free.min(descriptors.len()));
        received.surplus += surplus.len();
        received.descriptors.extend(descriptors.into_iter().map(Arc::new));
        close(surplus);
    }

    fn resolve(&self, text: String) -> Result<String, ApiError> {
        // What is wrong with it is found when it is parsed.
        let Ok(mut body) = serde_json::from_str::<Value>(&text) else { return Ok(text) };
        self.replace(&mut body)?;
        Ok(body.to_string())
    }

    fn replace(&self, value: &mut Value) -> Result<(), ApiError> {
        match value {
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.replace(item)),
            Value::Object(table) => {
                self.replace_device(table)?;
                table.values_mut().try_for_each(|value| self.replace(value))
            }
            _ => Ok(()),
        }
    }

    /// Replaces the namespace of the device of a port or uplink.
    fn replace_device(&self, table: &mut Map<String, Value>) -> Result<(), ApiError> {
        let ends = table.get("lifetime").is_some_and(|lifetime| lifetime == "netns");
        let Some(netns) = table.get_mut("device").and_then(|device| device.get_mut("netns")) else { return Ok(()) };
        let Some(number) = netns.as_str().and_then(|netns| netns.strip_prefix(PREFIX)) else { return Ok(()) };
        let (path, is_kept) = self.path(number)?;
        if ends && is_kept {
            let why = "lifetime = \"netns\": the namespace has no name, and the switch keeps one that is passed to it, so \
                       that it would never end; give it a name, as `ip netns attach NAME PID` does, and use that";
            let problem = Problem::new(kind::CONTRADICTION, why).at("lifetime", Some("\"netns\"".into()));
            return Err(ApiError::wrong(kind::CONTRADICTION, why).with(problem));
        }
        *netns = Value::from(path);
        Ok(())
    }

    /// Path of the namespace with this number, and whether the switch keeps it.
    fn path(&self, number: &str) -> Result<(String, bool), ApiError> {
        let wrong = |why: String| {
            let value = format!("{:?}", format!("{PREFIX}{number}"));
            let problem = Problem::new(kind::BAD_VALUE, why).at(KEY, Some(value.clone()));
            ApiError::wrong(kind::BAD_VALUE, format!("{KEY} = {value}: {}", problem.message)).with(problem)
        };
        let (descriptor, count, surplus) = {
            let received = self.received();
            let descriptor = number.parse::<usize>().ok().and_then(|number| received.descriptors.get(number).cloned());
            (descriptor, received.descriptors.len(), received.surplus)
        };
        let Some(descriptor) = descriptor else {
            let dropped = if surplus > 0 { format!(", and {surplus} too many") } else { String::new() };
            return Err(wrong(format!(
                "the connection has passed {count} descriptors{dropped}; pass at most {MAX_PASSED} with the bytes of the \
                 request (SCM_RIGHTS), counted from fd:0"
            )));
        };
        let found = netns_files::path_of(&*descriptor, &self.0.directory).map_err(|why| wrong(why.to_string()))?;
        let Some(path) = found.path.to_str().map(str::to_owned) else {
            return Err(wrong("the path of its namespace is not UTF-8; give the namespace a name".into()));
        };
        let is_kept = found.user.is_some();
        if let Some(user) = found.user {
            self.received().users.entry(found.path).or_insert(user);
        }
        Ok((path, is_kept))
    }
}

/// A connection of a unix socket, with the descriptors that its client passes, if they are accepted.
#[derive(Debug)]
pub struct PassingStream {
    stream: UnixStream,
    passed: Option<Passed>,
}

impl PassingStream {
    /// With descriptors, if there is a directory for namespaces without a name.
    pub fn new(stream: UnixStream, directory: Option<PathBuf>) -> PassingStream {
        PassingStream { stream, passed: directory.map(Passed::new) }
    }
}

impl PeerOf for PassingStream {
    fn peer(&self) -> Option<Peer> {
        self.stream.peer()
    }

    fn groups(&self) -> PeerGroups {
        self.stream.groups()
    }

    fn passed(&self) -> Option<Passed> {
        self.passed.clone()
    }
}

impl AsyncRead for PassingStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let PassingStream { stream, passed } = &mut *self;
        // Without a place for them, the kernel closes passed descriptors.
        let Some(passed) = passed else { return Pin::new(stream).poll_read(cx, buf) };
        loop {
            ready!(stream.poll_read_ready(cx))?;
            let mut descriptors = Vec::new();
            let free = buf.initialize_unfilled();
            match stream.try_io(Interest::READABLE, || passing::receive(&*stream, free, &mut descriptors)) {
                Ok(read) => {
                    buf.advance(read);
                    passed.add(descriptors);
                    return Poll::Ready(Ok(()));
                }
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                Err(why) => return Poll::Ready(Err(why)),
            }
        }
    }
}

impl AsyncWrite for PassingStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use std::future::poll_fn;

    use super::*;

    fn passed(files: &[&str]) -> Passed {
        let passed = Passed::new("/nowhere".into());
        passed.add(files.iter().map(|path| File::open(path).unwrap().into()).collect());
        passed
    }

    #[test]
    fn what_is_no_namespace_is_refused_with_its_place() {
        let passed = passed(&["/dev/null", "/proc/self/ns/uts"]);
        let body = |netns: &str| format!(r#"[{{"port_id":"p","device":{{"kind":"tap","netns":"{netns}"}}}}]"#);
        for (netns, parts) in [
            ("fd:0", &["/dev/null, not a network namespace"][..]),
            ("fd:1", &["uts:[", "not a network namespace"]),
            ("fd:2", &["has passed 2 descriptors", "SCM_RIGHTS"]),
            ("fd:x", &["has passed 2 descriptors"]),
        ] {
            let error = passed.resolve(body(netns)).unwrap_err();
            assert!(parts.iter().all(|part| error.message.contains(part)), "{netns}: {}", error.message);
            assert!(error.message.contains(&format!("device.netns = \"{netns}\"")), "{}", error.message);
        }
        for other in [body("fw-3"), body("/run/netns/fd:0"), "{\"fd:0\":".to_owned(), r#"{"netns":"fd:9"}"#.to_owned()]
        {
            let resolved = passed.resolve(other.clone()).unwrap();
            let same = |text: &str| serde_json::from_str::<Value>(text).ok();
            assert_eq!(same(&resolved), same(&other));
        }
    }

    #[test]
    fn further_descriptors_are_closed() {
        let passed = passed(&["/dev/null"; MAX_PASSED + 3]);
        assert_eq!(passed.received().descriptors.len(), MAX_PASSED);
        let error = passed.path(&MAX_PASSED.to_string()).unwrap_err();
        assert!(error.message.contains("has passed 8 descriptors, and 3 too many"), "{}", error.message);
    }

    #[tokio::test]
    async fn a_connection_keeps_what_it_is_passed_only_if_it_is_accepted() {
        let file = tempfile::tempfile().unwrap();
        for directory in [None, Some(PathBuf::from("/nowhere"))] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut ours = PassingStream::new(ours, directory.clone());
            passing::send(&theirs, b"hello", &[file.as_fd()]).unwrap();
            let mut read = async || {
                let mut bytes = [0; 64];
                let mut buf = ReadBuf::new(&mut bytes);
                poll_fn(|cx| Pin::new(&mut ours).poll_read(cx, &mut buf)).await.unwrap();
                buf.filled().len()
            };
            assert_eq!(read().await, 5);
            drop(theirs);
            assert_eq!(read().await, 0, "its end is noticed");
            let count = ours.passed().map(|passed| passed.received().descriptors.len());
            assert_eq!(count, directory.map(|_| 1));
        }
    }
}
