//! The client: it writes at a rate, knows what it wrote, and comes back after its node was killed.

use super::PATIENCE;
use node::VolumeId;
use node::client::verify::{self, Ledger, Verifier, Workload};
use node::client::{Client, Uri};
use std::time::{Duration, Instant};

pub const IO_BYTES: u32 = 4096;

pub struct Load {
    uri: Uri,
    rate: u32,
    verifier: Verifier,
    /// I/Os over earlier connections.
    earlier: u64,
}

impl Load {
    /// Fills the first `bytes` of an empty volume and begins.
    pub fn start(uri: &Uri, volume: VolumeId, size: u64, bytes: u64, rate: u32) -> Load {
        let mut ledger = Ledger::new(volume, size, IO_BYTES, 1);
        let mut client = connect(uri);
        verify::fill(&mut client, &mut ledger, bytes).unwrap();
        client.close().unwrap();
        Load::go_on(uri.clone(), rate, ledger, 0)
    }

    fn go_on(uri: Uri, rate: u32, ledger: Ledger, earlier: u64) -> Load {
        connect(&uri).close().unwrap();
        let workload = Workload {
            uri: uri.clone(),
            depth: 16,
            rate: Some(rate),
            writes: 80,
            zeroes: 5,
            patience: PATIENCE,
        };
        let verifier = Verifier::start(workload, ledger).unwrap();
        Load {
            uri,
            rate,
            verifier,
            earlier,
        }
    }

    /// I/Os answered since the beginning.
    pub fn ios(&self) -> u64 {
        self.earlier + self.verifier.ios()
    }

    /// The longest I/O since the last call.
    pub fn longest(&self) -> Duration {
        Duration::from_secs_f64(self.verifier.interval().max_us / 1e6)
    }

    /// The node was killed and is back: judges what was seen, and goes on with the same record.
    pub fn reconnect(self) -> Load {
        let ios = self.ios();
        let (uri, rate) = (self.uri.clone(), self.rate);
        let until = Instant::now() + PATIENCE;
        while !self.verifier.is_lost() {
            assert!(Instant::now() < until, "the client has not noticed");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (ledger, seen) = self.verifier.stop().unwrap();
        judge(&seen);
        Load::go_on(uri, rate, ledger, ios)
    }

    /// Ends: nothing was lost on the way. Then compares the whole disk as it is served at `uri`.
    pub fn check(self, uri: &Uri) {
        // It may have come back at this very moment.
        let until = Instant::now() + PATIENCE;
        while self.verifier.ios() == 0 && !self.verifier.is_lost() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (mut ledger, seen) = self.verifier.stop().unwrap();
        judge(&seen);
        assert!(seen.lost.is_none(), "the client lost it: {:?}", seen.lost);
        assert!(seen.ios > 0, "the client did nothing");
        let found = verify::compare(&mut connect(uri), &mut ledger).unwrap();
        assert_eq!(found.mismatches, 0, "{:?}", found.complaints);
        assert_eq!(found.bytes, ledger.covers());
    }
}

fn judge(seen: &verify::Report) {
    let wrong = (seen.errors, seen.mismatches);
    assert_eq!(wrong, (0, 0), "{:?}", seen.complaints);
}

fn connect(uri: &Uri) -> Client {
    let until = Instant::now() + PATIENCE;
    loop {
        match Client::connect(uri, &[], PATIENCE) {
            Ok(client) => return client,
            Err(e) => assert!(Instant::now() < until, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
