//! A small world for replication: disks that forget what was not synced, a link that can be cut and
//! corrupted at any byte, a volume with copy-before-write, and a clock that does not wait.
#![allow(dead_code, clippy::unwrap_used)]

pub mod disk;
pub mod link;
pub mod node;
pub mod volume;

use block::{Clock, Nanos, VolumeId};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

pub const VOLUME: VolumeId = VolumeId([7; 16]);

/// Numbers that look random and are always the same.
#[derive(Clone)]
pub struct Dice(Rc<Cell<u64>>);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Rc::new(Cell::new(
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        )))
    }
    pub fn roll(&self, sides: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        (x >> 11) % sides
    }
}

/// Let others run.
pub async fn pause(times: u64) {
    for _ in 0..times {
        let mut polled = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut polled, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// Time passes when somebody looks at it, and while somebody sleeps.
#[derive(Clone)]
pub struct Hand {
    now: Rc<Cell<u64>>,
    look: u64,
    /// What passes while a sleeper lets others run.
    step: u64,
}

impl Hand {
    /// A clock on which each look takes so long.
    pub fn new(look: Duration) -> Hand {
        Hand {
            now: Rc::default(),
            look: look.as_nanos() as u64,
            step: 1000,
        }
    }

    /// A clock whose sleepers wake soon, for those who wait long.
    pub fn hasty() -> Hand {
        Hand {
            step: 50_000_000,
            ..Hand::default()
        }
    }
}

impl Default for Hand {
    fn default() -> Hand {
        Hand::new(Duration::from_micros(1))
    }
}

impl Clock for Hand {
    fn now(&self) -> Nanos {
        self.now.set(self.now.get() + self.look);
        Nanos(self.now.get())
    }
    async fn sleep(&self, d: Duration) {
        let until = self.now.get() + d.as_nanos() as u64;
        while self.now.get() < until {
            self.now.set(self.now.get() + self.step);
            pause(1).await;
        }
    }
}

/// Run to the end on this thread. A test that hangs is a failure; one on a busy machine is not.
pub fn run<R>(future: impl Future<Output = R>) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let all = tokio::task::LocalSet::new();
    runtime.block_on(all.run_until(async {
        tokio::time::timeout(Duration::from_secs(200), future)
            .await
            .expect("the test hangs")
    }))
}
