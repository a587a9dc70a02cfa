//! Just enough of HTTP for a scraper: one request a connection, `GET /metrics`, a closed connection.
//!
//! A scraper that stalls or babbles is cut off after a second or 8 KiB and harms nobody but itself; the thread serves one
//! at a time, and a scrape takes microseconds.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A thread that answers scrapers until this is dropped.
#[derive(Debug)]
pub struct MetricsListener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long one scraper may take to ask, and to listen.
const PATIENCE: Duration = Duration::from_secs(1);
/// More than any scraper's request.
const LONGEST_REQUEST: usize = 8 << 10;

impl MetricsListener {
    /// Answers at `address` with what `text` gives.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(address: SocketAddr, text: impl Fn() -> String + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            // Relaxed: whoever sets the flag connects after it, and accepting that orders the two.
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A scraper that went away is its own affair.
                    Ok((scraper, _)) => drop(answer(scraper, &text)),
                    // Out of descriptors, say: it passes, and spinning would not help it.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens; the port is the one that was given when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread sits in `accept`; a connection gets it out.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            let here: std::net::IpAddr =
                if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
            address.set_ip(here);
        }
        let woken = TcpStream::connect_timeout(&address, PATIENCE).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            // It has no result, and a panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

fn answer(mut scraper: TcpStream, text: &impl Fn() -> String) -> io::Result<()> {
    scraper.set_write_timeout(Some(PATIENCE))?;
    let (status, body) = match request(&mut scraper)? {
        Asked::Metrics => ("200 OK", text()),
        Asked::Elsewhere => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        Asked::OtherMethod => ("405 Method Not Allowed", "only GET is answered\n".to_owned()),
        Asked::Nonsense => ("400 Bad Request", "that is no HTTP request\n".to_owned()),
    };
    write!(
        scraper,
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

enum Asked {
    Metrics,
    Elsewhere,
    OtherMethod,
    Nonsense,
}

fn request(scraper: &mut TcpStream) -> io::Result<Asked> {
    let until = Instant::now() + PATIENCE;
    let mut bytes = [0; LONGEST_REQUEST];
    let mut length = 0;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Asked::Nonsense);
        }
        scraper.set_read_timeout(Some(left))?;
        let Some(room) = bytes.get_mut(length..).filter(|room| !room.is_empty()) else {
            return Ok(Asked::Nonsense);
        };
        let more = scraper.read(room)?;
        if more == 0 {
            return Ok(Asked::Nonsense);
        }
        length += more;
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes.get(..length).unwrap_or_default()) {
            Ok(httparse::Status::Complete(_)) => {
                let path = request.path.unwrap_or_default();
                return Ok(match (request.method, path.split('?').next()) {
                    (Some("GET"), Some("/metrics")) => Asked::Metrics,
                    (Some("GET"), _) => Asked::Elsewhere,
                    _ => Asked::OtherMethod,
                });
            }
            Ok(httparse::Status::Partial) => {}
            Err(_) => return Ok(Asked::Nonsense),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut scraper = TcpStream::connect(address).unwrap();
        // A listener that cuts off a babbler resets the connection, at any of these steps; what came before that counts.
        let _ = scraper.write_all(request);
        let _ = scraper.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = scraper.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn a_scraper_gets_the_metrics_and_everybody_else_a_reason() {
        let listener =
            MetricsListener::start(([127, 0, 0, 1], 0).into(), || "answer 42\n".to_owned()).unwrap();
        let address = listener.address();
        let good = ask(address, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n") && good.ends_with("\r\n\r\nanswer 42\n"), "{good}");
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"\x16\x03\x01", "400"),
            (b"", "400"),
            (b"GET /metrics", "400"),
        ] {
            let answer = ask(address, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
        ask(address, &[b'x'; 20_000]);
        assert!(ask(address, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n").contains("answer 42"));
    }

    #[test]
    fn the_port_is_free_again_when_the_listener_is_gone() {
        let listener = MetricsListener::start(([127, 0, 0, 1], 0).into(), String::new).unwrap();
        let address = listener.address();
        drop(listener);
        assert!(TcpStream::connect(address).is_err());
    }
}
