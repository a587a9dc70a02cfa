//! Sockets: permissions, refused clients, their files, and the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use prereg::Errno;
use prereg_vfio_user::client::{Client, ClientError};
use prereg_vfio_user::server::{
    AttachFailure, Event, MemoryPolicy, Observer, Server, ServerError, ServerSettings,
};
use prereg_vfio_user::wire::Command;

use crate::fixture::{Fixture, HOOK, Probes, store, until};
use crate::observed::Recorder;

fn settings(change: impl FnOnce(&mut ServerSettings)) -> ServerSettings {
    let mut settings = ServerSettings::default();
    change(&mut settings);
    settings
}

#[test]
fn a_socket_is_its_owners_alone_unless_the_settings_say_otherwise() {
    for (settings, mode) in [(settings(|_| ()), 0o600), (settings(|s| s.socket_mode = 0o666), 0o666)] {
        let fixture = Fixture::with(Probes::new(), settings);
        assert_eq!(fs::metadata(&fixture.path).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn the_socket_of_a_dead_server_is_replaced_and_that_of_a_live_one_is_not() {
    let fixture = Fixture::new();
    let dead = fixture.folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    assert!(dead.exists());
    fixture.server.listen(&dead, Arc::new(fixture.probes.clone())).unwrap();
    Client::connect(&dead).unwrap();

    let other = Server::new(store(MemoryPolicy::EAGER), ServerSettings::default());
    let error = other.listen(&fixture.path, Arc::new(Probes::new())).unwrap_err();
    assert_eq!(error, ServerError::Live { path: fixture.path.clone() });
    assert_eq!(error.errno(), Errno::EBUSY);
    fixture.client();
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let fixture = Fixture::new();
    let file = fixture.folder.path().join("notes");
    fs::write(&file, "keep me").unwrap();
    let error = fixture.server.listen(&file, Arc::new(Probes::new())).unwrap_err();
    assert_eq!(error, ServerError::NotASocket { path: file.clone() });
    assert_eq!(fs::read(&file).unwrap(), b"keep me");
    for path in [fixture.folder.path().join("a".repeat(200)), fixture.folder.path().join("no/folder/here")] {
        assert!(matches!(
            fixture.server.listen(&path, Arc::new(Probes::new())),
            Err(ServerError::System { what: "listen on", .. })
        ));
    }
}

#[test]
fn a_socket_is_removed_by_its_own_server_only() {
    let fixture = Fixture::new();
    let (path, second) = (fixture.path.clone(), fixture.folder.path().join("second.sock"));
    let listening = fixture.server.listen(&second, Arc::new(fixture.probes.clone())).unwrap();
    let mut client = Client::connect(&second).unwrap();
    listening.close();
    assert!(!second.exists());
    client.device_info().unwrap();
    assert_eq!(Client::connect(&second).unwrap_err().errno(), Errno::ENOENT);
    // Another server replaced the file.
    fs::remove_file(&path).unwrap();
    let successor = UnixListener::bind(&path).unwrap();
    let Fixture { server, folder, .. } = fixture;
    server.stop();
    assert!(path.exists(), "{successor:?}");
    assert_eq!(client.device_info().unwrap_err(), ClientError::Closed);
    drop(folder);
}

#[test]
fn several_sockets_and_clients_are_served_at_once() {
    let fixture = Fixture::new();
    let other = fixture.folder.path().join("other.sock");
    let probes = Probes::new();
    fixture.server.listen(&other, Arc::new(probes.clone())).unwrap();
    let mut clients: Vec<Client> = (0..4).map(|_| fixture.client()).collect();
    clients.push(Client::connect(&other).unwrap());
    for (at, client) in clients.iter_mut().enumerate() {
        client.region_write(0, 0, &[at as u8]).unwrap();
    }
    for (at, client) in clients.iter_mut().enumerate() {
        let mut back = [0];
        client.region_read(0, 0, &mut back).unwrap();
        assert_eq!(back, [at as u8], "each has a device of its own");
    }
    assert_eq!((fixture.probes.count(), probes.count()), (4, 1));
    let state = fixture.snapshot();
    assert_eq!((state.sockets.len(), state.clients.len(), state.accepted), (2, 5, 5));
    let uid = fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap();
    for client in &state.clients {
        assert_eq!((client.pid, client.uid), (std::process::id() as i32, uid));
        assert_eq!(client.model, "probe");
        assert_eq!(client.metrics, [("calls".to_owned(), 0)]);
        assert!(client.negotiated.is_some_and(|negotiated| negotiated.max_dma_maps == 65_535));
    }
}

#[test]
fn a_model_with_one_place_says_so_and_takes_the_next_when_it_is_free() {
    let observer = Arc::<Recorder<Event>>::default();
    let mut settings = ServerSettings::default();
    settings.observer = Some(Arc::clone(&observer) as Arc<dyn Observer<Event>>);
    let fixture = Fixture::with(Probes::exclusive(), settings);
    let first = fixture.client();
    let refused = Client::connect(&fixture.path).unwrap_err();
    assert_eq!(refused, ClientError::Refused { command: Command::VERSION, errno: Errno::EBUSY });
    drop(first);
    fixture.settle();
    fixture.client();
    assert_eq!(fixture.snapshot().disconnects["turned-away"], 1);
    let all = observer.all();
    let failure = Event::NotAttached { failure: AttachFailure::Busy };
    let (source, _) = all.iter().find(|(_, event)| *event == failure).unwrap();
    assert_eq!((source.client, source.socket.as_ref()), (Some(1), Some(&fixture.path)));
    assert_eq!((source.device.as_str(), source.pid), ("probe", std::process::id() as i32));
    assert_eq!(all.iter().filter(|(_, event)| *event == failure).count(), 1);
}

#[test]
fn a_client_that_reconnects_at_once_is_never_rejected() {
    let fixture = Fixture::with(Probes::exclusive(), ServerSettings::default());
    for _ in 0..200 {
        drop(fixture.client());
    }
    assert!(!fixture.snapshot().disconnects.contains_key("turned-away"));
}

#[test]
fn a_client_waits_for_the_place_of_one_that_is_leaving() {
    let fixture = Fixture::with(Probes::exclusive(), ServerSettings::default());
    let first = fixture.client();
    let (part, parting) = std::sync::mpsc::channel();
    *fixture.probes.shared.parting.lock().unwrap() = Some(parting);
    drop(first);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| Client::connect(&fixture.path));
        until("both are there", || fixture.snapshot().clients.len() == 2);
        let impatient = UnixStream::connect(&fixture.path).unwrap();
        until("all are there", || fixture.snapshot().clients.len() == 3);
        drop(impatient);
        until("who does not wait has left", || fixture.snapshot().clients.len() == 2);
        assert_eq!(fixture.probes.count(), 1, "one device at a time");
        part.send(()).unwrap();
        let mut second = second.join().unwrap().unwrap();
        second.device_info().unwrap();
    });
    assert_eq!(fixture.probes.count(), 2);
}

#[test]
fn a_client_above_the_limit_gets_an_error() {
    let fixture = Fixture::with(Probes::new(), settings(|settings| settings.max_clients = 2));
    let (_one, two) = (fixture.client(), fixture.client());
    let refused = Client::connect(&fixture.path).unwrap_err();
    assert_eq!(refused, ClientError::Refused { command: Command::VERSION, errno: Errno::ENFILE });
    drop(two);
    until("there is room", || fixture.snapshot().clients.len() < 2);
    fixture.client();
    assert_eq!((fixture.snapshot().rejected, fixture.probes.count()), (1, 3));
}

#[test]
fn connections_that_say_nothing_keep_no_client_out() {
    let fixture = Fixture::with(Probes::new(), settings(|settings| settings.max_clients = 2));
    let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(&fixture.path).unwrap()).collect();
    let (_one, two) = (fixture.client(), fixture.client());
    let refused = Client::connect(&fixture.path).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENFILE, "those that spoke stay");
    drop((silent, two));
    until("there is room", || fixture.snapshot().clients.len() < 2);
    fixture.client();
    assert_eq!(fixture.probes.count(), 3);
}

#[test]
fn clients_that_say_nothing_are_cut_off_and_those_that_do_are_not() {
    let patience = Some(Duration::from_millis(50));
    let fixture = Fixture::with(Probes::new(), settings(|settings| settings.stall_timeout = patience));
    let mut talking = fixture.client();
    let silent = UnixStream::connect(&fixture.path).unwrap();
    let mut half = fixture.client();
    half.send_raw(&[1, 2, 3], &[]).unwrap();
    until("both are cut off", || fixture.snapshot().disconnects.get("stalled") == Some(&2));
    assert_eq!(half.receive_raw().unwrap_err(), ClientError::Closed);
    // A long silence between messages is allowed.
    talking.device_info().unwrap();
    drop(silent);
}

#[test]
fn stopping_ends_clients_that_are_in_the_middle_of_something() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut half = fixture.client();
    half.send_raw(&[0; 5], &[]).unwrap();
    client.region_write(0, 0, &[1]).unwrap();
    let Fixture { server, probes, path, .. } = fixture;
    server.stop();
    assert!(!path.exists());
    assert!(probes.device(0).said("gone") && probes.device(1).said("gone"));
    assert_eq!(client.device_info().unwrap_err(), ClientError::Closed);
}

#[test]
fn a_handed_over_socket_is_served_like_any_other() {
    let fixture = Fixture::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let model: Arc<dyn prereg_vfio_user::server::DeviceFactory> = Arc::new(fixture.probes.clone());
    let number = fixture.server.adopt(theirs, &model).unwrap();
    let mut client = Client::over(ours);
    client.negotiate().unwrap();
    client.region_write(0, 0, &[1]).unwrap();
    let state = fixture.snapshot();
    assert_eq!((state.clients[0].client, state.clients[0].socket.is_none()), (number, true));
    drop(client);
    fixture.settle();
}

#[test]
fn a_device_that_takes_its_time_holds_only_its_own_client_up() {
    let fixture = Fixture::new();
    let gate = Arc::new(std::sync::Barrier::new(2));
    let theirs = gate.clone();
    fixture.probes.hook(move |_, _, _| {
        theirs.wait();
        Ok(())
    });
    let (mut slow, mut quick) = (fixture.client(), fixture.client());
    slow.region_post(HOOK, 0, &[0]).unwrap();
    for _ in 0..100 {
        quick.device_info().unwrap();
    }
    gate.wait();
    slow.device_info().unwrap();
}
