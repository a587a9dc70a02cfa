//! QEMU's machine protocol: one JSON object per line over a Unix socket; commands are answered in order, with events in
//! between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::Error;

/// Poll interval for a socket that does not exist yet.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A connection after the greeting.
#[derive(Debug)]
pub(crate) struct Qmp<S> {
    input: BufReader<S>,
    output: S,
    events: Vec<Value>,
}

impl Qmp<UnixStream> {
    /// Connects to the socket at `path` once QEMU has made it, at most for `limit`.
    pub(crate) fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed() > limit => return Err(Error::file(path)(error)),
                Err(_) => thread::sleep(POLL_INTERVAL),
            }
        };
        // A read that takes longer has failed.
        let set = stream.set_read_timeout(Some(limit.max(POLL_INTERVAL)));
        set.and_then(|()| stream.try_clone())
            .map_err(Error::file(path))
            .and_then(|copy| Self::over(stream, copy))
    }
}

impl<S: std::io::Read + Write> Qmp<S> {
    /// Uses both directions of a connection: reads the greeting and enables no capability.
    fn over(input: S, output: S) -> Result<Self, Error> {
        let mut qmp = Self { input: BufReader::new(input), output, events: Vec::new() };
        if qmp.message()?.get("QMP").is_none() {
            return Err(Error::Monitor("no greeting".to_owned()));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes `command` and returns its answer.
    ///
    /// # Errors
    /// [`Error::Monitor`] with QEMU's reason.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let request = json!({ "execute": command, "arguments": arguments });
        let broken = |error: std::io::Error| Error::Monitor(format!("{command}: {error}"));
        self.output.write_all(format!("{request}\n").as_bytes()).map_err(broken)?;
        loop {
            let message = self.message()?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("refused");
                return Err(Error::Monitor(format!("{command}: {why}")));
            }
            self.events.push(message);
        }
    }

    /// Waits for the event `name` that `wanted` accepts; earlier ones count.
    ///
    /// # Errors
    /// [`Error::Monitor`] if nothing is received within the time limit.
    pub(crate) fn event(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value, Error> {
        loop {
            let fits = |event: &Value| event.get("event").is_some_and(|event| event == name) && wanted(event);
            if let Some(at) = self.events.iter().position(fits) {
                return Ok(self.events.remove(at));
            }
            let message =
                self.message().map_err(|error| Error::Monitor(format!("waiting for {name}: {error}")))?;
            self.events.push(message);
        }
    }

    fn message(&mut self) -> Result<Value, Error> {
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(0) => Err(Error::Monitor("the connection was closed".to_owned())),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| Error::Monitor(format!("{error} in {}", line.trim_end()))),
            Err(error) => Err(Error::Monitor(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripted output of QEMU, and the input it received.
    #[derive(Debug)]
    struct Script {
        says: std::io::Cursor<Vec<u8>>,
        told: Vec<u8>,
    }

    impl std::io::Read for Script {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.says.read(into)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.told.write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn qmp(says: &str) -> Result<Qmp<Script>, Error> {
        let script = |says: &str| Script { says: std::io::Cursor::new(says.into()), told: Vec::new() };
        Qmp::over(script(says), script(""))
    }

    const GREETING: &str = "{\"QMP\": {}}\n{\"return\": {}}\n";

    #[test]
    fn answers_and_events_are_told_apart_in_any_order() {
        let mut qmp = qmp(&format!(
            "{GREETING}{{\"event\":\"RESET\",\"data\":{{}}}}\n{{\"return\":{{\"status\":\"running\"}}}}\n\
             {{\"event\":\"DEVICE_DELETED\",\"data\":{{\"device\":\"disk0\"}}}}\n"
        ))
        .expect("a greeting");
        let answer = qmp.execute("query-status", json!({})).expect("answered");
        assert_eq!(answer["status"], "running");
        qmp.event("DEVICE_DELETED", |event| event["data"]["device"] == "disk0").expect("it came later");
        qmp.event("RESET", |_| true).expect("it came earlier");
        assert!(qmp.event("RESET", |_| true).is_err(), "only once");
        let told = String::from_utf8(qmp.output.told).expect("JSON");
        assert_eq!(told.lines().count(), 2);
        assert!(told.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{told}");
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let refused =
            format!("{GREETING}{{\"error\":{{\"class\":\"GenericError\",\"desc\":\"no such\"}}}}\n");
        let error = qmp(&refused).expect("a greeting").execute("x", json!({})).expect_err("refused");
        assert_eq!(error.to_string(), "QEMU's monitor: x: no such");
        for nonsense in ["", "hello\n", "{}\n"] {
            assert!(qmp(nonsense).is_err(), "{nonsense:?}");
        }
    }
}
