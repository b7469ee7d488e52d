//! Listeners beside the socket for changes: metrics and reads over TCP, and the socket for reads.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use axum::Router;
use support::fake::{Views, runtime};
use tokio::sync::oneshot;
use vifswitch::control::api::handle::Handle;
use vifswitch::control::api::{SHUTDOWN_TIMEOUT, metrics_routes, pages, read_only_api, serve};

use super::{Answer, answer_on, converse, talk};
use std::io::Write;

/// A listener over a made-up switch, stopped when dropped.
struct Listener {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    fn of(routes: fn(Handle) -> Router) -> Listener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let (handle, requests) = Handle::new();
                let served = serve(listener, routes(handle), SHUTDOWN_TIMEOUT, async { drop(stopped.await) });
                tokio::join!(served, Views::made_up().control(requests));
            });
        });
        Listener { address, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).unwrap()
    }

    /// A request with these lines in its head.
    fn request(&self, method: &str, path: &str, head: &str) -> Answer {
        let mut stream = self.connect();
        write!(stream, "{method} {path} HTTP/1.1\r\nConnection: close\r\n{head}\r\n").unwrap();
        answer_on(stream)
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &format!("Host: {}\r\n", self.address))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.take();
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn read_socket() -> Listener {
    Listener::of(|handle| read_only_api(handle, Path::new("/run/there.sock")))
}

fn tcp_pages() -> Listener {
    Listener::of(|handle| pages(handle, vec!["Switch-1.example.net".into()], Path::new("/run/there.sock")))
}

/// Requests that change something, with bodies where they need one.
const CHANGES: [(&str, &str); 9] = [
    ("PUT", "/v1/config"),
    ("PATCH", "/v1/ports/p1"),
    ("DELETE", "/v1/ports/p1"),
    ("POST", "/v1/ports/p1/release"),
    ("POST", "/v1/vms/fw-3/ports"),
    ("POST", "/v1/fdb/flush"),
    ("POST", "/v1/confirm"),
    ("PUT", "/v1/ports"),
    ("BREW", "/v1/no/such/path"),
];

/// Asserts that nothing is changed here, and that the answer says where.
fn changes_nothing(listener: &Listener) {
    for (method, path) in CHANGES {
        let head = format!("Host: {}\r\nContent-Type: application/json\r\n", listener.address);
        for path in [path.to_owned(), format!("{path}?dry_run=true")] {
            let answer = listener.request(method, &path, &head);
            assert_eq!((answer.0, answer.kind().as_str()), (405, "read_only"), "{method} {path}");
            assert!(answer.1.contains("allow: get, head"), "{answer:?}");
            let message = answer.json()["error"]["message"].to_string();
            assert!(message.contains(method) && message.contains("/run/there.sock, `api`"), "{message}");
        }
    }
}

#[test]
fn metrics_over_tcp_are_metrics_and_health_only() {
    let listener = Listener::of(metrics_routes);
    for path in ["/metrics", "/livez", "/readyz"] {
        assert!([200, 503].contains(&listener.get(path).0), "{path}");
    }
    // A scraper may use any name.
    assert_eq!(talk(listener.connect(), "GET", "/metrics").0, 200);
    for path in ["/", "/v1/ports", "/v1/config", "/v1/fdb", "/v1/audit", "/v1/status", "/v1/events", "/v1/openapi.json"]
    {
        let answer = listener.get(path);
        assert_eq!((answer.0, answer.kind().as_str()), (404, "unknown_path"), "{path}");
        assert!(answer.2.contains("set `pages`"), "{answer:?}");
    }
    assert_eq!(talk(listener.connect(), "POST", "/metrics").0, 405);
    assert_eq!(talk(listener.connect(), "PUT", "/v1/config").0, 404);
}

#[test]
fn pages_are_reads_over_tcp() {
    let listener = tcp_pages();
    for path in ["/metrics", "/livez", "/v1/ports", "/v1/ports/p1", "/v1/config", "/v1/fdb", "/v1/audit", "/v1/status"]
    {
        assert_eq!(listener.get(path).0, 200, "{path}");
    }
    for path in ["/v1/events", "/v1/events?follow=true", "/v1/port"] {
        assert_eq!(listener.get(path).0, 404, "{path}");
    }
    changes_nothing(&listener);
}

/// A web page whose name resolves to the switch reads nothing by the browser of someone who can.
#[test]
fn pages_are_called_by_address_or_listed_name() {
    let listener = tcp_pages();
    let status = |path: &str, head: &str| {
        let answer = listener.request("GET", path, head);
        if answer.0 != 200 {
            let kind = answer.kind();
            assert!((answer.0, kind.as_str()) == (403, "unknown_host") || kind == "bad_header", "{answer:?}");
            assert!(answer.0 == 400 || answer.2.contains("pages_hosts"), "{answer:?}");
        }
        answer.0
    };
    for host in ["127.0.0.1", "[::1]:9478", "10.5.0.1", "localhost:80", "switch-1.EXAMPLE.net"] {
        assert_eq!(status("/v1/ports", &format!("Host: {host}\r\n")), 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:80", "127.0.0.1@evil.example", "\u{e9}", ""] {
        for path in ["/v1/ports", "/metrics", "/v1/no/such/path"] {
            assert_eq!(status(path, &format!("Host: {host}\r\n")), 403, "{host} {path}");
        }
    }
    let there = listener.address;
    assert_eq!(status("/v1/ports", ""), 400, "without a Host");
    assert_eq!(status("/v1/ports", &format!("Host: {there}\r\nHost: evil.example\r\n")), 403, "two of them");
    assert_eq!(status("http://evil.example/v1/ports", &format!("Host: {there}\r\n")), 403, "a whole URL");
    assert_eq!(status(&format!("http://{there}/v1/ports"), &format!("Host: {there}\r\n")), 200, "a whole URL");
}

#[test]
fn the_socket_for_reads_serves_all_of_them_and_no_change() {
    let listener = read_socket();
    let openapi = listener.get("/v1/openapi.json");
    assert_eq!(openapi.0, 200);
    let (mut reads, document) = (0, openapi.json());
    for (path, methods) in document["paths"].as_object().unwrap() {
        if methods.get("get").is_some() && path != "/readyz" {
            let id = match path.as_str() {
                "/v1/networks/{id}" => "net1",
                "/v1/uplinks/{id}" => "up0",
                "/v1/vms/{id}" => "fw-3",
                "/v1/history/{id}" => "4",
                _ => "p1",
            };
            let answer = listener.get(&path.replace("{id}", id));
            assert_eq!(answer.0, 200, "{path}: {answer:?}");
            reads += 1;
        }
    }
    assert!(reads > 15, "{reads}");
    assert_eq!(converse(listener.connect(), "GET", "/v1/ports", "", "").0, 200, "called by any name");
    changes_nothing(&listener);
}
