//! Power loss under real databases on a real file system.
//!
//! A database runs on the kernel's ext4 on an export, and everything that reaches the export is
//! recorded (`scene`, `recorder`). The recording is then replayed through the volume and a replica on
//! simulated disks, which lose, keep, tear and reorder what was not synced, and the power fails at many
//! places of it (`replay`). Of every image that is left: the file system's journal repairs it and
//! `e2fsck` finds nothing, the database finds nothing wrong with itself, and every transaction that had
//! been acknowledged is in it: on the source those before the cut, on the replica those of its epoch.
//!
//! `FORERUN_POINTS=n` chooses how often the power fails, `FORERUN_SEED=n` where and how;
//! `scripts/power-loss` runs it by itself.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod database;
mod postgres;
mod recorder;
mod replay;
mod scene;
#[path = "../serving/mod.rs"]
mod serving;

use database::Database;
use nbd::session::Op;
use replay::{Plan, Verdict};
use scene::{Recording, Scene};
use std::rc::Rc;
use std::time::Instant;

const TRANSACTIONS: u64 = 200;
const POINTS: u64 = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|s| s.parse().unwrap())
}

/// None, with the reason printed, where this cannot be recorded.
fn record(database: Database, mib: u64, cache: &str) -> Option<Rc<Recording>> {
    if !scene::can_run() || !serving::have(&["python3"]) {
        return None;
    }
    let began = Instant::now();
    let scene = Scene::new(mib, cache)?;
    scene.follow(database.workload(&scene.tree(), TRANSACTIONS));
    let recording = scene.finish();
    let flushes = recording.count(|op| op == Op::Flush);
    eprintln!(
        "{database:?} on {mib} MiB of ext4, {cache}: {} transactions, {} writes, {} trims and \
         zeroings, {flushes} flushes, recorded in {:?}",
        recording.transactions(),
        recording.count(|op| op == Op::Write),
        recording.count(|op| matches!(op, Op::Trim | Op::Zero { .. })),
        began.elapsed()
    );
    assert_eq!(recording.transactions(), TRANSACTIONS);
    assert!(
        flushes as u64 > TRANSACTIONS / 2,
        "flushes do not reach the export: nothing is shown by this"
    );
    Some(Rc::new(recording))
}

fn replay(recording: &Rc<Recording>, database: Database, flushes: bool, points: u64) -> Verdict {
    let began = Instant::now();
    let seed = number("FORERUN_SEED").unwrap_or(1);
    let plan = Plan {
        recording: recording.clone(),
        database,
        points: points as usize,
        seed,
        flushes,
    };
    let verdict = plan.run();
    eprintln!(
        "{database:?}, seed {seed}: {} power cuts (after {} of {} flushes), {} sources with {} \
         acknowledged transactions in all, {} consistent replicas of {} epochs, {} caught up, {} failures, in {:?}",
        verdict.points,
        verdict.boundaries.0,
        verdict.boundaries.1,
        verdict.sources,
        verdict.demanded,
        verdict.replicas,
        verdict.epochs.len(),
        verdict.caught_up,
        verdict.failures.len(),
        began.elapsed()
    );
    verdict
}

fn nothing_is_lost(database: Database, mib: u64, cache: &str) {
    let Some(recording) = record(database, mib, cache) else {
        return;
    };
    let points = number("FORERUN_POINTS").unwrap_or(match database {
        // It takes a second or two to come back, and there are seven copies of it after each cut.
        Database::Postgres => POINTS / 3,
        _ => POINTS,
    });
    let verdict = replay(&recording, database, true, points);
    assert!(
        verdict.failures.is_empty(),
        "{} failures, the first: {}",
        verdict.failures.len(),
        verdict.failures[0]
    );
    // Crashes that left nothing to look at would prove nothing.
    assert!(verdict.replicas > verdict.points, "{verdict:?}");
    assert!(verdict.epochs.len() > 2, "{verdict:?}");
    assert!(verdict.demanded > TRANSACTIONS, "{verdict:?}");
}

#[test]
fn sqlite_with_a_write_ahead_log_loses_nothing() {
    nothing_is_lost(Database::SqliteWal, 64, "writeback");
}

#[test]
fn sqlite_with_a_rollback_journal_loses_nothing() {
    nothing_is_lost(Database::SqliteJournal, 64, "direct");
}

#[test]
fn postgresql_loses_nothing() {
    if postgres::programs().is_none() {
        eprintln!("skipped: PostgreSQL is not installed (scripts/test installs it)");
        return;
    }
    nothing_is_lost(Database::Postgres, 128, "writeback");
}

/// The control: with most flushes acknowledged and not carried out, sound file systems must be found
/// that lack acknowledged transactions. If not, the tests above see nothing.
#[test]
fn a_flush_that_does_nothing_is_noticed() {
    let Some(recording) = record(Database::SqliteWal, 64, "writeback") else {
        return;
    };
    let verdict = replay(&recording, Database::SqliteWal, false, 4);
    let lost = verdict.failures.iter().filter(|f| f.contains("lost "));
    assert!(lost.count() > 0, "{verdict:?}");
}
