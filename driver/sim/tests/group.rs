//! Volumes of one guest, rotated together: what their replicas hold is one point in time of all.
//!
//! The guest writes to the first volume, waits for the answer, writes to the second, waits, and so on,
//! with a number in each pair. In one point in time the second volume never has a number that the first
//! has not.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use block::{AREA_BYTES, SECTOR_BYTES, Span, VolumeId};
use replica::{State, Tuning};
use sim::group::Group;
use sim::host::{Answer, Wish};
use sim::ledger::Ledger;
use sim::net::Network;
use sim::node::{Cluster, Setup, seen};
use sim::world::{OUTSIDE, World};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use volume::{CursorName, Op};

/// Looks at the replicas in a run, each 50 microseconds after the one before.
const TURNS: u64 = 12_000;
/// Where the numbers are.
const SECTOR: u64 = 3;

struct Scene {
    world: World,
    ledgers: [Ledger; 2],
    clusters: [Cluster; 2],
    /// By volume: which pair each write was of.
    pairs: [RefCell<Vec<(u64, u64)>>; 2],
    stop: Cell<bool>,
}

impl Scene {
    async fn new(world: &World, group: Option<&Group>) -> Rc<Scene> {
        let net = Network::new(world);
        let ledger = |n: u8| Ledger::new(VolumeId::from_random([n; 16]), (0..16).collect());
        let ledgers = [ledger(1), ledger(2)];
        let setup = Setup {
            size: AREA_BYTES,
            align: 512,
            requests: 4,
            tuning: Tuning {
                rate: None,
                compress: false,
                watermark_every: 1 << 20,
            },
            interval: 500,
            group: group.cloned(),
        };
        let make = async |l| Cluster::create(world, &net, l, &setup, 2).await.unwrap();
        let clusters = [make(&ledgers[0]).await, make(&ledgers[1]).await];
        // A node is one process for both volumes: making the second cluster ended the first's.
        for node in 0..2 {
            clusters.iter().for_each(|c| c.crash(node, false));
            clusters.iter().for_each(|c| c.start(node));
        }
        Rc::new(Scene {
            world: world.clone(),
            ledgers,
            clusters,
            pairs: Default::default(),
            stop: Cell::new(false),
        })
    }

    async fn write(&self, volume: usize, pair: u64) {
        let span = Span::new(SECTOR * SECTOR_BYTES, SECTOR_BYTES);
        let ledger = &self.ledgers[volume];
        let write = ledger.submit(span, false);
        self.pairs[volume].borrow_mut().push((write, pair));
        let wish = Wish {
            op: Op::Write,
            span,
            // A power cut may take what is not flushed, from one volume and not from the other.
            fua: true,
            write,
        };
        loop {
            let host = self.clusters[volume].host_on(0).filter(|h| h.serves());
            let told = host.and_then(|h| h.submit(wish.clone()));
            let answer = match told {
                Some(told) => told.await.ok(),
                None => None,
            };
            if matches!(answer, Some(Answer::Done(Ok(()), _))) {
                return ledger.ended(span, write, true, true);
            }
            self.world.wait_up_to(300).await;
        }
    }

    async fn guest(&self) {
        for pair in 1.. {
            for volume in 0..2 {
                self.write(volume, pair).await;
            }
            self.world.wait_up_to(200).await;
            if self.stop.get() {
                return;
            }
        }
    }

    /// The pair that the replica of a volume holds.
    fn pair(&self, volume: usize) -> u64 {
        let image = &self.clusters[volume].nodes()[1].disks.image;
        match self.ledgers[volume].content(SECTOR, seen(image, SECTOR)) {
            None => 0,
            Some(write) => {
                let pairs = self.pairs[volume].borrow();
                pairs.iter().find(|(w, _)| *w == write).unwrap().1
            }
        }
    }

    /// The pairs in both replicas, if each of them is a point in time; the epochs too.
    fn look(&self) -> Option<([u64; 2], [block::Epoch; 2])> {
        let record = |v: usize| {
            let r = self.clusters[v].record(1)?;
            (r.state == State::Consistent).then_some(r.epoch)
        };
        let epochs = [record(0)?, record(1)?];
        Some(([self.pair(0), self.pair(1)], epochs))
    }
}

/// How often the replicas were found at one point in time, and how often the second volume was ahead.
fn run(seed: u64, grouped: bool, crashes: u64) -> (u64, u64) {
    let world = World::new(seed);
    let w = world.clone();
    let counts = world.run(async move {
        let group = Group::new(2);
        let scene = Scene::new(&w, grouped.then_some(&group)).await;
        let guest = scene.clone();
        w.spawn(OUTSIDE, async move { guest.guest().await });
        let name = CursorName::Replica(scene.clusters[0].nodes()[1].name.clone());
        let (mut points, mut ahead) = (0, 0);
        for turn in 0..TURNS {
            w.sleep(Duration::from_micros(50)).await;
            if crashes > 0 && turn % (TURNS / (crashes + 1)) == TURNS / 3 / (crashes + 1) {
                let (node, power) = (w.dice().below(2) as usize, w.dice().one_in(2));
                scene.clusters.iter().for_each(|c| c.crash(node, power));
                w.wait_up_to(3000).await;
                scene.clusters.iter().for_each(|c| c.start(node));
            }
            let Some((pairs, epochs)) = scene.look() else {
                continue;
            };
            ahead += u64::from(pairs[1] > pairs[0]);
            if grouped && group.is_point(&name, &epochs) {
                points += 1;
                let [first, second] = pairs;
                assert!(
                    first == second || first == second + 1,
                    "[group's point in time] the replicas hold pairs {first} and {second} at epochs \
                     {epochs:?}"
                );
            }
        }
        scene.stop.set(true);
        (points, ahead)
    });
    world.end();
    counts
}

#[test]
fn replicas_of_a_group_are_one_point_in_time() {
    let mut points = 0;
    for seed in 0..12 {
        points += run(seed, true, seed % 4).0;
    }
    eprintln!("{points} looks at points in time of a group");
    assert!(points > 300, "hardly ever rotated together: {points}");
}

/// The check can see what it is there for.
#[test]
fn replicas_of_single_volumes_are_not() {
    let ahead: u64 = (0..4).map(|seed| run(seed, false, 0).1).sum();
    assert!(ahead > 10, "the second volume was ahead {ahead} times");
}
