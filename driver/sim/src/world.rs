//! One thread, one virtual clock, one stream of random numbers: the same seed gives the same run.
//!
//! A task belongs to a *process*. Which of the ready tasks runs next is drawn, so a run is one
//! interleaving and another seed another. When nothing is ready the clock moves to the next timer;
//! if there is none either, everybody waits for ever, and that is a failure.
//!
//! Killing a process drops its tasks where they stand. Stopping one (SIGSTOP) leaves them.

use crate::dice::Dice;
use crate::hits::{Hit, Hits, Tally};
use block::{Clock, Nanos};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Who dies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub u32);

/// The process of guests and of fate: never killed.
pub const OUTSIDE: Process = Process(0);

/// Tasks polled in one run, at most: a run that needs more does not get anywhere.
const POLLS_MAX: u64 = 30_000_000;

type Work = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    process: Process,
    work: Work,
    waker: Arc<TaskWaker>,
}

#[derive(Default)]
struct Ready(Mutex<Vec<u64>>);

struct TaskWaker {
    id: u64,
    is_queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            let mut queue = self.ready.0.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push(self.id);
        }
    }
}

struct Inner {
    dice: Dice,
    now: Cell<Nanos>,
    /// How far each process's clock is ahead.
    jumped: RefCell<BTreeMap<Process, Duration>>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    ready: Arc<Ready>,
    timers: RefCell<BTreeMap<(Nanos, u64), Waker>>,
    stopped: RefCell<BTreeSet<Process>>,
    parked: RefCell<Vec<u64>>,
    last: Cell<u64>,
    polls: Cell<u64>,
    trace: Cell<u64>,
    hits: Tally,
}

/// The world. Cheap to clone.
#[derive(Clone)]
pub struct World(Rc<Inner>);

impl World {
    /// The world of a seed.
    #[must_use]
    pub fn new(seed: u64) -> World {
        World(Rc::new(Inner {
            dice: Dice::new(seed),
            now: Cell::new(Nanos(1 << 40)),
            jumped: RefCell::default(),
            tasks: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
            stopped: RefCell::default(),
            parked: RefCell::default(),
            last: Cell::new(0),
            polls: Cell::new(0),
            trace: Cell::new(seed),
            hits: Tally::default(),
        }))
    }

    /// The world's random numbers.
    #[must_use]
    pub fn dice(&self) -> &Dice {
        &self.0.dice
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.0.now.get()
    }

    /// A number over everything that was done, to compare two runs by.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.0.trace.get()
    }

    /// Something happened that is worth counting.
    pub fn hit(&self, hit: Hit) {
        self.0.hits.hit(hit);
    }

    /// How often what happened.
    #[must_use]
    pub fn hits(&self) -> Hits {
        self.0.hits.all()
    }

    fn number(&self) -> u64 {
        let n = self.0.last.get() + 1;
        self.0.last.set(n);
        n
    }

    /// Begin a task.
    pub fn spawn(&self, process: Process, work: impl Future<Output = ()> + 'static) {
        let id = self.number();
        let waker = Arc::new(TaskWaker {
            id,
            is_queued: AtomicBool::new(false),
            ready: self.0.ready.clone(),
        });
        let task = Task {
            process,
            work: Box::pin(work),
            waker: waker.clone(),
        };
        self.0.tasks.borrow_mut().insert(id, task);
        waker.wake();
    }

    /// Kill a process: its tasks end where they stand.
    pub fn kill(&self, process: Process) {
        self.0.stopped.borrow_mut().remove(&process);
        let mut tasks = self.0.tasks.borrow_mut();
        let dead: Vec<u64> = tasks
            .iter()
            .filter(|(_, t)| t.process == process)
            .map(|(id, _)| *id)
            .collect();
        let dead: Vec<Task> = dead.iter().filter_map(|id| tasks.remove(id)).collect();
        // Dropped outside of the borrow: what they hold may wake others.
        drop(tasks);
        drop(dead);
    }

    /// SIGSTOP.
    pub fn stop(&self, process: Process) {
        self.0.stopped.borrow_mut().insert(process);
    }

    /// SIGCONT.
    pub fn go_on(&self, process: Process) {
        self.0.stopped.borrow_mut().remove(&process);
        let parked = std::mem::take(&mut *self.0.parked.borrow_mut());
        let mut queue = self.lock();
        queue.extend(parked);
    }

    /// A process's clock jumps ahead.
    pub fn jump(&self, process: Process, by: Duration) {
        *self.0.jumped.borrow_mut().entry(process).or_default() += by;
    }

    /// Wait until a moment of the world's own clock.
    pub async fn sleep_until(&self, at: Nanos) {
        let mut key = None;
        poll_fn(|cx| {
            if self.now() >= at {
                return Poll::Ready(());
            }
            let key = *key.get_or_insert_with(|| (at, self.number()));
            self.0.timers.borrow_mut().insert(key, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Wait.
    pub async fn sleep(&self, d: Duration) {
        self.sleep_until(self.now() + d).await;
    }

    /// Wait up to `micros` microseconds.
    pub async fn wait_up_to(&self, micros: u64) {
        let nanos = self.dice().below(micros * 1000 + 1);
        self.sleep(Duration::from_nanos(nanos)).await;
    }

    /// Let go of everything: tasks hold the world that holds them.
    pub fn end(&self) {
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
        self.0.timers.borrow_mut().clear();
        self.lock().clear();
    }

    /// Run until `work` has ended; every other task runs beside it.
    pub fn run<R: 'static>(&self, work: impl Future<Output = R> + 'static) -> R {
        let result = Rc::new(RefCell::new(None));
        let put = result.clone();
        self.spawn(OUTSIDE, async move {
            let r = work.await;
            *put.borrow_mut() = Some(r);
        });
        loop {
            if let Some(r) = result.borrow_mut().take() {
                return r;
            }
            self.step();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        // One thread: nobody can have panicked while holding it but us.
        self.0
            .ready
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self) {
        let drawn = {
            let mut queue = self.lock();
            match queue.len() {
                0 => None,
                n => {
                    let i = self.dice().below(n as u64) as usize;
                    Some(queue.swap_remove(i))
                }
            }
        };
        match drawn {
            Some(id) => self.poll(id),
            None => self.advance(),
        }
    }

    fn poll(&self, id: u64) {
        let Some(mut task) = self.0.tasks.borrow_mut().remove(&id) else {
            return;
        };
        if self.0.stopped.borrow().contains(&task.process) {
            self.0.parked.borrow_mut().push(id);
            self.0.tasks.borrow_mut().insert(id, task);
            return;
        }
        self.0.polls.set(self.0.polls.get() + 1);
        assert!(self.0.polls.get() < POLLS_MAX, "the run gets nowhere");
        let mixed = (self.0.trace.get() ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0.trace.set(mixed ^ self.now().0 ^ (mixed >> 29));
        task.waker.is_queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(task.waker.clone());
        if task
            .work
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            self.0.tasks.borrow_mut().insert(id, task);
        }
    }

    fn advance(&self) {
        let next = self.0.timers.borrow_mut().pop_first();
        let Some(((at, _), waker)) = next else {
            panic!("everybody waits, for nothing");
        };
        if at > self.now() {
            self.0.now.set(at);
        }
        waker.wake();
    }
}

/// The clock of one process.
#[derive(Clone)]
pub struct SimClock {
    /// The world.
    pub world: World,
    /// Whose clock it is.
    pub process: Process,
}

impl Clock for SimClock {
    fn now(&self) -> Nanos {
        let jumped = self.world.0.jumped.borrow();
        self.world.now() + jumped.get(&self.process).copied().unwrap_or_default()
    }

    async fn sleep(&self, d: Duration) {
        // A clock that jumps ahead meanwhile ends the wait.
        let until = self.now() + d;
        while self.now() < until {
            let left = until.since(self.now());
            self.world.sleep(left.min(Duration::from_millis(50))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64) -> (Vec<u32>, u64) {
        let world = World::new(seed);
        let seen = Rc::new(RefCell::new(Vec::new()));
        for i in 0..20 {
            let (w, seen) = (world.clone(), seen.clone());
            world.spawn(Process(1), async move {
                w.wait_up_to(3).await;
                seen.borrow_mut().push(i);
            });
        }
        let w = world.clone();
        world.run(async move { w.sleep(Duration::from_secs(1)).await });
        let seen = seen.borrow().clone();
        (seen, world.trace())
    }

    #[test]
    fn one_seed_is_one_order() {
        assert_eq!(order(7), order(7));
        assert_ne!(order(7).0, order(8).0);
    }

    #[test]
    fn the_dead_do_not_run_and_the_stopped_wait() {
        let world = World::new(1);
        let count = Rc::new(Cell::new(0));
        for process in [1, 2] {
            let (w, count) = (world.clone(), count.clone());
            world.spawn(Process(process), async move {
                w.sleep(Duration::from_millis(10)).await;
                count.set(count.get() + process);
            });
        }
        world.stop(Process(1));
        world.kill(Process(2));
        let w = world.clone();
        let counted = count.clone();
        world.run(async move {
            w.sleep(Duration::from_secs(1)).await;
            assert_eq!(counted.get(), 0);
            w.go_on(Process(1));
            w.sleep(Duration::from_secs(1)).await;
        });
        assert_eq!(count.get(), 1);
    }
}
