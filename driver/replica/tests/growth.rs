//! A copy grows before its source does: what was committed and not applied is applied from where it lay, and
//! a source that has not grown yet goes on sending.
#![allow(clippy::unwrap_used)]

mod world;

use block::Epoch;
use replica::{State, staging_bytes};
use world::disk::{MemDisk, forever};
use world::link::Fault;
use world::node::{CLEAN, MIB, Node, TestSender, assert_same, connection, fill, sender};
use world::volume::MemVolume;
use world::{Dice, run};

const BEFORE: u64 = MIB;
const AFTER: u64 = 3 * MIB;

struct Scene {
    dice: Dice,
    volume: MemVolume,
    sender: TestSender,
    node: Node,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let dice = Dice::new(seed);
        let volume = MemVolume::new(MemDisk::new(BEFORE, &dice, &forever()));
        fill(&volume, &dice);
        let mut node = Node::new(BEFORE, &dice);
        // As a node makes it: where the second lane begins hangs on the volume's size.
        node.staging = MemDisk::new(staging_bytes(BEFORE), &dice, &node.power);
        Scene {
            sender: sender(&volume),
            node,
            dice,
            volume,
        }
    }

    async fn catch_up(&self, faults: (Fault, Fault)) -> block::Result<State> {
        let receiver = self.node.open().await?;
        let work = connection(&self.dice, &self.sender, &receiver, faults, async |s| {
            s.catch_up().await.map(drop)
        });
        let _ = work.await;
        Ok(receiver.record().state)
    }

    fn write(&self) {
        for _ in 0..20 {
            let noise: Vec<u8> = (0..4096).map(|_| self.dice.roll(256) as u8).collect();
            let at = self.dice.roll(BEFORE / 4096) * 4096;
            self.volume.write(at, &noise);
        }
    }

    fn grow(&mut self) {
        self.node.image = self.node.image.grown(AFTER);
        self.node.staging = self.node.staging.grown(staging_bytes(AFTER));
    }

    /// The copy is what the source was at `epoch`, and zeroes after that.
    fn assert_is(&self, epoch: Epoch) {
        let history = self.volume.s.history.borrow();
        let image = self.node.image.content();
        let (before, after) = image.split_at(BEFORE as usize);
        assert_same(&format!("epoch {epoch}"), before, &history[&epoch]);
        assert!(after.iter().all(|b| *b == 0));
    }
}

#[test]
fn an_epoch_that_was_committed_before_the_copy_grew_is_applied_after() {
    let mut found = [0, 0];
    for seed in 0..32 {
        run(async {
            let mut scene = Scene::new(seed);
            scene.catch_up(CLEAN).await.unwrap();
            // Epochs of both lanes, and of the one that has been used before.
            for _ in 0..seed % 2 {
                scene.write();
                scene.catch_up(CLEAN).await.unwrap();
            }
            scene.write();
            scene.node.power.set(20 + seed / 2);
            let state = scene.catch_up(CLEAN).await;
            scene.node.power_cut();
            if let Ok(State::Committed { next, .. }) = state {
                found[(next.0 % 2) as usize] += 1;
            }
            scene.grow();
            let record = scene.node.open().await.unwrap().record();
            assert_eq!(record.state, State::Consistent, "seed {seed}");
            scene.assert_is(record.epoch);
            scene.write();
            scene.catch_up(CLEAN).await.unwrap();
            let record = scene.node.open().await.unwrap().record();
            assert_eq!(record.state, State::Consistent, "seed {seed}");
            scene.assert_is(record.epoch);
        });
    }
    assert!(found.iter().all(|n| *n > 0), "epochs by lane: {found:?}");
}

#[test]
fn a_source_that_is_larger_than_the_copy_is_refused_with_the_remedy() {
    run(async {
        let scene = Scene::new(1);
        let mut small = Node::new(BEFORE / 2, &scene.dice);
        small.staging = MemDisk::new(staging_bytes(BEFORE / 2), &scene.dice, &small.power);
        let receiver = small.open().await.unwrap();
        let work = connection(&scene.dice, &scene.sender, &receiver, CLEAN, async |s| {
            s.catch_up().await.map(drop)
        });
        let e = work.await.0.unwrap_err();
        assert!(e.to_string().contains("volume resize"), "{e}");
    });
}
