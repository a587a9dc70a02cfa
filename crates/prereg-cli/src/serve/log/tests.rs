//! Lines of the log: who, what, why and what to do, in each format; and few of them, whatever clients do.

use std::io;
use std::sync::{Arc, Mutex};

use prereg::Iova;
use prereg_linux::SharedError;
use prereg_vfio_user::server::{DisconnectReason, MapMemoryError, MemoryEvent};
use serde_json::Value;

use super::output::{LogFilter, LogFormat, Reader, dispatch};
use super::*;

/// The written lines.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

/// Remedies that name what they were asked about.
struct Named;

impl Remedies for Named {
    fn memory(&self, error: &MapMemoryError) -> (String, Option<String>) {
        (error.to_string(), Some("raise the limit".to_owned()))
    }
    fn doorbells(&self, _: &EventSource) -> Option<String> {
        None
    }
}

fn log(format: LogFormat, level: &str, reader: Reader) -> (Log, Written) {
    let written = Written::default();
    let writer = written.clone();
    let dispatch = dispatch(format, &level.parse::<LogFilter>().unwrap(), reader, move || writer.clone());
    (Log::new(dispatch, Arc::new(Named)), written)
}

fn client(number: u64) -> EventSource {
    let mut source = EventSource::default();
    source.socket = Some("/run/disk0.sock".into());
    source.device = "nvme".to_owned();
    source.client = Some(number);
    (source.pid, source.uid) = (77, 1000);
    source
}

const GIB: u64 = 1 << 30;

fn over_limit() -> Event {
    let error = MapMemoryError::Limit { bytes: 8 * GIB, used: GIB, limit: 2 * GIB };
    Event::Memory(MemoryEvent::MapRefused { iova: Iova::new(0x1000), bytes: 8 * GIB, error })
}

#[test]
fn a_line_of_json_has_who_what_why_and_what_to_do_as_fields() {
    let (log, written) = log(LogFormat::Json, "info", Reader::Other);
    log.observe(&client(3), &Event::Connected);
    log.observe(&client(3), &over_limit());
    log.info("stopped");
    let lines: Vec<Value> = written.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[0]["level"], &lines[0]["message"]), (&"INFO".into(), &"client connected".into()));
    let refused = &lines[1];
    assert_eq!((&refused["level"], &refused["target"]), (&"WARN".into(), &"prereg::memory".into()));
    assert_eq!((&refused["client"], &refused["pid"], &refused["uid"]), (&3.into(), &77.into(), &1000.into()));
    assert_eq!((&refused["device"], &refused["socket"]), (&"nvme".into(), &"/run/disk0.sock".into()));
    assert!(refused["message"].as_str().unwrap().contains("8 GiB at iova 0x1000"), "{refused}");
    assert!(refused["why"].as_str().unwrap().contains("0x80000000"), "{refused}");
    assert_eq!(refused["remedy"], "raise the limit");
    assert!(refused["timestamp"].is_string() && refused.get("repeated").is_none(), "{refused}");
    assert!(lines[2].get("client").is_none() && lines[2].get("why").is_none(), "{}", lines[2]);
}

#[test]
fn a_line_of_text_is_a_sentence_and_the_journal_gets_its_priority_without_a_time() {
    for (reader, begin) in
        [(Reader::Journal, "<4> WARN prereg::memory: "), (Reader::Other, " WARN prereg::memory: ")]
    {
        let (log, written) = log(LogFormat::Text, "info", reader);
        log.observe(&client(3), &over_limit());
        let [line] = &written.lines()[..] else { panic!("one line") };
        assert!(line.starts_with(begin), "{line}");
        assert!(line.contains("refused: the device cannot reach it: 0x200000000 bytes"), "{line}");
        assert!(
            line.contains("; raise the limit (client 3, nvme at /run/disk0.sock, process 77, user 1000)"),
            "{line}"
        );
        assert!(!line.contains('\x1b'), "{line}");
    }
}

#[test]
fn a_map_past_the_end_of_its_file_is_explained() {
    let (log, written) = log(LogFormat::Text, "info", Reader::Other);
    let error = SharedError::Short { offset: 0, bytes: 2 * GIB, length: GIB };
    let refused = MemoryEvent::MapRefused { iova: Iova::new(0), bytes: 2 * GIB, error: error.into() };
    log.observe(&client(3), &Event::Memory(refused));
    assert!(written.lines()[0].contains(&error.to_string()), "{:?}", written.lines());
}

#[test]
fn a_flood_of_refused_messages_costs_few_lines() {
    let (log, written) = log(LogFormat::Text, "info", Reader::Other);
    let refused = Event::RequestFailed { command: "REGION_READ", errno: prereg::Errno::EINVAL };
    log.observe(&client(0), &Event::Connected);
    for _ in 0..100_000 {
        log.observe(&client(0), &refused);
    }
    log.observe(&client(0), &Event::Disconnected { reason: DisconnectReason::Gone, served: true });
    let lines = written.lines();
    assert_eq!(lines.len(), 4, "connected, the first, the count, disconnected: {lines:?}");
    assert!(lines[2].contains("99999 more, the last: request failed: REGION_READ"), "{lines:?}");
}

#[test]
fn a_client_that_reconnects_and_is_refused_again_and_again_costs_few_lines() {
    let (log, written) = log(LogFormat::Text, "info", Reader::Other);
    for number in 0..10_000 {
        log.observe(&client(number), &Event::Connected);
        log.observe(&client(number), &over_limit());
        log.observe(&client(number), &Event::Disconnected { reason: DisconnectReason::Gone, served: true });
    }
    drop(log);
    let lines = written.lines();
    assert!(lines.len() < 40, "{} lines: {lines:?}", lines.len());
    let counted: u64 = lines
        .iter()
        .filter(|line| line.contains("DMA_MAP"))
        .map(|line| {
            line.split_once(" more,")
                .map_or(1, |(count, _)| count.rsplit(' ').next().unwrap().parse().unwrap())
        })
        .sum();
    assert_eq!(counted, 10_000, "none is lost");
}

#[test]
fn levels_and_targets_are_filtered() {
    let (log, written) = log(LogFormat::Text, "warn,prereg::nvme=info", Reader::Other);
    log.observe(&client(0), &Event::Connected);
    log.observe(&client(0), &NvmeEvent::Enabled);
    log.observe(&client(0), &over_limit());
    let targets: Vec<_> = written.lines().iter().map(|line| line.contains("prereg::nvme")).collect();
    assert_eq!(targets, [true, false]);
    assert!("loud".parse::<LogFilter>().is_ok(), "a target alone is a filter");
    assert!("prereg=loud".parse::<LogFilter>().unwrap_err().contains("off, error, warn"));
}
