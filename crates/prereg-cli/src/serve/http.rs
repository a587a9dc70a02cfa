//! The HTTP server: `/` for people, `/metrics` for Prometheus, `/healthz` for supervisors; with hyper, on one thread.
//!
//! Connections are served concurrently, at most `MAX_CONNECTIONS` of them. When one more comes the oldest is closed, so
//! slow or silent clients delay only themselves. A request must arrive within `HEAD_TIMEOUT`, a connection ends within
//! `CONNECTION_TIMEOUT` and carries one request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::metrics::in_prometheus_format;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// The time for a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The pause after a failed accept, for example without a free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const PROMETHEUS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
/// The page has its style in itself and loads nothing.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");

/// The pages that are served.
pub(crate) trait Content: Send + Sync + 'static {
    /// The page for people, as HTML.
    fn page(&self) -> String;

    /// The metrics, as OpenMetrics text.
    fn metrics(&self) -> String;

    /// The health in one line.
    ///
    /// # Errors
    /// What is wrong, in one line.
    fn health(&self) -> Result<String, String>;
}

/// The listening thread; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct HttpListener {
    address: SocketAddr,
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpListener {
    /// Answers at `address` with `content`.
    ///
    /// # Errors
    /// If `address` cannot be bound.
    pub(crate) fn start(address: SocketAddr, content: impl Content) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            runtime.spawn(accept(listener, Arc::new(content)));
            // An error means that the sender was dropped, which stops this. Open connections end with the runtime.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The bound address, with the port that the system chose for port 0.
    #[must_use]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpListener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has no result, and its panic was printed.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, content: Arc<impl Content>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            if let Some(oldest) = open.pop_front() {
                oldest.abort();
            }
        }
        open.push_back(tokio::spawn(exchange(stream, Arc::clone(&content))).abort_handle());
    }
}

/// Handles one request. Errors of the connection concern only its client.
async fn exchange(stream: TcpStream, content: Arc<impl Content>) {
    let service = service_fn(|request| ready(Ok::<_, Infallible>(respond(&request, content.as_ref()))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

fn respond<B>(request: &Request<B>, content: &impl Content) -> Response<String> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, kind, body) = match request.uri().path() {
        _ if !is_read => {
            (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD are answered\n".to_owned())
        }
        "/" => (StatusCode::OK, HTML, content.page()),
        "/metrics" if accepts_open_metrics(request) => (StatusCode::OK, OPEN_METRICS, content.metrics()),
        "/metrics" => (StatusCode::OK, PROMETHEUS, in_prometheus_format(&content.metrics())),
        "/healthz" => match content.health() {
            Ok(health) => (StatusCode::OK, PLAIN, format!("{health}\n")),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{reason}\n")),
        },
        _ => (StatusCode::NOT_FOUND, PLAIN, "there are /, /metrics and /healthz\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, POLICY);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Whether the client asked for OpenMetrics, as Prometheus does.
fn accepts_open_metrics<B>(request: &Request<B>) -> bool {
    let accepted = request.headers().get_all(ACCEPT);
    accepted
        .iter()
        .filter_map(|kinds| kinds.to_str().ok())
        .any(|kinds| kinds.contains("application/openmetrics-text"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn listener() -> HttpListener {
        HttpListener::start(([127, 0, 0, 1], 0).into(), Fixed).unwrap()
    }

    struct Fixed;

    impl Content for Fixed {
        fn page(&self) -> String {
            "<p>page</p>".to_owned()
        }
        fn metrics(&self) -> String {
            "answer 42\n".to_owned()
        }
        fn health(&self) -> Result<String, String> {
            Err("a socket is gone".to_owned())
        }
    }

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut scraper = TcpStream::connect(address).unwrap();
        // A server that refuses a request may reset the connection at each step; the bytes before that count.
        let _ = scraper.write_all(request);
        let mut answer = String::new();
        let _ = scraper.read_to_string(&mut answer);
        answer
    }

    const GOOD: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n";

    #[test]
    fn a_scraper_gets_the_metrics_and_other_requests_a_reason() {
        let listener = listener();
        let address = listener.address();
        let good = ask(address, GOOD);
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n") && good.ends_with("\r\n\r\nanswer 42\n"), "{good}");
        assert!(good.contains("content-type: text/plain; version=0.0.4"), "{good}");
        let open = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0,*/*\r\n\r\n";
        assert!(ask(address, open).contains("application/openmetrics-text"));
        for (request, status) in [
            (&b"GET /none HTTP/1.1\r\n\r\n"[..], "404"),
            (b"GET /healthz HTTP/1.1\r\n\r\n", "503"),
            (b"GET / HTTP/1.1\r\n\r\n", "200"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"\x16\x03\x01\r\n\r\n", "400"),
        ] {
            let answer = ask(address, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
        let head = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("answer"), "{head}");
        let long = [&b"GET /metrics HTTP/1.1\r\nX: "[..], &[b'x'; 4 * MAX_HEAD_BYTES], b"\r\n\r\n"].concat();
        assert!(!ask(address, &long).contains("answer"), "an endless head is not kept");
        assert!(ask(address, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n").contains("answer 42"));
    }

    #[test]
    fn silent_connections_delay_no_scraper() {
        let listener = listener();
        let address = listener.address();
        // None of them is read or closed before the end: each answer below arrives while all are open.
        let mut silent: Vec<TcpStream> = Vec::new();
        for begin in [&b""[..], b"G", b"GET /metr", b"GET /metrics HTTP/1.1\r\n"] {
            for _ in 0..MAX_CONNECTIONS {
                let mut scraper = TcpStream::connect(address).unwrap();
                scraper.write_all(begin).unwrap();
                silent.push(scraper);
            }
            assert!(ask(address, GOOD).ends_with("answer 42\n"), "{} are open", silent.len());
        }
        // The oldest were closed: an end of stream or a reset, but no timeout.
        let mut oldest = silent.swap_remove(0);
        oldest.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        match oldest.read(&mut [0; 16]) {
            Ok(bytes) => assert_eq!(bytes, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    #[test]
    fn the_port_is_free_after_the_listener_is_dropped() {
        let listener = listener();
        let address = listener.address();
        let _silent = TcpStream::connect(address).unwrap();
        drop(listener);
        assert!(TcpStream::connect(address).is_err());
    }
}
