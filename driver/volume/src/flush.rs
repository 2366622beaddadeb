//! Group commit of the image: one fdatasync runs, at most one waits.
//!
//! A flush must be answered after an fdatasync that *began* after the last write it covers had
//! completed. So who arrives while one runs waits for the next, together with all others. With a
//! mirror, a round is the image's sync and the mirror's, both begun after the arrival.

use crate::fifo::{Fifo, Links};
use crate::request::RequestId;

#[derive(Debug)]
pub(crate) struct FlushGroup {
    /// Flushes and FUA writes that the running round covers.
    covered: Fifo,
    /// Those that wait for the next.
    next: Fifo,
    /// Somebody of ours (not a guest) wants a round.
    wanted: bool,
    image_running: bool,
    mirror_running: bool,
    /// A write completed that no finished or running round covers.
    unsynced: bool,
    begun: u64,
    finished: u64,
}

impl FlushGroup {
    /// A volume whose image may hold writes of an earlier process that nobody has synced.
    pub(crate) fn new() -> FlushGroup {
        FlushGroup {
            covered: Fifo::new(),
            next: Fifo::new(),
            wanted: false,
            image_running: false,
            mirror_running: false,
            unsynced: true,
            begun: 0,
            finished: 0,
        }
    }

    /// A write has completed.
    pub(crate) fn wrote(&mut self) {
        self.unsynced = true;
    }

    /// Whether a flush that arrives now has nothing to wait for.
    pub(crate) fn is_clean(&self) -> bool {
        !self.unsynced && !self.is_running()
    }

    /// Have a request answered by the next round.
    pub(crate) fn join(&mut self, links: &mut Links, id: RequestId) {
        self.next.push(links, id);
    }

    /// Ask for a round of our own; it is done when [`FlushGroup::finished`] reaches the number.
    pub(crate) fn want(&mut self) -> u64 {
        self.wanted = true;
        self.begun + 1
    }

    /// How many rounds have finished well.
    pub(crate) fn finished(&self) -> u64 {
        self.finished
    }

    /// Whether a round should begin now.
    pub(crate) fn is_due(&self) -> bool {
        !self.is_running() && (self.wanted || !self.next.is_empty())
    }

    /// Begin a round: sync the image, and the mirror if there is one.
    pub(crate) fn begin(&mut self, mirror: bool) {
        assert!(self.is_due(), "one round at a time");
        self.begun += 1;
        self.covered = self.next.take();
        self.wanted = false;
        self.unsynced = false;
        self.image_running = true;
        self.mirror_running = mirror;
    }

    /// The image's sync succeeded: if that ends the round, the requests to answer.
    pub(crate) fn image_synced(&mut self) -> Option<Fifo> {
        assert!(self.image_running, "no image sync was asked for");
        self.image_running = false;
        self.finish()
    }

    /// The mirror's sync succeeded, or there is no mirror any more.
    pub(crate) fn mirror_flushed(&mut self) -> Option<Fifo> {
        if !std::mem::take(&mut self.mirror_running) {
            return None;
        }
        self.finish()
    }

    fn is_running(&self) -> bool {
        self.image_running || self.mirror_running
    }

    fn finish(&mut self) -> Option<Fifo> {
        if self.is_running() {
            return None;
        }
        self.finished = self.begun;
        Some(self.covered.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut q: Fifo, links: &mut Links) -> Vec<u32> {
        std::iter::from_fn(|| q.pop(links).map(|id| id.0)).collect()
    }

    #[test]
    fn who_arrives_during_a_sync_waits_for_the_next() {
        let mut links = Links::new(8);
        let mut group = FlushGroup::new();
        group.join(&mut links, RequestId(0));
        group.join(&mut links, RequestId(1));
        assert!(group.is_due());
        group.begin(false);
        group.join(&mut links, RequestId(2));
        assert!(!group.is_due(), "one at a time");
        let done = group.image_synced().unwrap();
        assert_eq!(drain(done, &mut links), [0, 1]);
        assert!(group.is_due());
        group.begin(false);
        let done = group.image_synced().unwrap();
        assert_eq!(drain(done, &mut links), [2]);
        assert!(group.is_clean());
    }

    #[test]
    fn a_write_during_a_sync_is_not_covered_by_it() {
        let mut group = FlushGroup::new();
        assert!(
            !group.is_clean(),
            "an earlier process may have left writes unsynced"
        );
        group.want();
        group.begin(false);
        group.wrote();
        assert!(group.image_synced().is_some());
        assert!(!group.is_clean());
    }

    #[test]
    fn a_round_with_a_mirror_takes_both() {
        let mut links = Links::new(1);
        let mut group = FlushGroup::new();
        group.join(&mut links, RequestId(0));
        group.begin(true);
        assert!(group.image_synced().is_none());
        assert!(group.mirror_flushed().is_some());
        assert!(
            group.mirror_flushed().is_none(),
            "a late answer of an old mirror"
        );
    }
}
