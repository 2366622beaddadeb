//! The table of faults and what holds under them: `table.toml` is the source, docs/fault-table.md what
//! people read. Every cell names tests, and every test that is named exists.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

const SOURCE: &str = include_str!("table.toml");
const PAGE: &str = "docs/fault-table.md";
/// Rows, with that of the clients that misbehave.
const ROWS: usize = 17;
/// What a cell says where the fault has no meaning.
const NOTHING: &str = "-";

#[derive(Deserialize)]
struct Table {
    columns: Vec<String>,
    letters: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
    row: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    fault: String,
    cell: Vec<Cell>,
}

#[derive(Deserialize)]
struct Cell {
    holds: String,
    #[serde(default)]
    by: Vec<String>,
    #[serde(default)]
    note: String,
}

fn table() -> Table {
    toml::from_str(SOURCE).unwrap()
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What is wrong with a reference; nothing, one hopes.
fn missing(table: &Table, reference: &str) -> Option<String> {
    let (place, name) = reference.split_once("::")?;
    let (file, wanted) = match place {
        "sim" => ("driver/sim/src/swarm.rs", format!("= \"{name}\"")),
        "mutant" => ("scripts/mutants.toml", format!("name = \"{name}\"")),
        place => match table.files.get(place) {
            Some(file) => (file.as_str(), format!("fn {name}(")),
            None => return Some(format!("{reference}: no file is called {place}")),
        },
    };
    let found = read(file).contains(&wanted);
    (!found).then(|| format!("{reference}: {file} has no `{wanted}`"))
}

#[test]
fn every_cell_names_a_test_that_exists() {
    let table = table();
    assert_eq!(table.row.len(), ROWS);
    let (last, rows) = table.row.split_last().unwrap();
    assert!(rows.iter().all(|r| r.cell.len() == table.columns.len()));
    assert_eq!(
        last.cell.len(),
        1,
        "the last row has one cell for all columns"
    );
    let mut wrong = Vec::new();
    for row in &table.row {
        for (i, cell) in row.cell.iter().enumerate() {
            let place = format!("{}, {}", row.fault, table.columns[i]);
            if cell.by.is_empty() != (cell.holds == NOTHING) {
                wrong.push(format!("{place}: {} is shown by {:?}", cell.holds, cell.by));
            }
            let missing = cell.by.iter().filter_map(|by| missing(&table, by));
            wrong.extend(missing.map(|m| format!("{place}: {m}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A mistyped name is found, or the test above proves nothing.
#[test]
fn a_test_that_is_not_there_is_missed() {
    let table = table();
    for bad in [
        "phases::a_test_of_nothing",
        "sim::rain",
        "mutant::rain",
        "rain::rain",
    ] {
        assert!(missing(&table, bad).is_some(), "{bad}");
    }
}

#[test]
fn the_page_is_what_the_table_says() {
    let page = page(&table());
    if std::env::var_os("FORERUN_WRITE").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE), &page).unwrap();
    }
    let same = read(PAGE) == page;
    assert!(
        same,
        "write it: FORERUN_WRITE=1 cargo test --test fault_table"
    );
}

fn page(table: &Table) -> String {
    let mut page = String::from(
        "# What holds under which fault\n\n\
         Generated from `tests/fault_table/table.toml`; a test keeps both the same, and sees that every \
         test named here exists.\n\n",
    );
    for (letter, meaning) in &table.letters {
        writeln!(page, "- **{letter}**: {meaning}").unwrap();
    }
    writeln!(page, "\n| fault | {} |", table.columns.join(" | ")).unwrap();
    writeln!(page, "|---|{}", "---|".repeat(table.columns.len())).unwrap();
    for row in &table.row {
        let cells: Vec<_> = row
            .cell
            .iter()
            .map(|c| c.holds.replace(NOTHING, "–"))
            .collect();
        let rest = " |".repeat(table.columns.len() - cells.len());
        writeln!(page, "| {} | {} |{rest}", row.fault, cells.join(" | ")).unwrap();
    }
    page += "\n## Who shows it\n\n\
             `sim` is a fault that the simulation's random runs draw (driver/sim/tests/random.rs); \
             `mutant` is a guard without which a test fails (scripts/mutants).\n";
    for row in &table.row {
        writeln!(page, "\n### {}\n", row.fault).unwrap();
        for (i, cell) in row.cell.iter().enumerate() {
            let column = if row.cell.len() == 1 {
                "every phase"
            } else {
                &table.columns[i]
            };
            if cell.holds == NOTHING {
                continue;
            }
            write!(page, "- **{column}**: {}", cell.holds).unwrap();
            if !cell.note.is_empty() {
                write!(page, " ({})", cell.note).unwrap();
            }
            let by: Vec<_> = cell.by.iter().map(|by| format!("`{by}`")).collect();
            writeln!(page, "; {}", by.join(", ")).unwrap();
        }
    }
    page += "\n## Where the tests are\n\n";
    for (name, file) in &table.files {
        writeln!(page, "- `{name}`: {file}").unwrap();
    }
    page
}
