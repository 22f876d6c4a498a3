//! An answer in the forms in which it can be asked for.

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; its fields stay.
    Json,
    /// The same as YAML.
    Yaml,
}

/// What a command found.
#[derive(Debug)]
pub(crate) struct Answer {
    /// For programs.
    pub(crate) data: Value,
    /// For people; ends with a line feed.
    pub(crate) text: String,
    /// Whether it is as it should be.
    pub(crate) is_good: bool,
}

impl Answer {
    /// An answer with nothing to complain about.
    pub(crate) fn good(data: &impl Serialize, text: String) -> anyhow::Result<Self> {
        Ok(Self {
            data: serde_json::to_value(data)?,
            text,
            is_good: true,
        })
    }

    /// The same, good or not.
    pub(crate) fn but(self, is_good: bool) -> Self {
        Self { is_good, ..self }
    }
}
