//! Nothing stays pinned after a process has ended, however it ended.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use prereg::AddressSpace;
use prereg_linux::IoUring;

use crate::raw::{self, Area};
use crate::{Outcome, ROLE, Test, need_pins};

pub(crate) const TESTS: &[Test] = &[("a_killed_process_leaves_nothing_pinned", killed)];

const SIZE: usize = 64 << 20;

fn killed() -> Outcome {
    need_pins(SIZE as u64)?;
    // The parent does not map the file, so only the victim's mapping and pins prevent sealing it.
    let file = raw::memfd(SIZE as u64);
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .env(ROLE, "victim")
        .stdin(file.try_clone().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(victim.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let bystander: u32 = line.trim().strip_prefix("pinned ").expect(&line).parse().unwrap();
    assert_eq!(raw::seal_writes(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    victim.kill().unwrap();
    victim.wait().unwrap();
    // The kernel releases pins a little after the process has ended.
    let mut tries = 0;
    while let Err(error) = raw::seal_writes(file.as_fd()) {
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        tries += 1;
        assert!(tries < 1000, "still pinned long after the process is gone");
        std::thread::sleep(Duration::from_millis(20));
    }
    let alive = std::path::Path::new(&format!("/proc/{bystander}")).exists();
    assert!(alive, "a program that the victim started was to outlive it");
    Command::new("kill").arg(bystander.to_string()).status().unwrap();
    Ok(())
}

/// Registers the memory behind its standard input, starts a program that outlives it, reports that and waits.
#[expect(clippy::zombie_processes, reason = "it has to outlive this process; the parent kills it")]
pub(crate) fn victim() -> ExitCode {
    let input = std::io::stdin();
    let area = Area::shared(input.as_fd(), SIZE);
    let space = AddressSpace::builder(IoUring::new().unwrap()).build().unwrap();
    let registration = space.register(&area.memory()).unwrap();
    let bystander =
        Command::new("sleep").arg("60").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    println!("pinned {}", bystander.id());
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
        assert_eq!(registration.bytes(), SIZE as u64);
    }
}
