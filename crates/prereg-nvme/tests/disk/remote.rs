//! Memory that only the client can reach: copied, without delays for other requests.

use prereg_nvme::disk::{DiskOptions, FileDisk, Operation};

use super::guest::{Guest, REMOTE, answers, perform, queue, start, write};

fn disk(folder: &tempfile::TempDir) -> FileDisk {
    let path = folder.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    FileDisk::open(&path, DiskOptions::default()).unwrap()
}

#[test]
fn a_client_that_dawdles_holds_up_only_its_own_request() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(&folder);
    let mut queue = queue(&disk);
    guest.put(REMOTE, &[7; 4096]);
    guest.put(0, &[9; 512]);
    guest.client.delay(true);
    start(&mut *queue, 1, write(0), guest.segments(&[(REMOTE, 4096)]));
    start(&mut *queue, 2, write(8192), guest.segments(&[(0, 512)]));
    start(&mut *queue, 3, Operation::Flush, Vec::new());
    let mut early: Vec<_> = answers(&mut *queue);
    while early.len() < 2 {
        early.extend(answers(&mut *queue));
    }
    let mut tags: Vec<_> = early.iter().map(|done| done.tag).collect();
    tags.sort_unstable();
    assert_eq!((tags, queue.in_flight()), (vec![2, 3], 1));
    guest.client.delay(false);
    let late = answers(&mut *queue);
    assert_eq!((late.len(), late[0].tag, &late[0].result), (1, 1, &Ok(())));
    perform(&mut *queue, Operation::Read { offset: 0 }, guest.segments(&[(4096, 4096)])).unwrap();
    assert_eq!(guest.get(4096, 4096), [7; 4096]);
}

#[test]
fn a_queue_can_go_while_the_client_dawdles() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(&folder);
    let mut queue = queue(&disk);
    guest.client.delay(true);
    start(&mut *queue, 1, write(0), guest.segments(&[(REMOTE, 4096)]));
    start(&mut *queue, 2, write(0), guest.segments(&[(REMOTE, 4096)]));
    drop(queue);
    guest.client.delay(false);
    assert_eq!(disk_writes(&disk), 0, "what had not reached the file never does");
}

fn disk_writes(disk: &FileDisk) -> u64 {
    use prereg_nvme::disk::Disk;
    disk.counters().writes
}
