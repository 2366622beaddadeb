//! The whole disk at once: written from end to end, and compared with its record.

use block::Result;

use super::runner::COMPLAINTS_MAX;
use super::{Ledger, Task};
use crate::client::Client;

/// Bytes of one read or write.
const IO_BYTES: usize = 1 << 20;

/// Write stamps to the first `bytes` of the disk, in large writes. Nothing may be in flight.
pub fn fill(client: &mut Client, ledger: &mut Ledger, bytes: u64) -> Result<()> {
    let io = ledger.io_bytes() as usize;
    let end = bytes.min(ledger.covers()) / io as u64 * io as u64;
    let mut buf = vec![0; IO_BYTES.next_multiple_of(io)];
    let mut at = 0;
    while at < end {
        let n = buf.len().min((end - at) as usize);
        let mut planned = Vec::with_capacity(n / io);
        for (offset, part) in (at..).step_by(io).zip(buf[..n].chunks_mut(io)) {
            let write = ledger.write_at(offset);
            assert_eq!(write.task, Task::Write, "nothing is in flight");
            ledger.fill(&write, part);
            planned.push(write);
        }
        let written = client.write(at, &buf[..n], false);
        for write in &planned {
            match written {
                Ok(()) => ledger.acknowledged(write),
                Err(_) => ledger.unknown(write),
            }
        }
        written?;
        at += n as u64;
    }
    Ok(())
}

/// A whole disk against its record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Bytes compared.
    pub bytes: u64,
    /// Sectors that hold what they may not.
    pub mismatches: u64,
    /// I/Os whose bytes are not known, because a change's outcome is not. They are judged by their
    /// stamps, but not compared.
    pub unknown: u64,
    /// The first mismatches in words.
    pub complaints: Vec<String>,
}

impl Comparison {
    /// Whether every byte is as recorded.
    #[must_use]
    pub fn identical(&self) -> bool {
        self.mismatches == 0 && self.unknown == 0
    }
}

/// Read the whole disk and compare it with the record, byte for byte. Nothing may be in flight.
pub fn compare(client: &mut Client, ledger: &mut Ledger) -> Result<Comparison> {
    let io = ledger.io_bytes() as usize;
    let mut found = vec![0; IO_BYTES.next_multiple_of(io)];
    let mut expected = vec![0; io];
    let mut result = Comparison::default();
    while result.bytes < ledger.covers() {
        let n = found.len().min((ledger.covers() - result.bytes) as usize);
        client.read(result.bytes, &mut found[..n])?;
        for data in found[..n].chunks(io) {
            let offset = result.bytes;
            let known = ledger.expected(offset, &mut expected);
            if !known || data != &expected[..] {
                let planned = ledger.read_at(offset);
                let mut wrong: Vec<_> = ledger
                    .judge(&planned, data)
                    .map(|(lba, verdict)| format!("sector {lba}: {verdict:?}"))
                    .collect();
                if known && wrong.is_empty() {
                    wrong.push(format!("bytes at {offset} differ under right stamps"));
                }
                result.unknown += u64::from(!known);
                result.mismatches += wrong.len() as u64;
                let room = COMPLAINTS_MAX.saturating_sub(result.complaints.len());
                result.complaints.extend(wrong.into_iter().take(room));
            }
            result.bytes += io as u64;
        }
    }
    Ok(result)
}
