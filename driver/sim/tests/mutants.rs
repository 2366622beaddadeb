//! The list of mutants is true: each edit still has its place, and the table in the documentation is
//! of exactly these. Whether each is caught takes a build a mutant: `scripts/mutants`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

struct Mutant {
    name: String,
    file: String,
    old: String,
    new: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn mutants() -> Vec<Mutant> {
    let text = std::fs::read_to_string(root().join("scripts/mutants.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let all = table["mutant"].as_array().unwrap().iter();
    all.map(|m| {
        let field = |name: &str| m[name].as_str().unwrap().to_owned();
        Mutant {
            name: field("name"),
            file: field("file"),
            old: field("old"),
            new: field("new"),
        }
    })
    .collect()
}

#[test]
fn every_mutant_has_its_place() {
    let all = mutants();
    assert!(all.len() >= 70, "guards have lost their mutants");
    for m in &all {
        let text = std::fs::read_to_string(root().join(&m.file)).unwrap();
        let n = text.matches(m.old.as_str()).count();
        assert_eq!(n, 1, "{}: the text is {n} times in {}", m.name, m.file);
        assert_ne!(m.old, m.new, "{} changes nothing", m.name);
    }
    let names: BTreeSet<_> = all.iter().map(|m| &m.name).collect();
    assert_eq!(names.len(), all.len(), "two mutants have one name");
}

#[test]
fn the_table_is_of_these_mutants() {
    let table = std::fs::read_to_string(root().join("docs/mutants.md")).unwrap();
    let rows = table.lines().filter_map(|l| l.strip_prefix("| `"));
    let rows: Vec<_> = rows.filter_map(|l| l.split('`').next()).collect();
    let names: Vec<_> = mutants().into_iter().map(|m| m.name).collect();
    assert_eq!(
        rows, names,
        "run scripts/mutants NAME of those that are missing"
    );
}
