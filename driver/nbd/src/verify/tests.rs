//! The ledger against disks that are right and disks that lie.

use super::*;
use block::VolumeId;
use block::sector::Verdict;
use proptest::prelude::*;

const VOLUME: VolumeId = VolumeId([9; 16]);
const IO: usize = 1024;
const SLOTS: usize = 8;

fn ledger(seed: u64) -> Ledger {
    Ledger::new(VOLUME, (IO * SLOTS) as u64 + 100, IO as u32, seed)
}

fn apply(ledger: &Ledger, planned: &Planned, disk: &mut [u8]) {
    let place = &mut disk[planned.offset as usize..][..IO];
    match planned.task {
        Task::Read => {}
        Task::Zero => place.fill(0),
        Task::Write => ledger.fill(planned, place),
    }
}

fn wrong(ledger: &mut Ledger, disk: &[u8]) -> Vec<Verdict> {
    let mut all = Vec::new();
    for slot in 0..SLOTS {
        let offset = (slot * IO) as u64;
        let planned = ledger.read_at(offset);
        all.extend(
            ledger
                .judge(&planned, &disk[slot * IO..][..IO])
                .map(|w| w.1),
        );
    }
    all
}

proptest! {
    /// Changes that are acknowledged happened, those that are not may have: never a false alarm.
    #[test]
    fn an_honest_disk_is_never_accused(
        seed: u64,
        steps in proptest::collection::vec((0u8..3, any::<bool>(), any::<bool>()), 1..100),
    ) {
        let mut ledger = ledger(seed);
        let mut disk = vec![0; IO * SLOTS];
        for (task, happens, answered) in steps {
            let task = [Task::Read, Task::Write, Task::Zero][task as usize];
            let planned = ledger.plan(task);
            if planned.task == Task::Read {
                continue;
            }
            if happens || answered {
                apply(&ledger, &planned, &mut disk);
            }
            prop_assert_eq!(wrong(&mut ledger, &disk), []);
            if answered {
                ledger.acknowledged(&planned);
            } else {
                ledger.unknown(&planned);
            }
            prop_assert_eq!(wrong(&mut ledger, &disk), []);
        }
    }

    /// A disk that acknowledged a change and then lost it, or put it elsewhere, is found out.
    #[test]
    fn a_lost_or_misplaced_change_is_found(
        seed: u64, before in 0usize..50, zero: bool, misplace: bool,
    ) {
        let mut ledger = ledger(seed);
        let mut disk = vec![0; IO * SLOTS];
        for _ in 0..before {
            let planned = ledger.plan(Task::Write);
            apply(&ledger, &planned, &mut disk);
            ledger.acknowledged(&planned);
        }
        let task = if zero && before > 0 { Task::Zero } else { Task::Write };
        let planned = ledger.plan(task);
        let was_zero = disk[planned.offset as usize..][..IO].iter().all(|b| *b == 0);
        prop_assume!(task == Task::Write || !was_zero);
        if misplace && task == Task::Write {
            let elsewhere = (planned.offset as usize + IO) % (IO * SLOTS);
            ledger.fill(&planned, &mut disk[elsewhere..][..IO]);
        }
        ledger.acknowledged(&planned);
        prop_assert!(!wrong(&mut ledger, &disk).is_empty());
    }
}

/// A write of a dead connection that lands after a newer one was acknowledged: the stamp is of an
/// older sequence, and it is called stale although it was never acknowledged itself.
#[test]
fn a_late_write_of_a_lost_connection_is_stale() {
    let mut ledger = Ledger::new(VOLUME, IO as u64, IO as u32, 1);
    let mut disk = vec![0; IO];
    let late = ledger.plan(Task::Write);
    ledger.unknown(&late);
    let newer = ledger.plan(Task::Write);
    apply(&ledger, &newer, &mut disk);
    ledger.acknowledged(&newer);
    apply(&ledger, &late, &mut disk);
    let planned = ledger.read_at(0);
    let verdicts: Vec<_> = ledger.judge(&planned, &disk).map(|w| w.1).collect();
    assert_eq!(verdicts, [Verdict::Stale { found: 1 }; IO / 512]);
}

#[test]
fn a_slot_has_one_change_in_flight_at_a_time() {
    let mut ledger = Ledger::new(VOLUME, IO as u64, IO as u32, 1);
    let first = ledger.plan(Task::Write);
    assert_eq!(ledger.plan(Task::Zero).task, Task::Read);
    ledger.acknowledged(&first);
    assert_eq!(ledger.plan(Task::Zero).task, Task::Zero);
}

/// A read overtaken by a zeroing and the next write may see any of the three.
#[test]
fn a_slow_read_may_see_what_came_and_went_meanwhile() {
    let mut ledger = Ledger::new(VOLUME, IO as u64, IO as u32, 1);
    let mut disk = vec![0; IO];
    let mut seen = Vec::new();
    let first = ledger.plan(Task::Write);
    apply(&ledger, &first, &mut disk);
    ledger.acknowledged(&first);
    let read = ledger.read_at(0);
    seen.push(disk.clone());
    for task in [Task::Zero, Task::Write] {
        let change = ledger.plan(task);
        apply(&ledger, &change, &mut disk);
        ledger.acknowledged(&change);
        seen.push(disk.clone());
    }
    for data in &seen {
        assert_eq!(ledger.judge(&read, data).count(), 0);
    }
    let later = ledger.read_at(0);
    assert_eq!(ledger.judge(&later, &seen[0]).count(), IO / 512);
    assert_eq!(ledger.judge(&later, &seen[1]).count(), IO / 512);
    assert_eq!(ledger.judge(&later, &seen[2]).count(), 0);
}
