//! The HTTP server for metrics: `GET /metrics`, by hyper, on one thread.
//!
//! Connections are served concurrently, at most `MOST_CONNECTIONS` of them. When one more comes the oldest is closed, so
//! clients that are slow or silent delay only themselves, however many there are. A request must arrive within
//! `REQUEST_TIME`, a whole exchange must end within `EXCHANGE_TIME`, and one connection carries one request.

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
const MOST_CONNECTIONS: usize = 64;
/// How long a request's head may take to arrive.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a connection may last.
const EXCHANGE_TIME: Duration = Duration::from_secs(20);
/// The longest head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// The wait after a failed accept: out of descriptors, say. It passes, and trying again at once would not help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A thread that answers scrapers until this is dropped.
#[derive(Debug)]
pub struct MetricsListener {
    address: SocketAddr,
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsListener {
    /// Answers at `address` with what `text` gives.
    ///
    /// # Errors
    /// When the address cannot be listened on.
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
            // An error says that the sender was dropped, which is how this is stopped. Open connections end with the runtime.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens; the port is the one that was given when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has no result, and a panic was printed where it happened.
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
        if open.len() >= MOST_CONNECTIONS {
            if let Some(oldest) = open.pop_front() {
                oldest.abort();
            }
        }
        open.push_back(tokio::spawn(exchange(stream, Arc::clone(&text))).abort_handle());
    }
}

/// One request and its response. What goes wrong with the connection concerns only its client.
async fn exchange<F: Fn() -> String>(stream: TcpStream, text: Arc<F>) {
    let service = service_fn(|request| ready(Ok::<_, Infallible>(respond(&request, text.as_ref()))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(EXCHANGE_TIME, connection).await;
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
        // A server that refuses a request may reset the connection at any of these steps; what came before that counts.
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
        let long = [&b"GET /metrics HTTP/1.1\r\nX: "[..], &[b'x'; 4 * HEAD_BYTES], b"\r\n\r\n"].concat();
        assert!(!ask(address, &long).contains("answer"), "a head without end is not kept");
        assert!(ask(address, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n").contains("answer 42"));
    }

    #[test]
    fn silent_connections_delay_no_scraper_however_many_there_are() {
        let listener = listener();
        let address = listener.address();
        // Not one of them is read or closed before the end: each answer below comes while they are all there.
        let mut silent: Vec<TcpStream> = Vec::new();
        for begin in [&b""[..], b"G", b"GET /metr", b"GET /metrics HTTP/1.1\r\n"] {
            for _ in 0..MOST_CONNECTIONS {
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
    fn the_port_is_free_again_when_the_listener_is_gone() {
        let listener = listener();
        let address = listener.address();
        let _silent = TcpStream::connect(address).unwrap();
        drop(listener);
        assert!(TcpStream::connect(address).is_err());
    }
}
