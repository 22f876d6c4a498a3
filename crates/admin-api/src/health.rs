//! Whether a program is ready, and what it awaits.

use serde::{Deserialize, Serialize};

/// The answer of the page of health, which is text for people and probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it is ready.
    pub ready: bool,
    /// What is awaited.
    pub awaited: Vec<String>,
    /// Why it will never be ready where it is.
    #[serde(default)]
    pub cannot: Option<String>,
}

impl Health {
    /// Reads the page with its status.
    #[must_use]
    pub fn read(status: u16, body: &str) -> Self {
        let ready = status == 200;
        let awaited = body.trim().strip_prefix(AWAITS).filter(|_| !ready);
        let awaited = awaited.into_iter().flat_map(|list| list.split(", "));
        let cannot = body.trim().strip_prefix(CANNOT).filter(|_| !ready);
        Self {
            ready,
            awaited: awaited.map(str::to_owned).collect(),
            cannot: cannot.map(str::to_owned),
        }
    }
}

const AWAITS: &str = "not ready; awaits: ";
const CANNOT: &str = "not ready; wanted, cannot: ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_is_read_from_the_text() {
        let page = Health::read(
            503,
            "not ready; awaits: configuration, every captured pod is known\n",
        );
        assert!(!page.ready);
        assert_eq!(
            page.awaited,
            ["configuration", "every captured pod is known"]
        );
        let ready = Health::read(200, "ready\n");
        assert_eq!((ready.ready, ready.awaited.len()), (true, 0));
        let never = Health::read(
            503,
            "not ready; wanted, cannot: the kernel is old, too old\n",
        );
        assert_eq!(never.cannot.as_deref(), Some("the kernel is old, too old"));
        assert!(!never.ready && never.awaited.is_empty());
    }
}
