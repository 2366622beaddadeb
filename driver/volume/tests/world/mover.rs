//! A replica and the mover that keeps it, one small step at a time.

use super::{SIZE, World};
use block::{Block, Epoch, SECTOR_BYTES};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use volume::{Control, CursorName, Outcome, Snapshot, Start};

enum State {
    /// The replica is not tracked.
    Absent,
    Adding(Control),
    Seeding(usize),
    Seeded(Control),
    Idle,
    Rotated(Arc<Snapshot>),
    Shipping(Arc<Snapshot>, Block),
    Committing(Control),
}

pub struct Mover {
    pub name: CursorName,
    state: State,
    /// What the replica durably has.
    pub content: Vec<u64>,
    staged: Vec<u64>,
    /// The source's content at the snapshot's point in time.
    expect: Vec<u64>,
    /// Writes of the open epoch that went to this mirror.
    mirroring: bool,
    sent: Vec<(Range<usize>, u64)>,
    sent_before: Vec<(Range<usize>, u64)>,
    confirmed: BTreeSet<u64>,
    pub commits: u64,
    pub mirrored: u64,
    pub saved: u64,
}

impl Mover {
    pub fn new(node: &str, sectors: usize) -> Mover {
        Mover {
            name: CursorName::Replica(node.parse().unwrap()),
            state: State::Absent,
            content: vec![0; sectors],
            staged: Vec::new(),
            expect: Vec::new(),
            mirroring: false,
            sent: Vec::new(),
            sent_before: Vec::new(),
            confirmed: BTreeSet::new(),
            commits: 0,
            mirrored: 0,
            saved: 0,
        }
    }

    pub fn mirror(&mut self, write: &(Range<usize>, u64)) {
        if self.mirroring {
            self.sent.push(write.clone());
        }
    }

    pub fn confirmed(&mut self, stamp: u64) {
        self.confirmed.insert(stamp);
    }

    /// What was not confirmed never got there.
    pub fn mirror_broke(&mut self) {
        self.mirroring = false;
        self.sent.clear();
        let confirmed = std::mem::take(&mut self.confirmed);
        self.sent_before
            .retain(|(_, stamp)| confirmed.contains(stamp));
    }

    /// The connection or the source died.
    pub fn cut(&mut self) {
        self.mirror_broke();
        self.state = State::Absent;
    }
}

/// The source was opened again: whatever the replica lacks, the source must know that it may.
pub fn check_no_false_clean(w: &mut World, i: usize) {
    let name = w.movers[i].name.clone();
    if !w.vol.cursors().iter().any(|c| c.name == name) {
        return;
    }
    let snapshot = w.vol.rotate(&name).unwrap();
    for (s, sector) in w.hot.iter().enumerate() {
        if w.image.cache[s] != w.movers[i].content[s] {
            assert!(
                snapshot.is_pending(Block(sector / 8)),
                "false clean: sector {sector} holds {} here and {} at {name}",
                w.image.cache[s],
                w.movers[i].content[s],
            );
        }
    }
    w.vol.abandon(&name, snapshot.epoch());
    w.movers[i].state = State::Idle;
}

pub fn step(w: &mut World, i: usize) {
    let name = w.movers[i].name.clone();
    let state = std::mem::replace(&mut w.movers[i].state, State::Absent);
    w.movers[i].state = match state {
        State::Absent => match w.vol.add_cursor(name, Start::Now) {
            Ok(control) => State::Adding(control),
            Err(_) => State::Absent,
        },
        State::Seeding(at) if at < w.hot.len() => {
            w.movers[i].content[at] = w.image.cache[at];
            State::Seeding(at + 1)
        }
        State::Seeding(_) => match w.vol.seeded(&name) {
            Ok(control) => State::Seeded(control),
            Err(_) => State::Absent,
        },
        State::Idle => rotate(w, i, &name),
        State::Shipping(snapshot, at) => ship(w, i, snapshot, at),
        waiting => waiting,
    };
}

fn rotate(w: &mut World, i: usize, name: &CursorName) -> State {
    w.drain();
    let mirror = w.rng.one_in(3);
    let result = if mirror && !w.movers.iter().any(|m| m.mirroring) {
        w.vol
            .mirror_on(name)
            .inspect(|_| w.movers[i].mirroring = true)
    } else {
        w.vol.rotate(name)
    };
    let Ok(snapshot) = result else {
        return State::Absent;
    };
    let expect = w.issued.clone();
    let m = &mut w.movers[i];
    m.expect = expect;
    m.staged = m.content.clone();
    m.sent_before = std::mem::take(&mut m.sent);
    State::Rotated(snapshot)
}

pub fn settled(w: &mut World, snapshot: &Arc<Snapshot>) {
    for m in &mut w.movers {
        if matches!(&m.state, State::Rotated(s) if Arc::ptr_eq(s, snapshot)) {
            m.state = State::Shipping(snapshot.clone(), Block(0));
        }
    }
}

/// Read and ship a little, or commit at the end.
fn ship(w: &mut World, i: usize, snapshot: Arc<Snapshot>, at: Block) -> State {
    let name = w.movers[i].name.clone();
    if snapshot.is_overrun() {
        return State::Idle;
    }
    if snapshot.is_mirrored() {
        w.movers[i].mirrored += 1;
        for (range, stamp) in std::mem::take(&mut w.movers[i].sent_before) {
            w.movers[i].staged[range].fill(stamp);
        }
        return commit(w, i, &name, snapshot.epoch());
    }
    let max = 1 + w.rng.below(3000);
    let Some(extent) = snapshot.next_pending(at, max) else {
        return commit(w, i, &name, snapshot.epoch());
    };
    for s in w.within(extent.span(SIZE)) {
        w.movers[i].staged[s] = w.image.cache[s];
    }
    // The guest is quick: things happen between the read and the look.
    if w.rng.one_in(2) {
        w.movers[i].state = State::Rotated(snapshot.clone());
        for _ in 0..w.rng.below(12) {
            w.step_guest();
        }
        if w.vol.is_poisoned() {
            return State::Absent;
        }
        w.movers[i].state = State::Absent;
    }
    for b in extent.iter() {
        if let Some(old) = snapshot.saved(b) {
            w.movers[i].saved += 1;
            let span = block::Extent::new(b.0, 1).span(SIZE);
            for s in w.within(span) {
                let at = (w.hot[s] * SECTOR_BYTES - span.offset) as usize;
                let stamp = u64::from_le_bytes(old[at..at + 8].try_into().unwrap());
                w.movers[i].staged[s] = stamp;
            }
        }
    }
    snapshot.shipped(extent);
    State::Shipping(snapshot, extent.end())
}

fn commit(w: &mut World, i: usize, name: &CursorName, epoch: Epoch) -> State {
    let m = &mut w.movers[i];
    assert_eq!(
        m.staged, m.expect,
        "{name} at epoch {epoch} is not the source's point in time"
    );
    m.content = std::mem::take(&mut m.staged);
    m.commits += 1;
    if w.rng.one_in(12) {
        // The replica has it, the source never hears of it.
        w.vol.abandon(name, epoch);
        return State::Idle;
    }
    match w.vol.committed(name, epoch) {
        Ok(control) => State::Committing(control),
        Err(_) => State::Idle,
    }
}

pub fn done(w: &mut World, control: Control, result: Outcome) {
    for m in &mut w.movers {
        let next = match m.state {
            State::Adding(c) if c == control => State::Seeding(0),
            State::Seeded(c) | State::Committing(c) if c == control => State::Idle,
            _ => continue,
        };
        if result.is_ok() {
            m.state = next;
        }
    }
}

/// The replica's connection breaks, or it is removed.
pub fn disturb(w: &mut World, i: usize) {
    let name = w.movers[i].name.clone();
    match &w.movers[i].state {
        State::Rotated(s) | State::Shipping(s, _) if w.rng.one_in(3) => {
            w.vol.abandon(&name, s.epoch());
            w.movers[i].state = State::Idle;
        }
        State::Idle if w.rng.one_in(5) && w.vol.remove_cursor(w.now, &name).is_ok() => {
            w.movers[i].cut();
        }
        _ => {}
    }
}
