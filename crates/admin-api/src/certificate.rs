//! The page of certificates.

use serde::{Deserialize, Serialize};

/// A certificate that an agent keeps. There is no key on the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Whose it is.
    pub identity: String,
    /// What is being done for it, in a word: `valid` where all is well.
    pub state: String,
    /// Its names.
    pub sans: Option<Vec<String>>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Since when it is valid, in seconds since 1970.
    pub not_before: Option<u64>,
    /// Until when.
    pub not_after: Option<u64>,
    /// When it is renewed.
    pub renewal: Option<u64>,
    /// Attempts that failed since the last success.
    pub failures: u32,
    /// What the last one failed with.
    pub last_error: Option<String>,
}
