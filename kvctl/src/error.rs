//! What can go wrong, and the exit code that says so to scripts.

use std::fmt;

/// Exit codes. Scripts compare them: they never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Unreachable = 4,
    Conflict = 5,
    TimedOut = 6,
    DependenciesNotMet = 7,
    /// A drill found a promise broken.
    Broken = 8,
    Environment = 10,
}

/// A failure that ends the command.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    /// The one document of a command that has more to tell than why it failed.
    pub document: Option<Box<serde_json::Value>>,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), document: None }
    }

    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Code::Environment, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<kvnode_client::Error> for Failure {
    fn from(error: kvnode_client::Error) -> Self {
        let code = match error {
            kvnode_client::Error::Unreachable(_) => Code::Unreachable,
            kvnode_client::Error::TimedOut(_) => Code::TimedOut,
            kvnode_client::Error::Broken(_) => Code::Failed,
            kvnode_client::Error::NoUrl(_) => Code::Usage,
        };
        Self::new(code, error.to_string())
    }
}

impl From<bollard::errors::Error> for Failure {
    fn from(error: bollard::errors::Error) -> Self {
        Self::environment(format!("Docker: {error}"))
    }
}
