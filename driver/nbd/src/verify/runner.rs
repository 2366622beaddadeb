//! The ledger on a real connection: a thread that sends, a thread that receives and judges.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::{Error, ErrorKind, Result};
use hdrhistogram::Histogram;

use super::{Ledger, Planned, Task};
use crate::client::{Client, OUTSTANDING_MAX, Receipt, Receiver, Sender, Uri};
use crate::codec::{Command, CommandFlags, Cookie};

/// Sentences about what went wrong that are kept: the first tell what happened, the rest only how
/// often.
pub(super) const COMPLAINTS_MAX: usize = 20;

/// Digits of the latency histograms.
const DIGITS: u8 = 3;
/// The longest latency that is told apart: five minutes. A client that waits longer has lost its disk.
const LONGEST_NANOS: u64 = 300_000_000_000;

/// What a verifier does.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The disk.
    pub uri: Uri,
    /// Requests in flight at most.
    pub depth: usize,
    /// I/Os a second; `None` for as many as will go.
    pub rate: Option<u32>,
    /// Of a hundred I/Os, how many write stamps.
    pub writes: u8,
    /// Of a hundred I/Os, how many write zeroes. The rest reads.
    pub zeroes: u8,
    /// How long the server may be silent while requests are out.
    pub patience: Duration,
}

/// How long I/Os took, from send to receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// I/Os counted.
    pub ios: u64,
    /// The median.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// What a verifier saw.
#[derive(Debug)]
pub struct Report {
    /// I/Os answered.
    pub ios: u64,
    /// I/Os answered with an error.
    pub errors: u64,
    /// Sectors that held what they may not.
    pub mismatches: u64,
    /// Latency over the whole run.
    pub latency: Latency,
    /// The first errors and mismatches in words.
    pub complaints: Vec<String>,
    /// Why the connection was lost, if it was.
    pub lost: Option<Error>,
}

struct State {
    ledger: Ledger,
    out: HashMap<Cookie, (Planned, Instant)>,
    stop: bool,
    lost: Option<Error>,
    ios: u64,
    errors: u64,
    mismatches: u64,
    complaints: Vec<String>,
    whole: Histogram<u64>,
    interval: Histogram<u64>,
}

impl State {
    fn over(&self) -> bool {
        self.lost.is_some() || (self.stop && self.out.is_empty())
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(complaint);
        }
    }

    fn lose(&mut self, error: Error) {
        for (_, (planned, _)) in self.out.drain() {
            self.ledger.unknown(&planned);
        }
        // the second thread to notice has the lesser reason
        self.lost.get_or_insert(error);
    }

    fn receipt(&mut self, receipt: &Receipt) -> Result<()> {
        let Some((planned, sent)) = self.out.remove(&receipt.cookie) else {
            return Err(Error::new(ErrorKind::Broken, "a receipt for no request"));
        };
        let nanos = sent.elapsed().as_nanos() as u64;
        self.whole.saturating_record(nanos);
        self.interval.saturating_record(nanos);
        self.ios += 1;
        if let Err(e) = receipt.result {
            self.errors += 1;
            self.ledger.unknown(&planned);
            self.complain(format!("{:?} at {}: {e}", planned.task, planned.offset));
            return Ok(());
        }
        if planned.task != Task::Read {
            self.ledger.acknowledged(&planned);
            return Ok(());
        }
        let wrong: Vec<_> = self.ledger.judge(&planned, &receipt.data).collect();
        self.mismatches += wrong.len() as u64;
        for (lba, verdict) in wrong {
            self.complain(format!("sector {lba}: {verdict:?}"));
        }
        Ok(())
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // a thread that panicked is found out when it is joined
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A workload that is running.
pub struct Verifier {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Verifier {
    /// Connect and begin.
    pub fn start(workload: Workload, ledger: Ledger) -> Result<Verifier> {
        let client = Client::connect(&workload.uri, &[], workload.patience)?;
        if client.agreed().size < ledger.covers() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "verify {}: the export has {} bytes, the record {}",
                    workload.uri,
                    client.agreed().size,
                    ledger.covers()
                ),
            ));
        }
        let histogram = || {
            Histogram::new_with_bounds(1, LONGEST_NANOS, DIGITS)
                .map_err(|e| Error::new(ErrorKind::Broken, format!("latency histogram: {e}")))
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ledger,
                out: HashMap::new(),
                stop: false,
                lost: None,
                ios: 0,
                errors: 0,
                mismatches: 0,
                complaints: Vec::new(),
                whole: histogram()?,
                interval: histogram()?,
            }),
            changed: Condvar::new(),
        });
        let (sender, receiver) = client.split();
        let here = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::spawn(move || send(&here.0, &workload, sender)),
            std::thread::spawn(move || receive(&here.1, receiver)),
        ];
        Ok(Verifier { shared, threads })
    }

    /// Latency since the last call, or the beginning.
    #[must_use]
    pub fn interval(&self) -> Latency {
        let mut state = self.shared.state();
        let latency = summary(&state.interval);
        state.interval.reset();
        latency
    }

    /// I/Os answered so far.
    #[must_use]
    pub fn ios(&self) -> u64 {
        self.shared.state().ios
    }

    /// Whether the connection is lost: nothing more will happen.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.shared.state().lost.is_some()
    }

    /// Send nothing more, wait for what is in flight, and report. The ledger can go on over
    /// another connection.
    pub fn stop(self) -> Result<(Ledger, Report)> {
        self.shared.state().stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads {
            thread
                .join()
                .map_err(|_| Error::new(ErrorKind::Broken, "a thread of the verifier panicked"))?;
        }
        let shared = Arc::into_inner(self.shared)
            .ok_or_else(|| Error::new(ErrorKind::Broken, "the verifier is still in use"))?;
        let state = shared
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let report = Report {
            ios: state.ios,
            errors: state.errors,
            mismatches: state.mismatches,
            latency: summary(&state.whole),
            complaints: state.complaints,
            lost: state.lost,
        };
        Ok((state.ledger, report))
    }
}

fn summary(histogram: &Histogram<u64>) -> Latency {
    let us = |nanos: u64| nanos as f64 / 1000.0;
    Latency {
        ios: histogram.len(),
        p50_us: us(histogram.value_at_quantile(0.5)),
        p99_us: us(histogram.value_at_quantile(0.99)),
        max_us: us(histogram.max()),
    }
}

fn send(shared: &Shared, workload: &Workload, mut sender: Sender) {
    let depth = workload.depth.clamp(1, OUTSTANDING_MAX);
    let gap = workload
        .rate
        .map(|rate| Duration::from_secs(1) / rate.max(1));
    let mut due = Instant::now();
    let mut payload = vec![0; shared.state().ledger.io_bytes() as usize];
    loop {
        if let Some(gap) = gap {
            // what could not be sent while the server stalled is not caught up on in a burst
            due = (due + gap).max(Instant::now());
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let mut state = shared.state();
        while state.out.len() >= depth && !state.over() && !state.stop {
            state = shared.wait(state);
        }
        if state.stop || state.lost.is_some() {
            break;
        }
        let dice = state.ledger.below(100) as u8;
        let task = if dice < workload.writes {
            Task::Write
        } else if dice < workload.writes.saturating_add(workload.zeroes) {
            Task::Zero
        } else {
            Task::Read
        };
        let planned = state.ledger.plan(task);
        let (command, data) = match planned.task {
            Task::Read => (Command::Read, &[][..]),
            Task::Zero => (Command::WriteZeroes, &[][..]),
            Task::Write => {
                state.ledger.fill(&planned, &mut payload);
                (Command::Write, &payload[..])
            }
        };
        // written down before it is sent: the receipt may come before the send returns
        let cookie = sender.next_cookie();
        state.out.insert(cookie, (planned, Instant::now()));
        drop(state);
        shared.changed.notify_all();
        let len = payload.len() as u32;
        let none = CommandFlags::NONE;
        if let Err(e) = sender.send(command, none, planned.offset, len, data) {
            shared.state().lose(e);
            shared.changed.notify_all();
            return;
        }
    }
    let mut state = shared.state();
    while !state.over() {
        state = shared.wait(state);
    }
    drop(state);
    // the server may be gone already: there is nothing left that it could lose
    let _ = sender.goodbye();
}

fn receive(shared: &Shared, mut receiver: Receiver) {
    loop {
        let mut state = shared.state();
        // with nothing out a silent server is no slow one
        while state.out.is_empty() && !state.over() {
            state = shared.wait(state);
        }
        if state.over() {
            return;
        }
        drop(state);
        let received = receiver.receive();
        let mut state = shared.state();
        if let Err(e) = received.and_then(|r| state.receipt(&r)) {
            state.lose(e);
        }
        drop(state);
        shared.changed.notify_all();
    }
}
