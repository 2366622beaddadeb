//! CSV files as a source: one table of many machines, or one file for each machine and metric.
//!
//! A table has a column of machines, one of stamps, and a column for each metric under its own name
//! or one that a well-known trace uses.

use super::{Histories, Key, Metric, Source, Span};
use crate::predict::csv::{self, CsvError};
use node::{Error, ErrorKind, Result};
use std::path::PathBuf;

/// Columns, what they say, and what makes the metric's unit of it.
const COLUMNS: [(&str, Metric, f64); 12] = [
    ("cpu", Metric::Cpu, 1.0),
    ("memory", Metric::Memory, 1.0),
    ("disk-read", Metric::DiskRead, 1.0),
    ("disk-write", Metric::DiskWrite, 1.0),
    ("network-in", Metric::NetworkIn, 1.0),
    ("network-out", Metric::NetworkOut, 1.0),
    // A virtual core of that trace is rated at 2.6 GHz.
    ("cpu_mhz", Metric::Cpu, 1.0 / 2600.0),
    ("mem_kb", Metric::Memory, 1024.0),
    ("rd_kbs", Metric::DiskRead, 1024.0),
    ("wr_kbs", Metric::DiskWrite, 1024.0),
    ("rx_kbs", Metric::NetworkIn, 1024.0),
    ("tx_kbs", Metric::NetworkOut, 1024.0),
];

/// Tables of many machines.
pub struct CsvFiles {
    /// Read one after another; a machine in several of them has all their samples.
    pub files: Vec<PathBuf>,
}

impl Source for CsvFiles {
    async fn histories(&self, span: Span) -> Result<Histories> {
        let files = self.files.clone();
        tokio::task::spawn_blocking(move || read(&files, span))
            .await
            .map_err(|e| Error::new(ErrorKind::Broken, format!("the reader of files ended: {e}")))?
    }
}

fn read(files: &[PathBuf], span: Span) -> Result<Histories> {
    let mut found = Histories::new();
    for path in files {
        let asked = format!("read the history {}", path.display());
        let bytes = std::fs::read(path).map_err(|e| Error::io(asked.clone(), e))?;
        let text = String::from_utf8_lossy(&bytes);
        let mut any = false;
        for (column, metric, unit) in COLUMNS {
            let histories = match csv::read(&text, Some(column)) {
                Ok(histories) => histories,
                Err(CsvError::Column { .. }) => continue,
                Err(e) => return Err(Error::new(ErrorKind::Invalid, format!("{asked}: {e}"))),
            };
            any = true;
            for (machine, samples) in histories {
                let key = Key { machine, metric };
                let inside = samples
                    .into_iter()
                    .filter(|s| (span.from..=span.to).contains(&s.0));
                found
                    .entry(key)
                    .or_default()
                    .extend(inside.map(|(at, value)| (at, value * unit)));
            }
        }
        if !any {
            let names: Vec<&str> = COLUMNS.iter().map(|column| column.0).collect();
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{asked}: no column of a metric: name one of {}",
                    names.join(", ")
                ),
            ));
        }
    }
    found.retain(|_, samples| !samples.is_empty());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALWAYS: Span = Span {
        from: 0,
        to: i64::MAX,
        step: 300,
    };

    #[tokio::test]
    async fn a_table_of_machines_is_read_in_the_units_of_the_metrics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.csv");
        std::fs::write(&path, "vm,ts,cpu,wr_kbs\na,0,0.5,2\nb,0,1,3\na,300,,4\n").unwrap();
        let source = CsvFiles { files: vec![path] };
        let found = source.histories(ALWAYS).await.unwrap();
        let of = |machine: &str, metric| {
            &found[&Key {
                machine: machine.into(),
                metric,
            }]
        };
        assert_eq!(of("a", Metric::DiskWrite), &[(0, 2048.0), (300, 4096.0)]);
        assert_eq!(of("b", Metric::Cpu), &[(0, 1.0)]);
        assert!(
            of("a", Metric::Cpu)[1].1.is_nan(),
            "a missing sample stays one"
        );
        let later = source
            .histories(Span {
                from: 100,
                ..ALWAYS
            })
            .await
            .unwrap();
        assert_eq!(later.len(), 2, "{later:?}");
    }

    #[tokio::test]
    async fn a_file_without_metrics_says_what_it_could_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.csv");
        std::fs::write(&path, "timestamp,value\n0,1\n").unwrap();
        let error = CsvFiles { files: vec![path] }
            .histories(ALWAYS)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("disk-write"), "{error}");
        let missing = CsvFiles {
            files: vec![dir.path().join("none")],
        };
        assert!(
            missing
                .histories(ALWAYS)
                .await
                .unwrap_err()
                .raw_os_error()
                .is_some()
        );
    }
}
