//! Forerun's own history: a file of this host that grows at its end and is cut where it is farthest
//! from now.
//!
//! ```text
//! grid     the seconds between samples, for the life of the file
//! names    series ─► number
//! frames   time ─► the samples of all series at that time      one row of today, every five minutes
//! days     (day, group of series) ─► their samples of that day   written when the day is over
//! ```
//!
//! A frame is cheap to append and a day is cheap to read: when the first frame of a new day comes, the
//! frames before it are turned into blocks of some series each, and days that are more than wanted
//! are dropped, all in one transaction. A controller that is killed meanwhile finds the frames and
//! does it again. A series' number is never used for another. A day is 288 samples, however far apart.
//!
//! Clocks go wrong, and a history must outlive that. Samples of times that this host's clock has not
//! reached are refused. If the clock itself is wrong for a while, what is dropped is the day that is
//! farthest from it, one for each day that ends, and not all that looks old; once it is right again
//! samples are taken as before, and those of the wrong time are the first to go.

use super::code;
use super::{Histories, Key, Metric, Source, Span};
use crate::predict::Sample;
use node::{Error, ErrorKind, Result};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const GRID: TableDefinition<'_, (), u32> = TableDefinition::new("grid");
const NAMES: TableDefinition<'_, &str, u32> = TableDefinition::new("names");
const FRAMES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("frames");
const DAYS: TableDefinition<'_, (u32, u32), &[u8]> = TableDefinition::new("days");

/// Samples of a series in a day.
const POINTS: usize = 288;
/// Series in a block: enough for zstd to find likenesses, few enough to read one without the others.
const GROUP: usize = 64;

/// One of some equal parts of a walk.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Which, from 0 on.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Part {
    /// The whole.
    pub const ALL: Part = Part { index: 0, of: 1 };
}

/// A history in a file.
#[derive(Clone)]
pub struct Kept {
    inner: Arc<Inner>,
}

struct Inner {
    database: Database,
    path: PathBuf,
    step: u64,
    days: usize,
    numbers: Mutex<HashMap<Key, u32>>,
}

impl Kept {
    /// Opens the file, or makes it, with a sample every `step` seconds; `days` before today are kept.
    ///
    /// # Errors
    /// The file cannot be opened, is no history, or one with samples at another distance.
    pub fn open(path: &Path, step: u32, days: u32) -> Result<Kept> {
        let opened = Database::create(path).map_err(redb::Error::from);
        let database = opened.map_err(|e| failed(path, e))?;
        let mut inner = Inner {
            database,
            path: path.to_owned(),
            step: u64::from(step.max(1)),
            days: days as usize,
            numbers: Mutex::default(),
        };
        let (kept, numbers) = inner.make_tables().map_err(|e| failed(path, e))?;
        if kept != inner.step {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "use the history {}: it has a sample every {kept} s and every {step} s is asked \
                     for; ask for {kept}, or move the file away to begin anew",
                    path.display()
                ),
            ));
        }
        inner.numbers = Mutex::new(numbers);
        Ok(Kept {
            inner: Arc::new(inner),
        })
    }

    /// Adds the samples of one time, which this host's clock must have reached. They are added to what
    /// is known of that time; of two samples of a series the second counts.
    ///
    /// # Errors
    /// The time is ahead of the clock or before 1970, or the file cannot be written.
    pub async fn append(&self, at: i64, clock: i64, samples: Vec<(Key, f64)>) -> Result<()> {
        self.blocking(move |inner| inner.append(at, clock, &samples))
            .await
    }

    /// The newest time at or before `clock` of which anything is known, and the newest of all.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn newest(&self, clock: i64) -> Result<(Option<i64>, Option<i64>)> {
        self.blocking(move |inner| {
            let (upto, any) = (inner.newest(clock)?, inner.newest(i64::MAX)?);
            Ok((upto, any))
        })
        .await
    }

    /// Every series that is wanted, with its samples in the span, a few read at a time: a whole fleet's
    /// history does not fit into memory. Blocks on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn walk<F: Fn(&Key) -> bool>(
        &self,
        span: Span,
        is_wanted: F,
    ) -> Result<impl Iterator<Item = Result<(Key, Vec<Sample>)>> + Send + use<F>> {
        self.walk_part(span, Part::ALL, is_wanted)
    }

    /// One part of that, for as many threads as there are parts.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn walk_part<F: Fn(&Key) -> bool>(
        &self,
        span: Span,
        part: Part,
        is_wanted: F,
    ) -> Result<impl Iterator<Item = Result<(Key, Vec<Sample>)>> + Send + use<F>> {
        let today = self.inner.open_frames(span)?;
        let numbers = self.inner.numbers();
        let mut keys = vec![None; numbers.len()];
        for (key, number) in numbers.iter().filter(|(key, _)| is_wanted(key)) {
            if let Some(place) = keys.get_mut(*number as usize) {
                *place = Some(key.clone());
            }
        }
        Ok(Walk {
            inner: self.inner.clone(),
            span,
            part,
            keys,
            today,
            next: 0,
            ready: VecDeque::new(),
        })
    }

    /// What was ever measured of a machine.
    #[must_use]
    pub fn metrics(&self, machine: &str) -> Vec<Metric> {
        let numbers = self.inner.numbers();
        let of_it = numbers.keys().filter(|key| key.machine == machine);
        let mut metrics: Vec<Metric> = of_it.map(|key| key.metric).collect();
        metrics.sort_unstable();
        metrics
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
        self.blocking(move |_| kept.walk(span, |_| true)?.collect())
            .await
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

/// What a transaction came to: the database's own failures apart from what was found in it.
type Found<T> = Result<Result<T>, redb::Error>;

impl Inner {
    fn numbers(&self) -> MutexGuard<'_, HashMap<Key, u32>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_tables(&self) -> Result<(u64, HashMap<Key, u32>), redb::Error> {
        let write = self.database.begin_write()?;
        let mut numbers = HashMap::new();
        let step;
        {
            write.open_table(FRAMES)?;
            write.open_table(DAYS)?;
            let mut grid = write.open_table(GRID)?;
            let known = grid.get(())?.map(|step| step.value());
            step = known.map_or(self.step, u64::from);
            if known.is_none() {
                grid.insert((), self.step as u32)?;
            }
            for entry in write.open_table(NAMES)?.iter()? {
                let (name, number) = entry?;
                if let Some(key) = key(name.value()) {
                    numbers.insert(key, number.value());
                }
            }
        }
        write.commit()?;
        Ok((step, numbers))
    }

    /// The nearest point of the grid.
    fn point(&self, at: i64) -> Result<u64> {
        let Ok(at) = u64::try_from(at) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("keep samples of {at} seconds before 1970: set the clock"),
            ));
        };
        Ok((at + self.step / 2) / self.step)
    }

    fn append(&self, at: i64, clock: i64, samples: &[(Key, f64)]) -> Result<()> {
        let point = self.point(at)?;
        let ahead = at.saturating_sub(clock);
        if ahead > self.step as i64 {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "keep samples of a time that comes in {ahead} s: the clock of whoever measured \
                     them is ahead of this host's; set one of them"
                ),
            ));
        }
        let mut numbers = self.numbers();
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
        let now = self.point(clock)? / POINTS as u64;
        let written = self.write(point, now, codes, &fresh);
        written.map_err(|e| failed(&self.path, e))??;
        numbers.extend(fresh);
        Ok(())
    }

    fn write(
        &self,
        point: u64,
        now: u64,
        mut codes: Vec<u16>,
        fresh: &HashMap<Key, u32>,
    ) -> Found<()> {
        let write = self.database.begin_write()?;
        {
            let mut names = write.open_table(NAMES)?;
            for (key, number) in fresh {
                names.insert(name(key).as_str(), number)?;
            }
            let mut frames = write.open_table(FRAMES)?;
            let mut days = write.open_table(DAYS)?;
            let today = point / POINTS as u64;
            if let Err(e) = self.close_days(today, now, &mut frames, &mut days)? {
                return Ok(Err(e));
            }
            let known = frames.get(point)?.map(|frame| self.frame(frame.value()));
            match known.transpose() {
                Ok(known) => {
                    let known = known.unwrap_or_default();
                    codes.resize(codes.len().max(known.len()), code::MISSING);
                    overlay(&mut codes, &known);
                }
                Err(e) => return Ok(Err(e)),
            }
            let mut frame = (codes.len() as u32).to_le_bytes().to_vec();
            match code::pack(&codes) {
                Ok(packed) => frame.extend(packed),
                Err(e) => return Ok(Err(e)),
            }
            frames.insert(point, frame.as_slice())?;
        }
        write.commit()?;
        Ok(Ok(()))
    }

    /// Turns the frames of days before `today` into blocks, and drops the days farthest from `now` of
    /// which there are more than wanted.
    fn close_days(
        &self,
        today: u64,
        now: u64,
        frames: &mut redb::Table<'_, u64, &'static [u8]>,
        days: &mut redb::Table<'_, (u32, u32), &'static [u8]>,
    ) -> Found<()> {
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
        if open.is_empty() {
            return Ok(Ok(()));
        }
        for (day, blocks) in &mut open {
            for (group, block) in blocks
                .iter_mut()
                .enumerate()
                .filter(|(_, block)| !block.is_empty())
            {
                let place = (*day as u32, group as u32);
                let packed = (days.get(place)?)
                    .map(|before| code::unpack(before.value(), GROUP * POINTS))
                    .transpose()
                    .and_then(|before| {
                        overlay(block, &before.unwrap_or_default());
                        code::pack(block)
                    });
                match packed {
                    Ok(packed) => days.insert(place, packed.as_slice())?,
                    Err(e) => return Ok(Err(e)),
                };
            }
        }
        frames.retain_in(..begin, |_, _| false)?;
        loop {
            let known = whole_days(days)?;
            if known.len() <= self.days {
                return Ok(Ok(()));
            }
            let farthest = known
                .into_iter()
                .max_by_key(|day| u64::from(*day).abs_diff(now));
            let Some(day) = farthest else {
                return Ok(Ok(()));
            };
            days.retain_in((day, 0)..=(day, u32::MAX), |_, _| false)?;
        }
    }

    fn newest(&self, clock: i64) -> Result<Option<i64>> {
        let upto = clock.max(0) as u64 / self.step;
        let read = (|| -> Found<Option<u64>> {
            let read = self.database.begin_read()?;
            let frames = read.open_table(FRAMES)?;
            if let Some((point, _)) = frames.range(..=upto)?.next_back().transpose()? {
                return Ok(Ok(Some(point.value())));
            }
            let days = read.open_table(DAYS)?;
            let day = (upto / POINTS as u64).min(u64::from(u32::MAX)) as u32;
            let Some((last, _)) = days.range(..=(day, u32::MAX))?.next_back().transpose()? else {
                return Ok(Ok(None));
            };
            let day = last.value().0;
            let mut newest = None;
            for entry in days.range((day, 0)..=(day, u32::MAX))? {
                let block = match code::unpack(entry?.1.value(), GROUP * POINTS) {
                    Ok(block) => block,
                    Err(e) => return Ok(Err(e)),
                };
                let known = (0..block.len()).filter(|i| block[*i] != code::MISSING);
                let points = known.map(|i| u64::from(day) * POINTS as u64 + (i % POINTS) as u64);
                newest = newest.max(points.filter(|point| *point <= upto).max());
            }
            Ok(Ok(newest))
        })();
        let newest = read.map_err(|e| failed(&self.path, e))??;
        Ok(newest.map(|point| (point * self.step) as i64))
    }

    fn frame(&self, frame: &[u8]) -> Result<Vec<u16>> {
        let damaged = || broken(&self.path, "a frame is too short");
        let (count, packed) = frame.split_first_chunk().ok_or_else(damaged)?;
        code::unpack(packed, u32::from_le_bytes(*count) as usize)
    }

    /// The frames of the span that are in no block yet.
    fn open_frames(&self, span: Span) -> Result<Vec<(u64, Vec<u16>)>> {
        let from = span.from.max(0) as u64 / self.step;
        let to = span.to.max(0) as u64 / self.step;
        let read = (|| -> Result<Rows, redb::Error> {
            let frames = self.database.begin_read()?.open_table(FRAMES)?;
            let each = frames.range(from..=to.max(from))?.map(|entry| {
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
        let day = |at: i64| {
            let day = at.max(0) as u64 / (self.step * POINTS as u64);
            day.min(u64::from(u32::MAX)) as u32
        };
        let read = (|| -> Result<Rows, redb::Error> {
            let days = self.database.begin_read()?.open_table(DAYS)?;
            let (Some(first), Some(last)) = (days.first()?, days.last()?) else {
                return Ok(Vec::new());
            };
            let first = first.0.value().0.max(day(span.from));
            let last = last.0.value().0.min(day(span.to));
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

/// The days of which there are blocks.
fn whole_days(days: &redb::Table<'_, (u32, u32), &'static [u8]>) -> Result<Vec<u32>, redb::Error> {
    let mut known = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let Some((first, _)) = days.range((from, 0)..)?.next().transpose()? else {
            break;
        };
        known.push(first.value().0);
        next = first.value().0.checked_add(1);
    }
    Ok(known)
}

/// Fills what is missing with what was known before.
fn overlay(codes: &mut [u16], before: &[u16]) {
    for (code, before) in codes.iter_mut().zip(before) {
        if *code == code::MISSING {
            *code = *before;
        }
    }
}

/// Reads a history group by group.
struct Walk {
    inner: Arc<Inner>,
    span: Span,
    part: Part,
    keys: Vec<Option<Key>>,
    today: Vec<(u64, Vec<u16>)>,
    next: usize,
    ready: VecDeque<(Key, Vec<Sample>)>,
}

impl Walk {
    fn read_group(&mut self) -> Result<()> {
        let group = self.next / GROUP;
        let upto = self.keys.len().min((group + 1) * GROUP);
        let is_mine = group % self.part.of == self.part.index;
        if !is_mine || self.keys[self.next..upto].iter().all(Option::is_none) {
            self.next = upto;
            return Ok(());
        }
        let blocks = self.inner.blocks(group as u32, self.span)?;
        let (span, step) = (self.span, self.inner.step);
        let sample = |point: u64, code: u16| {
            let at = (point * step) as i64;
            let value = code::decode(code).filter(|_| (span.from..=span.to).contains(&at))?;
            Some((at, value))
        };
        for series in self.next..upto {
            if self.keys[series].is_none() {
                continue;
            }
            let row = (series % GROUP) * POINTS;
            let old = blocks.iter().flat_map(|(day, codes)| {
                let first = day * POINTS as u64;
                (first..).zip(&codes[row..row + POINTS])
            });
            let new =
                (self.today.iter()).filter_map(|(point, codes)| Some((*point, codes.get(series)?)));
            let mut samples: Vec<Sample> = old
                .chain(new)
                .filter_map(|(point, code)| sample(point, *code))
                .collect();
            if !samples.is_sorted_by_key(|sample| sample.0) {
                // a clock that was set back adds to a day that was over
                samples.sort_by_key(|sample| sample.0);
            }
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
            Metric::MACHINE.map(|metric| {
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
            let at = point * 300 + point % 7;
            kept.append(at, at, samples(machines, point)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn every_sample_comes_back_across_days_and_a_new_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let kept = Kept::open(&path, 300, 30).unwrap();
        fill(&kept, 3, 0..500).await;
        drop(kept);
        let kept = Kept::open(&path, 300, 30).unwrap();
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
    async fn days_that_are_too_old_are_dropped_and_a_clock_set_back_adds_to_a_day_that_was_over() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(&dir.path().join("history"), 300, 2).unwrap();
        fill(&kept, 1, 0..5 * 288 + 10).await;
        let now = 5 * 86_400 + 3000;
        let new = Key {
            machine: "new".into(),
            metric: Metric::Cpu,
        };
        kept.append(4 * 86_400 + 600, now, vec![(new.clone(), 1.0)])
            .await
            .unwrap();
        kept.append(-5, now, samples(1, 7)).await.unwrap_err();
        let found = kept.histories(ALWAYS).await.unwrap();
        assert_eq!(found[&new], [(4 * 86_400 + 600, 1.0)]);
        for history in found.iter().filter(|h| *h.0 != new).map(|h| h.1) {
            assert_eq!(history[0].0, 3 * 86_400, "two whole days before today");
            assert_eq!(history.len(), 2 * 288 + 10);
            assert!(history.is_sorted_by_key(|sample| sample.0));
        }
        // the next day closes what was added to the former one, and nothing of it is lost
        fill(&kept, 1, 6 * 288..6 * 288 + 1).await;
        let found = kept.histories(ALWAYS).await.unwrap();
        let (at, value) = found[&new][0];
        assert_eq!((at, value), (4 * 86_400 + 600, 1.0));
        let other = found.iter().find(|h| *h.0 != new).unwrap().1;
        assert_eq!(other.len(), 288 + 10 + 1, "days 4 and 5, and a new one");
    }

    /// A node, or a Prometheus, whose clock was years ahead sent a sample; all days were older than
    /// wanted then, and were dropped.
    #[tokio::test]
    async fn a_sample_of_a_time_to_come_is_refused_and_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(&dir.path().join("history"), 300, 3).unwrap();
        fill(&kept, 1, 0..2 * 288 + 10).await;
        let before = kept.histories(ALWAYS).await.unwrap();
        let now = 2 * 86_400 + 3000;
        let e = kept
            .append(now + 9 * 365 * 86_400, now, samples(1, 7))
            .await
            .unwrap_err();
        assert!(e.to_string().contains("ahead of this host's"), "{e}");
        assert_eq!(kept.histories(ALWAYS).await.unwrap(), before);
    }

    /// The host's own clock was nine years ahead for a while, and then right again.
    #[tokio::test]
    async fn a_clock_that_was_ahead_costs_one_day_for_each_that_it_was_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(&dir.path().join("history"), 300, 3).unwrap();
        fill(&kept, 1, 0..3 * 288 + 100).await;
        let wrong = 9 * 365 * 288;
        fill(&kept, 1, wrong..wrong + 5).await;
        let now = (3 * 288 + 110) * 300;
        assert_eq!(
            kept.newest(now).await.unwrap(),
            (Some((3 * 288 + 99) * 300), Some((wrong + 4) * 300))
        );
        fill(&kept, 1, 3 * 288 + 110..4 * 288 + 20).await;
        let upto = Span {
            to: (4 * 288 + 20) * 300,
            ..ALWAYS
        };
        for history in kept.histories(upto).await.unwrap().values() {
            assert_eq!(
                history[0].0, 86_400,
                "the first day made room for the third"
            );
            assert_eq!(history.len(), 3 * 288 + 20 - 10, "ten samples are missing");
        }
        // a whole day of a wrong time is the first to go once the clock is right
        fill(&kept, 1, 2 * wrong..2 * wrong + 1).await;
        fill(&kept, 1, 4 * 288 + 20..6 * 288 + 1).await;
        for history in kept.histories(ALWAYS).await.unwrap().values() {
            let mut days: Vec<i64> = history.iter().map(|sample| sample.0 / 86_400).collect();
            days.dedup();
            assert_eq!(days, [3, 4, 5, 6, 2 * wrong / 288]);
        }
    }

    #[tokio::test]
    async fn another_distance_of_samples_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        drop(Kept::open(&path, 300, 30).unwrap());
        let e = Kept::open(&path, 60, 30).err().unwrap();
        assert!(e.to_string().contains("every 300 s"), "{e}");
    }

    /// 10,000 VMs with six metrics for thirty days are 518 million samples, and 2 GiB are 4.1 bytes for
    /// each. Incompressible noise is the worst that can come: half the machines here are nothing else.
    #[tokio::test]
    async fn a_sample_takes_less_than_four_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(&dir.path().join("history"), 300, 30).unwrap();
        let (machines, days) = (200, 4);
        fill(&kept, machines, 0..days * 288 + 1).await;
        let each = kept.bytes().unwrap() as f64 / (machines as i64 * 6 * days * 288) as f64;
        assert!(each < 4.0, "{each} bytes a sample");
    }
}
