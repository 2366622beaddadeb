//! What a volume may hold: every write that its guests made, and what each sector may be because of
//! it.
//!
//! A write is *ended* when nothing of it can happen any more (answered, failed, or its node died),
//! *acknowledged* when the guest was told, *flushed* when a later flush (or its own FUA) was. A
//! sector holds the last write acknowledged or one that overlapped it in time or came later; after a
//! power cut the same holds of the last one flushed.
//!
//! The ledger also knows the *point in time*: the content of the volume in the gate's order at each
//! rotation, which is what a consistent replica must equal. When a copy takes the place of an owner that is
//! gone, the volume goes on from the copy's point; what the owner had beyond it is a line of its own, which
//! its copies, and the owner should it come back, may still be at. An owner that was only cut off serves its
//! guests on in that line until it learns of the heir: what they do there is no part of the volume, and
//! nobody promised them that it would be.

use block::sector::{Seen, Stamp};
use block::{Epoch, Generation, SECTOR_BYTES, Span, VolumeId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// What a sector holds: the number of a write's stamp; `None` for zeroes.
pub type Content = Option<u64>;

#[derive(Clone, Debug)]
struct Version {
    write: u64,
    content: Content,
    submitted: u64,
    ended: Option<u64>,
    acknowledged: Option<u64>,
    flushed: bool,
}

/// What a sector is expected to be at a point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    write: u64,
    content: Content,
}

/// The content of the hot sectors at a point in time.
type Point = Rc<BTreeMap<u64, Expected>>;

/// What became of the volume in one line of owners that each had all of the one before.
#[derive(Clone, Default)]
struct Line {
    /// In the gate's order.
    now: BTreeMap<u64, Expected>,
    points: BTreeMap<Epoch, Point>,
}

/// An owner that was replaced while it served.
#[derive(Clone, Debug)]
struct Aside {
    node: u32,
    by: Generation,
    /// When it knew.
    until: Option<u64>,
}

#[derive(Clone)]
struct State {
    tick: u64,
    writes: u64,
    sectors: BTreeMap<u64, Vec<Version>>,
    line: Line,
    /// Lines that a copy's take-over left behind, with the generation of that: who is of an earlier one is
    /// of the line.
    left: Vec<(Generation, Line)>,
    /// Writes that failed: their sectors may be anything that was written there.
    failed: BTreeSet<u64>,
    /// Who acknowledged requests in which generation.
    owners: BTreeMap<Generation, u32>,
    /// The owner that nobody reaches but its guests.
    cut_off: Option<u32>,
    aside: Vec<Aside>,
    /// The node whose image is the volume.
    holder: u32,
    held_in: Generation,
    handovers: u64,
    /// The bytes of writes that are not stamps.
    given: BTreeMap<u64, Arc<[u8]>>,
}

/// The ledger of one volume. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    /// The volume.
    pub volume: VolumeId,
    /// The sectors that guests write, ascending.
    pub hot: Rc<Vec<u64>>,
    state: Rc<RefCell<State>>,
}

impl Ledger {
    /// A ledger over a volume of zeroes whose guests write only `hot` sectors.
    #[must_use]
    pub fn new(volume: VolumeId, hot: Vec<u64>) -> Ledger {
        let state = State {
            tick: 0,
            writes: 0,
            sectors: hot.iter().map(|s| (*s, vec![Version::zero()])).collect(),
            line: Line {
                now: hot.iter().map(|s| (*s, Expected::ZERO)).collect(),
                points: BTreeMap::new(),
            },
            left: Vec::new(),
            failed: BTreeSet::new(),
            owners: BTreeMap::new(),
            cut_off: None,
            aside: Vec::new(),
            holder: 0,
            held_in: Generation(0),
            handovers: 0,
            given: BTreeMap::new(),
        };
        Ledger {
            volume,
            hot: Rc::new(hot),
            state: Rc::new(RefCell::new(state)),
        }
    }

    /// The hot sectors of a span.
    pub fn within(&self, span: Span) -> impl Iterator<Item = u64> + '_ {
        let first = span.offset / SECTOR_BYTES;
        let end = span.end().div_ceil(SECTOR_BYTES);
        let from = self.hot.partition_point(|s| *s < first);
        self.hot[from..]
            .iter()
            .copied()
            .take_while(move |s| *s < end)
    }

    /// A moment.
    #[must_use]
    pub fn tick(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.tick += 1;
        state.tick
    }

    /// A guest submits a write, or a zeroing; its number is its stamp's.
    #[must_use]
    pub fn submit(&self, span: Span, zero: bool) -> u64 {
        let submitted = self.tick();
        let mut state = self.state.borrow_mut();
        state.writes += 1;
        let write = state.writes;
        for s in self.within(span) {
            let version = Version {
                write,
                content: (!zero).then_some(write),
                submitted,
                ended: None,
                acknowledged: None,
                flushed: false,
            };
            state.sectors.entry(s).or_default().push(version);
        }
        write
    }

    /// A write whose bytes are given, as a real guest wrote them. They are no stamps, so the ledger
    /// must have no hot sectors.
    #[must_use]
    pub fn given(&self, bytes: Arc<[u8]>) -> u64 {
        assert!(self.hot.is_empty(), "hot sectors hold stamps");
        let mut state = self.state.borrow_mut();
        state.writes += 1;
        let write = state.writes;
        state.given.insert(write, bytes);
        write
    }

    /// The same ledger for another world, which goes on from here by itself.
    #[must_use]
    pub fn fork(&self) -> Ledger {
        Ledger {
            volume: self.volume,
            hot: self.hot.clone(),
            state: Rc::new(RefCell::new(self.state.borrow().clone())),
        }
    }

    /// The bytes of a write.
    #[must_use]
    pub fn payload(&self, span: Span, write: u64) -> Vec<u8> {
        if let Some(bytes) = self.state.borrow().given.get(&write) {
            return bytes.to_vec();
        }
        let mut bytes = vec![0; span.len as usize];
        let stamp = Stamp {
            volume: self.volume,
            lba: span.offset / SECTOR_BYTES,
            sequence: write,
        };
        stamp.encode_run(&mut bytes);
        bytes
    }

    /// The gate of an owner in `generation` issues a write.
    pub fn issued(&self, generation: Generation, span: Span, write: u64, zero: bool) {
        let state = &mut *self.state.borrow_mut();
        let line = state.of(generation);
        for s in self.within(span) {
            let content = (!zero).then_some(write);
            line.now.insert(s, Expected { write, content });
        }
    }

    /// A write went to an owner that had been replaced: it never was one of the volume.
    pub fn aside(&self, span: Span, write: u64, acknowledged: bool) {
        let mut state = self.state.borrow_mut();
        for s in self.within(span) {
            let versions = state.sectors.entry(s).or_default();
            versions.retain(|v| v.write != write);
        }
        if !acknowledged {
            state.failed.insert(write);
        }
    }

    /// Nobody reaches `node`, which may own the volume, but its guests.
    pub fn cut_off(&self, node: u32) {
        self.state.borrow_mut().cut_off = Some(node);
    }

    /// Others reach it again, and if it was replaced, it has heard.
    pub fn rejoined(&self) {
        let tick = self.tick();
        let mut state = self.state.borrow_mut();
        state.cut_off = None;
        for a in state.aside.iter_mut() {
            a.until.get_or_insert(tick);
        }
    }

    /// Whether what `node` was asked at `since` it was asked as an owner that has been replaced.
    #[must_use]
    pub fn is_aside(&self, node: u32, since: u64) -> bool {
        let state = self.state.borrow();
        let its = |a: &Aside| a.node == node && a.until.is_none_or(|until| since < until);
        state.aside.iter().any(its)
    }

    /// Nothing of a write can happen any more. With `fua` it was acknowledged as durable.
    pub fn ended(&self, span: Span, write: u64, acknowledged: bool, fua: bool) {
        let tick = self.tick();
        let mut state = self.state.borrow_mut();
        for s in self.within(span) {
            for v in state.sectors.entry(s).or_default().iter_mut() {
                if v.write == write && v.ended.is_none() {
                    v.ended = Some(tick);
                    v.acknowledged = acknowledged.then_some(tick);
                    v.flushed |= acknowledged && fua;
                }
            }
        }
        if !acknowledged {
            state.failed.insert(write);
        }
    }

    /// A flush that was submitted at `since` was acknowledged.
    pub fn flushed(&self, since: u64) {
        let mut state = self.state.borrow_mut();
        for versions in state.sectors.values_mut() {
            for v in versions.iter_mut() {
                v.flushed |= v.acknowledged.is_some_and(|at| at <= since);
            }
            // Keep the list short: what a flush has buried nobody may see any more.
            let floor = versions
                .iter()
                .filter(|v| v.flushed)
                .map(|v| v.submitted)
                .max();
            let old = since.saturating_sub(1000);
            versions.retain(|v| v.flushed || v.ended.is_none_or(|at| at > old || Some(at) > floor));
        }
    }

    /// `node` owns the volume in `generation`: from now on its image is the volume, unless it was replaced.
    pub fn held_by(&self, node: u32, generation: Generation) {
        let mut state = self.state.borrow_mut();
        if generation < state.held_in {
            return;
        }
        state.held_in = generation;
        state.handovers += u64::from(state.holder != node);
        state.holder = node;
    }

    /// The node whose image is the volume.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.state.borrow().holder
    }

    /// Times that it changed.
    #[must_use]
    pub fn handovers(&self) -> u64 {
        self.state.borrow().handovers
    }

    /// `node` acknowledged a request by itself, in `generation`. Whether it had been replaced, and could not
    /// know it.
    pub fn answered_by(&self, node: u32, generation: Generation) -> bool {
        let mut state = self.state.borrow_mut();
        let owner = *state.owners.entry(generation).or_insert(node);
        let last = state.owners.last_key_value().map(|(g, n)| (*g, *n));
        let now = last.is_some_and(|(highest, _)| generation == highest);
        let cut_off = |a: &Aside| a.node == node && generation < a.by && a.until.is_none();
        assert!(
            owner == node && (now || state.aside.iter().any(cut_off)),
            "[one owner] node {node} acknowledged in generation {generation}, which is node {owner}'s; \
             the last is {last:?}"
        );
        !now
    }

    /// A guest read what a sector holds, having asked at `since`.
    pub fn check_read(&self, lba: u64, seen: Seen, since: u64) {
        let content = self.content(lba, seen);
        let state = self.state.borrow();
        let Some(versions) = state.sectors.get(&lba) else {
            assert_eq!(content, None, "[foreign] sector {lba} was never written");
            return;
        };
        let floor = |v: &&Version| v.acknowledged.is_some_and(|at| at <= since);
        let floor = versions.iter().filter(floor).map(|v| v.submitted).max();
        assert!(
            allows(versions, content, floor.unwrap_or(0)),
            "[read your writes] sector {lba} holds {content:?} at {since}; {versions:?}"
        );
    }

    /// The volume's node died, with or without its `power`, and with the writes that were `there`;
    /// `disk` is what it finds when it comes back.
    pub fn crashed(&self, power: bool, there: &BTreeSet<u64>, disk: impl Fn(u64) -> Seen) {
        let tick = self.tick();
        let mut state = self.state.borrow_mut();
        let State { sectors, line, .. } = &mut *state;
        for (lba, versions) in sectors.iter_mut() {
            for v in versions.iter_mut().filter(|v| there.contains(&v.write)) {
                v.ended.get_or_insert(tick);
            }
            let content = self.content(*lba, disk(*lba));
            let counts = |v: &&Version| {
                if power {
                    v.flushed
                } else {
                    v.acknowledged.is_some()
                }
            };
            let floor = versions.iter().filter(counts).map(|v| v.submitted).max();
            let name = if power {
                "flushed data survives"
            } else {
                "acknowledged data survives"
            };
            assert!(
                allows(versions, content, floor.unwrap_or(0)),
                "[{name}] sector {lba} holds {content:?}; {versions:?}"
            );
            let write = content.unwrap_or(0);
            versions.push(Version {
                write,
                content,
                submitted: tick + 1,
                ended: Some(tick + 1),
                acknowledged: Some(tick + 1),
                flushed: power,
            });
            if power {
                let last = versions.len() - 1;
                let mut i = 0;
                versions.retain(|v| {
                    i += 1;
                    i > last || v.ended.is_none()
                });
            }
            line.now.insert(*lba, Expected { write: 0, content });
        }
        state.tick += 1;
    }

    /// The gate of an owner in `generation` closes an epoch.
    pub fn rotated(&self, generation: Generation, epoch: Epoch) {
        let line = &mut self.state.borrow_mut();
        let line = line.of(generation);
        line.points.insert(epoch, Rc::new(line.now.clone()));
    }

    /// Where `disk`, which claims to be the volume as an owner in `generation` had it at `epoch`, is not.
    #[must_use]
    pub fn differs_from(
        &self,
        (generation, epoch): (Generation, Epoch),
        disk: impl Fn(u64) -> Seen,
    ) -> Option<String> {
        let state = &mut *self.state.borrow_mut();
        let Some(point) = state.of(generation).points.get(&epoch).cloned() else {
            return Some(format!("epoch {epoch} never was"));
        };
        point.iter().find_map(|(lba, expected)| {
            let content = self.content(*lba, disk(*lba));
            let same = content == expected.content || state.failed.contains(&expected.write);
            (!same).then(|| format!("sector {lba} holds {content:?}, not {expected:?}"))
        })
    }

    /// The content of a point in time; `None` where it is not known.
    #[must_use]
    pub fn at(&self, (generation, epoch): (Generation, Epoch)) -> Option<BTreeMap<u64, Content>> {
        let state = &mut *self.state.borrow_mut();
        let point = state.of(generation).points.get(&epoch)?.clone();
        let known = |e: &Expected| !state.failed.contains(&e.write);
        let point = point.iter();
        Some(
            point
                .filter(|(_, e)| known(e))
                .map(|(s, e)| (*s, e.content))
                .collect(),
        )
    }

    /// The owner is gone for good, and `node` takes the volume over in `generation` with a copy of `of`:
    /// the volume is that point in time, whatever was acknowledged after it, and nobody acknowledges in an
    /// earlier generation any more, but an owner that is cut off from everything. How many sectors lost what a guest had been told is written.
    pub fn taken_over(
        &self,
        node: u32,
        generation: Generation,
        of: (Generation, Epoch),
        disk: impl Fn(u64) -> Seen,
    ) -> u64 {
        if let Some(how) = self.differs_from(of, &disk) {
            panic!(
                "[taken over whole] node {node} takes epoch {} over: {how}",
                of.1
            );
        }
        let tick = self.tick();
        let state = &mut *self.state.borrow_mut();
        if state.owners.get(&generation) == Some(&node) {
            // It died before its record was durable, and takes over once more.
            return 0;
        }
        let mut line = state.of(of.0).clone();
        line.points.retain(|e, _| *e <= of.1);
        for lba in self.hot.iter() {
            let content = self.content(*lba, disk(*lba));
            line.now.insert(*lba, Expected { write: 0, content });
        }
        let left = std::mem::replace(&mut state.line, line);
        state.left.push((generation, left));
        let mut lost = 0;
        for (lba, versions) in &mut state.sectors {
            let content = state.line.now[lba].content;
            let told = versions.iter().filter(|v| v.acknowledged.is_some());
            lost += u64::from(
                told.max_by_key(|v| v.submitted)
                    .is_some_and(|v| v.content != content),
            );
            // What somebody is still to be asked for may happen yet.
            versions.retain(|v| v.ended.is_none());
            versions.push(Version {
                write: content.unwrap_or(0),
                content,
                submitted: tick,
                ended: Some(tick),
                acknowledged: Some(tick),
                flushed: true,
            });
        }
        state.owners.insert(generation, node);
        state.aside.extend(state.cut_off.map(|node| Aside {
            node,
            by: generation,
            until: None,
        }));
        state.held_in = generation;
        lost
    }

    /// An owner in `generation` has started: if it was replaced, its line goes on from what its disk has.
    pub fn came_back(&self, generation: Generation, disk: impl Fn(u64) -> Seen) {
        let state = &mut *self.state.borrow_mut();
        let mut left = state.left.iter_mut();
        let Some((_, line)) = left.find(|(by, _)| generation < *by) else {
            return;
        };
        for lba in self.hot.iter() {
            let content = self.content(*lba, disk(*lba));
            line.now.insert(*lba, Expected { write: 0, content });
        }
    }

    /// What a sector holds; anything but zeroes or a write of this volume at this place is a failure.
    #[must_use]
    pub fn content(&self, lba: u64, seen: Seen) -> Content {
        match seen {
            Seen::Zero => None,
            Seen::Stamp(s) if s.volume == self.volume && s.lba == lba => Some(s.sequence),
            other => panic!("[whole sectors] sector {lba} holds {other:?}"),
        }
    }
}

fn allows(versions: &[Version], content: Content, floor: u64) -> bool {
    let old = |v: &Version| v.ended.is_some_and(|at| at < floor);
    versions.iter().any(|v| v.content == content && !old(v))
}

impl State {
    /// The line that an owner in `generation` was of.
    fn of(&mut self, generation: Generation) -> &mut Line {
        let mut left = self.left.iter_mut();
        match left.find(|(by, _)| generation < *by) {
            Some((_, line)) => line,
            None => &mut self.line,
        }
    }
}

impl Version {
    fn zero() -> Version {
        Version {
            write: 0,
            content: None,
            submitted: 0,
            ended: Some(0),
            acknowledged: Some(0),
            flushed: true,
        }
    }
}

impl Expected {
    const ZERO: Expected = Expected {
        write: 0,
        content: None,
    };
}
