//! What really happened in a run: a fault that is drawn and never strikes proves nothing.

use std::cell::RefCell;
use std::fmt;
use std::ops::Index;

macro_rules! hits {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Something that a check should have been tried against.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Hit { $($(#[$doc])* $name,)* }
        impl Hit {
            /// All of them.
            pub const ALL: &[Hit] = &[$(Hit::$name,)*];
        }
        impl fmt::Display for Hit {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Hit::$name => $text,)* })
            }
        }
    };
}

hits! {
    /// A process was killed; the disks keep what it wrote.
    Kill = "kills",
    /// A node lost its power.
    PowerCut = "power cuts",
    /// A power cut dropped a sector's last write.
    Lost = "sectors lost",
    /// A power cut kept a part of an operation and dropped another.
    Torn = "writes torn",
    /// A power cut kept a later operation and dropped an earlier one.
    Reordered = "writes reordered",
    /// A process was killed with a write in flight.
    HalfDone = "writes half done",
    /// A read failed.
    ReadError = "failed reads",
    /// A write failed.
    WriteError = "failed writes",
    /// A sync failed.
    SyncError = "failed syncs",
    /// A sync that failed forgot a sector that it was to write.
    SyncDropped = "sectors that a failed sync forgot",
    /// The disk was full.
    NoSpace = "writes without space",
    /// A write went to another place.
    Misdirected = "misdirected writes",
    /// A sector of the volume's metadata rotted.
    MetaRot = "rotten metadata sectors",
    /// Both copies of a superblock were damaged, and the volume refused to guess who owns it.
    Refused = "unreadable superblocks refused",
    /// A sector of the replica's record rotted.
    RecordRot = "rotten record sectors",
    /// A sector of what is staged rotted.
    StagingRot = "rotten staged sectors",
    /// A stream ended anywhere.
    Cut = "cut streams",
    /// A bit flipped on the wire.
    Flip = "flipped bits",
    /// A piece arrived twice.
    Twice = "doubled pieces",
    /// Two pieces changed places.
    Swap = "swapped pieces",
    /// A piece was held back while the other direction was free.
    OneWay = "one-way waits",
    /// A piece took more than ten milliseconds.
    Slow = "slow pieces",
    /// A disk was slow.
    SlowDisk = "slow disks",
    /// A process was stopped and went on.
    Stop = "stops",
    /// A clock jumped.
    Jump = "clock jumps",
    /// Clocks passed the time after which intents are swept.
    Leap = "leaps",
    /// An intent was dropped by an owner.
    Cleared = "intents cleared",
    /// A volume opened with suspect areas, and replicas to compare.
    Suspect = "openings with suspects",
    /// Old content was saved for a snapshot.
    Saved = "copies before write",
    /// A replica redid a committed epoch.
    Redone = "epochs redone",
    /// A copy was compared anew because its record or its log did not read back.
    Restarted = "copies compared anew",
    /// A cutover was asked for and gave up.
    Aborted = "cutovers given up",
    /// A cutover was finished after its source had died or lost its link.
    RolledForward = "cutovers rolled forward",
    /// A cutover did not converge without the mirror.
    Mirroring = "cutovers that mirrored",
    /// A cutover that used the mirror ended well.
    Mirrored = "mirrored hand-overs",
    /// A copy took the place of an owner that was gone.
    TakenOver = "take-overs",
    /// A copy that took over lacked what a guest had been told is written.
    TailLost = "take-overs that lost a tail",
    /// A node died in a take-over.
    TakingDied = "deaths in a take-over",
    /// An owner that was replaced came back.
    CameBack = "replaced owners that came back",
    /// An owner was replaced while it served guests and reached nobody else.
    CutOff = "owners replaced while they served",
    /// An owner that had been replaced and could not know it answered a guest.
    Unaware = "answers of owners that did not know",
    /// The controller deposed one.
    Deposed = "owners deposed",
    /// A sender that had been replaced was refused.
    Fenced = "fenced sources",
}

/// How often each happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hits([u64; Hit::ALL.len()]);

impl Default for Hits {
    fn default() -> Hits {
        Hits([0; Hit::ALL.len()])
    }
}

impl Hits {
    /// Count another run's as well.
    pub fn add(&mut self, other: &Hits) {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a += b);
    }
}

impl Index<Hit> for Hits {
    type Output = u64;
    fn index(&self, hit: Hit) -> &u64 {
        &self.0[hit as usize]
    }
}

impl fmt::Display for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, hit) in Hit::ALL.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} {hit}", self[*hit])?;
        }
        Ok(())
    }
}

/// A run's tally.
#[derive(Debug, Default)]
pub(crate) struct Tally(RefCell<Hits>);

impl Tally {
    pub(crate) fn hit(&self, hit: Hit) {
        self.0.borrow_mut().0[hit as usize] += 1;
    }

    pub(crate) fn all(&self) -> Hits {
        *self.0.borrow()
    }
}
