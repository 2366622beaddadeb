//! Nodes that receive, connections to them, and what must hold after.

use super::disk::{MemDisk, forever};
use super::link::{End, Fault, pair};
use super::volume::{MemTarget, MemVolume};
use super::{Dice, Hand, VOLUME};
use block::{BLOCK_BYTES, Disk, Result};
use futures_util::future::join;
use replica::{
    Files, Increment, Receiver, Seeding, Sender, Session, State, Tuning, greet, staging_bytes,
};
use std::cell::Cell;
use std::rc::Rc;

pub const MIB: u64 = 1 << 20;

/// A node that receives: its disks, which outlive the process on it.
pub struct Node {
    pub image: MemDisk,
    pub staging: MemDisk,
    pub replica: MemDisk,
    pub target: MemTarget,
    pub power: Rc<Cell<u64>>,
}

impl Node {
    pub fn new(size: u64, dice: &Dice) -> Node {
        let power = forever();
        Node {
            image: MemDisk::new(size, dice, &power),
            staging: MemDisk::new(4 * size + staging_bytes(0) / 16, dice, &power),
            replica: MemDisk::new(8192, dice, &power),
            target: MemTarget::default(),
            power,
        }
    }
    pub async fn open(&self) -> Result<Receiver<MemDisk, MemTarget>> {
        let files = Files {
            image: self.image.clone(),
            staging: self.staging.clone(),
            replica: self.replica.clone(),
        };
        Receiver::open(VOLUME, self.image.size(), files, self.target.clone()).await
    }
    pub fn power_cut(&self) {
        self.power.set(u64::MAX);
        for disk in [&self.image, &self.staging, &self.replica] {
            disk.power_cut();
        }
    }
}

pub type TestSender = Sender<MemVolume, MemDisk, Hand>;
pub type TestSession<'a> = Session<'a, MemVolume, MemDisk, Hand, End>;

pub fn sender(volume: &MemVolume) -> TestSender {
    sender_with(volume, Hand::default())
}

pub fn sender_with(volume: &MemVolume, clock: Hand) -> TestSender {
    let tuning = Tuning {
        watermark_every: 2 * MIB,
        ..Tuning::default()
    };
    Sender::new(
        VOLUME,
        volume.clone(),
        volume.image.clone(),
        clock,
        tuning,
        |_| {},
    )
    .unwrap()
}

/// One connection: the sender's work and the receiver's service to their ends.
pub async fn connection<R>(
    dice: &Dice,
    sender: &TestSender,
    receiver: &Receiver<MemDisk, MemTarget>,
    faults: (Fault, Fault),
    work: impl AsyncFnOnce(&TestSession<'_>) -> Result<R>,
) -> (Result<R>, block::Error, u64) {
    let (a, b) = pair(dice, faults.0, faults.1);
    let id = wire::SessionId(dice.roll(u64::MAX));
    let sent = Cell::new(0);
    let send = sender.connect(a, id, async |session| {
        let result = work(session).await;
        sent.set(session.sent());
        result
    });
    let serve = async {
        match greet(b).await {
            Ok(incoming) => receiver.serve(incoming).await,
            Err(e) => e,
        }
    };
    let (result, end) = join(send, serve).await;
    (result, end, sent.get())
}

pub const CLEAN: (Fault, Fault) = (Fault::None, Fault::None);

/// The work of a connection on which the replica catches up.
pub async fn catch_up(session: &TestSession<'_>) -> Result<(Option<Seeding>, Increment)> {
    session.catch_up().await
}

/// A connection on which nothing fails and the replica catches up: what that came to, and the bytes sent.
pub async fn caught_up(
    dice: &Dice,
    sender: &TestSender,
    receiver: &Receiver<MemDisk, MemTarget>,
) -> (Option<Seeding>, Increment, u64) {
    let (result, _, sent) = connection(dice, sender, receiver, CLEAN, catch_up).await;
    let (seeding, increment) = result.unwrap();
    (seeding, increment, sent)
}

/// Fill parts of an image: noise, text and holes.
pub fn fill(volume: &MemVolume, dice: &Dice) {
    let size = volume.image.size();
    let mut at = 0;
    while at < size {
        let len = ((1 + dice.roll(100)) * BLOCK_BYTES).min(size - at);
        match dice.roll(4) {
            0 => {}
            1 => volume
                .image
                .poke(at, &vec![dice.roll(255) as u8; len as usize]),
            2 => volume.image.poke(at, &vec![0; len as usize]),
            _ => {
                let noise: Vec<u8> = (0..len).map(|_| dice.roll(256) as u8).collect();
                volume.image.poke(at, &noise);
            }
        }
        at += len;
    }
}

pub fn assert_same(what: &str, a: &[u8], b: &[u8]) {
    let differ = a.iter().zip(b).position(|(a, b)| a != b);
    assert!(
        a.len() == b.len() && differ.is_none(),
        "{what}: first difference at byte {differ:?}, block {:?}",
        differ.map(|d| d as u64 / BLOCK_BYTES)
    );
}

/// The receiver's copy is the source's point in time that its record names.
pub fn assert_consistent(node: &Node, receiver: &Receiver<MemDisk, MemTarget>, volume: &MemVolume) {
    let record = receiver.record();
    assert_eq!(record.state, State::Consistent);
    let history = volume.s.history.borrow();
    assert_same(
        &format!("epoch {}", record.epoch),
        &node.image.content(),
        &history[&record.epoch],
    );
}
