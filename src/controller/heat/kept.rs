//! Habits over a restart: a file for each volume, written now and then, and when the controller stops in order.
//!
//! ```text
//! DATA/habits/VOLUME   mark, blake3 of the rest, zstd of:
//!                      volume id, time, bytes of an extent, windows,
//!                      for each length of span: how many were observed, extents written in each
//!                      habits
//! ```
//!
//! Nothing that must be right rests on them, so they are renamed into place and not synced. One that is torn,
//! of another version, or of a former volume of the name is passed over, and all is learned again.

use super::{Heat, OBSERVED, SPANS, Span, Volume, WINDOW};
use crate::controller::{Controller, Nodes, unix_ms};
use crate::fleet;
use crate::predict::extent::Habits;
use crate::store::Store;
use node::{Error, Result, VolumeName};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often they are written: habits are counted over hours.
const EVERY: Duration = Duration::from_secs(300);
const MARK: &[u8; 8] = b"FRHABIT1";
const HASH: usize = 32;
/// Bytes of a file's content: 65,536 extents take 25 each.
const UNPACKED_MOST: usize = 2 << 20;
/// Beyond this zstd takes longer and finds nothing more.
const LEVEL: i32 = 3;
/// What a file is called before it is whole; no volume's name ends so.
const UNFINISHED: &str = ".new~";

impl Volume {
    fn to_bytes(&self, id: node::VolumeId, clock: u64) -> Vec<u8> {
        let mut bytes = id.0.to_vec();
        bytes.extend(clock.to_le_bytes());
        bytes.extend(self.extent_bytes.to_le_bytes());
        bytes.extend(self.windows.to_le_bytes());
        for span in &self.spans {
            bytes.extend((span.observed.len() as u32).to_le_bytes());
            bytes.extend(span.observed.iter().flat_map(|n| n.to_le_bytes()));
        }
        bytes.extend(self.habits.to_bytes());
        bytes
    }

    /// As it was, with the time since then passed unseen.
    fn from_bytes(bytes: &[u8], id: node::VolumeId, now: Instant, clock: u64) -> Option<Volume> {
        let mut rest = bytes;
        let mut take = |count: usize| {
            let (head, tail) = rest.split_at_checked(count)?;
            rest = tail;
            Some(head)
        };
        let u64_of = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        let u32_of = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
        if take(id.0.len())? != id.0 {
            return None;
        }
        let (written, extent_bytes) = (u64_of(take(8)?)?, u64_of(take(8)?)?);
        let windows = u32_of(take(4)?)?;
        let mut spans: [Span; SPANS.len()] = Default::default();
        for span in &mut spans {
            let count = u32_of(take(4)?)? as usize;
            if count > OBSERVED {
                return None;
            }
            for _ in 0..count {
                span.observed.push_back(u32_of(take(4)?)?);
            }
        }
        let mut habits = Habits::from_bytes(rest)?;
        let unseen = clock.saturating_sub(written) / WINDOW.as_secs();
        habits.pass_unseen(u32::try_from(unseen).unwrap_or(u32::MAX));
        Some(Volume {
            extent_bytes,
            open: HashSet::new(),
            opened: now,
            habits,
            spans,
            windows,
            kept: windows,
            dirtied: 0,
        })
    }
}

/// The content of a file, if that is what was written.
fn unsealed(file: &[u8]) -> Option<Vec<u8>> {
    let (hash, packed) = file.strip_prefix(MARK)?.split_at_checked(HASH)?;
    let is_whole = blake3::hash(packed).as_bytes() == hash;
    is_whole.then(|| zstd::bulk::decompress(packed, UNPACKED_MOST).ok())?
}

fn sealed(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let packed = zstd::bulk::compress(content, LEVEL)?;
    let hash = blake3::hash(&packed);
    Ok([&MARK[..], hash.as_bytes(), &packed].concat())
}

impl Heat {
    /// Write what is new of each of these volumes, and forget all others. Blocks on the disk.
    pub(super) fn keep(
        &self,
        directory: &Path,
        volumes: &[fleet::Volume],
        clock: u64,
    ) -> Result<()> {
        let failed = |e| Error::io(format!("keep guests' habits in {}", directory.display()), e);
        let known: HashSet<&VolumeName> = volumes.iter().map(|v| &v.name).collect();
        self.lock().retain(|name, _| known.contains(name));
        std::fs::create_dir_all(directory).map_err(failed)?;
        for v in volumes {
            let content = {
                let mut all = self.lock();
                let Some(volume) = all.get_mut(&v.name).filter(|v| v.windows != v.kept) else {
                    continue;
                };
                volume.kept = volume.windows;
                volume.to_bytes(v.id, clock)
            };
            let path = directory.join(v.name.as_str());
            let fresh = directory.join(format!("{}{UNFINISHED}", v.name));
            let written = sealed(&content)
                .and_then(|file| std::fs::write(&fresh, file))
                .and_then(|()| std::fs::rename(&fresh, &path));
            written.map_err(failed)?;
        }
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let parsed = name.to_str().and_then(|n| n.parse::<VolumeName>().ok());
            if !parsed.is_some_and(|n| known.contains(&n)) {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Take up what was written of these volumes; of how many something was. Blocks on the disk.
    pub(super) fn restore(
        &self,
        directory: &Path,
        volumes: &[fleet::Volume],
        now: Instant,
        clock: u64,
    ) -> usize {
        let mut count = 0;
        for v in volumes {
            let file = std::fs::read(directory.join(v.name.as_str())).ok();
            let content = file.as_deref().and_then(unsealed);
            let restored = content.and_then(|c| Volume::from_bytes(&c, v.id, now, clock));
            if let Some(volume) = restored {
                self.lock().entry(v.name.clone()).or_insert(volume);
                count += 1;
            }
        }
        count
    }
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Once in a process: what guests did before it.
    pub(in crate::controller) async fn remember_habits(&self, directory: &Path) {
        let volumes = match self.inner.records.volumes().await {
            Ok(volumes) => volumes,
            Err(e) => return tracing::warn!("guests' habits are learned again: {e}"),
        };
        let (controller, directory) = (self.clone(), directory.to_owned());
        let restored = tokio::task::spawn_blocking(move || {
            let heat = &controller.inner.presence.heat;
            heat.restore(&directory, &volumes, Instant::now(), unix_ms() / 1000)
        });
        match restored.await {
            Ok(count) => tracing::info!("the habits of {count} volumes' guests are known"),
            Err(e) => tracing::warn!("guests' habits are learned again: {e}"),
        }
    }

    /// Write them for as long as the controller lives.
    pub(in crate::controller) async fn keep_habits(self, directory: PathBuf) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.put_habits(&directory).await;
        }
    }

    /// Write them now.
    pub(in crate::controller) async fn put_habits(&self, directory: &Path) {
        let volumes = match self.inner.records.volumes().await {
            Ok(volumes) => volumes,
            Err(e) => return tracing::warn!("guests' habits are not kept: {e}"),
        };
        let (controller, directory) = (self.clone(), directory.to_owned());
        let kept = tokio::task::spawn_blocking(move || {
            let heat = &controller.inner.presence.heat;
            heat.keep(&directory, &volumes, unix_ms() / 1000)
        });
        match kept.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!("{e}"),
            Err(e) => tracing::warn!("guests' habits are not kept: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Status;
    use proto::v1::WriteTrail;

    fn record(name: &str, id: u8) -> fleet::Volume {
        let (name, owner) = (name.parse().unwrap(), "a".parse().unwrap());
        fleet::Volume {
            status: Status::Ready,
            generation: 1,
            ..fleet::Volume::new(name, node::VolumeId([id; 16]), 100 * 10, owner)
        }
    }

    fn learned(began: Instant) -> Heat {
        let heat = Heat::default();
        for i in 0..100u32 {
            let trail = |volume: &str, runs| WriteTrail {
                volume: volume.into(),
                extent_bytes: 10,
                runs,
            };
            let trails = [
                trail("v", vec![7, 1, i % 9, 2]),
                trail("w", vec![i % 50, 1]),
            ];
            heat.add(&trails, began + WINDOW * i);
        }
        heat
    }

    /// After each restart the first baselines were copied from end to end, and nothing was promised.
    #[test]
    fn another_process_orders_and_promises_as_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = [record("v", 1), record("w", 2)];
        let began = Instant::now();
        let heat = learned(began);
        heat.keep(dir.path(), &volumes, 1000).unwrap();
        let other = Heat::default();
        assert_eq!(other.restore(dir.path(), &volumes, began, 1000), 2);
        let end = began + WINDOW * 99;
        for v in &volumes {
            let order = |heat: &Heat, now| heat.order(&v.name, v.size_bytes, now);
            assert_eq!(order(&other, began), order(&heat, end));
            let promise = |heat: &Heat| heat.convergence(&v.name, 1000, 100);
            assert!(promise(&heat).is_some());
            assert_eq!(promise(&other), promise(&heat));
        }
        // what is known by then is not taken back by an older file
        assert_eq!(heat.restore(dir.path(), &volumes, end, 1000), 2);
        let untouched = heat.order(&volumes[0].name, 1000, end);
        assert_eq!(untouched, other.order(&volumes[0].name, 1000, began));
    }

    #[test]
    fn what_cannot_be_believed_is_learned_again() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = [record("v", 1), record("w", 2)];
        learned(Instant::now())
            .keep(dir.path(), &volumes, 1000)
            .unwrap();
        let path = dir.path().join("v");
        let whole = std::fs::read(&path).unwrap();
        let restored = |volumes: &[fleet::Volume]| {
            Heat::default().restore(dir.path(), volumes, Instant::now(), 2000)
        };
        assert_eq!(restored(&volumes), 2);
        assert_eq!(restored(&[record("v", 9)]), 0, "another volume of the name");
        for at in [0, 9, 45, whole.len() - 1] {
            let mut spoilt = whole.clone();
            spoilt[at] ^= 1;
            std::fs::write(&path, spoilt).unwrap();
            assert_eq!(restored(&volumes[..1]), 0, "byte {at}");
        }
        for cut in [0, 8, 40, whole.len() / 2] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(restored(&volumes[..1]), 0, "cut at {cut}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(restored(&volumes), 1, "the other's is there");
    }

    #[test]
    fn files_are_written_when_there_is_news_and_go_with_their_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = [record("v", 1), record("w", 2)];
        let heat = learned(Instant::now());
        heat.keep(dir.path(), &volumes, 1000).unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path(&format!("w{UNFINISHED}")), "cut off").unwrap();
        std::fs::remove_file(path("v")).unwrap();
        heat.keep(dir.path(), &volumes[..1], 1000).unwrap();
        assert!(!path("v").exists(), "there was no news");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 0, "w is deleted, with what was never finished");
        let w: VolumeName = "w".parse().unwrap();
        assert_eq!(heat.convergence(&w, 1, 1), None);
    }
}
