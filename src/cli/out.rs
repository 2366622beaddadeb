//! What a verb prints: a table or sentences for people, JSON for machines. Sizes, rates and times
//! are written one way everywhere.

use super::Failure;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

/// The two kinds of reader.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people
    Table,
    /// For machines: one document, or one line for each event of long work
    Json,
}

/// Where a verb's words go.
pub struct Out {
    output: Output,
    silent: bool,
}

/// One column of a listing.
pub struct Column {
    head: &'static str,
    right: bool,
}

/// A column of words.
#[must_use]
pub const fn text(head: &'static str) -> Column {
    Column { head, right: false }
}

/// A column of figures, aligned on the right.
#[must_use]
pub const fn figure(head: &'static str) -> Column {
    Column { head, right: true }
}

impl Out {
    /// Print in this way.
    #[must_use]
    pub fn new(output: Output) -> Out {
        Out {
            output,
            silent: false,
        }
    }

    /// Print nothing: a verb that another verb runs.
    #[must_use]
    pub fn silent() -> Out {
        Out {
            output: Output::Table,
            silent: true,
        }
    }

    /// Whether a person looks on.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        !self.silent && self.output == Output::Table
    }

    /// Whether a machine reads.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.output == Output::Json
    }

    /// A line on standard output. A reader that went away (`| head`) is no error.
    pub fn line(&self, line: impl Display) {
        if !self.silent {
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        }
    }

    /// One JSON document on one line.
    pub fn json(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => self.line(line),
            Err(e) => self.note(format!("cannot print the answer as JSON: {e}")),
        }
    }

    /// A listing: the records as a JSON array, or one table row each.
    pub fn list<T: Serialize>(
        &self,
        records: &[T],
        columns: &[Column],
        row: impl Fn(&T) -> Vec<String>,
        none: &str,
    ) {
        if self.is_json() {
            self.json(&records);
        } else if records.is_empty() {
            self.line(none);
        } else {
            self.line(table(columns, records.iter().map(row)));
        }
    }

    /// A remark for people, on standard error so that it never mixes with data.
    pub fn note(&self, line: impl Display) {
        if !self.silent {
            let _ = writeln!(std::io::stderr().lock(), "{line}");
        }
    }

    /// Why the verb failed.
    pub fn failure(&self, failure: &Failure) {
        if self.is_json() {
            self.note(serde_json::json!({ "error": failure.to_string() }));
        } else {
            self.note(format!("forerun: {failure}"));
        }
    }
}

fn table(columns: &[Column], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(columns.iter().map(|c| c.head))
        .add_rows(rows);
    for (i, column) in columns.iter().enumerate() {
        if let Some(c) = table.column_mut(i) {
            c.set_padding((0, 2));
            if column.right {
                c.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
        .lines()
        .map(|l| l.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Bytes as people say them: `512 B`, `1.5 GiB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let power = (n.ilog2() / 10) as usize; // 1 to 6 for 64 bits
    let value = n as f64 / (1u64 << (10 * power)) as f64;
    let digits = usize::from(value < 100.0 && value.fract() >= 0.05);
    format!("{value:.digits$} {}", UNITS[power - 1])
}

/// A duration as people say it: `0.4 ms`, `12 ms`, `3.2 s`, `4 min 10 s`, `7 d 0 h`.
#[must_use]
pub fn duration(d: Duration) -> String {
    let secs = d.as_secs_f64();
    if secs < 0.010 {
        format!("{:.1} ms", secs * 1e3)
    } else if secs < 1.0 {
        format!("{:.0} ms", secs * 1e3)
    } else if secs < 60.0 {
        format!("{secs:.1} s")
    } else if secs < 3600.0 {
        format!("{} min {} s", d.as_secs() / 60, d.as_secs() % 60)
    } else if secs < 48.0 * 3600.0 {
        format!("{} h {} min", d.as_secs() / 3600, d.as_secs() / 60 % 60)
    } else {
        format!("{} d {} h", d.as_secs() / 86_400, d.as_secs() / 3600 % 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_say_them() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1024), "1 KiB");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(10 << 30), "10 GiB");
        assert_eq!(bytes(u64::MAX), "16 EiB");
        assert_eq!(duration(Duration::from_micros(400)), "0.4 ms");
        assert_eq!(duration(Duration::from_millis(3200)), "3.2 s");
        assert_eq!(duration(Duration::from_secs(250)), "4 min 10 s");
        assert_eq!(duration(Duration::from_secs(604_800)), "7 d 0 h");
    }

    #[test]
    fn figures_stand_on_the_right_and_lines_have_no_tail() {
        let t = table(
            &[text("NAME"), figure("SIZE")],
            [["a", "1 KiB"], ["bb", "20 KiB"]]
                .into_iter()
                .map(|r| r.map(str::to_owned).to_vec()),
        );
        assert_eq!(t, "NAME    SIZE\na      1 KiB\nbb    20 KiB");
    }
}
