//! Events: who, what and why, for clients that come, are refused, fail and go.

use std::sync::Arc;

use prereg::{Access, Errno, Iova};
use prereg_iommu::iova::IovaMapError;
use prereg_linux::SharedError;
use prereg_vfio_user::client::{Client, ClientError};
use prereg_vfio_user::server::{
    DisconnectReason, Event, MapMemoryError, MemoryEvent, MemoryPolicy, Observer, ServerSettings,
};
use prereg_vfio_user::wire::{Command, Header};

use crate::fixture::{Fixture, Probes, memory, store};
use crate::observed::Recorder;

const MIB: u64 = 1 << 20;

/// A server whose events are kept.
fn observed(policy: MemoryPolicy, max_clients: usize) -> (Fixture, Arc<Recorder<Event>>) {
    let observer = Arc::<Recorder<Event>>::default();
    let mut settings = ServerSettings::default();
    settings.max_clients = max_clients;
    settings.observer = Some(Arc::clone(&observer) as Arc<dyn Observer<Event>>);
    (Fixture::over(store(policy), Probes::new(), settings), observer)
}

/// Sends a command with an empty body and receives the refusal.
fn refused(client: &mut Client, command: Command) -> Errno {
    let mut bytes = Vec::new();
    Header::command(1, command).frame(&mut bytes, |_| ());
    client.send_raw(&bytes, &[]).unwrap();
    client.receive_raw().unwrap().0.errno().unwrap()
}

#[test]
fn a_session_is_reported_from_its_begin_to_its_end_with_the_client() {
    let (fixture, observer) = observed(MemoryPolicy::EAGER, 64);
    let mut client = fixture.client();
    client.reset().unwrap();
    drop(client);
    fixture.settle();
    let end = Event::Disconnected { reason: DisconnectReason::Gone, served: true };
    assert_eq!(observer.events(), [Event::Connected, Event::Reset, end]);
    for (source, _) in observer.all() {
        assert_eq!((source.client, source.socket), (Some(0), Some(fixture.path.clone())));
        assert_eq!((source.device.as_str(), source.pid), ("probe", std::process::id() as i32));
    }
}

#[test]
fn a_refused_map_is_reported_with_its_range_and_reason() {
    let (fixture, observer) = observed(MemoryPolicy::EAGER.with_total_bytes(MIB), 64);
    let mut client = fixture.client();
    let guest = memory(2 * MIB);
    let ram = guest.descriptor().unwrap();
    let iova = Iova::new(0x40_0000);
    let mut map =
        |bytes, offset| client.dma_map(iova, bytes, Access::ReadWrite, Some((ram, offset))).unwrap_err();
    // Past the end of its file, and above the limit of all clients.
    assert_eq!(map(4 * MIB, 0).errno(), Errno::EINVAL);
    assert_eq!(map(2 * MIB, 0).errno(), Errno::ENOMEM);
    // A part of a mapping.
    client.dma_map(iova, 2 * MIB, Access::ReadWrite, None).unwrap();
    assert_eq!(client.dma_unmap(iova, MIB).unwrap_err().errno(), Errno::EINVAL);
    let events = observer.events();
    let short = MapMemoryError::Memory(SharedError::Short { offset: 0, bytes: 4 * MIB, length: 2 * MIB });
    assert_eq!(events[1], Event::Memory(MemoryEvent::MapRefused { iova, bytes: 4 * MIB, error: short }));
    let limit = MapMemoryError::Limit { bytes: 2 * MIB, used: 0, limit: MIB };
    assert_eq!(events[2], Event::Memory(MemoryEvent::MapRefused { iova, bytes: 2 * MIB, error: limit }));
    let is_split = |error: &IovaMapError| error.errno() == Errno::EINVAL;
    assert!(
        matches!(&events[3], Event::Memory(MemoryEvent::UnmapRefused { bytes: MIB, error, .. }) if is_split(error)),
        "{events:?}"
    );
    assert_eq!(events.len(), 4);
}

#[test]
fn every_refused_message_is_an_event() {
    let (fixture, observer) = observed(MemoryPolicy::EAGER, 64);
    let mut client = fixture.client();
    for _ in 0..100 {
        assert_eq!(refused(&mut client, Command::new(0xffff)), Errno::EOPNOTSUPP);
        assert_eq!(refused(&mut client, Command::DMA_MAP), Errno::EINVAL);
    }
    assert!(matches!(client.region_info(4000), Err(ClientError::Refused { errno: Errno::EINVAL, .. })));
    let events = observer.events();
    let of = |wanted: &str| {
        events
            .iter()
            .filter(|event| matches!(event, Event::RequestRefused { command, .. } if *command == wanted))
            .count()
    };
    assert_eq!((of("unknown"), of("DMA_MAP")), (100, 100));
    let failed = Event::RequestFailed { command: "DEVICE_GET_REGION_INFO", errno: Errno::EINVAL };
    assert_eq!(events.last(), Some(&failed));
}

#[test]
fn a_client_too_many_is_reported_with_the_limit() {
    let (fixture, observer) = observed(MemoryPolicy::EAGER, 1);
    let _first = fixture.client();
    Client::connect(&fixture.path).unwrap_err();
    let all = observer.all();
    let (source, event) = &all[1];
    assert_eq!((event, source.client), (&Event::TooManyClients { limit: 1 }, Some(1)));
    assert_eq!(source.socket.as_ref(), Some(&fixture.path));
}
