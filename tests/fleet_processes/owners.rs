//! Watches that no volume ever has two owners.

use super::{client, reports, runtime};
use proto::v1::VolumeRole;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Asks a, b and a again, for as long as it lives. Reports are not taken at one instant; but if a owns
/// the volume before and after a moment at which b does, both own it.
pub struct Owners {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    rounds: u64,
    generation: u64,
    wrong: Vec<String>,
}

impl Owners {
    pub fn watch(nodes: [SocketAddr; 2], volume: &'static str) -> Owners {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = std::thread::spawn(move || runtime().block_on(look(nodes, volume, &ends)));
        Owners { stop, thread }
    }

    /// Ends it: never two owners, and generations that only grew.
    pub fn check(self) {
        self.stop.store(true, Ordering::Release);
        let seen = self.thread.join().unwrap();
        assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
        assert!(seen.rounds > 10, "it looked {} times only", seen.rounds);
    }
}

async fn look(nodes: [SocketAddr; 2], volume: &str, stop: &AtomicBool) -> Seen {
    let mut clients = nodes.map(client);
    let mut seen = Seen::default();
    while !stop.load(Ordering::Acquire) {
        let mut owned = [None; 3];
        for (owned, node) in owned.iter_mut().zip([0, 1, 0]) {
            let reports = reports(&mut clients[node]).await.unwrap_or_default();
            let owner =
                |r: &&proto::v1::VolumeReport| r.name == volume && r.role() == VolumeRole::Owner;
            *owned = reports.iter().find(owner).map(|r| r.generation);
        }
        if let [Some(before), Some(there), Some(after)] = owned
            && before == after
        {
            let wrong = format!("a in generation {before} and b in generation {there} own it");
            seen.wrong.push(wrong);
        }
        for generation in owned.into_iter().flatten() {
            if generation < seen.generation {
                let wrong = format!("generation {generation} after {}", seen.generation);
                seen.wrong.push(wrong);
            }
            seen.generation = seen.generation.max(generation);
        }
        seen.rounds += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    seen
}
