//! What the demo found, for people and for machines.

use crate::cli::out::{bytes, duration};
use node::client::verify;
use serde::Serialize;
use std::time::Duration;

/// The demo's result. The names are an interface: scripts read them.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)] // the names say it, and the README explains them
pub struct Report {
    pub volume_bytes: u64,
    pub seed: Seed,
    pub increments: Vec<Increment>,
    pub cutover: Cutover,
    pub client: Client,
    pub identical: bool,
}

/// The first full copy.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Seed {
    pub bytes_total: u64,
    pub bytes_sent: u64,
    pub seconds: f64,
}

/// One epoch's blocks, sent.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Increment {
    pub epoch: u64,
    pub dirty_bytes: u64,
    pub sent_bytes: u64,
    pub seconds: f64,
}

/// The change of owner.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Cutover {
    pub frozen_ms: f64,
    pub stall_max_ms: f64,
    pub converge_seconds: f64,
    pub generation: u64,
}

/// What the verifying client saw.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Client {
    pub ios: u64,
    pub errors: u64,
    pub mismatches: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p99_before_us: u64,
    pub p99_seeding_us: u64,
}

impl Report {
    /// Whether everything is as it should be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.identical && self.client.errors == 0 && self.client.mismatches == 0
    }

    /// The report as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        let mut fact = |name: &str, value: String| lines.push(format!("  {name:<11}{value}"));
        let secs = |s: f64| duration(Duration::from_secs_f64(s.max(0.0)));
        fact("volume", bytes(self.volume_bytes));
        fact(
            "seeding",
            format!(
                "{} read, {} sent, {}",
                bytes(self.seed.bytes_total),
                bytes(self.seed.bytes_sent),
                secs(self.seed.seconds)
            ),
        );
        for i in &self.increments {
            fact(
                "increment",
                format!(
                    "epoch {}: {} dirty, {} sent, {}",
                    i.epoch,
                    bytes(i.dirty_bytes),
                    bytes(i.sent_bytes),
                    secs(i.seconds)
                ),
            );
        }
        fact(
            "cutover",
            format!(
                "converged in {}, frozen for {}, longest I/O {}; generation {}",
                secs(self.cutover.converge_seconds),
                secs(self.cutover.frozen_ms / 1e3),
                secs(self.cutover.stall_max_ms / 1e3),
                self.cutover.generation
            ),
        );
        fact(
            "client",
            format!(
                "{} I/Os, {} errors, {} mismatches; p50 {}, p99 {} ({} before seeding, {} during it)",
                self.client.ios,
                self.client.errors,
                self.client.mismatches,
                duration(Duration::from_micros(self.client.p50_us)),
                duration(Duration::from_micros(self.client.p99_us)),
                duration(Duration::from_micros(self.client.p99_before_us)),
                duration(Duration::from_micros(self.client.p99_seeding_us))
            ),
        );
        let verdict = if self.is_good() {
            "Every byte on the new owner is what the client wrote."
        } else {
            "FAILED: the volume on the new owner is not what the client wrote."
        };
        format!("{}\n{verdict}", lines.join("\n"))
    }
}

impl Client {
    /// Sum up what the verifying client saw on its way, before a replica and while one was seeded, and
    /// when it compared the whole volume.
    #[must_use]
    pub fn new(
        seen: &verify::Report,
        at_rest: &verify::Comparison,
        before: &verify::Latency,
        seeding: &verify::Latency,
    ) -> Client {
        Client {
            ios: seen.ios,
            errors: seen.errors,
            mismatches: seen.mismatches + at_rest.mismatches,
            p50_us: seen.latency.p50_us as u64,
            p99_us: seen.latency.p99_us as u64,
            p99_before_us: before.p99_us as u64,
            p99_seeding_us: seeding.p99_us as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn report() -> Report {
        let seen = verify::Report {
            ios: 5,
            errors: 0,
            mismatches: 2,
            latency: verify::Latency {
                ios: 5,
                p50_us: 80.5,
                p99_us: 900.0,
                max_us: 1000.0,
            },
            complaints: Vec::new(),
            lost: None,
        };
        let at_rest = verify::Comparison {
            mismatches: 1,
            ..Default::default()
        };
        Report {
            volume_bytes: 256 << 20,
            seed: Seed {
                bytes_total: 100 << 20,
                bytes_sent: 90 << 20,
                seconds: 0.5,
            },
            increments: vec![Increment {
                epoch: 1,
                dirty_bytes: 8192,
                sent_bytes: 4096,
                seconds: 0.02,
            }],
            cutover: Cutover {
                frozen_ms: 1.5,
                stall_max_ms: 4.0,
                converge_seconds: 0.2,
                generation: 2,
            },
            client: Client::new(&seen, &at_rest, &seen.latency, &seen.latency),
            identical: true,
        }
    }

    #[test]
    fn a_mismatch_is_a_failure_whatever_else_is_well() {
        let mut report = report();
        assert_eq!(report.client.mismatches, 3);
        assert!(!report.is_good());
        assert!(report.text().contains("FAILED"));
        report.client.mismatches = 0;
        assert!(report.is_good());
        assert!(report.text().contains("Every byte"));
    }

    #[test]
    fn the_machine_readable_report_has_the_promised_fields() {
        let json = serde_json::to_value(report()).unwrap();
        let keys = |v: &Value| {
            v.as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<BTreeSet<_>>()
        };
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|n| (*n).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let expect = |v: &Value, names: &[&str]| assert_eq!(keys(v), set(names));
        expect(
            &json,
            &[
                "volume_bytes",
                "seed",
                "increments",
                "cutover",
                "client",
                "identical",
            ],
        );
        expect(&json["seed"], &["bytes_total", "bytes_sent", "seconds"]);
        expect(
            &json["increments"][0],
            &["epoch", "dirty_bytes", "sent_bytes", "seconds"],
        );
        expect(
            &json["cutover"],
            &[
                "frozen_ms",
                "stall_max_ms",
                "converge_seconds",
                "generation",
            ],
        );
        expect(
            &json["client"],
            &[
                "ios",
                "errors",
                "mismatches",
                "p50_us",
                "p99_us",
                "p99_before_us",
                "p99_seeding_us",
            ],
        );
    }
}
