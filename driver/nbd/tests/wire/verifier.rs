//! The verifying client over real connections: quiet on a good disk, loud on a bad one.

use crate::server::{Disk, Server};
use block::VolumeId;
use nbd::client::Client;
use nbd::verify::{Ledger, Verifier, Workload, compare, fill};
use std::time::Duration;

const VOLUME: VolumeId = VolumeId([5; 16]);
const SIZE: u64 = 4 << 20;

fn workload(server: &Server) -> Workload {
    Workload {
        uri: server.unix.parse().unwrap(),
        depth: 16,
        rate: None,
        writes: 50,
        zeroes: 10,
        patience: Duration::from_secs(10),
    }
}

fn ledger() -> Ledger {
    Ledger::new(VOLUME, SIZE, 4096, 42)
}

fn run_until(verifier: &Verifier, ios: u64) {
    while verifier.ios() < ios && !verifier.is_lost() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_good_disk_is_verified_to_the_last_byte() {
    let server = Server::start(Disk::new(SIZE as usize));
    let mut ledger = ledger();
    // the record goes on over a second connection
    for _ in 0..2 {
        let verifier = Verifier::start(workload(&server), ledger).unwrap();
        run_until(&verifier, 5000);
        assert!(verifier.interval().p99_us > 0.0);
        let (kept, report) = verifier.stop().unwrap();
        ledger = kept;
        assert!(report.ios >= 5000 && report.latency.ios == report.ios);
        assert!(report.latency.p50_us <= report.latency.p99_us);
        assert!(report.latency.p99_us <= report.latency.max_us);
        assert_eq!(
            (report.errors, report.mismatches),
            (0, 0),
            "{:?}",
            report.complaints
        );
        assert!(report.lost.is_none());
    }
    let mut client = Client::connect(&workload(&server).uri, &[], Duration::from_secs(10)).unwrap();
    let result = compare(&mut client, &mut ledger).unwrap();
    assert!(result.identical() && result.bytes == SIZE, "{result:?}");
    // one byte, in the filler of one sector
    client.write(8192 + 100, b"\xff", false).unwrap();
    client.write(8192 + 101, b"\x01", false).unwrap();
    let result = compare(&mut client, &mut ledger).unwrap();
    assert!(result.mismatches >= 1, "{result:?}");
}

#[test]
fn a_filled_disk_is_as_recorded() {
    let server = Server::start(Disk::new(SIZE as usize));
    let mut client = Client::connect(&workload(&server).uri, &[], Duration::from_secs(10)).unwrap();
    let mut ledger = ledger();
    fill(&mut client, &mut ledger, 3 << 20).unwrap();
    let content = server.disk.content();
    assert!(
        content[..3 << 20]
            .chunks(512)
            .all(|s| s.iter().any(|b| *b != 0))
    );
    assert!(content[3 << 20..].iter().all(|b| *b == 0));
    let result = compare(&mut client, &mut ledger).unwrap();
    assert!(result.identical() && result.bytes == SIZE, "{result:?}");
}

#[test]
fn errors_are_counted_and_leave_nothing_known() {
    let mut disk = Disk::new(SIZE as usize);
    disk.bad = 0..SIZE / 4;
    let server = Server::start(disk);
    let verifier = Verifier::start(workload(&server), ledger()).unwrap();
    run_until(&verifier, 1000);
    let (_, report) = verifier.stop().unwrap();
    assert!(
        report.errors > 100 && report.errors < report.ios,
        "{report:?}"
    );
    assert_eq!(report.mismatches, 0, "{:?}", report.complaints);
    assert!(
        report.complaints[0].contains("EIO"),
        "{:?}",
        report.complaints
    );
}

#[test]
fn a_disk_that_forgets_is_accused_while_it_is_used() {
    let server = Server::start(Disk::new(SIZE as usize));
    let verifier = Verifier::start(workload(&server), ledger()).unwrap();
    run_until(&verifier, 3000);
    server.disk.forget();
    run_until(&verifier, 6000);
    let (_, report) = verifier.stop().unwrap();
    assert!(report.mismatches > 0);
    assert!(
        report.complaints[0].contains("Stale"),
        "{:?}",
        report.complaints
    );
}

#[test]
fn a_pace_is_kept() {
    let server = Server::start(Disk::new(SIZE as usize));
    let paced = Workload {
        rate: Some(500),
        ..workload(&server)
    };
    let began = std::time::Instant::now();
    let verifier = Verifier::start(paced, ledger()).unwrap();
    run_until(&verifier, 200);
    let took = began.elapsed();
    verifier.stop().unwrap();
    assert!(
        took >= Duration::from_millis(380),
        "{took:?} for 200 I/Os at 500 a second"
    );
}
