//! `prereg bench nvme --server`: running servers, by their sockets.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use prereg_linux::BackendReport;

const PREREG: &str = env!("CARGO_BIN_EXE_prereg");

/// A server, killed when dropped.
struct Server(Child);

impl Server {
    fn start(socket: &Path, disk: &Path, size: &str) -> Self {
        let mut command = Command::new(PREREG);
        command.args(["serve", "nvme", "--quiet", "--control", "none", "--create", size]);
        command.arg("--socket").arg(socket).arg("--disk").arg(disk);
        let mut server = Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        while !socket.exists() {
            assert!(server.0.try_wait().unwrap().is_none(), "its own words are above");
            std::thread::yield_now();
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(PREREG).args(["bench", "nvme"]).args(arguments).output().unwrap()
}

#[test]
fn servers_are_compared_by_their_sockets_and_written_only_if_asked() {
    let host = prereg_linux::HostReport::probe();
    let is_enough = |backend: &&BackendReport| backend.allowance.is_none_or(|bytes| bytes >= 16 << 20);
    if host.backend("io-uring").filter(|backend| backend.usable).filter(is_enough).is_none() {
        eprintln!("skipped: this user cannot pin 16 MiB by io_uring");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [one, two, disk, other] = ["one", "two", "1.img", "2.img"].map(|name| folder.path().join(name));
    let _servers = [Server::start(&one, &disk, "4M"), Server::start(&two, &other, "4M")];
    let [one, two] = [one, two].map(|socket| socket.display().to_string());
    let [one, two] = [format!("one={one}"), format!("two={two}")];
    let servers = ["--server", &one, "--server", &two, "--iterations", "2", "--batch", "64", "--json"];

    let output = bench(&servers);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = results["rows"].as_array().unwrap();
    let found: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["operation"].as_str().unwrap(),
                row["bytes"].as_u64().unwrap(),
                row["depth"].as_u64().unwrap(),
            )
        })
        .collect();
    let shapes = [(4096, 1), (4096, 32), (4096, 128), (131_072, 1), (131_072, 32)];
    let expected: Vec<_> = shapes.iter().flat_map(|(bytes, depth)| [("read", *bytes, *depth); 2]).collect();
    assert_eq!(found, expected);
    for pair in rows.chunks(2) {
        assert_eq!((&pair[0]["server"], &pair[1]["server"]), (&"one".into(), &"two".into()));
        assert_eq!((&pair[0]["iops_ratio"], &pair[0]["cpu_ratio"]), (&1.0.into(), &1.0.into()));
        for row in pair {
            let number = |key: &str| row[key].as_f64().unwrap();
            assert!(number("iops") > 0.0 && number("cpu_us") > 0.0, "{row}");
            assert!(0.0 < number("p50_us") && number("p50_us") <= number("p99_us"), "{row}");
        }
    }
    assert!(std::fs::read(&disk).unwrap().iter().all(|byte| *byte == 0), "nothing was written");

    let output = bench(&[&servers[..], &["--writes"]].concat());
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results["rows"].as_array().unwrap().len(), 20);
}

#[test]
fn a_server_that_is_not_there_or_has_no_room_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let output = bench(&["--server", missing.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("connecting to the server"), "{text}");
    for wrong in
        [&["--server", "=x"][..], &["--server", "x="], &["--writes"], &["--server", "x", "--dir", "/tmp"]]
    {
        assert_eq!(bench(wrong).status.code(), Some(2), "{wrong:?}");
    }
}
