//! The HTTP server of the metrics: `GET /metrics`, with hyper, on one thread.
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

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

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
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The listening thread; ends when this is dropped.
#[derive(Debug)]
pub struct MetricsListener {
    address: SocketAddr,
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsListener {
    /// Answers at `address` with `text()`.
    ///
    /// # Errors
    /// If `address` cannot be bound.
    pub fn start(address: SocketAddr, text: impl Fn() -> String + Send + Sync + 'static) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            runtime.spawn(accept(listener, Arc::new(text)));
            // An error means that the sender was dropped, which stops this. Open connections end with the runtime.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// The bound address, with the port that the system chose for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread has no result, and its panic was printed.
            let _ = thread.join();
        }
    }
}

async fn accept<F: Fn() -> String + Send + Sync + 'static>(listener: TcpListener, text: Arc<F>) {
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
        open.push_back(tokio::spawn(exchange(stream, Arc::clone(&text))).abort_handle());
    }
}

/// Handles one request. Errors of the connection concern only its client.
async fn exchange<F: Fn() -> String>(stream: TcpStream, text: Arc<F>) {
    let service = service_fn(|request| ready(Ok::<_, Infallible>(respond(&request, text.as_ref()))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

fn respond<B>(request: &Request<B>, text: &impl Fn() -> String) -> Response<String> {
    let is_metrics = request.uri().path() == "/metrics";
    let (status, kind, body) = if !matches!(*request.method(), Method::GET | Method::HEAD) {
        (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD are answered\n".to_owned())
    } else if is_metrics {
        (StatusCode::OK, OPEN_METRICS, text())
    } else {
        (StatusCode::NOT_FOUND, PLAIN, "the metrics are at /metrics\n".to_owned())
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn listener() -> MetricsListener {
        MetricsListener::start(([127, 0, 0, 1], 0).into(), || "answer 42\n".to_owned()).unwrap()
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
        assert!(good.contains("application/openmetrics-text"), "{good}");
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
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
