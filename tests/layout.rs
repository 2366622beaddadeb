//! The architecture, checked: who may import whom, where `unsafe` may be, how long a module may be.
//!
//! The import rules are what lets one room be understood, tested and replaced without the others:
//! `block` stands alone, the volume's state machine does no I/O, front ends never see replication,
//! the control plane never touches a block, and nothing that ships depends on the simulator. They
//! are checked against `cargo metadata`, so a new edge in a `Cargo.toml` is a decision and not an
//! accident. `predict` and `planner` live inside the root package, where no manifest can hold
//! them apart; a rule over their text does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What each package of ours may import in what ships (build and normal dependencies).
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("forerun-block", &[]),
    ("forerun-ring", &["forerun-block"]),
    ("forerun-wire", &["forerun-block"]),
    ("forerun-storage", &["forerun-block", "forerun-ring"]),
    ("forerun-volume", &["forerun-block"]),
    (
        "forerun-replica",
        &["forerun-block", "forerun-wire", "forerun-volume"],
    ),
    (
        "forerun-nbd",
        &["forerun-block", "forerun-volume", "forerun-ring"],
    ),
    (
        "forerun-vhost",
        &["forerun-block", "forerun-volume", "forerun-ring"],
    ),
    (
        "forerun-node",
        &[
            "forerun-block",
            "forerun-ring",
            "forerun-storage",
            "forerun-volume",
            "forerun-wire",
            "forerun-replica",
            "forerun-nbd",
            "forerun-vhost",
            "forerun-proto",
        ],
    ),
    // The simulator may look at anything that it simulates; nothing that ships may look at it.
    (
        "forerun-sim",
        &[
            "forerun-block",
            "forerun-volume",
            "forerun-wire",
            "forerun-replica",
            "forerun-storage",
            "forerun-nbd",
        ],
    ),
    ("forerun-proto", &[]),
    ("forerun", &["forerun-node", "forerun-proto"]),
];

/// The packages that speak to the kernel through shared memory and may therefore use `unsafe`.
const MAY_BE_UNSAFE: &[&str] = &["forerun-ring", "forerun-storage", "forerun-vhost"];

/// A module longer than this hides something; its header must carry a line that begins with
/// `//! Length:` and says why.
const LONGEST_MODULE: usize = 800;

/// Names that say nothing about what is inside, so that everything sinks into them.
const EMPTY_NAMES: &[&str] = &[
    "common", "utils", "util", "helpers", "helper", "manager", "misc",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The workspace's packages by name: the folder, and (dependency, kind) of those that are ours.
fn packages() -> BTreeMap<String, (PathBuf, Vec<(String, String)>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs: it built this test");
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut packages = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
        let ours = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|d| !d["path"].is_null())
            .map(|d| {
                let kind = d["kind"].as_str().unwrap_or("normal");
                (d["name"].as_str().unwrap().to_owned(), kind.to_owned())
            })
            .collect();
        packages.insert(name, (manifest.parent().unwrap().to_owned(), ours));
    }
    assert!(packages.contains_key("forerun-block"), "{packages:?}");
    packages
}

/// Every Rust file under a folder, target directories and generated code aside: nobody reads that.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    pending.push(path);
                }
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                if !text.starts_with("// This file is @generated") {
                    found.push(path);
                }
            }
        }
    }
    found.sort();
    found
}

fn all_rust_files() -> Vec<PathBuf> {
    let files: Vec<PathBuf> = ["src", "driver", "proto", "tests", "benches"]
        .iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
        .collect();
    assert!(files.len() > 10, "the walk found only {files:?}");
    files
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The code of a line: without its comment, without what stands in string literals.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut characters = line.chars().peekable();
    let mut in_string = false;
    while let Some(c) = characters.next() {
        match c {
            '\\' if in_string => {
                characters.next();
            }
            '"' => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            c if !in_string => code.push(c),
            _ => {}
        }
    }
    code
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|w| w == word)
}

#[test]
fn every_import_between_our_packages_is_an_edge_of_the_design() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> = MAY_IMPORT
        .iter()
        .map(|(name, edges)| (*name, edges.iter().copied().collect()))
        .collect();
    let mut broken = Vec::new();
    for (name, (_, dependencies)) in packages() {
        let Some(allowed) = allowed.get(name.as_str()) else {
            broken.push(format!(
                "package {name} has no line in MAY_IMPORT: decide who it may import"
            ));
            continue;
        };
        for (dependency, kind) in dependencies {
            // Tests of a package may use the simulator, and nothing else that its code may not.
            let tests_only = kind == "dev";
            let fine = allowed.contains(dependency.as_str())
                || (tests_only && dependency == "forerun-sim")
                || (tests_only && name == "forerun");
            if !fine {
                broken.push(format!("{name} must not import {dependency} ({kind})"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn nothing_that_ships_depends_on_the_simulator() {
    for (name, (_, dependencies)) in packages() {
        for (dependency, kind) in dependencies {
            assert!(
                dependency != "forerun-sim" || kind == "dev",
                "{name} imports the simulator in what ships"
            );
        }
    }
}

#[test]
fn unsafe_is_only_where_it_is_allowed_and_says_why_it_is_sound() {
    let mut broken = Vec::new();
    for (name, (folder, _)) in packages() {
        let may = MAY_BE_UNSAFE.contains(&name.as_str());
        let files = if name == "forerun" {
            all_rust_files()
                .into_iter()
                .filter(|f| !f.starts_with(root().join("driver")))
                .filter(|f| !f.starts_with(root().join("proto")))
                .collect()
        } else {
            rust_files(&folder)
        };
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            for (at, line) in lines.iter().enumerate() {
                if !has_word(&code_of(line), "unsafe") || code_of(line).contains("unsafe_") {
                    continue;
                }
                if !may {
                    broken.push(format!("{}:{}: unsafe here", shown(&file), at + 1));
                } else if !explains_soundness(&lines, at) {
                    broken.push(format!(
                        "{}:{}: unsafe without `SAFETY:` (or `# Safety` on an unsafe fn)",
                        shown(&file),
                        at + 1
                    ));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The reason stands in the comment right above, attributes and the statement's own first lines
/// between them allowed, or on the same line.
fn explains_soundness(lines: &[&str], at: usize) -> bool {
    const LOOK_BACK: usize = 12;
    lines[at.saturating_sub(LOOK_BACK)..=at]
        .iter()
        .any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
}

#[test]
fn no_module_is_longer_than_a_reader_can_hold() {
    let mut broken = Vec::new();
    for file in all_rust_files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let length = text.lines().count();
        let reasoned = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .any(|line| line.starts_with("//! Length:"));
        if length > LONGEST_MODULE && !reasoned {
            broken.push(format!(
                "{}: {length} lines, at most {LONGEST_MODULE}: split it, or say why in a header line `//! Length: …`",
                shown(&file)
            ));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_module_says_what_it_is_and_has_a_name_that_means_something() {
    let mut broken = Vec::new();
    for file in all_rust_files() {
        let parts: Vec<String> = shown(&file)
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        for part in parts {
            if EMPTY_NAMES.contains(&part.as_str()) {
                broken.push(format!("{}: `{part}` says nothing", shown(&file)));
            }
        }
        let text = std::fs::read_to_string(&file).unwrap();
        // A `tests.rs` is told by the module that it tests.
        let tells = text.starts_with("//!") || file.ends_with("tests.rs");
        if !tells {
            broken.push(format!("{}: no `//!` header", shown(&file)));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn predict_and_planner_import_nothing_of_ours() {
    const OURS: &[&str] = &[
        "block", "ring", "storage", "volume", "wire", "replica", "nbd", "vhost", "node", "proto",
        "sim", "forerun",
    ];
    let mut broken = Vec::new();
    for room in ["predict", "planner"] {
        for file in rust_files(&root().join("src").join(room)) {
            let text = std::fs::read_to_string(&file).unwrap();
            for (at, line) in text.lines().enumerate() {
                if let Some(path) = imported_path(&code_of(line)) {
                    let first = path.split("::").next().unwrap_or_default();
                    let outside = path.strip_prefix("crate::").is_some_and(|rest| {
                        // The planner scores what the predictor foresees; both may use plain types.
                        !["predict", "planner", "fleet"]
                            .iter()
                            .any(|plain| rest == *plain || rest.starts_with(&format!("{plain}::")))
                    });
                    if OURS.contains(&first) || outside {
                        broken.push(format!("{}:{}: imports {path}", shown(&file), at + 1));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// `use a::b;` → `a::b`, whatever its visibility.
fn imported_path(code: &str) -> Option<&str> {
    let code = code.trim_start();
    let code = match code.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.trim_start(),
        None => code,
    };
    let path = code.strip_prefix("use ")?;
    Some(path.trim().trim_end_matches(';').trim_start_matches("::"))
}

#[test]
fn the_rules_read_code_and_not_comments_or_strings() {
    assert!(!has_word(&code_of("// unsafe in a comment"), "unsafe"));
    assert!(!has_word(&code_of("let x = \"unsafe\";"), "unsafe"));
    assert!(has_word(&code_of("unsafe { f() } // why"), "unsafe"));
    assert_eq!(imported_path("use block::Span;"), Some("block::Span"));
    assert_eq!(
        imported_path("    pub(crate) use crate::store::Store;"),
        Some("crate::store::Store")
    );
    assert_eq!(imported_path("pub use std::fmt;"), Some("std::fmt"));
    assert_eq!(imported_path("fn use_it() {}"), None);
}
