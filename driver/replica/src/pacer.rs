//! How fast a bulk mover may go: a rate cap, and backing off for the guest.
//!
//! The rate falls by half when the guest's p99 has risen past [`TOLERATED`] times what it was before
//! the mover began, and rises by a step when it has not: it settles where the guest just begins to
//! notice. The promise is three times, so half of the way there is where it turns.

use crate::seam::GuestLoad;
use block::{Clock, Nanos};
use std::cell::Cell;
use std::time::Duration;

/// Rise of the guest's p99 at which the mover gives way, in percent.
const TOLERATED_PERCENT: u32 = 200;
/// How often the guest is looked at: long enough for a p99 to mean something.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Never slower: a seeding that stops altogether never ends.
const FLOOR: u64 = 8 << 20;
/// Above this rate a mover counts as unlimited.
const CEILING: u64 = 16 << 30;
/// What may be sent at once after a pause, in time at the current rate.
const BURST: Duration = Duration::from_millis(5);

/// Admits bytes at a rate that follows the guest's latency.
pub(crate) struct Pacer {
    cap: u64,
    rate: Cell<u64>,
    /// When the bytes admitted so far will have gone by at the current rate.
    paid_until: Cell<Nanos>,
    looked: Cell<Nanos>,
    /// Bytes admitted since the last look, to know how fast unlimited is.
    since_look: Cell<u64>,
}

impl Pacer {
    pub(crate) fn new(cap: Option<u64>) -> Pacer {
        let cap = cap.unwrap_or(CEILING).clamp(1, CEILING);
        Pacer {
            cap,
            rate: Cell::new(cap),
            paid_until: Cell::new(Nanos::ZERO),
            looked: Cell::new(Nanos::ZERO),
            since_look: Cell::new(0),
        }
    }

    /// Wait until `bytes` more may be moved.
    pub(crate) async fn admit<C: Clock>(
        &self,
        clock: &C,
        bytes: u64,
        guest: impl Fn() -> GuestLoad,
    ) {
        let now = clock.now();
        if now.since(self.looked.get()) >= LOOK_EVERY {
            self.look(now, guest());
        }
        self.since_look.set(self.since_look.get() + bytes);
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate.get() as f64);
        let paid = self.paid_until.get().max(now - BURST);
        self.paid_until.set(paid + cost);
        let wait = paid.since(now);
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
    }

    fn look(&self, now: Nanos, guest: GuestLoad) {
        let passed = now.since(self.looked.get()).as_secs_f64();
        let measured = (self.since_look.get() as f64 / passed) as u64;
        self.looked.set(now);
        self.since_look.set(0);
        let floor = FLOOR.min(self.cap);
        let rate = self.rate.get();
        let suffers = !guest.before.is_zero() && guest.p99 > guest.before * TOLERATED_PERCENT / 100;
        self.rate.set(if suffers {
            (rate.min(measured.max(floor)) / 2).max(floor)
        } else {
            // A tenth more each time: from the floor to a gigabyte a second in a second.
            (rate + rate / 10).min(self.cap)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Hand(Cell<u64>);
    impl Clock for Hand {
        fn now(&self) -> Nanos {
            Nanos(self.0.get())
        }
        async fn sleep(&self, d: Duration) {
            self.0.set(self.0.get() + d.as_nanos() as u64);
        }
    }

    fn run(pacer: &Pacer, clock: &Hand, guest: GuestLoad, chunks: u64) -> f64 {
        let from = clock.now();
        for _ in 0..chunks {
            // A chunk takes a millisecond by itself: a gigabyte a second.
            clock.0.set(clock.0.get() + 1_000_000);
            let admit = pacer.admit(clock, 1 << 20, || guest);
            futures_util::FutureExt::now_or_never(admit).unwrap();
        }
        (chunks << 20) as f64 / clock.now().since(from).as_secs_f64()
    }

    const CALM: GuestLoad = GuestLoad {
        p99: Duration::from_micros(150),
        before: Duration::from_micros(100),
    };
    const SUFFERS: GuestLoad = GuestLoad {
        p99: Duration::from_micros(250),
        before: Duration::from_micros(100),
    };

    #[test]
    fn a_cap_is_kept() {
        let clock = Hand(Cell::new(1_000_000_000));
        let rate = run(&Pacer::new(Some(50 << 20)), &clock, CALM, 200);
        assert!((rate / f64::from(50 << 20) - 1.0).abs() < 0.05, "{rate}");
    }

    #[test]
    fn it_gives_way_to_a_suffering_guest_and_comes_back() {
        let clock = Hand(Cell::new(1_000_000_000));
        let pacer = Pacer::new(None);
        let free = run(&pacer, &clock, CALM, 500);
        assert!(free > 900e6, "{free}");
        run(&pacer, &clock, SUFFERS, 500);
        let slow = run(&pacer, &clock, SUFFERS, 50);
        assert!(
            slow < 1.2 * FLOOR as f64 && slow > 0.8 * FLOOR as f64,
            "{slow}"
        );
        run(&pacer, &clock, CALM, 2000);
        let again = run(&pacer, &clock, CALM, 500);
        assert!(again > 900e6, "{again}");
    }
}
