//! Forerun's own history: a file of this host that grows at its end and is cut at its beginning.
//!
//! ```text
//! names    series ─► number
//! frames   time ─► the samples of all series at that time      one row of today, every five minutes
//! days     (day, group of series) ─► their samples of that day   written once, when the day is over
//! ```
//!
//! A frame is cheap to append and a day is cheap to read: when the first frame of a new day comes, the
//! frames before it are turned into blocks of some series each, and days that are older than wanted
//! are dropped, all in one transaction. A controller that is killed meanwhile finds the frames and
//! does it again. A series' number is never used for another.

use super::code;
use super::{Histories, Key, Metric, Source, Span};
use crate::predict::Sample;
use node::{Error, ErrorKind, Result};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const NAMES: TableDefinition<'_, &str, u32> = TableDefinition::new("names");
const FRAMES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("frames");
const DAYS: TableDefinition<'_, (u32, u32), &[u8]> = TableDefinition::new("days");

/// Seconds between frames. Samples that come at other times belong to the nearest.
const STEP: u64 = 300;
const DAY: u64 = 86_400;
const POINTS: usize = (DAY / STEP) as usize;
/// Series in a block: enough for zstd to find likenesses, few enough to read one without the others.
const GROUP: usize = 64;

/// A history in a file.
#[derive(Clone)]
pub struct Kept {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    path: PathBuf,
    days: u64,
    numbers: Mutex<HashMap<Key, u32>>,
}

impl Kept {
    /// Opens the file, or makes it; `days` before today are kept.
    ///
    /// # Errors
    /// The file cannot be opened, or is no history.
    pub fn open(path: &Path, days: u32) -> Result<Kept> {
        let opened = Database::create(path).map_err(redb::Error::from);
        let database = opened.map_err(|e| failed(path, e))?;
        let inner = Inner {
            database,
            path: path.to_owned(),
            days: u64::from(days),
            numbers: Mutex::default(),
        };
        let numbers = inner.make_tables().map_err(|e| failed(path, e))?;
        *inner.numbers.lock().unwrap_or_else(PoisonError::into_inner) = numbers;
        Ok(Kept {
            inner: Arc::new(inner),
        })
    }

    /// Adds the samples of one time. A second frame of the same five minutes replaces the first; one
    /// that is older than the last whole day changes nothing: that day is written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn append(&self, at: i64, samples: Vec<(Key, f64)>) -> Result<()> {
        self.blocking(move |inner| inner.append(at, &samples)).await
    }

    /// Every series with samples in the span, a few read at a time: a whole fleet's history does not fit
    /// into memory. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn walk(
        &self,
        span: Span,
    ) -> Result<impl Iterator<Item = Result<(Key, Vec<Sample>)>> + Send> {
        let today = self.inner.open_frames()?;
        let numbers = self
            .inner
            .numbers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut keys = vec![None; numbers.len()];
        for (key, number) in numbers.iter() {
            if let Some(place) = keys.get_mut(*number as usize) {
                *place = Some(key.clone());
            }
        }
        Ok(Walk {
            inner: self.inner.clone(),
            span,
            keys,
            today,
            next: 0,
            ready: VecDeque::new(),
        })
    }

    /// Bytes of samples, the file's own book-keeping included.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes(&self) -> Result<u64> {
        std::fs::metadata(&self.inner.path)
            .map(|file| file.len())
            .map_err(|e| {
                Error::io(
                    format!("measure the history {}", self.inner.path.display()),
                    e,
                )
            })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .map_err(|e| {
                Error::new(
                    ErrorKind::Broken,
                    format!("the history's thread ended: {e}"),
                )
            })?
    }
}

impl Source for Kept {
    async fn histories(&self, span: Span) -> Result<Histories> {
        let kept = self.clone();
        self.blocking(move |_| kept.walk(span)?.collect()).await
    }
}

fn failed(path: &Path, e: redb::Error) -> Error {
    let asked = format!("use the history {}", path.display());
    match e {
        redb::Error::Io(e) => Error::io(asked, e),
        redb::Error::DatabaseAlreadyOpen => Error::new(
            ErrorKind::Busy,
            format!("{asked}: another process has it open; stop that one"),
        ),
        e => Error::new(ErrorKind::Corrupt, format!("{asked}: {e}")),
    }
}

fn broken(path: &Path, what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "read the history {}: {what}; remove the file to begin anew",
            path.display()
        ),
    )
}

/// Codes with the point or day at which each begins; unpacked, if they could be.
type Rows = Vec<(u64, Result<Vec<u16>>)>;

/// The blocks of a day: for each group of series its codes, one series after another.
type Blocks = Vec<Vec<u16>>;

impl Inner {
    fn make_tables(&self) -> Result<HashMap<Key, u32>, redb::Error> {
        let write = self.database.begin_write()?;
        let mut numbers = HashMap::new();
        {
            write.open_table(FRAMES)?;
            write.open_table(DAYS)?;
            for entry in write.open_table(NAMES)?.iter()? {
                let (name, number) = entry?;
                if let Some(key) = key(name.value()) {
                    numbers.insert(key, number.value());
                }
            }
        }
        write.commit()?;
        Ok(numbers)
    }

    fn append(&self, at: i64, samples: &[(Key, f64)]) -> Result<()> {
        let failed = |e: redb::Error| failed(&self.path, e);
        let Ok(at) = u64::try_from(at) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("keep samples of {at} seconds before 1970: set the clock"),
            ));
        };
        let point = (at + STEP / 2) / STEP;
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fresh = HashMap::new();
        let mut codes = vec![code::MISSING; numbers.len()];
        for (key, value) in samples {
            let next = (numbers.len() + fresh.len()) as u32;
            let number = match numbers.get(key) {
                Some(number) => *number,
                None => *fresh.entry(key.clone()).or_insert(next),
            } as usize;
            codes.resize(codes.len().max(number + 1), code::MISSING);
            codes[number] = code::encode(*value);
        }
        let mut frame = (codes.len() as u32).to_le_bytes().to_vec();
        frame.extend(code::pack(&codes)?);
        let written = (|| -> Result<Result<()>, redb::Error> {
            let write = self.database.begin_write()?;
            {
                let mut names = write.open_table(NAMES)?;
                for (key, number) in &fresh {
                    names.insert(name(key).as_str(), number)?;
                }
                let mut frames = write.open_table(FRAMES)?;
                let mut days = write.open_table(DAYS)?;
                let today = point / POINTS as u64;
                let closed = days.last()?.map(|(key, _)| u64::from(key.value().0));
                if closed.is_some_and(|closed| today <= closed) {
                    return Ok(Ok(()));
                }
                if let Err(e) = self.close_days(today, &mut frames, &mut days)? {
                    return Ok(Err(e));
                }
                frames.insert(point, frame.as_slice())?;
            }
            write.commit()?;
            Ok(Ok(()))
        })();
        written.map_err(failed)??;
        numbers.extend(fresh);
        Ok(())
    }

    /// Turns the frames of days before `today` into blocks, and drops what is older than wanted.
    fn close_days(
        &self,
        today: u64,
        frames: &mut redb::Table<'_, u64, &'static [u8]>,
        days: &mut redb::Table<'_, (u32, u32), &'static [u8]>,
    ) -> Result<Result<()>, redb::Error> {
        let begin = today * POINTS as u64;
        let mut open: BTreeMap<u64, Blocks> = BTreeMap::new();
        for entry in frames.range(..begin)? {
            let (point, frame) = entry?;
            let (day, place) = (
                point.value() / POINTS as u64,
                point.value() as usize % POINTS,
            );
            let codes = match self.frame(frame.value()) {
                Ok(codes) => codes,
                Err(e) => return Ok(Err(e)),
            };
            let blocks = open.entry(day).or_default();
            blocks.resize(blocks.len().max(codes.len().div_ceil(GROUP)), Vec::new());
            for (group, block) in codes.chunks(GROUP).zip(blocks) {
                block.resize(GROUP * POINTS, code::MISSING);
                for (i, code) in group.iter().enumerate() {
                    block[i * POINTS + place] = *code;
                }
            }
        }
        for (day, blocks) in &open {
            for (group, block) in blocks
                .iter()
                .enumerate()
                .filter(|(_, block)| !block.is_empty())
            {
                match code::pack(block) {
                    Ok(packed) => days.insert((*day as u32, group as u32), packed.as_slice())?,
                    Err(e) => return Ok(Err(e)),
                };
            }
        }
        frames.retain_in(..begin, |_, _| false)?;
        let oldest = today.saturating_sub(self.days) as u32;
        days.retain_in(..(oldest, 0), |_, _| false)?;
        Ok(Ok(()))
    }

    fn frame(&self, frame: &[u8]) -> Result<Vec<u16>> {
        let damaged = || broken(&self.path, "a frame is too short");
        let (count, packed) = frame.split_first_chunk().ok_or_else(damaged)?;
        code::unpack(packed, u32::from_le_bytes(*count) as usize)
    }

    /// Today's frames.
    fn open_frames(&self) -> Result<Vec<(u64, Vec<u16>)>> {
        let read = (|| -> Result<Rows, redb::Error> {
            let frames = self.database.begin_read()?.open_table(FRAMES)?;
            let each = frames.iter()?.map(|entry| {
                let (point, frame) = entry?;
                Ok((point.value(), self.frame(frame.value())))
            });
            each.collect()
        })();
        let frames = read.map_err(|e| failed(&self.path, e))?;
        frames
            .into_iter()
            .map(|(point, codes)| Ok((point, codes?)))
            .collect()
    }

    /// The blocks of one group that may hold samples of the span, with the day of each.
    fn blocks(&self, group: u32, span: Span) -> Result<Vec<(u64, Vec<u16>)>> {
        let read = (|| -> Result<Rows, redb::Error> {
            let days = self.database.begin_read()?.open_table(DAYS)?;
            let (Some(first), Some(last)) = (days.first()?, days.last()?) else {
                return Ok(Vec::new());
            };
            let asked = |at: i64| (at.max(0) as u64 / DAY).min(u64::from(u32::MAX)) as u32;
            let first = first.0.value().0.max(asked(span.from));
            let last = last.0.value().0.min(asked(span.to));
            let mut found = Vec::new();
            for day in first..=last {
                if let Some(block) = days.get((day, group))? {
                    found.push((u64::from(day), code::unpack(block.value(), GROUP * POINTS)));
                }
            }
            Ok(found)
        })();
        let blocks = read.map_err(|e| failed(&self.path, e))?;
        blocks
            .into_iter()
            .map(|(day, codes)| Ok((day, codes?)))
            .collect()
    }
}

/// Reads a history group by group.
struct Walk {
    inner: Arc<Inner>,
    span: Span,
    keys: Vec<Option<Key>>,
    today: Vec<(u64, Vec<u16>)>,
    next: usize,
    ready: VecDeque<(Key, Vec<Sample>)>,
}

impl Walk {
    fn read_group(&mut self) -> Result<()> {
        let group = self.next / GROUP;
        let blocks = self.inner.blocks(group as u32, self.span)?;
        let upto = self.keys.len().min((group + 1) * GROUP);
        let span = self.span;
        let sample = |point: u64, code: u16| {
            let at = (point * STEP) as i64;
            let value = code::decode(code).filter(|_| (span.from..=span.to).contains(&at))?;
            Some((at, value))
        };
        for series in self.next..upto {
            let row = (series % GROUP) * POINTS;
            let old = blocks.iter().flat_map(|(day, codes)| {
                let first = day * POINTS as u64;
                (first..).zip(&codes[row..row + POINTS])
            });
            let new =
                (self.today.iter()).filter_map(|(point, codes)| Some((*point, codes.get(series)?)));
            let samples: Vec<Sample> = old
                .chain(new)
                .filter_map(|(point, code)| sample(point, *code))
                .collect();
            if let Some(key) = self.keys[series].take().filter(|_| !samples.is_empty()) {
                self.ready.push_back((key, samples));
            }
        }
        self.next = upto;
        Ok(())
    }
}

impl Iterator for Walk {
    type Item = Result<(Key, Vec<Sample>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                return Some(Ok(found));
            }
            if self.next >= self.keys.len() {
                return None;
            }
            if let Err(e) = self.read_group() {
                self.next = self.keys.len();
                return Some(Err(e));
            }
        }
    }
}

/// A metric's name has no slash.
fn name(key: &Key) -> String {
    format!("{}/{}", key.metric.name(), key.machine)
}

fn key(name: &str) -> Option<Key> {
    let (metric, machine) = name.split_once('/')?;
    Some(Key {
        machine: machine.to_owned(),
        metric: Metric::from_name(metric)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: Span = Span {
        from: 0,
        to: i64::MAX,
        step: 300,
    };

    fn samples(machines: usize, point: i64) -> Vec<(Key, f64)> {
        let all = (0..machines).flat_map(|machine| {
            Metric::ALL.map(|metric| {
                let key = Key {
                    machine: format!("vm-{machine}"),
                    metric,
                };
                // Half of it stands still, as in real fleets.
                let noise = (point * 7919 + machine as i64 * 104_729) % 1009;
                (
                    key,
                    if machine % 2 == 0 {
                        5000.0
                    } else {
                        1e6 + 1000.0 * noise as f64
                    },
                )
            })
        });
        all.collect()
    }

    async fn fill(kept: &Kept, machines: usize, points: std::ops::Range<i64>) {
        for point in points {
            kept.append(point * 300 + point % 7, samples(machines, point))
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn every_sample_comes_back_across_days_and_a_new_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let kept = Kept::open(&path, 30).unwrap();
        fill(&kept, 3, 0..500).await;
        drop(kept);
        let kept = Kept::open(&path, 30).unwrap();
        fill(&kept, 12, 500..600).await;
        let found = kept.histories(ALWAYS).await.unwrap();
        assert_eq!(found.len(), 12 * 6);
        for (key, history) in &found {
            let machine: usize = key.machine[3..].parse().unwrap();
            let begin = if machine < 3 { 0 } else { 500 };
            assert_eq!(history.len() as i64, 600 - begin, "{key:?}");
            for (at, value) in history {
                let expected = &samples(12, at / 300)[machine * 6].1;
                assert!(
                    (value - expected).abs() <= expected / 2000.0,
                    "{key:?} at {at}"
                );
            }
        }
        let some = kept
            .histories(Span {
                from: 86_400,
                to: 86_700,
                step: 300,
            })
            .await
            .unwrap();
        assert!(some.values().all(|history| history.len() == 2), "{some:?}");
    }

    #[tokio::test]
    async fn days_that_are_too_old_are_dropped_and_a_clock_set_back_rewrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(&dir.path().join("history"), 2).unwrap();
        fill(&kept, 1, 0..5 * 288 + 10).await;
        kept.append(3 * 86_400, samples(1, 7)).await.unwrap();
        kept.append(-5, samples(1, 7)).await.unwrap_err();
        let found = kept.histories(ALWAYS).await.unwrap();
        for history in found.values() {
            assert_eq!(history[0].0, 3 * 86_400, "two whole days before today");
            assert_eq!(history.len(), 2 * 288 + 10);
            assert!(history.is_sorted_by_key(|sample| sample.0));
        }
    }

    /// 10,000 VMs with six metrics for thirty days are 518 million samples, and 2 GiB are 4.1 bytes for
    /// each. Incompressible noise is the worst that can come: half the machines here are nothing else.
    #[tokio::test]
    async fn a_sample_takes_less_than_four_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(&dir.path().join("history"), 30).unwrap();
        let (machines, days) = (200, 4);
        fill(&kept, machines, 0..days * 288 + 1).await;
        let each = kept.bytes().unwrap() as f64 / (machines as i64 * 6 * days * 288) as f64;
        assert!(each < 4.0, "{each} bytes a sample");
    }
}
