//! A guest: asks, believes nothing that it reads, and goes where the volume is.

use crate::host::{Answer, Wish};
use crate::ledger::Ledger;
use crate::node::Cluster;
use crate::world::World;
use block::sector::Seen;
use block::{SECTOR_BYTES, Span};
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::oneshot;
use volume::Op;

/// What a guest asks for: parts of each kind of request.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Writes.
    pub write: u64,
    /// Reads.
    pub read: u64,
    /// Flushes.
    pub flush: u64,
    /// Trims and zeroings.
    pub zero: u64,
    /// One write in so many is FUA.
    pub fua: u64,
    /// One request in so many is large.
    pub large: u64,
    /// Microseconds between two requests, at most.
    pub think: u64,
}

/// A guest of a volume.
pub struct Guest {
    /// Where it lives.
    pub world: World,
    /// Whom it asks.
    pub cluster: Cluster,
    /// What it may see.
    pub ledger: Ledger,
    /// The volume's bytes.
    pub size: u64,
    /// What it asks for.
    pub habits: Habits,
    /// It runs on the owner's host, and with that it is cut off.
    pub inside: bool,
}

impl Guest {
    /// Ask, again and again, until told to stop. The number of answers.
    pub async fn run(&self, stop: Rc<Cell<bool>>) -> u64 {
        let mut answers = 0;
        while !stop.get() {
            self.world.wait_up_to(self.habits.think).await;
            let (wish, since) = self.wish();
            answers += u64::from(self.ask(&wish, since).await);
        }
        answers
    }

    fn wish(&self) -> (Wish, u64) {
        let (dice, h) = (self.world.dice(), &self.habits);
        let roll = dice.below(h.write + h.read + h.flush + h.zero);
        let op = match roll {
            n if n < h.write => Op::Write,
            n if n < h.write + h.read => Op::Read,
            n if n < h.write + h.read + h.flush => Op::Flush,
            _ if dice.one_in(2) => Op::Trim,
            _ => Op::Zero {
                no_hole: dice.one_in(2),
                fast: false,
            },
        };
        let first = *dice.pick(&self.ledger.hot);
        // A large one ends at the hot sectors' end, so that every sector written is a hot one.
        let run = self.ledger.hot.iter().skip_while(|s| **s < first);
        let run = run
            .enumerate()
            .take_while(|(i, s)| **s == first + *i as u64)
            .count() as u64;
        let sectors = match op {
            Op::Trim | Op::Zero { .. } if dice.one_in(h.large) => 8192,
            Op::Read if dice.one_in(h.large) => 64,
            _ => 1 + dice.below(run.min(if dice.one_in(4) { 24 } else { 8 })),
        };
        let offset = first * SECTOR_BYTES;
        let span = Span::new(offset, (sectors * SECTOR_BYTES).min(self.size - offset));
        let fua = dice.one_in(h.fua);
        if op.is_write() {
            let write = self.ledger.submit(span, op != Op::Write);
            (
                Wish {
                    op,
                    span,
                    fua,
                    write,
                },
                0,
            )
        } else {
            let wish = Wish {
                op,
                span,
                fua: false,
                write: 0,
            };
            (wish, self.ledger.tick())
        }
    }

    /// Ask until somebody has answered or nobody will; true if the answer was good.
    async fn ask(&self, wish: &Wish, since: u64) -> bool {
        loop {
            let Some((told, node, asked)) = self.submit(wish) else {
                self.world.wait_up_to(1000).await;
                continue;
            };
            let answer = told.await;
            let good = match &answer {
                Ok(Answer::Moved) => {
                    self.world.wait_up_to(300).await;
                    continue;
                }
                Ok(Answer::Done(outcome, _)) => outcome.is_ok(),
                Err(_) => false,
            };
            if self.ledger.is_aside(node, asked) {
                if wish.op.is_write() {
                    self.ledger.aside(wish.span, wish.write, good);
                }
                return good;
            }
            if wish.op.is_write() {
                self.ledger.ended(wish.span, wish.write, good, wish.fua);
            }
            if let Ok(Answer::Done(Ok(()), content)) = &answer {
                match wish.op {
                    Op::Flush => self.ledger.flushed(since),
                    Op::Read => self.check(wish.span, content, since),
                    _ => {}
                }
            }
            return good;
        }
    }

    /// Ask somebody within reach. Nothing of the host is kept: when it dies, so does the request.
    fn submit(&self, wish: &Wish) -> Option<(oneshot::Receiver<Answer>, u32, u64)> {
        let apart = self.cluster.apart();
        let reach = |i: &usize| apart.is_none_or(|apart| self.inside == (*i == apart));
        let nodes = (0..self.cluster.nodes().len()).filter(reach);
        let hosts = nodes.filter_map(|i| Some((i as u32, self.cluster.host_on(i)?)));
        let hosts: Vec<_> = hosts.filter(|(_, h)| h.serves()).collect();
        if hosts.is_empty() {
            return None;
        }
        let (node, host) = self.world.dice().pick(&hosts);
        let asked = self.ledger.tick();
        Some((host.submit(wish.clone())?, *node, asked))
    }

    fn check(&self, span: Span, content: &[u8], since: u64) {
        let first = span.offset / SECTOR_BYTES;
        for (lba, sector) in (first..).zip(content.as_chunks::<512>().0) {
            self.ledger.check_read(lba, Seen::in_sector(sector), since);
        }
    }
}
