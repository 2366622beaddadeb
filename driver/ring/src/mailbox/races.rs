//! Senders and a shard over one mailbox, in very many interleavings: no message stays behind while
//! the shard sleeps.
//!
//! The bell is a counter as an eventfd is: a wait takes all of it. See `explore` for how they are run.

use super::{Bell, Inbox, Slot, pair};
use crate::explore::explore;

#[cfg(feature = "shuttle")]
use shuttle::{
    sync::{Arc, Condvar, Mutex},
    thread,
};
#[cfg(not(feature = "shuttle"))]
use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

#[derive(Clone, Default)]
struct Counter(Arc<(Mutex<u64>, Condvar)>);

impl Bell for Counter {
    fn ring(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_one();
    }
}

impl Counter {
    fn wait(&self) {
        let mut rung = self.0.0.lock().unwrap();
        while *rung == 0 {
            rung = self.0.1.wait(rung).unwrap();
        }
        *rung = 0;
    }
}

/// Three senders of two messages each; everything arrives, and what one sent in its order.
fn all_arrive(depth: usize) {
    let (slot, inbox): (Slot<(u32, u32), Counter>, Inbox<_, Counter>) =
        pair(Counter::default(), depth);
    let senders: Vec<_> = (0..3)
        .map(|who| {
            let slot = slot.clone();
            thread::spawn(move || {
                for n in 0..2 {
                    slot.send((who, n)).unwrap();
                }
            })
        })
        .collect();
    let mut next = [0; 3];
    while next != [2; 3] {
        inbox.bell().wait();
        inbox.empty(|(who, n)| {
            assert_eq!(next[who as usize], n);
            next[who as usize] += 1;
        });
    }
    senders.into_iter().for_each(|s| s.join().unwrap());
}

#[test]
fn no_message_waits_for_a_wake_that_never_comes() {
    explore(|| all_arrive(16));
}

#[test]
fn a_full_mailbox_loses_no_wake_either() {
    explore(|| all_arrive(1));
}
