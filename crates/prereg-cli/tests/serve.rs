//! Tests of `prereg serve` as a process: configuration, I/O, status, page, log, checks and stop. Long: each starts servers by one fixture.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use prereg_benches::nvme::driver::{Direction, Driver};
use prereg_cli::serve::control;
use prereg_cli::serve::status::Status;

/// A server process that is killed when this is dropped.
struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    banner: Vec<String>,
}

impl Server {
    /// Starts a server and waits until it is ready.
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prereg"));
        command.arg("serve").args(arguments);
        Self::spawn(command)
    }

    /// Starts a server under a resource limit, an option of prlimit(1).
    fn start_with_limit(limit: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(limit).arg(env!("CARGO_BIN_EXE_prereg")).arg("serve").args(arguments);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        // An outer test may run under the journal.
        command.env_remove("JOURNAL_STREAM");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut banner = Vec::new();
        while banner.last().map(String::as_str) != Some("ready") {
            let mut line = String::new();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "the server ended after printing {banner:?}");
            banner.push(line.trim_end().to_owned());
        }
        Self { child, out, banner }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Stops the server by SIGTERM; returns its exit status and its last output.
    fn stop(mut self) -> (ExitStatus, String) {
        self.signal("TERM");
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already if the test passed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

fn transfer(driver: &mut Driver, direction: Direction, slot: u32, block: u64, bytes: u64) {
    driver.put_command(direction, slot, block, bytes).unwrap();
    driver.ring().unwrap();
    while driver.take(|_| ()).unwrap() == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn one_command_serves_a_disk_that_keeps_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    let server = Server::start(&[
        "nvme",
        "--socket",
        &socket,
        "--disk",
        &disk,
        "--create",
        "8M",
        "--control",
        &control,
        "--metrics",
        "127.0.0.1:0",
    ]);
    let banner = server.banner.join("\n");
    assert!(banner.contains("vfio-user-pci") && banner.contains("share=on"), "{banner}");

    let mut driver = Driver::start(Path::new(&socket), 4).unwrap();
    assert_eq!(driver.blocks * driver.block, 8 << 20);
    for offset in (0..8192).step_by(4) {
        driver.put_data(0, offset, 0x5eed_0000 | offset as u32).unwrap();
    }
    transfer(&mut driver, Direction::Write, 0, 16, 8192);
    transfer(&mut driver, Direction::Read, 1, 16, 8192);
    assert!((0..8192).step_by(4).all(|offset| driver.data(1, offset) == 0x5eed_0000 | offset as u32));

    let status: Status = control::query(Path::new(&control)).unwrap();
    let client = &status.clients[0];
    assert_eq!((status.clients.len(), client.mappings), (1, 1));
    assert_eq!((status.memory.registrations, status.memory.pins_total), (1, 1));
    assert_eq!((client.device["read_commands"], client.device["write_commands"]), (1, 1));
    assert_eq!(client.latencies.len(), 2);

    let address = server.banner.iter().find_map(|line| line.strip_prefix("metrics: http://")).unwrap();
    let mut scraper = TcpStream::connect(address.strip_suffix("/metrics").unwrap()).unwrap();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    scraper.read_to_string(&mut text).unwrap();
    assert!(text.contains("\nprereg_pins_total 1\n"), "{text}");
    assert!(text.contains("op=\"read\"} 1\n"), "{text}");

    drop(driver);
    let (status, output) = server.stop();
    assert!(status.success() && output.contains("every pin is released"), "{status}: {output}");
    assert!(!Path::new(&socket).exists() && !Path::new(&control).exists());
    let image = std::fs::read(&disk).unwrap();
    let words: Vec<u32> = image[16 * 512..16 * 512 + 8192]
        .chunks(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert!(words.iter().zip((0..8192).step_by(4)).all(|(word, offset)| *word == 0x5eed_0000 | offset));
}

#[test]
fn a_file_size_limit_below_the_disk_fails_writes_and_not_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    std::fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let server = Server::start_with_limit(
        "--fsize=4194304",
        &["nvme", "--socket", &socket, "--disk", &disk, "--control", &control],
    );
    let mut driver = Driver::start(Path::new(&socket), 2).unwrap();
    transfer(&mut driver, Direction::Write, 0, 2048, 4096);
    driver.put_command(Direction::Write, 0, (8 << 20) / 512, 4096).unwrap();
    driver.ring().unwrap();
    let failure = loop {
        match driver.take(|_| ()) {
            Ok(0) => std::thread::yield_now(),
            Ok(_) => panic!("written beyond the limit"),
            Err(failure) => break failure.to_string(),
        }
    };
    assert!(failure.contains("0x280"), "a write fault: {failure}");
    // Reads beyond the limit and writes below it succeed.
    transfer(&mut driver, Direction::Read, 1, (8 << 20) / 512, 4096);
    transfer(&mut driver, Direction::Write, 1, 0, 4096);
    assert_eq!(control::query(Path::new(&control)).unwrap().clients.len(), 1);
    drop(driver);
    assert!(server.stop().0.success());
}

#[test]
fn the_limit_on_descriptors_is_raised_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    let server = Server::start_with_limit(
        "--nofile=200:900",
        &["nvme", "--socket", &socket, "--disk", &disk, "--create", "1M", "--control", &control],
    );
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["900", "900"]);
    assert!(server.stop().0.success());
}

#[test]
fn a_configuration_serves_several_devices_over_one_memory() {
    let folder = tempfile::tempdir().unwrap();
    let control = path(&folder, "c");
    for name in ["a.img", "b.img"] {
        std::fs::File::create(folder.path().join(name)).unwrap().set_len(4 << 20).unwrap();
    }
    let config = "[[nvme]]\nsocket = \"a\"\nmode = \"0660\"\n[[nvme.namespace]]\nfile = \"a.img\"\n\
                  [[nvme]]\nsocket = \"b\"\n[[nvme.namespace]]\nfile = \"b.img\"\nblock-size = 4096\n";
    std::fs::write(folder.path().join("serve.toml"), config).unwrap();
    let server = Server::start(&["--config", &path(&folder, "serve.toml"), "--control", &control]);
    use std::os::unix::fs::PermissionsExt;
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a"), mode("b")), (0o660, 0o600));
    let a = Driver::start(&folder.path().join("a"), 1).unwrap();
    let b = Driver::start(&folder.path().join("b"), 1).unwrap();
    assert_eq!((a.block, b.block), (512, 4096));
    let status = control::query(Path::new(&control)).unwrap();
    assert_eq!(status.clients.len(), 2);
    assert_eq!(status.sockets.iter().map(|socket| socket.clients).collect::<Vec<_>>(), [1, 1]);
    drop((a, b));
    assert!(server.stop().0.success());
}

#[test]
fn a_failed_start_reports_the_reason_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk] = ["s", "none.img"].map(|name| path(&folder, name));
    let (code, stderr) = run(&["nvme", "--socket", &socket, "--disk", &disk]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--create") && stderr.matches("none.img").count() == 1, "{stderr}");
    let create = ["nvme", "--socket", &socket, "--disk", &disk, "--create", "1M"];
    let with = |more: &[&str]| run(&[&create, more].concat());
    let (code, stderr) = with(&["--block-size", "1024"]);
    assert!(code == Some(2) && stderr.contains("must be 512 or 4096 bytes, not 1024"), "{code:?}: {stderr}");
    let (code, stderr) = with(&["--metrics", "9469"]);
    assert!(code == Some(2) && stderr.contains("127.0.0.1:9469"), "{code:?}: {stderr}");
    let (code, stderr) = run(&["--config", &path(&folder, "none.toml")]);
    assert!(code == Some(2) && stderr.contains("none.toml"), "{code:?}: {stderr}");
    let (code, stderr) =
        run(&["nvme", "--socket", &path(&folder, "no/s"), "--disk", &disk, "--create", "1M"]);
    assert!(code == Some(2) && stderr.contains("folder does not exist"), "{code:?}: {stderr}");
    let long = path(&folder, &"s".repeat(120));
    let (code, stderr) = run(&["nvme", "--socket", &long, "--disk", &disk, "--create", "1M"]);
    assert!(code == Some(2) && stderr.contains("at most 107 bytes"), "{code:?}: {stderr}");
    let (code, stderr) = with(&["--control", &long]);
    assert!(code == Some(2) && stderr.contains("shorter one with --control"), "{code:?}: {stderr}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, stderr) = with(&["--metrics", &taken.local_addr().unwrap().to_string()]);
    assert!(code == Some(2) && stderr.contains("listening for metrics"), "{code:?}: {stderr}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn an_existing_disk_is_served_unchanged_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let create =
        |size| ["nvme", "--socket", &socket, "--disk", &disk, "--create", size, "--control", &control];
    let (code, stderr) = run(&create("2M"));
    assert!(code == Some(2) && stderr.contains("1 MiB") && stderr.contains("2 MiB"), "{code:?}: {stderr}");
    assert!(Server::start(&create("1M")).stop().0.success());
    assert_eq!(std::fs::read(&disk).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn a_client_that_needs_mappable_doorbells_is_reported_to_the_operator() {
    use prereg_vfio_user::client::Client;
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    for (doorbells, is_reported) in [("socket", true), ("auto", false)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prereg"));
        command.args(["serve", "nvme", "--socket", &socket, "--disk", &disk, "--create", "1M"]);
        command.args(["--control", &control, "--doorbells", doorbells]).stderr(Stdio::piped());
        let mut server = Server::spawn(command);
        let mut errors = server.child.stderr.take().unwrap();
        // As SPDK's initiator does.
        let mut client = Client::connect(Path::new(&socket)).unwrap();
        client.region_info(0).unwrap();
        drop(client);
        while control::query(Path::new(&control)).unwrap().disconnects_total.get("left") != Some(&1) {
            std::thread::yield_now();
        }
        server.signal("TERM");
        let mut stderr = String::new();
        errors.read_to_string(&mut stderr).unwrap();
        assert_eq!(stderr.contains("--doorbells auto"), is_reported, "{doorbells}: {stderr}");
        assert!(server.stop().0.success());
    }
}

/// A server with one disk in `folder` whose standard error is piped.
fn logging(folder: &tempfile::TempDir, more: &[&str]) -> Server {
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(folder, name));
    let mut command = Command::new(env!("CARGO_BIN_EXE_prereg"));
    command.args([
        "serve",
        "nvme",
        "--socket",
        &socket,
        "--disk",
        &disk,
        "--create",
        "1M",
        "--control",
        &control,
    ]);
    command.args(more).stderr(Stdio::piped());
    Server::spawn(command)
}

#[test]
fn the_log_is_json_with_the_client_the_reason_and_the_count() {
    use prereg::{Access, Iova};
    use prereg_vfio_user::client::Client;
    let folder = tempfile::tempdir().unwrap();
    let mut server = logging(&folder, &["--log-format", "json", "--memory-limit", "4M"]);
    let mut errors = server.child.stderr.take().unwrap();
    let memory = prereg_linux::GuestMemory::memfd("guest", 8 << 20).unwrap();
    let ram = memory.descriptor().unwrap();
    let mut client = Client::connect(&folder.path().join("s")).unwrap();
    for _ in 0..50 {
        client.dma_map(Iova::new(0), 16 << 20, Access::ReadWrite, Some((ram, 0))).unwrap_err();
    }
    drop(client);
    let mut client = Client::connect(&folder.path().join("s")).unwrap();
    client.dma_map(Iova::new(0), 8 << 20, Access::ReadWrite, Some((ram, 0))).unwrap_err();
    drop(client);
    server.signal("TERM");
    let mut text = String::new();
    errors.read_to_string(&mut text).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused: Vec<_> = lines.iter().filter(|line| line["target"] == "prereg::memory").collect();
    assert!((2..6).contains(&refused.len()), "{text}");
    assert_eq!((&refused[0]["client"], &refused[0]["pid"]), (&0.into(), &std::process::id().into()));
    assert!(refused[0]["why"].as_str().unwrap().contains("0x800000"), "the length of the file: {text}");
    assert_eq!(refused[0]["socket"].as_str(), folder.path().join("s").to_str());
    let repeated: u64 = refused.iter().map(|line| line["repeated"].as_u64().unwrap_or(1)).sum();
    assert_eq!(repeated, 51, "{text}");
    let last = refused.last().unwrap();
    assert!(last["why"].as_str().unwrap().contains("the limit is 4 MiB"), "{text}");
    assert!(last["remedy"].as_str().unwrap().contains("raise the limit"), "{text}");
    assert!(server.stop().0.success());
}

/// The body and the status line of an HTTP answer.
fn get(server: &Server, path: &str) -> (String, String) {
    let address = server.banner.iter().find_map(|line| line.strip_prefix("page: http://")).unwrap();
    let mut stream = TcpStream::connect(address.strip_suffix('/').unwrap()).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (body.to_owned(), head.lines().next().unwrap().to_owned())
}

/// The text of the first cell of this name.
fn cell<'a>(page: &'a str, name: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("data-name=\"{name}\">")).unwrap();
    rest.split('<').next().unwrap()
}

#[test]
fn the_page_has_the_numbers_of_the_status_and_health_notices_a_removed_socket() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = logging(&folder, &["--metrics", "127.0.0.1:0"]);
    // A log that cannot be written ends nothing.
    drop(server.child.stderr.take());
    let mut driver = Driver::start(&folder.path().join("s"), 4).unwrap();
    transfer(&mut driver, Direction::Write, 0, 0, 8192);
    transfer(&mut driver, Direction::Read, 1, 0, 8192);
    let status = control::query(&folder.path().join("c")).unwrap();
    let (page, line) = get(&server, "/");
    assert_eq!(line, "HTTP/1.1 200 OK");
    assert!(page.contains("http-equiv=\"refresh\"") && page.contains(&path(&folder, "s")), "{page}");
    let client = &status.clients[0];
    assert_eq!(cell(&page, "mappings"), client.mappings.to_string());
    assert_eq!(cell(&page, "registrations"), status.memory.registrations.to_string());
    assert_eq!(cell(&page, "pinned"), prereg_cli::units::Bytes(status.memory.pinned_bytes).to_string());
    assert_eq!((cell(&page, "errors"), cell(&page, "socket-clients")), ("0", "1"));
    assert_eq!(get(&server, "/healthz"), ("ok, 1 client\n".to_owned(), "HTTP/1.1 200 OK".to_owned()));
    std::fs::remove_file(folder.path().join("s")).unwrap();
    let (reason, line) = get(&server, "/healthz");
    assert!(line.contains("503") && reason.contains("was removed"), "{line}: {reason}");
    drop(driver);
    assert!(server.stop().0.success());
}

#[test]
fn a_client_has_as_many_descriptors_as_the_doctor_counts_or_fewer() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = logging(&folder, &[]);
    drop(server.child.stderr.take());
    let open = || std::fs::read_dir(format!("/proc/{}/fd", server.child.id())).unwrap().count() as u64;
    let idle = open();
    assert!(idle <= prereg_cli::serve::fit::SERVER_DESCRIPTORS, "{idle}");
    let mut driver = Driver::start(&folder.path().join("s"), 4).unwrap();
    transfer(&mut driver, Direction::Read, 0, 0, 4096);
    // The driver polls; QEMU sends an eventfd for each vector.
    let vectors = 17 + 3;
    assert!(open() - idle + vectors <= prereg_cli::serve::fit::CLIENT_DESCRIPTORS, "{} of {idle}", open());
    drop(driver);
    assert!(server.stop().0.success());
}

#[test]
fn a_check_tells_what_would_fail_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    let check = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prereg"));
        let output =
            command.args(["serve", "--check", "--control", &control, "nvme"]).args(more).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = check(&["--socket", &socket, "--disk", &disk, "--create", "1M"]);
    assert!(code == Some(0) && text.contains("(1 MiB)") && text.ends_with("ok\n"), "{code:?}: {text}");
    let long = path(&folder, &"s".repeat(120));
    let (code, text) = check(&["--socket", &long, "--disk", &disk, "--memory-limit", "4M"]);
    assert_eq!(code, Some(1), "{text}");
    for problem in ["does not exist; make it", "at most 107 bytes", "too little for most"] {
        assert!(text.contains(problem), "no `{problem}` in {text}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    let server = Server::start(&[
        "--control",
        &control,
        "nvme",
        "--socket",
        &socket,
        "--disk",
        &disk,
        "--create",
        "1M",
    ]);
    let (code, text) = check(&["--socket", &socket, "--disk", &disk]);
    assert!(code == Some(1) && text.contains("another server listens") && text.contains("in use"), "{text}");
    assert!(server.stop().0.success());
}

#[test]
fn status_without_arguments_finds_every_server() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let servers = folders.each_ref().map(|folder| {
        let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(folder, name));
        Server::start(&[
            "nvme",
            "--socket",
            &socket,
            "--disk",
            &disk,
            "--create",
            "1M",
            "--control",
            &control,
        ])
    });
    let output = Command::new(env!("CARGO_BIN_EXE_prereg")).arg("status").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for (folder, server) in folders.iter().zip(&servers) {
        assert!(text.contains(&format!("Server at {}", path(folder, "c"))), "{text}");
        assert!(text.contains(&format!("process {}", server.child.id())), "{text}");
    }
    for server in servers {
        assert!(server.stop().0.success());
    }
}

#[test]
fn a_disk_that_grows_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = logging(&folder, &[]);
    let log = BufReader::new(server.child.stderr.take().unwrap());
    let driver = Driver::start(&folder.path().join("s"), 1).unwrap();
    assert_eq!(driver.blocks * driver.block, 1 << 20);
    drop(driver);
    std::fs::File::options()
        .write(true)
        .open(folder.path().join("disk.img"))
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    let line = log.lines().map(Result::unwrap).find(|line| line.contains("new size")).unwrap();
    assert!(line.contains("namespace 1 has a new size of 4 MiB"), "{line}");
    let driver = Driver::start(&folder.path().join("s"), 1).unwrap();
    assert_eq!(driver.blocks * driver.block, 4 << 20);
    drop(driver);
    assert!(server.stop().0.success());
}

/// The exit code and standard error of a server that cannot start.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_prereg")).arg("serve").args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn status_without_a_server_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_prereg"))
        .args(["status", "--control", &path(&folder, "none")])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && stderr.contains("no prereg serve answers"), "{stderr}");
}

#[test]
fn a_hangup_does_not_end_a_server_and_an_odd_disk_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let disk = path(&folder, "odd.img");
    std::fs::write(&disk, vec![0; 1000]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_prereg"));
    command.args(["serve", "nvme", "--socket", &path(&folder, "disk.sock"), "--disk", &disk]);
    command.args(["--control", "none"]).stderr(Stdio::piped());
    let mut server = Server::spawn(command);
    let log = BufReader::new(server.child.stderr.take().unwrap());
    let note = log.lines().map(Result::unwrap).find(|line| line.contains("1000 bytes")).unwrap();
    assert!(note.contains("the last 488 bytes are not served"), "{note}");
    server.signal("HUP");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(std::os::unix::net::UnixStream::connect(path(&folder, "disk.sock")).is_ok());
    assert!(server.stop().0.success());
}

/// A loop device, detached when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn of(file: &str) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show", file]).output().ok()?;
        let name = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        output.status.success().then_some(Self(name))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_served_with_its_size_locked_and_discarded() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, image, other] = ["s", "disk.img", "other"].map(|name| path(&folder, name));
    std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let Some(device) = LoopDevice::of(&image) else {
        eprintln!("skipped: this user cannot make a loop device");
        return;
    };
    let server = Server::start(&["nvme", "--socket", &socket, "--disk", &device.0, "--control", "none"]);
    let banner = server.banner.join("\n");
    let described =
        format!("{} (8 MiB, block device, blocks of 512 bytes, discarded blocks read as zeros)", device.0);
    assert!(banner.contains(&described), "{banner}");
    let mut driver = Driver::start(Path::new(&socket), 2).unwrap();
    assert_eq!(driver.blocks * driver.block, 8 << 20);
    driver.put_data(0, 0, 0x5eed_0001).unwrap();
    transfer(&mut driver, Direction::Write, 0, 16, 8192);
    transfer(&mut driver, Direction::Read, 1, 16, 8192);
    assert_eq!(driver.data(1, 0), 0x5eed_0001);
    let second = Command::new(env!("CARGO_BIN_EXE_prereg"))
        .args(["serve", "nvme", "--socket", &other, "--disk", &device.0, "--control", "none"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("in use by another process"), "{text}");
}
