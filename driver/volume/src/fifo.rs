//! Queues of held requests, linked through one table indexed by request: a request is in at most one
//! queue, so the table bounds them all and nothing is allocated.

use crate::request::RequestId;

const NONE: u32 = u32::MAX;

/// The links of all queues: for each request its successor.
#[derive(Debug)]
pub(crate) struct Links {
    next: Vec<u32>,
    queued: Vec<bool>,
}

impl Links {
    pub(crate) fn new(requests: u32) -> Links {
        Links {
            next: vec![NONE; requests as usize],
            queued: vec![false; requests as usize],
        }
    }
}

/// A queue: first in, first out.
#[derive(Debug)]
pub(crate) struct Fifo {
    head: u32,
    tail: u32,
}

impl Fifo {
    pub(crate) const fn new() -> Fifo {
        Fifo {
            head: NONE,
            tail: NONE,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    pub(crate) fn peek(&self) -> Option<RequestId> {
        (self.head != NONE).then_some(RequestId(self.head))
    }

    pub(crate) fn push(&mut self, links: &mut Links, id: RequestId) {
        let i = id.index();
        assert!(!links.queued[i], "request {} is queued twice", id.0);
        links.queued[i] = true;
        links.next[i] = NONE;
        if self.head == NONE {
            self.head = id.0;
        } else {
            links.next[self.tail as usize] = id.0;
        }
        self.tail = id.0;
    }

    pub(crate) fn pop(&mut self, links: &mut Links) -> Option<RequestId> {
        let id = self.peek()?;
        links.queued[id.index()] = false;
        self.head = links.next[id.index()];
        Some(id)
    }

    /// Take one out of the middle. It must be in this queue.
    pub(crate) fn remove(&mut self, links: &mut Links, id: RequestId) {
        let mut queue = self.take();
        let mut found = false;
        while let Some(other) = queue.pop(links) {
            if other == id {
                found = true;
            } else {
                self.push(links, other);
            }
        }
        assert!(found, "request {} is not in this queue", id.0);
    }

    /// Take the whole queue, leaving this one empty.
    pub(crate) fn take(&mut self) -> Fifo {
        std::mem::replace(self, Fifo::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_over_shared_links() {
        let mut links = Links::new(4);
        let (mut a, mut b) = (Fifo::new(), Fifo::new());
        a.push(&mut links, RequestId(2));
        b.push(&mut links, RequestId(1));
        a.push(&mut links, RequestId(0));
        assert_eq!(a.pop(&mut links), Some(RequestId(2)));
        a.push(&mut links, RequestId(2));
        let mut taken = a.take();
        assert!(a.is_empty());
        assert_eq!(taken.pop(&mut links), Some(RequestId(0)));
        assert_eq!(taken.pop(&mut links), Some(RequestId(2)));
        assert_eq!(taken.pop(&mut links), None);
        assert_eq!(b.pop(&mut links), Some(RequestId(1)));
    }

    #[test]
    #[should_panic(expected = "queued twice")]
    fn a_request_waits_in_one_place() {
        let mut links = Links::new(1);
        let (mut a, mut b) = (Fifo::new(), Fifo::new());
        a.push(&mut links, RequestId(0));
        b.push(&mut links, RequestId(0));
    }
}
