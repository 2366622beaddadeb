//! An operation: a command on its way, as the log has it.

use super::{Command, Step, UnixMs};
use node::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Chosen by the client, so that a command repeated after a time-out is the same operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId(String);

impl OperationId {
    /// Longest id: room for a UUID and a word.
    const MAX: usize = 64;

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OperationId {
    type Err = Error;
    fn from_str(s: &str) -> Result<OperationId> {
        let ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if s.is_empty() || s.len() > OperationId::MAX || !s.chars().all(ok) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "operation id {s:?}: use 1 to {} letters, digits, '-' or '_'; a UUID is a good choice",
                    OperationId::MAX
                ),
            ));
        }
        Ok(OperationId(s.to_owned()))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its steps are being done.
    Running,
    /// A step failed for good; what was done is being undone.
    Undoing,
    /// All done.
    Done,
    /// Undone; `error` says why.
    Failed,
}

/// How a cutover went, kept with its operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How long the gate was closed.
    pub frozen_micros: u64,
    /// How long converging took.
    pub converge_micros: u64,
    /// The new owner's generation.
    pub generation: u64,
}

/// A logged operation. What is in it suffices to finish it after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What was asked.
    pub command: Command,
    /// Where it stands.
    pub state: State,
    /// What is to be done, in order.
    pub steps: Vec<Step>,
    /// How many of the steps are done, durably.
    pub done: usize,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was logged.
    pub started: UnixMs,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// With a cutover that succeeded.
    pub cutover: Option<Progress>,
}

impl Operation {
    /// The next step, if the operation has not ended.
    #[must_use]
    pub fn next(&self) -> Option<&Step> {
        self.is_running()
            .then(|| self.steps.get(self.done))
            .flatten()
    }

    /// Whether something is left to be done.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running | State::Undoing)
    }
}
