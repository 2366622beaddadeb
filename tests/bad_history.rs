//! Histories, prices and fleets that are no good, given to what plans and forecasts from files: an error that
//! names the file and the remedy, or a fallback that is said, and never a number made of nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// When these plans are made.
const NOW: i64 = 1_700_000_000;
const STEP: i64 = 300;

const PRICES: &str = r#"
version = "1"
currency = "EUR"
[sites.west]
storage_gib_month = 0.1
egress_gib = 0.0
shapes = [{ name = "s", cpus = 8, memory_gib = 16, storage_gib = 200, hour = 0.1 }]
"#;

const FLEET: &str = r#"
[[site]]
name = "west"
latency_ms = 5.0
bandwidth_mib = 100.0
provision_seconds = 60
quota = 1
[[subject]]
name = "a"
site = "home"
history = "a.csv"
capacity = 90.0
cpus = 2
memory_gib = 4
volume = [{ name = "v", gib = 10 }]
"#;

struct Files(tempfile::TempDir);

/// What a command said, on its two streams, and its exit code.
struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }

    fn refused(&self, words: &[&str]) {
        assert!(
            matches!(self.code, Some(1 | 2)),
            "{:?}: {}",
            self.code,
            self.err
        );
        assert_eq!(self.out, "", "an error and an answer");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in: {}", self.err);
        }
    }
}

impl Files {
    fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.put("fleet.toml", FLEET);
        files.put("prices.toml", PRICES);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Samples of five minutes, the newest at [`NOW`], as stamps and values.
    fn history(&self, samples: &[(i64, f64)]) {
        let rows: String = samples
            .iter()
            .map(|(at, v)| format!("{at},{v}\n"))
            .collect();
        self.put("a.csv", &format!("timestamp,value\n{rows}"));
    }

    fn run(&self, words: &[&str]) -> Said {
        let done = Command::new(env!("CARGO_BIN_EXE_forerun"))
            .args(words)
            .args(["--output", "json"])
            .current_dir(self.0.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let said = Said {
            out: text(done.stdout),
            err: text(done.stderr),
            code: done.status.code(),
        };
        assert!(!said.err.contains("panicked"), "{}", said.err);
        said
    }

    fn forecast(&self) -> Said {
        self.run(&["forecast", "--history", "a.csv", "--horizon", "6"])
    }

    fn plan(&self) -> Said {
        let at = NOW.to_string();
        let from = [
            "--fleet",
            "fleet.toml",
            "--prices",
            "prices.toml",
            "--at",
            &at,
        ];
        self.run(&[&["plan"], &from[..]].concat())
    }

    /// The plan does nothing and says why.
    fn does_nothing_because(&self, why: &str) {
        let (notes, decision) = self.planned();
        assert!(notes.contains(why), "{why:?} is not in: {notes}");
        assert_eq!(decision["action"], "nothing", "{decision}");
    }

    /// The plan's notes and its decision.
    fn planned(&self) -> (String, Value) {
        let plan = self.plan().json();
        (plan["notes"].to_string(), plan["decisions"][0].clone())
    }
}

/// `count` samples before and at [`NOW`].
fn steady(count: i64, value: impl Fn(i64) -> f64) -> Vec<(i64, f64)> {
    let at = |i| NOW - (count - 1 - i) * STEP;
    (0..count).map(|i| (at(i), value(i))).collect()
}

#[test]
fn an_empty_history_is_an_error_or_only_events_count() {
    let files = Files::new();
    files.put("a.csv", "");
    files.forecast().refused(&["a.csv", "a header line"]);
    files.plan().refused(&["a.csv", "a header line"]);
    files.history(&[]);
    files.forecast().refused(&["a.csv", "no samples"]);
    files.does_nothing_because("no samples: only events count");
    files.history(&steady(5, |_| 95.0));
    files.forecast().refused(&["5 points and 12 are needed"]);
    files.does_nothing_because("5 points and 12 are needed");
    std::fs::remove_file(files.path("a.csv")).unwrap();
    files.forecast().refused(&["a.csv", "No such file"]);
    files.plan().refused(&["a.csv", "No such file"]);
}

#[test]
fn a_constant_is_foreseen_to_stay_and_nothing_is_made_for_it() {
    let files = Files::new();
    files.history(&steady(400, |_| 7.0));
    let forecast = files.forecast().json();
    assert_eq!(forecast["quantiles"]["0.025"][5], 7.0, "{forecast}");
    assert_eq!(forecast["window_max"]["0.95"], 7.0, "{forecast}");
    let (notes, decision) = files.planned();
    assert_eq!(
        (notes.as_str(), &decision["action"]),
        ("[]", &"nothing".into())
    );
}

#[test]
fn what_is_no_number_is_left_out_and_said() {
    let files = Files::new();
    files.history(&steady(400, |_| f64::NAN));
    files.forecast().refused(&["a.csv", "no finite value"]);
    files.does_nothing_because("no finite value: only events count");
    files.history(&steady(400, |i| match i % 50 {
        3 => f64::NAN,
        4 => f64::INFINITY,
        _ => 7.0,
    }));
    let said = files.forecast();
    assert!(
        said.err.contains("repaired 16 values not finite"),
        "{}",
        said.err
    );
    assert_eq!(said.json()["window_max"]["0.95"], 7.0);
    files.does_nothing_because("repaired 16 values not finite");
    files.put("a.csv", "timestamp,value\n0,much\n");
    files.forecast().refused(&["line 2", "`much` is no number"]);
    files.plan().refused(&["line 2", "`much` is no number"]);
    // in the fleet's own figures too
    for (from, to) in [
        ("capacity = 90.0", "capacity = nan"),
        ("gib = 10", "gib = -1"),
    ] {
        files.put("fleet.toml", &FLEET.replace(from, to));
        files.plan().refused(&["fleet.toml", "is no size"]);
    }
}

#[test]
fn a_clock_that_went_back_is_put_in_order_and_said() {
    let files = Files::new();
    let mut samples = steady(400, |_| 7.0);
    for sample in &mut samples[300..] {
        sample.0 -= 3600;
    }
    files.history(&samples);
    let said = files.forecast();
    assert!(
        said.err.contains("1 stamps out of order, 12 duplicates"),
        "{}",
        said.err
    );
    assert_eq!(said.json()["step_seconds"], STEP);
    files.does_nothing_because("1 stamps out of order, 12 duplicates");
}

/// Its clock was ahead, or the plan is made as of a time in the past: what comes later was silently taken for
/// the present.
#[test]
fn what_lies_ahead_of_a_plan_does_not_count_and_is_said() {
    let files = Files::new();
    let mut samples = steady(400, |_| 7.0);
    samples.extend((1..=24).map(|i| (NOW + i * STEP, 99.0)));
    files.history(&samples);
    files.does_nothing_because("24 samples are of times after the plan's");
    // and one that ended long ago is said to have
    let old: Vec<_> = steady(400, |_| 7.0)
        .iter()
        .map(|s| (s.0 - 86_400, s.1))
        .collect();
    files.history(&old);
    files.does_nothing_because("it ends 86400 s before the plan's time");
}

#[test]
fn missing_prices_are_named_with_the_remedy() {
    let files = Files::new();
    files.history(&steady(400, |i| if i % 10 == 0 { 99.0 } else { 50.0 }));
    let (_, decision) = files.planned();
    assert_eq!(decision["action"], "provision", "{decision}");
    files.put("prices.toml", &PRICES.replace("sites.west", "sites.mars"));
    let (_, decision) = files.planned();
    assert_eq!(decision["action"], "stuck", "{decision}");
    let line = decision["line"].as_str().unwrap();
    assert!(line.contains("add [sites.west]"), "{line}");
    for (text, says) in [
        (
            PRICES
                .replace("0.1,", "nan,")
                .replace("hour = 0.1", "hour = nan"),
            "is no price",
        ),
        (PRICES.replace("egress_gib = 0.0", ""), "egress_gib"),
        (String::new(), "version"),
    ] {
        files.put("prices.toml", &text);
        files.plan().refused(&["prices.toml", says]);
    }
    std::fs::remove_file(files.path("prices.toml")).unwrap();
    files.plan().refused(&["prices.toml", "No such file"]);
    assert!(Path::new(&files.path("fleet.toml")).exists());
}
