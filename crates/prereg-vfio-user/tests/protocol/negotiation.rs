//! VERSION: negotiation and its failures.

use prereg::Errno;
use prereg_vfio_user::wire::{Command, Header, Version};
use prereg_vfio_user::{Action, Capabilities, Negotiated, SessionError, Settings};

use crate::client::{Client, QEMU, command, version};

fn agreed(settings: Settings, minor: u16, json: &str) -> (Negotiated, String) {
    let mut client = Client::silent(settings);
    client.send(&version(7, 0, minor, json)).unwrap();
    let negotiated = client.accept();
    let frame = client.frame();
    assert_eq!((frame.header.id, frame.header.command), (7, Command::VERSION));
    let reply = Version::read(&frame.body).unwrap();
    assert_eq!((reply.major, reply.minor), (0, negotiated.minor));
    let (nul, data) = reply.data.split_last().unwrap();
    assert_eq!(*nul, 0);
    assert_eq!(client.session.negotiated(), Some(&negotiated));
    (negotiated, String::from_utf8(data.to_vec()).unwrap())
}

/// The errno of a VERSION that leaves the session waiting for another one.
fn refused(json: &str) -> i32 {
    let mut client = Client::silent(Settings::default());
    let action = client.action(&version(0, 0, 0, json), 0);
    assert!(matches!(action, Action::Refused { .. }), "{json}: {action:?}");
    let error = client.frame().error();
    client.send(&version(1, 0, 0, QEMU)).unwrap();
    client.accept();
    error
}

#[test]
fn qemu_is_answered_in_its_own_words_and_no_longer_than_it_asked() {
    let (negotiated, json) = agreed(Settings::default(), 0, QEMU);
    assert_eq!(
        json,
        r#"{"capabilities":{"max_data_xfer_size":1048576,"max_dma_maps":65535,"max_msg_fds":16,"pgsizes":4096,"write_multiple":true}}"#
    );
    // QEMU has no room for a reply that is longer than its command.
    assert!(json.len() <= QEMU.len());
    assert_eq!((negotiated.client_max_msg_fds, negotiated.server_max_msg_fds), (16, 16));
    assert_eq!((negotiated.page_sizes, negotiated.smallest_page()), (4096, 4096));
    assert!(negotiated.write_multiple);
}

#[test]
fn a_client_that_names_nothing_has_the_specifications_defaults() {
    for json in
        ["", "{}", r#"{"capabilities":{}}"#, r#"{"capabilities":{"migration":{"pgsize":4096}},"else":3}"#]
    {
        let (negotiated, reply) = agreed(Settings::default(), 0, json);
        assert_eq!(reply, r#"{"capabilities":{}}"#);
        assert_eq!((negotiated.client_max_msg_fds, negotiated.client_max_data_xfer_size), (1, 1 << 20));
        assert_eq!(
            (negotiated.page_sizes, negotiated.max_dma_maps, negotiated.write_multiple),
            (4096, 65_535, false)
        );
    }
}

#[test]
fn version_data_may_be_missing() {
    let mut client = Client::silent(Settings::default());
    client.send(&command(0, Command::VERSION, &[0; 4])).unwrap();
    client.accept();
    // Version and JSON with its NUL.
    assert_eq!(client.frame().body, b"\0\0\0\0{\"capabilities\":{}}\0");
}

#[test]
fn limits_below_the_defaults_are_said_unasked() {
    let capabilities = Capabilities {
        max_msg_fds: 0,
        max_data_xfer_size: 4096,
        page_sizes: !0xfff,
        max_dma_maps: 10,
        write_multiple: false,
    };
    let (_, reply) = agreed(Settings { capabilities, ..Settings::default() }, 0, "");
    assert_eq!(reply, r#"{"capabilities":{"max_data_xfer_size":4096,"max_dma_maps":10,"max_msg_fds":0}}"#);
}

#[test]
fn shared_limits_are_what_both_can() {
    let json =
        r#"{"capabilities":{"pgsizes":2166784,"max_dma_maps":100,"write_multiple":false,"max_msg_fds":3}}"#;
    let (negotiated, reply) = agreed(Settings::default(), 0, json);
    assert_eq!((negotiated.page_sizes, negotiated.smallest_page()), (0x211000 & !0xfff, 0x1000));
    assert_eq!(
        (negotiated.max_dma_maps, negotiated.write_multiple, negotiated.client_max_msg_fds),
        (100, false, 3)
    );
    assert!(reply.contains(r#""max_dma_maps":100"#));
    assert!(reply.contains(r#""write_multiple":false"#));
}

#[test]
fn numbers_beyond_32_bits_are_no_trouble() {
    let json = r#"{"capabilities":{"max_msg_fds":18446744073709551615,"pgsizes":18446744073709547520}}"#;
    let (negotiated, _) = agreed(Settings::default(), 0, json);
    assert_eq!((negotiated.client_max_msg_fds, negotiated.page_sizes), (u32::MAX, !0xfff));
}

#[test]
fn the_lower_minor_version_wins() {
    for (minor, agreed_on) in [(0, 0), (1, 1), (2, 1), (u16::MAX, 1)] {
        assert_eq!(agreed(Settings::default(), minor, QEMU).0.minor, agreed_on);
    }
}

#[test]
fn another_major_version_is_refused_and_the_end() {
    let mut client = Client::silent(Settings::default());
    let end = SessionError::Version { major: 1, minor: 3 };
    assert_eq!(client.send(&version(4, 1, 3, QEMU)), Err(end));
    let frame = client.frame();
    assert_eq!((frame.header.id, frame.error()), (4, 22));
    assert_eq!(client.send(&version(5, 0, 0, QEMU)), Err(end));
    assert!(client.session.unsent().is_none());
}

#[test]
fn malformed_capabilities_are_refused_and_may_be_said_better() {
    let deep = "[".repeat(10_000);
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(20_000));
    for json in [
        "x",
        "{",
        "[]",
        "3",
        "\u{fffd}",
        r#"{"capabilities":3}"#,
        r#"{"capabilities":{"max_msg_fds":"3"}}"#,
        r#"{"capabilities":{"max_msg_fds":-1}}"#,
        r#"{"capabilities":{"max_msg_fds":1.5}}"#,
        r#"{"capabilities":{"max_data_xfer_size":0}}"#,
        r#"{"capabilities":{"pgsizes":0}}"#,
        r#"{"capabilities":{"pgsizes":512}}"#,
        r#"{"capabilities":{"max_dma_maps":0}}"#,
        r#"{"capabilities":{"write_multiple":1}}"#,
        r#"{"capabilities":{"pgsizes":null}}"#,
        &deep,
        &long,
    ] {
        assert_eq!(refused(json), 22, "{json:.60}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let mut client = Client::silent(Settings::default());
    let bytes = command(0, Command::VERSION, b"\0\0\0\0{\"\xff\":1}");
    assert!(matches!(client.action(&bytes, 0), Action::Refused { .. }));
    assert!(matches!(client.action(&command(0, Command::VERSION, &[0; 3]), 0), Action::Refused { .. }));
}

#[test]
fn version_comes_first_and_once() {
    let mut client = Client::silent(Settings::default());
    assert!(matches!(client.action(&command(0, Command::DEVICE_RESET, &[]), 0), Action::Refused { .. }));
    assert_eq!(client.frame().error(), 22);
    client.send(&version(0, 0, 0, QEMU)).unwrap();
    client.accept();
    client.frame();
    let negotiated = *client.session.negotiated().unwrap();
    assert_eq!(client.refusal(&version(1, 0, 0, "{}"), 0), 22);
    assert_eq!(client.session.negotiated(), Some(&negotiated));
}

#[test]
fn a_rejected_client_gets_the_reason_and_the_session_ends() {
    let mut client = Client::silent(Settings::default());
    let action = client.action(&version(3, 0, 0, QEMU), 0);
    let Action::Negotiated { token, .. } = action else { panic!("{action:?}") };
    assert!(client.session.unsent().is_none(), "nothing is promised before the server has a place");
    client.session.reply(token, Err(Errno::EBUSY));
    let frame = client.frame();
    assert_eq!((frame.header.id, frame.error()), (3, 16));
    let over = SessionError::Rejected { errno: Errno::EBUSY };
    assert_eq!(client.send(&command(4, Command::DEVICE_RESET, &[])), Err(over));
    assert!(!client.session.wants_bytes());
    assert_eq!(client.session.close(), Err(over));
}

#[test]
fn a_version_that_wants_no_reply_agrees_on_nothing() {
    let mut client = Client::silent(Settings::default());
    let mut bytes = Vec::new();
    Header::command(0, Command::VERSION)
        .without_reply()
        .frame(&mut bytes, |out| out.extend_from_slice(&[0; 4]));
    assert!(matches!(client.action(&bytes, 0), Action::Refused { .. }));
    assert!(client.session.unsent().is_none());
    assert_eq!(client.session.negotiated(), None);
}
