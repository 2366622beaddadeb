//! Processes die at the worst moment, and no acknowledged write is lost.
//!
//! Real processes and SIGKILL. The page cache outlives a killed process, so this shows that nothing is
//! kept in the process that was promised to the client; power loss is the simulator's subject.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod oracle;
mod serving;

use oracle::{Oracle, SECTOR, Writer, sector};
use serving::{Image, Serving};

const MIB: u64 = 1 << 20;

/// The oracle itself must fail on each kind of wrong content, or the tests below prove nothing.
#[test]
fn the_oracle_knows_lost_stale_torn_and_misplaced_sectors() {
    let mut oracle = Oracle::new(1, MIB);
    let first = oracle.submit(8, 2);
    oracle.acknowledge(8, 2);
    let second = oracle.submit(8, 1);
    assert_eq!(
        oracle.wrong(8, &first[..SECTOR]),
        None,
        "the acknowledged one"
    );
    assert_eq!(oracle.wrong(8, &second), None, "the one under way");
    assert_eq!(oracle.wrong(7, &[0; SECTOR]), None, "never written");
    oracle.acknowledge(8, 1);
    let says = |lba, found: &[u8]| oracle.wrong(lba, found).unwrap_or_default();
    assert!(says(8, &first[..SECTOR]).contains("holds 1, want 2 to 2"));
    assert!(says(9, &[0; SECTOR]).contains("empty"));
    assert!(says(9, &sector(1, 9, 3)).contains("holds 3, want 1 to 1"));
    assert!(says(9, &second).contains("holds sector 8"));
    assert!(says(9, &sector(2, 9, 1)).contains("of volume 2"));
    let mut torn = second.clone();
    torn[256..].copy_from_slice(&first[256..SECTOR]);
    assert!(says(8, &torn).contains("torn"));
}

/// Kills the server under load again and again; it comes back on the same socket and image by itself,
/// and the client finds every acknowledged sector.
#[test]
fn a_killed_server_loses_no_acknowledged_write() {
    const KILLS: u64 = 5;
    const SEED: u64 = 11;
    for cache in ["direct", "writeback"] {
        let image = Image::sparse(16);
        let socket = image.folder.path().join("nbd.sock");
        let mut serving = Serving::start_at(&image.path, &socket, &["--cache", cache]);
        eprintln!("cache {cache}, seed {SEED}");
        let writer = Writer::start(&socket, Oracle::new(1, 16 * MIB), SEED);
        for _ in 0..KILLS {
            writer.wait_for(100);
            drop(serving);
            serving = Serving::start_at(&image.path, &socket, &["--cache", cache]);
        }
        writer.wait_for(100);
        let oracle = writer.stop();
        serving.stop();
        oracle.check_image(&image.path);
    }
}
