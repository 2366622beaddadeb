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

use oracle::{Oracle, Writer};
use serving::{Image, Serving};

const MIB: u64 = 1 << 20;

/// The oracle itself must find lost and future writes, or the tests below prove nothing.
#[test]
fn the_oracle_takes_what_was_acknowledged_or_submitted_later_and_nothing_else() {
    let mut oracle = Oracle::new(1, MIB);
    let first = oracle.submit(8, 2);
    oracle.acknowledge(8, 2);
    let second = oracle.submit(8, 1);
    assert!(oracle.wrong(8, &first).is_empty(), "acknowledged");
    assert!(oracle.wrong(8, &second).is_empty(), "under way");
    assert!(oracle.wrong(0, &[0; 512]).is_empty(), "never written");
    oracle.acknowledge(8, 1);
    let lost = oracle.wrong(8, &first);
    assert!(
        lost.len() == 1 && lost[0].starts_with("sector 8: Stale"),
        "{lost:?}"
    );
    assert_eq!(oracle.wrong(9, &[0; 512]).len(), 1, "zeroes over data");
    let elsewhere = Oracle::new(1, MIB).submit(9, 1);
    assert!(
        oracle.wrong(9, &elsewhere).is_empty(),
        "the same write made again"
    );
    assert_eq!(oracle.wrong(10, &elsewhere).len(), 1, "misdirected");
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
        let writer = Writer::start(&serving.uri(), Oracle::new(1, 16 * MIB), SEED);
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
