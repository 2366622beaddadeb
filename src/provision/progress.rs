//! Terraform's machine-readable output (`-json`), one message a line, as progress and as a failure.

use super::failure::{Class, Failed};
use serde::{Deserialize, Serialize};

/// What happens at a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// Something will be done.
    Planned {
        /// The resource.
        resource: String,
        /// `create`, `delete`, `replace`, `update`.
        action: String,
    },
    /// It begins.
    Started {
        /// The resource.
        resource: String,
    },
    /// It goes on, or a provisioner said something.
    Note {
        /// The resource.
        resource: String,
        /// In Terraform's words.
        text: String,
    },
    /// It is done.
    Finished {
        /// The resource.
        resource: String,
        /// How long it took.
        seconds: u64,
    },
    /// It went wrong.
    Errored {
        /// The resource.
        resource: String,
    },
    /// The run will be repeated after a wait.
    Retrying {
        /// Why.
        text: String,
    },
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "@message", default)]
    text: String,
    change: Option<Hook>,
    hook: Option<Hook>,
    diagnostic: Option<Diagnostic>,
}

#[derive(Deserialize)]
struct Hook {
    resource: Resource,
    #[serde(default)]
    action: String,
    #[serde(default)]
    elapsed_seconds: f64,
    #[serde(default)]
    output: String,
}

#[derive(Deserialize)]
struct Resource {
    addr: String,
}

#[derive(Deserialize)]
struct Diagnostic {
    severity: String,
    summary: String,
    #[serde(default)]
    detail: String,
}

/// Reads the stream. Lines that are not Terraform's messages are passed over: a provider may print
/// what it likes.
#[derive(Default)]
pub struct Stream {
    errors: Vec<String>,
}

/// More errors than this say nothing new.
const ERRORS_KEPT: usize = 8;

impl Stream {
    /// One line in, at most one word of progress out.
    pub fn line(&mut self, line: &str) -> Option<Progress> {
        let m: Message = serde_json::from_str(line).ok()?;
        if let Some(d) = m.diagnostic {
            if d.severity == "error" && self.errors.len() < ERRORS_KEPT {
                let detail = d.detail.split_whitespace().collect::<Vec<_>>().join(" ");
                self.errors.push(format!("{}: {detail}", d.summary));
            }
            return None;
        }
        if m.kind == "planned_change" {
            let c = m.change?;
            return Some(Progress::Planned {
                resource: c.resource.addr,
                action: c.action,
            });
        }
        let hook = m.hook?;
        let resource = hook.resource.addr;
        match m.kind.as_str() {
            "apply_start" => Some(Progress::Started { resource }),
            "apply_complete" => Some(Progress::Finished {
                resource,
                seconds: hook.elapsed_seconds as u64,
            }),
            "apply_errored" => Some(Progress::Errored { resource }),
            "apply_progress" => Some(Progress::Note {
                resource,
                text: m.text,
            }),
            "provision_progress" => Some(Progress::Note {
                resource,
                text: hook.output,
            }),
            _ => None,
        }
    }

    /// The run as a failure: Terraform's own errors, else what it wrote to standard error.
    pub fn failure(&self, asked: &str, stderr: &str) -> Failed {
        let what = if self.errors.is_empty() {
            stderr.split_whitespace().collect::<Vec<_>>().join(" ")
        } else {
            self.errors.join("; ")
        };
        Failed::new(Class::of_message(&what), format!("{asked}: {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_progress_and_errors_a_failure() {
        let mut s = Stream::default();
        let planned = r#"{"@message":"a","type":"planned_change","change":{"resource":{"addr":"x.a"},"action":"create"}}"#;
        assert_eq!(
            s.line(planned),
            Some(Progress::Planned {
                resource: "x.a".into(),
                action: "create".into()
            })
        );
        let done = r#"{"type":"apply_complete","hook":{"resource":{"addr":"x.a"},"action":"create","elapsed_seconds":2}}"#;
        assert_eq!(
            s.line(done),
            Some(Progress::Finished {
                resource: "x.a".into(),
                seconds: 2
            })
        );
        assert_eq!(s.line("not json"), None);
        let error = r#"{"type":"diagnostic","diagnostic":{"severity":"error","summary":"Saved plan is stale","detail":"The\n given"}}"#;
        assert_eq!(s.line(error), None);
        let f = s.failure("apply site east", "");
        assert_eq!(f.class, Class::StalePlan);
        assert_eq!(f.text, "apply site east: Saved plan is stale: The given");
    }
}
