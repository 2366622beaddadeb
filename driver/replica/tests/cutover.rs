//! Cutover: never two owners, never a lost write, whatever breaks and wherever.
#![allow(clippy::unwrap_used)]

mod world;

use block::{Epoch, ErrorKind, Generation, Result};
use futures_util::future::{Either, join, select};
use replica::cutover::{Phase, Plan, Report, Update, roll_forward, run as cut_over};
use replica::{Receiver, State, greet};
use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::time::Duration;
use world::disk::{MemDisk, forever};
use world::link::{End, Fault, pair};
use world::node::{MIB, Node, TestSender, assert_same, fill, sender, sender_with};
use world::volume::{MemTarget, MemVolume};
use world::{Dice, Hand, pause, run};

const SIZE: u64 = 8 * MIB;

fn plan() -> Plan {
    Plan {
        to: "b".parse().unwrap(),
        next: Generation(2),
        freeze_budget: Duration::from_secs(10),
        last_increment: Duration::from_millis(5),
    }
}

/// A receiving node that serves each connection it is given, one after the other.
struct Listener<'a> {
    dice: &'a Dice,
    waiting: RefCell<Vec<End>>,
    faults: RefCell<Vec<(Fault, Fault)>>,
    dialled: Cell<u64>,
}

impl<'a> Listener<'a> {
    fn new(dice: &'a Dice, faults: &[(Fault, Fault)]) -> Listener<'a> {
        Listener {
            dice,
            waiting: RefCell::default(),
            faults: RefCell::new(faults.to_vec()),
            dialled: Cell::new(0),
        }
    }
    async fn dial(&self) -> Result<(End, wire::SessionId)> {
        let n = self.dialled.get();
        self.dialled.set(n + 1);
        let fault = self.faults.borrow().get(n as usize).copied();
        let (forth, back) = fault.unwrap_or((Fault::None, Fault::None));
        let (a, b) = pair(self.dice, forth, back);
        self.waiting.borrow_mut().push(b);
        Ok((a, wire::SessionId(n)))
    }
    async fn serve(&self, receiver: &Receiver<MemDisk, MemTarget>) {
        loop {
            pause(1).await;
            let next = self.waiting.borrow_mut().pop();
            if let Some(end) = next
                && let Ok(incoming) = greet(end).await
            {
                receiver.serve(incoming).await;
            }
        }
    }
}

struct Scene {
    dice: Dice,
    volume: MemVolume,
    node: Node,
    sender: TestSender,
    plan: Plan,
}

fn scene(seed: u64) -> Scene {
    let dice = Dice::new(seed);
    let volume = MemVolume::new(MemDisk::new(SIZE, &dice, &forever()));
    fill(&volume, &dice);
    let node = Node::new(SIZE, &dice);
    let sender = sender(&volume);
    Scene {
        dice,
        volume,
        node,
        sender,
        plan: plan(),
    }
}

impl Scene {
    /// Cut over while a guest writes; its writes stop when the volume is frozen for good.
    async fn attempt(
        &self,
        listener: &Listener<'_>,
        pace: u64,
        observe: impl Fn(&Update),
    ) -> Result<Report> {
        let receiver = self.node.open().await.unwrap();
        let stop = Cell::new(false);
        let work = async {
            let dial = async || listener.dial().await;
            let result = cut_over(&self.sender, &self.plan, dial, observe).await;
            stop.set(true);
            result
        };
        let guest = self.volume.guest(self.dice.clone(), &stop, pace);
        let all = pin!(join(work, guest));
        match select(all, pin!(listener.serve(&receiver))).await {
            Either::Left(((result, ()), _)) => result,
            Either::Right(_) => unreachable!("the listener listens for ever"),
        }
    }

    /// The volume has moved at the epoch of the answer, and the source has lost its memory before it sent its
    /// guests on.
    async fn relinquished(&self) -> Epoch {
        let listener = Listener::new(&self.dice, &[]);
        self.attempt(&listener, 30, |_| {}).await.unwrap();
        self.volume.s.redirected.set(None);
        let (_, epoch) = self.volume.s.relinquished.borrow().unwrap();
        epoch
    }

    /// A source that starts sees to it that what it relinquished arrives.
    async fn roll_forward(&self, listener: &Listener<'_>, epoch: Epoch) -> Result<()> {
        let receiver = self.node.open().await.unwrap();
        let again = sender(&self.volume);
        let dial = async || listener.dial().await;
        let forward = pin!(roll_forward(&again, &self.plan, epoch, dial, |_| {}));
        match select(forward, pin!(listener.serve(&receiver))).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => unreachable!("the listener listens for ever"),
        }
    }

    fn assert_moved(&self) {
        let (next, epoch) = self.volume.s.relinquished.borrow().unwrap();
        assert_eq!(next, Generation(2));
        assert_eq!(self.volume.s.redirected.get(), Some(next));
        assert_eq!(self.node.target.owned.get(), Some(next));
        let ours = self.volume.image.content();
        assert_same("the new owner's image", &ours, &self.node.image.content());
        assert_same(
            "the last epoch",
            &ours,
            &self.volume.s.history.borrow()[&epoch],
        );
    }

    fn assert_serving(&self) {
        assert!(!self.volume.s.frozen.get(), "the guest is held");
        assert_eq!(self.volume.s.paced.get(), None, "the guest is paced");
        assert!(self.volume.s.relinquished.borrow().is_none());
        assert_eq!(self.node.target.owned.get(), None, "two owners");
        assert_eq!(self.volume.unanswered(), 0, "the guest waits for a mirror");
    }
}

#[test]
fn moves_a_volume_whose_guest_never_stops() {
    for seed in 0..5 {
        let scene = scene(seed);
        run(async {
            let listener = Listener::new(&scene.dice, &[]);
            let phases = RefCell::new(Vec::new());
            let observe = |u: &Update| phases.borrow_mut().push(u.phase);
            let report = scene.attempt(&listener, 30, observe).await.unwrap();
            assert_eq!(report.generation, Generation(2));
            scene.assert_moved();
            let mut phases = phases.into_inner();
            phases.dedup();
            let end = [
                Phase::Freeze,
                Phase::Relinquish,
                Phase::Activate,
                Phase::Redirect,
            ];
            assert_eq!(phases[0], Phase::Prepare);
            assert!(phases.ends_with(&end), "{phases:?}");
        });
    }
}

/// The link is slow (each look at the clock takes a tenth of a millisecond, and sending looks often)
/// and the guest takes no notice of its pace: no increment fits the freeze, so the mirror ends it.
#[test]
fn a_guest_that_outruns_the_link_is_mirrored() {
    for seed in 0..5 {
        let mut scene = scene(seed + 10);
        scene.sender = sender_with(&scene.volume, Hand::new(Duration::from_micros(100)));
        scene.plan.freeze_budget = Duration::from_millis(1);
        run(async {
            let listener = Listener::new(&scene.dice, &[]);
            let lacking = Cell::new(false);
            let observe = |u: &Update| lacking.set(lacking.get() || u.lacking().is_some());
            let report = scene.attempt(&listener, 3, observe).await.unwrap();
            assert!(report.mirrored, "the mirror was not needed");
            assert!(lacking.get(), "nobody said what bandwidth is lacking");
            scene.assert_moved();
        });
    }
}

/// Nothing fits a budget of a microsecond: the guest is let go and served on, the mirror is off.
#[test]
fn a_freeze_beyond_its_budget_is_given_up() {
    let mut scene = scene(20);
    scene.plan.freeze_budget = Duration::from_micros(1);
    run(async {
        let listener = Listener::new(&scene.dice, &[]);
        let e = scene.attempt(&listener, 3, |_| {}).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Timeout, "{e}");
        scene.assert_serving();
    });
}

/// The link breaks at many places: either nothing has happened and the source serves on, or the
/// volume has moved. The connections after the first are whole.
#[test]
fn a_link_that_breaks_anywhere_leaves_one_owner() {
    let mut aborted = 0;
    let mut moved = 0;
    let scene_for = |n: u64| scene(n + 100);
    for n in 0..60u64 {
        let scene = scene_for(n);
        run(async {
            // First a whole seeding, so that the breaks fall on the cutover's own steps.
            let fault = if n % 2 == 0 {
                (Fault::None, Fault::Cut(n * 30))
            } else {
                (Fault::Cut(n * 90_000), Fault::None)
            };
            let listener = Listener::new(&scene.dice, &[fault]);
            let result = scene.attempt(&listener, 30, |_| {}).await;
            match result {
                Ok(_) => {
                    moved += 1;
                    scene.assert_moved();
                }
                Err(e) => {
                    aborted += 1;
                    assert_ne!(e.kind(), ErrorKind::Broken, "{e}");
                    scene.assert_serving();
                    let again = Listener::new(&scene.dice, &[]);
                    scene.attempt(&again, 30, |_| {}).await.unwrap();
                    scene.assert_moved();
                }
            }
        });
    }
    assert!(aborted > 5 && moved > 5, "{aborted} aborted, {moved} moved");
}

/// The source restarts after it has relinquished, and the first answers are lost: it goes on until
/// the receiver has taken the volume, and the receiver takes it once.
#[test]
fn after_relinquish_the_only_way_is_forward() {
    for cut in 0..12 {
        let scene = scene(cut);
        run(async {
            let epoch = scene.relinquished().await;
            let cut = Fault::Cut(cut * 20);
            let listener = Listener::new(&scene.dice, &[(Fault::None, cut), (cut, Fault::None)]);
            scene.roll_forward(&listener, epoch).await.unwrap();
            scene.assert_moved();
        });
    }
}

/// The target had been stopped when the volume was brought to it, and so was asked by the source's next connection
/// while it took it. "Do you own it?" came before, "then hear me" after that: the source was told that it was a
/// former owner, and the cutover had failed, though the volume had arrived.
#[test]
fn a_target_that_takes_the_volume_while_it_is_asked_has_taken_it() {
    let scene = scene(5);
    run(async {
        let epoch = scene.relinquished().await;
        let target = &scene.node.target;
        target.taken_when_asked.set(target.owned.take());
        target.seen.set(Generation(1));
        let listener = Listener::new(&scene.dice, &[]);
        scene.roll_forward(&listener, epoch).await.unwrap();
        scene.assert_moved();
    });
}

/// The target took the volume, but the source never heard of it; then the target gave it back, and the
/// source, owner again, still asked the target to take the old generation, for ever, where it should
/// have been sending increments. A generation that was overtaken is not asked for again.
#[test]
fn a_hand_over_that_was_overtaken_is_not_rolled_forward_for_ever() {
    let scene = scene(3);
    run(async {
        let epoch = scene.relinquished().await;
        // Here again in generation 3: there a copy that follows.
        let back = Generation(3);
        scene.volume.s.generation.set(back);
        scene.node.target.owned.set(None);
        let record = scene.node.replica.clone();
        let later = Epoch(epoch.0 + 5);
        replica::adopt(record, world::VOLUME, SIZE, back, later)
            .await
            .unwrap();
        let listener = Listener::new(&scene.dice, &[]);
        let overtaken = scene.roll_forward(&listener, epoch).await;
        assert_eq!(overtaken.unwrap_err().kind(), ErrorKind::Fenced);
        assert!(listener.dialled.get() < 5, "once is enough");
    });
}

/// The receiver loses power between its two records of the hand-over, or around them.
#[test]
fn a_receiver_that_loses_power_while_it_takes_over_takes_over_after() {
    for steps in 0..30 {
        let scene = scene(steps);
        run(async {
            let listener = Listener::new(&scene.dice, &[]);
            let receiver = scene.node.open().await.unwrap();
            let stop = Cell::new(false);
            // Once the guest is frozen the power lasts for so many steps, then it comes back.
            let power = &scene.node.power;
            let work = async {
                let dial = async || {
                    power.set(u64::MAX);
                    listener.dial().await
                };
                let result = cut_over(&scene.sender, &plan(), dial, |u| {
                    if u.phase == Phase::Freeze {
                        power.set(steps);
                    }
                })
                .await;
                stop.set(true);
                power.set(u64::MAX);
                result
            };
            let all = pin!(join(
                work,
                scene.volume.guest(scene.dice.clone(), &stop, 30)
            ));
            let serve = async {
                let mut receiver = receiver;
                loop {
                    pause(1).await;
                    let next = listener.waiting.borrow_mut().pop();
                    let Some(end) = next else { continue };
                    if let Ok(incoming) = greet(end).await {
                        receiver.serve(incoming).await;
                        if power.get() == 0 {
                            scene.node.power_cut();
                        }
                        receiver = scene.node.open().await.unwrap();
                    }
                }
            };
            let Either::Left(((result, ()), _)) = select(all, pin!(serve)).await;
            match result {
                Ok(_) => scene.assert_moved(),
                Err(_) => {
                    scene.assert_serving();
                    let again = Listener::new(&scene.dice, &[]);
                    scene.node.power_cut();
                    scene.attempt(&again, 30, |_| {}).await.unwrap();
                    scene.assert_moved();
                }
            }
            let record = scene.node.open().await.unwrap().record();
            assert!(matches!(record.state, State::HandedOver { .. }));
            assert!(record.epoch > Epoch(0));
        });
    }
}
