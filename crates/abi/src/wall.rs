//! The second wall: between captured pods of two nodes TCP goes through a tunnel, or not at all.

/// What is done with plain TCP of an address or a pod (`WALLED_ADDRS`, `WALLED_PODS`). Both ends have to
/// say [`Wall::Enforce`] for a packet to be dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Wall {
    /// It passes and is counted: some node may not know yet that the pod is captured.
    Count = 1,
    /// It is dropped, unless it belongs to a listed older connection.
    Enforce = 2,
}

impl Wall {
    /// Reads a value of a map. Unknown numbers mean [`Wall::Enforce`].
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Count,
            _ => Self::Enforce,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Wall;

    #[test]
    fn an_unknown_wall_is_enforced() {
        for raw in [0, 2, 3, u32::MAX] {
            assert_eq!(Wall::from_raw(raw), Wall::Enforce, "{raw}");
        }
        assert_eq!(Wall::from_raw(Wall::Count as u32), Wall::Count);
    }
}
