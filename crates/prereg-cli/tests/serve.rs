//! `prereg serve` as its users meet it: a process with a socket, asked, driven, and told to stop.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use prereg_benches::nvme::driver::{Direction, Driver};
use prereg_cli::serve::control;
use prereg_cli::serve::status::Status;

/// A server that is ended with its test.
struct Server {
    child: Child,
    out: BufReader<ChildStdout>,
    said: Vec<String>,
}

impl Server {
    /// Started, and up.
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prereg"));
        command.arg("serve").args(arguments);
        Self::spawn(command)
    }

    /// With a resource limit, as an option of prlimit(1).
    fn start_with_limit(limit: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(limit).arg(env!("CARGO_BIN_EXE_prereg")).arg("serve").args(arguments);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut said = Vec::new();
        while said.last().map(String::as_str) != Some("ready") {
            let mut line = String::new();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "the server ended after saying {said:?}");
            said.push(line.trim_end().to_owned());
        }
        Self { child, out, said }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// SIGTERM, and what it says and answers then.
    fn stop(mut self) -> (ExitStatus, String) {
        self.signal("TERM");
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already by a test that went well.
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
fn one_command_gives_a_disk_that_keeps_what_is_written() {
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
    let told = server.said.join("\n");
    assert!(told.contains("vfio-user-pci") && told.contains("share=on"), "{told}");

    let mut driver = Driver::start(Path::new(&socket), 4).unwrap();
    assert_eq!(driver.blocks * driver.block, 8 << 20);
    for offset in (0..8192).step_by(4) {
        driver.put_data(0, offset, 0x5eed_0000 | offset as u32).unwrap();
    }
    transfer(&mut driver, Direction::Write, 0, 16, 8192);
    transfer(&mut driver, Direction::Read, 1, 16, 8192);
    assert!((0..8192).step_by(4).all(|offset| driver.data(1, offset) == 0x5eed_0000 | offset as u32));

    let status: Status = control::ask(Path::new(&control)).unwrap();
    let client = &status.clients[0];
    assert_eq!((status.clients.len(), client.mappings), (1, 1));
    assert_eq!((status.memory.registrations, status.memory.pins_total), (1, 1));
    assert_eq!((client.device["read_commands"], client.device["write_commands"]), (1, 1));
    assert_eq!(client.latencies.len(), 2);

    let address = server.said.iter().find_map(|line| line.strip_prefix("metrics: http://")).unwrap();
    let mut scraper = TcpStream::connect(address.strip_suffix("/metrics").unwrap()).unwrap();
    scraper.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    scraper.read_to_string(&mut text).unwrap();
    assert!(text.contains("\nprereg_pins_total 1\n"), "{text}");
    assert!(text.contains("command=\"read\"} 1\n"), "{text}");

    drop(driver);
    let (status, said) = server.stop();
    assert!(status.success() && said.contains("every pin is released"), "{status}: {said}");
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
    // Beyond the limit it can be read, and below it written.
    transfer(&mut driver, Direction::Read, 1, (8 << 20) / 512, 4096);
    transfer(&mut driver, Direction::Write, 1, 0, 4096);
    assert_eq!(control::ask(Path::new(&control)).unwrap().clients.len(), 1);
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
    let status = control::ask(Path::new(&control)).unwrap();
    assert_eq!(status.clients.len(), 2);
    assert_eq!(status.sockets.iter().map(|socket| socket.clients).collect::<Vec<_>>(), [1, 1]);
    drop((a, b));
    assert!(server.stop().0.success());
}

#[test]
fn what_cannot_be_served_is_said_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk] = ["s", "none.img"].map(|name| path(&folder, name));
    let (code, said) = run(&["nvme", "--socket", &socket, "--disk", &disk]);
    assert_eq!(code, Some(2));
    assert!(said.contains("--create") && said.matches("none.img").count() == 1, "{said}");
    let create = ["nvme", "--socket", &socket, "--disk", &disk, "--create", "1M"];
    let with = |more: &[&str]| run(&[&create, more].concat());
    let (code, said) = with(&["--block-size", "1024"]);
    assert!(code == Some(2) && said.contains("must be 512 or 4096 bytes, not 1024"), "{code:?}: {said}");
    let (code, said) = with(&["--metrics", "9469"]);
    assert!(code == Some(2) && said.contains("127.0.0.1:9469"), "{code:?}: {said}");
    let (code, said) = run(&["--config", &path(&folder, "none.toml")]);
    assert!(code == Some(2) && said.contains("none.toml"), "{code:?}: {said}");
    let (code, said) = run(&["nvme", "--socket", &path(&folder, "no/s"), "--disk", &disk, "--create", "1M"]);
    assert!(code == Some(2) && said.contains("folder does not exist"), "{code:?}: {said}");
    let long = path(&folder, &"s".repeat(120));
    let (code, said) = run(&["nvme", "--socket", &long, "--disk", &disk, "--create", "1M"]);
    assert!(code == Some(2) && said.contains("at most 107 bytes"), "{code:?}: {said}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_disk_that_exists_is_served_as_it_is_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let create =
        |size| ["nvme", "--socket", &socket, "--disk", &disk, "--create", size, "--control", &control];
    let (code, said) = run(&create("2M"));
    assert!(code == Some(2) && said.contains("1 MiB") && said.contains("2 MiB"), "{code:?}: {said}");
    assert!(Server::start(&create("1M")).stop().0.success());
    assert_eq!(std::fs::read(&disk).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn a_client_that_needs_mappable_doorbells_is_told_of_to_the_operator() {
    use prereg_vfio_user::client::Client;
    let folder = tempfile::tempdir().unwrap();
    let [socket, disk, control] = ["s", "disk.img", "c"].map(|name| path(&folder, name));
    for (doorbells, is_told) in [("socket", true), ("auto", false)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prereg"));
        command.args(["serve", "nvme", "--socket", &socket, "--disk", &disk, "--create", "1M"]);
        command.args(["--control", &control, "--doorbells", doorbells]).stderr(Stdio::piped());
        let mut server = Server::spawn(command);
        let mut errors = server.child.stderr.take().unwrap();
        // As SPDK's initiator does.
        let mut client = Client::connect(Path::new(&socket)).unwrap();
        client.region_info(0).unwrap();
        drop(client);
        while control::ask(Path::new(&control)).unwrap().endings_total.get("left") != Some(&1) {
            std::thread::yield_now();
        }
        server.signal("TERM");
        let mut said = String::new();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!(said.contains("--doorbells auto"), is_told, "{doorbells}: {said}");
        assert!(server.stop().0.success());
    }
}

/// What a server that cannot start exits with and says.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_prereg")).arg("serve").args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn status_says_when_nobody_serves() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_prereg"))
        .args(["status", "--control", &path(&folder, "none")])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("no prereg serve answers"), "{said}");
}
