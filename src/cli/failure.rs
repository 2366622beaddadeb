//! Why a verb failed, and the exit code that says so.

use std::fmt;

/// A failed verb. The text says what was asked, what happened and what to do.
#[derive(Debug)]
pub struct Failure {
    text: String,
    usage: bool,
}

impl Failure {
    /// It was asked properly and did not work: exit code 1.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Failure {
        Failure {
            text: text.into(),
            usage: false,
        }
    }

    /// It was asked wrongly: exit code 2.
    #[must_use]
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure {
            text: text.into(),
            usage: true,
        }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<node::Error> for Failure {
    fn from(e: node::Error) -> Failure {
        Failure {
            text: e.to_string(),
            usage: e.kind() == node::ErrorKind::Invalid,
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        Failure {
            text: status.message().to_owned(),
            usage: status.code() == tonic::Code::InvalidArgument,
        }
    }
}
