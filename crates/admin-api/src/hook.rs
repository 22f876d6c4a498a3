//! What is attached where the kernel half's programs are too.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One place in the kernel, with its programs in the order in which they run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Hook {
    /// Which, such as `connect4 of /sys/fs/cgroup` or `tcx ingress of eth0`.
    pub at: String,
    /// From the one that is asked first.
    pub programs: Vec<Attached>,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attached {
    /// As the kernel has it, which keeps 15 letters; `?` if it has none.
    pub name: String,
    /// Whether it is one of the kernel half.
    pub ours: bool,
}

impl Hook {
    /// Whether a program of somebody else's is there.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.programs.iter().any(|program| !program.ours)
    }
}

impl fmt::Display for Hook {
    /// For people: the order counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        for (index, Attached { name, ours }) in self.programs.iter().enumerate() {
            let before = if index == 0 { "" } else { ", then " };
            let whose = if *ours { " (ours)" } else { "" };
            write!(f, "{before}{name}{whose}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_read_from_left_to_right() {
        let program = |name: &str, ours| Attached {
            name: name.to_owned(),
            ours,
        };
        let mut hook = Hook {
            at: "connect4 of /c".to_owned(),
            programs: vec![program("connect4_captur", true)],
        };
        assert!(!hook.has_others());
        hook.programs.insert(0, program("cil_sock4_conne", false));
        assert!(hook.has_others());
        assert_eq!(
            hook.to_string(),
            "connect4 of /c: cil_sock4_conne, then connect4_captur (ours)"
        );
    }
}
