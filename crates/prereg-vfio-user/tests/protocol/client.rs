//! A client driven by the test: builds frames, feeds them, collects replies. Counts descriptors, so that kept or lost ones are
//! detected.

use std::fmt;
use std::rc::Rc;

use prereg_vfio_user::wire::{Command, Header, Version};
use prereg_vfio_user::{Action, Negotiated, Session, SessionError, Settings};

/// A counted descriptor.
#[derive(Clone)]
pub(crate) struct Fd {
    pub(crate) number: u32,
    _held: Rc<()>,
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fd{}", self.number)
    }
}

/// The source of descriptors.
#[derive(Default)]
pub(crate) struct Pool(Rc<()>);

impl Pool {
    pub(crate) fn fd(&self, number: u32) -> Fd {
        Fd { number, _held: self.0.clone() }
    }

    pub(crate) fn fds(&self, count: u32) -> Vec<Fd> {
        (0..count).map(|number| self.fd(number)).collect()
    }

    /// Descriptors that are held.
    pub(crate) fn held(&self) -> usize {
        Rc::strong_count(&self.0) - 1
    }
}

/// A received frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<Fd>,
}

impl Frame {
    /// The errno, 0 for success.
    pub(crate) fn error(&self) -> i32 {
        self.header.errno().map_or(0, |errno| errno.raw())
    }
}

pub(crate) struct Client {
    pub(crate) session: Session<Fd>,
    pub(crate) pool: Pool,
}

/// The capabilities QEMU 11 proposes.
pub(crate) const QEMU: &str = r#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}"#;

/// A command as bytes.
pub(crate) fn command(id: u16, command: Command, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Header::command(id, command).frame(&mut bytes, |out| out.extend_from_slice(body));
    bytes
}

/// A VERSION as bytes.
pub(crate) fn version(id: u16, major: u16, minor: u16, json: &str) -> Vec<u8> {
    let mut data = json.as_bytes().to_vec();
    data.push(0);
    let mut bytes = Vec::new();
    Header::command(id, Command::VERSION)
        .frame(&mut bytes, |out| Version { major, minor, data: &data }.write(out));
    bytes
}

/// The body that `write` writes.
pub(crate) fn body(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

impl Client {
    /// A client before its VERSION.
    pub(crate) fn silent(settings: Settings) -> Self {
        Self { session: Session::new(settings), pool: Pool::default() }
    }

    /// A client after negotiating QEMU's capabilities.
    pub(crate) fn new() -> Self {
        Self::with(Settings::default(), QEMU)
    }

    pub(crate) fn with(settings: Settings, json: &str) -> Self {
        let mut client = Self::silent(settings);
        client.send(&version(0, 0, 0, json)).unwrap();
        client.accept();
        let frames = client.frames();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].error(), 0);
        client
    }

    /// Accepts the client that has just sent its VERSION.
    pub(crate) fn accept(&mut self) -> Negotiated {
        let action = self.session.next_action();
        let Some(Action::Negotiated { negotiated, token }) = action else { panic!("{action:?}") };
        self.session.reply(token, Ok(()));
        negotiated
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.session.receive(bytes, [])
    }

    pub(crate) fn actions(&mut self) -> Vec<Action<Fd>> {
        std::iter::from_fn(|| self.session.next_action()).collect()
    }

    /// The one action that the bytes cause.
    pub(crate) fn action(&mut self, bytes: &[u8], fds: u32) -> Action<Fd> {
        let fds = self.pool.fds(fds);
        self.session.receive(bytes, fds).unwrap();
        let mut actions = self.actions();
        assert_eq!(actions.len(), 1, "{actions:?}");
        actions.remove(0)
    }

    /// The errno of a command that the engine refuses; the next command must still work.
    pub(crate) fn refusal(&mut self, bytes: &[u8], fds: u32) -> i32 {
        let action = self.action(bytes, fds);
        let Action::Refused { id, error: refusal, .. } = action else { panic!("not refused: {action:?}") };
        let frames = self.frames();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].header.id, id);
        assert_eq!(frames[0].error(), refusal.errno().raw());
        assert!(frames[0].body.is_empty());
        assert_eq!(self.pool.held(), 0, "a refused message keeps no descriptor");
        let reset = self.action(&command(0xeeee, Command::DEVICE_RESET, &[]), 0);
        let Action::Reset { token } = reset else { panic!("out of step: {reset:?}") };
        self.session.reply(token, Ok(()));
        assert_eq!(self.frames().len(), 1);
        refusal.errno().raw()
    }

    /// All frames to be sent.
    pub(crate) fn frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some((bytes, fds)) = self.session.unsent() {
            let (mut rest, mut fds) = (bytes, fds.to_vec());
            assert!(!rest.is_empty());
            while !rest.is_empty() {
                let header = Header::read(rest.first_chunk().unwrap());
                let (frame, more) = rest.split_at(header.size as usize);
                frames.push(Frame { header, body: frame[16..].to_vec(), fds: std::mem::take(&mut fds) });
                rest = more;
            }
            let sent = bytes.len();
            self.session.sent(sent);
        }
        assert_eq!(self.session.unsent_bytes(), 0);
        frames
    }

    /// The only frame to be sent.
    pub(crate) fn frame(&mut self) -> Frame {
        let mut frames = self.frames();
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0)
    }
}
