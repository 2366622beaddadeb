//! A copy takes the place of a source that is gone for good: it is a point in time of the source, whatever
//! was under way, it is taken once, and the source, should it come back, acknowledges nothing any more.
#![allow(clippy::unwrap_used)]

mod world;

use block::{Epoch, ErrorKind, Generation};
use replica::{Receiver, State};
use world::disk::MemDisk;
use world::disk::forever;
use world::link::Fault;
use world::node::{CLEAN, MIB, Node, TestSender, assert_same, connection, fill, sender};
use world::volume::{MemTarget, MemVolume};
use world::{Dice, run};

const SIZE: u64 = 4 * MIB;
const NEXT: Generation = Generation(2);

struct Scene {
    dice: Dice,
    volume: MemVolume,
    sender: TestSender,
    node: Node,
}

type TestReceiver = Receiver<MemDisk, MemTarget>;

impl Scene {
    fn new(seed: u64) -> Scene {
        let dice = Dice::new(seed);
        let volume = MemVolume::new(MemDisk::new(SIZE, &dice, &forever()));
        fill(&volume, &dice);
        volume.s.generation.set(Generation(1));
        Scene {
            sender: sender(&volume),
            node: Node::new(SIZE, &dice),
            dice,
            volume,
        }
    }

    /// With a consistent copy, and a receiver that has it open.
    async fn copied(seed: u64) -> (Scene, TestReceiver) {
        let scene = Scene::new(seed);
        let receiver = scene.node.open().await.unwrap();
        scene.catch_up(&receiver, CLEAN).await.unwrap();
        (scene, receiver)
    }

    async fn catch_up(&self, receiver: &TestReceiver, faults: (Fault, Fault)) -> block::Result<()> {
        let work = connection(&self.dice, &self.sender, receiver, faults, async |s| {
            s.catch_up().await.map(drop)
        });
        work.await.0
    }

    fn write(&self, blocks: u64) {
        for _ in 0..blocks {
            let noise: Vec<u8> = (0..4096).map(|_| self.dice.roll(256) as u8).collect();
            self.volume
                .write(self.dice.roll(SIZE / 4096) * 4096, &noise);
        }
    }

    /// The image is what the source was at `epoch`, and this node owns it, once.
    fn assert_taken(&self, epoch: Epoch) {
        let history = self.volume.s.history.borrow();
        let image = self.node.image.content();
        assert_same(&format!("epoch {epoch}"), &image, &history[&epoch]);
        assert_eq!(self.node.target.owned.get(), Some(NEXT));
    }
}

/// The link breaks somewhere in an increment, and the source is never heard again.
#[test]
fn what_is_taken_over_is_a_point_in_time_wherever_the_source_stopped() {
    let mut epochs = std::collections::BTreeSet::new();
    for cut in 0..60 {
        run(async {
            let (scene, receiver) = Scene::copied(cut).await;
            scene.write(20);
            let faults = (Fault::Cut(64 + cut * 1500), Fault::None);
            let broken = scene.catch_up(&receiver, faults).await;
            scene.write(5);
            let epoch = receiver.take_over(NEXT).await.unwrap();
            scene.assert_taken(epoch);
            epochs.insert((epoch, broken.is_ok()));
            // the answer was lost, and the call is repeated
            assert_eq!(receiver.take_over(NEXT).await.unwrap(), epoch);
            scene.assert_taken(epoch);
            assert_eq!(scene.node.target.activations.get(), 2);
        });
    }
    assert!(
        epochs.len() > 1,
        "every cut left the same epoch: {epochs:?}"
    );
}

/// A source that was only thought to be dead, or that comes back with what it had.
#[test]
fn a_source_that_comes_back_is_told_that_it_was_replaced() {
    run(async {
        let (scene, receiver) = Scene::copied(3).await;
        let epoch = receiver.take_over(NEXT).await.unwrap();
        scene.write(5);
        scene.catch_up(&receiver, CLEAN).await.unwrap_err();
        assert_eq!(scene.volume.s.replaced.take(), Some(NEXT));
        scene.assert_taken(epoch);
        // and after a restart
        let receiver = scene.node.open().await.unwrap();
        scene.catch_up(&receiver, CLEAN).await.unwrap_err();
        assert_eq!(scene.volume.s.replaced.take(), Some(NEXT));
        scene.assert_taken(epoch);
    });
}

/// The power fails after each write and sync of it; what was begun is taken up again after.
#[test]
fn a_power_cut_in_a_take_over_leaves_the_same_point_in_time() {
    for steps in 0..40 {
        run(async {
            let (scene, receiver) = Scene::copied(steps).await;
            scene.write(20);
            // It stops with an epoch committed and not applied, or before.
            scene.node.power.set(steps);
            let _ = scene.catch_up(&receiver, CLEAN).await;
            scene.node.power_cut();
            scene.node.power.set(steps / 4);
            if let Ok(receiver) = scene.node.open().await {
                let _ = receiver.take_over(NEXT).await;
            }
            scene.node.power_cut();
            let receiver = scene.node.open().await.unwrap();
            let epoch = receiver.take_over(NEXT).await.unwrap();
            scene.assert_taken(epoch);
        });
    }
}

#[test]
fn a_copy_that_was_never_complete_is_not_taken_over() {
    run(async {
        let scene = Scene::new(5);
        let receiver = scene.node.open().await.unwrap();
        let refused = receiver.take_over(NEXT).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        let faults = (Fault::Cut(MIB), Fault::None);
        scene.catch_up(&receiver, faults).await.unwrap_err();
        let refused = receiver.take_over(NEXT).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        assert_eq!(scene.node.target.owned.get(), None);
    });
}

/// A copy in the middle of an epoch, whose log has rotted: neither the one point in time nor the other.
#[test]
fn a_copy_that_cannot_be_finished_is_not_taken_over() {
    let mut refused = 0;
    for steps in 0..60 {
        run(async {
            let (scene, receiver) = Scene::copied(9).await;
            scene.write(20);
            scene.node.power.set(steps);
            let _ = scene.catch_up(&receiver, CLEAN).await;
            scene.node.power_cut();
            let committed = {
                // what the record says, without finishing it
                scene.node.power.set(0);
                scene.node.open().await.is_err()
            };
            scene.node.power_cut();
            for at in (8192..64 << 10).step_by(512) {
                scene.node.staging.poke(at, &[0xa5; 64]);
            }
            let receiver = scene.node.open().await.unwrap();
            match receiver.take_over(NEXT).await {
                Ok(epoch) => scene.assert_taken(epoch),
                Err(e) => {
                    assert!(committed, "a consistent copy was refused: {e}");
                    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
                    assert_eq!(receiver.record().state, State::Empty);
                    refused += 1;
                }
            }
        });
    }
    assert!(refused > 0, "no copy was in the middle of an epoch");
}

/// The record that says what the copy is has rotted: it may have been in the middle of an epoch.
#[test]
fn a_copy_whose_record_has_rotted_is_not_taken_over() {
    run(async {
        let (scene, _) = Scene::copied(11).await;
        for page in [0, 4096] {
            scene.node.replica.poke(page + 40, &[0xa5]);
        }
        let receiver = scene.node.open().await.unwrap();
        let refused = receiver.take_over(NEXT).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        assert_eq!(scene.node.target.owned.get(), None);
    });
}

/// A disk that fails, is full or cannot sync keeps its node from taking over, and a later try on the same
/// open files is refused too; another replica is asked.
#[test]
fn a_copy_on_a_disk_that_fails_is_not_taken_over() {
    for errno in [5, 28] {
        for steps in 0..2 {
            run(async {
                let (scene, receiver) = Scene::copied(13).await;
                scene.node.replica.fail_with(errno);
                scene.node.power.set(steps);
                let failed = receiver.take_over(NEXT).await.unwrap_err();
                let said = failed.to_string();
                assert!(said.contains(&format!("os error {errno}")), "{said}");
                assert_eq!(scene.node.target.owned.get(), None);
                scene.node.power.set(u64::MAX);
                let stopped = receiver.take_over(NEXT).await.unwrap_err();
                assert_eq!(stopped.kind(), ErrorKind::Poisoned, "{stopped}");
            });
        }
    }
}

/// Two nodes take over one after the other: the copy that is behind is fenced by the one that is ahead.
#[test]
fn a_generation_that_was_seen_is_not_taken_again() {
    run(async {
        let (scene, receiver) = Scene::copied(17).await;
        let refused = receiver.take_over(Generation(1)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        let epoch = receiver.take_over(NEXT).await.unwrap();
        let refused = receiver.take_over(Generation(3)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        scene.assert_taken(epoch);
    });
}
