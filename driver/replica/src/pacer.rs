//! How fast a bulk mover may go: a rate cap, and backing off for the guest.
//!
//! ```text
//!   no guest       as fast as it goes
//!   a guest        from GENTLE upwards, half as much again each look ─┐
//!   it suffers     half of what went, and up again to just below that ┘
//! ```
//!
//! What saturates a disk is noticed by the guest at once and by a p99 only when the requests that
//! waited have been answered. So the mover does not begin at full speed beside a guest and back off;
//! it comes from below, where latency rises before it explodes, and remembers where that was.

use crate::seam::GuestLoad;
use block::{Clock, Nanos};
use std::cell::Cell;
use std::time::Duration;

/// Rise of the guest's p99 at which the mover gives way, in percent. The promise is three times.
const TOLERATED_PERCENT: u32 = 200;
/// How often the guest is asked after; [`GuestLoad::look`] says whether there is news.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Where a mover begins beside a guest: a fifth of where latency began to rise on the disk measured.
const GENTLE: u64 = 64 << 20;
/// Never slower: a seeding that stops altogether never ends.
const FLOOR: u64 = 8 << 20;
/// Above this rate a mover counts as unlimited.
const CEILING: u64 = 16 << 30;
/// What may be sent at once after a pause, in time at the current rate.
const BURST: Duration = Duration::from_millis(5);
/// So slow a mover is not what a guest notices: how it fares beside one is its own doing.
const LIGHT: u64 = 16 << 20;
/// A rise so high that one look is believed, in percent. A p99 of one look is the word of very few
/// requests: a lesser rise must be seen twice.
const CERTAIN_PERCENT: u32 = 400;
/// A mover that admitted nothing for so long was not at work meanwhile.
const REST: Duration = Duration::from_millis(100);

/// Admits bytes at a rate that follows the guest's latency.
pub(crate) struct Pacer {
    cap: u64,
    rate: Cell<u64>,
    /// The rate at which the guest suffered last.
    trouble: Cell<Option<u64>>,
    /// The guest's p99 that is its own: before the mover began, or beside a light one.
    reference: Cell<Duration>,
    /// Looks to pass over: what was slow in them began under another rate.
    pass: Cell<u32>,
    /// The guest seemed to suffer at the last look.
    doubted: Cell<bool>,
    /// There was no guest at the last look.
    alone: Cell<bool>,
    /// The guest is not to be spared: it waits for the mover.
    hurried: Cell<bool>,
    /// When the bytes admitted so far will have gone by at the current rate.
    paid_until: Cell<Nanos>,
    asked: Cell<Option<Nanos>>,
    /// The look that was acted upon last, and when.
    seen: Cell<(u64, Nanos)>,
    /// Bytes admitted since, to know how fast unlimited is.
    since_seen: Cell<u64>,
    /// When something was admitted last.
    admitted: Cell<Nanos>,
}

/// Gives back what was charged for bytes that were not moved, when dropped.
struct Refund<'a> {
    pacer: &'a Pacer,
    cost: Duration,
}

impl Drop for Refund<'_> {
    fn drop(&mut self) {
        let paid = &self.pacer.paid_until;
        paid.set(paid.get() - self.cost);
    }
}

impl Pacer {
    pub(crate) fn new(cap: Option<u64>) -> Pacer {
        let cap = cap.unwrap_or(CEILING).clamp(1, CEILING);
        Pacer {
            cap,
            rate: Cell::new(cap),
            trouble: Cell::new(None),
            reference: Cell::new(Duration::ZERO),
            pass: Cell::new(0),
            doubted: Cell::new(false),
            alone: Cell::new(true),
            hurried: Cell::new(false),
            paid_until: Cell::new(Nanos::ZERO),
            asked: Cell::new(None),
            seen: Cell::new((0, Nanos::ZERO)),
            since_seen: Cell::new(0),
            admitted: Cell::new(Nanos::ZERO),
        }
    }

    /// Spare the guest no more, or again: one that is held, paced or mirrored waits for the mover, and
    /// sparing it would make it wait longer. The cap stands.
    pub(crate) fn hurry(&self, hurried: bool) {
        self.hurried.set(hurried);
        if hurried {
            self.paid_until.set(Nanos::ZERO);
        }
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.hurried.get()
    }

    /// Wait until `bytes` more may be moved. Who gives up waiting has not moved them.
    pub(crate) async fn admit<C: Clock>(
        &self,
        clock: &C,
        bytes: u64,
        guest: impl Fn() -> GuestLoad,
    ) {
        let now = clock.now();
        let rested = now.since(self.admitted.replace(now));
        if rested > REST {
            let (look, since) = self.seen.get();
            self.seen.set((look, since + rested));
        }
        let asked = self.asked.get();
        if asked.is_none_or(|asked| now.since(asked) >= LOOK_EVERY) {
            self.asked.set(Some(now));
            self.look(now, guest());
        }
        self.since_seen.set(self.since_seen.get() + bytes);
        let rate = if self.hurried.get() {
            self.cap
        } else {
            self.rate.get()
        };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let paid = self.paid_until.get().max(now - BURST);
        self.paid_until.set(paid + cost);
        let wait = paid.since(now);
        if !wait.is_zero() {
            self.admitted.set(now + wait);
            let refund = Refund { pacer: self, cost };
            clock.sleep(wait).await;
            std::mem::forget(refund);
        }
    }

    fn look(&self, now: Nanos, guest: GuestLoad) {
        let (look, since) = self.seen.replace((guest.look, now));
        if look == guest.look {
            return self.seen.set((look, since));
        }
        let went = self.since_seen.replace(0) as f64 / now.since(since).as_secs_f64();
        if self.hurried.get() {
            return self.pass.set(1);
        }
        let next = if guest.p99.is_zero() {
            // Soon there is no limit.
            self.trouble.set(None);
            self.alone.set(true);
            self.rate.get() * 4
        } else {
            self.beside(guest, went as u64)
        };
        self.rate.set(next.clamp(FLOOR.min(self.cap), self.cap));
    }

    /// The rate beside a guest; `went` bytes a second were moved.
    fn beside(&self, guest: GuestLoad, went: u64) -> u64 {
        let rate = self.rate.get();
        if self.alone.replace(false) {
            if self.reference.get().is_zero() {
                self.reference.set(guest.before);
            }
            if rate > GENTLE {
                self.pass.set(1);
                return GENTLE;
            }
        }
        if self.pass.get() > 0 {
            self.pass.set(self.pass.get() - 1);
            return rate;
        }
        if self.reference.get().is_zero() {
            self.reference.set(guest.p99);
        }
        let own = self.reference.get();
        if rate <= LIGHT {
            self.reference.set((own * 7 + guest.p99) / 8);
        }
        let suffers = guest.p99 > own * TOLERATED_PERCENT / 100;
        let certain = self.doubted.replace(suffers) || guest.p99 > own * CERTAIN_PERCENT / 100;
        if !suffers {
            return self.more(rate, went);
        }
        if !certain {
            return rate;
        }
        let went = went.clamp(FLOOR.min(self.cap), rate);
        self.trouble.set(Some(went));
        self.doubted.set(false);
        self.pass.set(1);
        went / 2
    }

    /// More than `rate`, which the guest bears: fast while nothing is known, then halfway to where it
    /// suffered last, and slowly from there.
    fn more(&self, rate: u64, went: u64) -> u64 {
        if went < rate / 2 {
            // The rate is not what limits: that it is borne says nothing about a higher one.
            return rate;
        }
        match self.trouble.get() {
            None => rate + rate / 2,
            Some(trouble) => {
                let near = trouble / 4 * 3;
                if rate > trouble {
                    self.trouble.set(None);
                }
                rate + near.saturating_sub(rate) / 2 + rate / 32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A disk that serves a guest and a mover. The guest's p99 is `own` until the mover takes more than
    /// the disk has to spare; then it rises with the excess, and steeply.
    struct World {
        now: Cell<u64>,
        own: Cell<Duration>,
        spare: Cell<u64>,
        disk: u64,
        moved: Cell<u64>,
        look: Cell<GuestLoad>,
        looked: Cell<(u64, u64)>,
        worst: RefCell<Vec<Duration>>,
    }

    impl Clock for World {
        fn now(&self) -> Nanos {
            Nanos(self.now.get())
        }
        async fn sleep(&self, d: Duration) {
            self.now.set(self.now.get() + d.as_nanos() as u64);
        }
    }

    const CHUNK: u64 = 512 << 10;
    const LOOK: u64 = 100_000_000;

    impl World {
        fn new(own_us: u64, spare: u64) -> World {
            let own = Duration::from_micros(own_us);
            World {
                now: Cell::new(1_000_000),
                own: Cell::new(own),
                spare: Cell::new(spare),
                disk: 1 << 30,
                moved: Cell::new(0),
                look: Cell::new(GuestLoad {
                    look: 1,
                    p99: own,
                    before: own,
                }),
                looked: Cell::new((1_000_000, 0)),
                worst: RefCell::default(),
            }
        }

        fn load(&self) -> GuestLoad {
            let (at, moved) = self.looked.get();
            let passed = self.now.get() - at;
            if passed >= LOOK {
                let rate = (self.moved.get() - moved) as f64 / passed as f64 * 1e9;
                let excess = (rate / self.spare.get() as f64 - 1.0).max(0.0);
                let p99 = self.own.get().mul_f64(1.0 + 10.0 * excess);
                let look = self.look.get();
                self.look.set(GuestLoad {
                    look: look.look + 1,
                    p99,
                    ..look
                });
                self.looked.set((self.now.get(), self.moved.get()));
                self.worst.borrow_mut().push(p99);
            }
            self.look.get()
        }

        /// Move for so long; the answer is the rate.
        fn run(&self, pacer: &Pacer, seconds: f64) -> f64 {
            let (from, moved) = (self.now.get(), self.moved.get());
            self.worst.borrow_mut().clear();
            while ((self.now.get() - from) as f64) < seconds * 1e9 {
                let took = CHUNK * 1_000_000_000 / self.disk;
                self.now.set(self.now.get() + took);
                let admit = pacer.admit(self, CHUNK, || self.load());
                futures_util::FutureExt::now_or_never(admit).unwrap();
                self.moved.set(self.moved.get() + CHUNK);
            }
            let passed = (self.now.get() - from) as f64 / 1e9;
            (self.moved.get() - moved) as f64 / passed
        }

        /// Looks in which the guest's p99 was over three times its own.
        fn broken(&self) -> usize {
            let all = self.worst.borrow();
            all.iter().filter(|p| **p > self.own.get() * 3).count()
        }
    }

    const MIB: f64 = 1048576.0;

    #[test]
    fn a_cap_is_kept() {
        let world = World::new(0, 1 << 30);
        let rate = world.run(&Pacer::new(Some(50 << 20)), 2.0);
        assert!((rate / (50.0 * MIB) - 1.0).abs() < 0.05, "{rate}");
    }

    /// Each connection that broke left its chunks charged though they were never sent. On a link that
    /// was cut thirty times a replica capped at a megabyte a second then sent nothing for two minutes.
    #[test]
    fn what_a_broken_connection_did_not_send_is_not_charged() {
        struct Still;
        impl Clock for Still {
            fn now(&self) -> Nanos {
                Nanos(1_000_000_000)
            }
            async fn sleep(&self, _: Duration) {
                std::future::pending::<()>().await;
            }
        }
        let pacer = Pacer::new(Some(1 << 20));
        // The first need not wait, and is sent.
        let admit = pacer.admit(&Still, 1 << 20, GuestLoad::default);
        assert!(futures_util::FutureExt::now_or_never(admit).is_some());
        for _ in 0..30 {
            let admit = pacer.admit(&Still, 4 << 20, GuestLoad::default);
            assert!(futures_util::FutureExt::now_or_never(admit).is_none());
        }
        let world = World::new(0, 1 << 30);
        world.now.set(1_000_000_000);
        let admit = pacer.admit(&world, 1 << 20, GuestLoad::default);
        futures_util::FutureExt::now_or_never(admit).unwrap();
        assert!(world.now.get() <= 2_000_000_000, "{}", world.now.get());
    }

    #[test]
    fn without_a_guest_there_is_no_limit_from_the_first_byte() {
        let world = World::new(0, 1 << 30);
        let rate = world.run(&Pacer::new(None), 0.2);
        assert!(rate > 0.95 * world.disk as f64, "{rate}");
    }

    /// A mover that began at full speed held the guest's writes for 100 ms at once, and when that had
    /// shown it went down to the floor, halving again for each look at the same requests.
    #[test]
    fn beside_a_guest_it_finds_what_the_disk_can_spare_from_below() {
        let world = World::new(1000, 300 << 20);
        let pacer = Pacer::new(None);
        world.run(&pacer, 1.5);
        assert!(world.broken() <= 1, "{:?}", world.worst.borrow());
        let rate = world.run(&pacer, 10.0);
        assert!(world.broken() == 0, "{:?}", world.worst.borrow());
        assert!(rate > 180.0 * MIB, "{rate}");
    }

    #[test]
    fn it_gives_way_when_the_guest_does_more_and_comes_back() {
        let world = World::new(1000, 500 << 20);
        let pacer = Pacer::new(None);
        world.run(&pacer, 3.0);
        world.spare.set(20 << 20);
        world.run(&pacer, 1.0);
        let slow = world.run(&pacer, 2.0);
        assert!(slow < 30.0 * MIB, "{slow}");
        world.spare.set(500 << 20);
        world.run(&pacer, 8.0);
        let again = world.run(&pacer, 2.0);
        assert!(again > 250.0 * MIB, "{again}");
    }

    #[test]
    fn a_guest_that_wakes_up_is_given_way_to_at_the_next_look() {
        let world = World::new(0, 300 << 20);
        world.look.set(GuestLoad {
            look: 1,
            ..GuestLoad::default()
        });
        let pacer = Pacer::new(None);
        world.run(&pacer, 1.0);
        world.own.set(Duration::from_millis(1));
        world.run(&pacer, 0.25);
        world.run(&pacer, 3.0);
        assert!(world.broken() <= 1, "{:?}", world.worst.borrow());
        world.own.set(Duration::ZERO);
        world.run(&pacer, 1.0);
        assert!(world.run(&pacer, 1.0) > 0.95 * world.disk as f64);
    }

    /// What the guest does to itself is not the mover's to repair: it would creep for ever.
    #[test]
    fn a_guest_that_is_slow_by_itself_does_not_keep_it_at_the_floor() {
        let world = World::new(1000, 300 << 20);
        let pacer = Pacer::new(None);
        world.run(&pacer, 1.0);
        world.own.set(Duration::from_millis(20));
        world.run(&pacer, 5.0);
        let rate = world.run(&pacer, 5.0);
        assert!(rate > 100.0 * MIB, "{rate}");
    }

    #[test]
    fn nobody_is_spared_who_waits_for_the_mover() {
        let world = World::new(1000, 10 << 20);
        let pacer = Pacer::new(None);
        world.run(&pacer, 1.0);
        pacer.hurry(true);
        assert!(world.run(&pacer, 0.2) > 0.95 * world.disk as f64);
        pacer.hurry(false);
        world.run(&pacer, 1.0);
        assert!(world.run(&pacer, 1.0) < 30.0 * MIB);
    }
}
