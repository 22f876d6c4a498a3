//! The places that define one object, in the order of file names and positions. Nearly always there is one.

use std::sync::Arc;

/// What stands at each place.
#[derive(Debug)]
pub(super) struct Places<T>(Vec<(Arc<str>, usize, T)>);

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Places<T> {
    pub(super) fn insert(&mut self, file: Arc<str>, position: usize, value: T) {
        match self.find(&file, position) {
            Ok(at) => {
                if let Some(known) = self.0.get_mut(at) {
                    known.2 = value;
                }
            }
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (file, position, value));
            }
        }
    }

    pub(super) fn remove(&mut self, file: &str, position: usize) {
        if let Ok(at) = self.find(file, position) {
            self.0.remove(at);
        }
    }

    pub(super) fn get(&self, file: &str, position: usize) -> Option<&T> {
        let at = self.find(file, position).ok()?;
        self.0.get(at).map(|(_, _, value)| value)
    }

    /// The one that counts.
    pub(super) fn last(&self) -> Option<&T> {
        self.values().next_back()
    }

    pub(super) fn values(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.iter().map(|(_, _, value)| value)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, file: &str, position: usize) -> Result<usize, usize> {
        let order = |(name, at, _): &(Arc<str>, usize, T)| (&**name, *at).cmp(&(file, position));
        self.0.binary_search_by(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_file_and_the_later_position_count() {
        let mut places = Places::default();
        for (file, position) in [("b", 0), ("a", 7), ("b", 2), ("a", 7)] {
            places.insert(file.into(), position, (file, position));
        }
        assert_eq!((places.len(), places.last()), (3, Some(&("b", 2))));
        places.remove("b", 2);
        places.remove("b", 5);
        assert_eq!(places.last(), Some(&("b", 0)));
        assert_eq!(
            (places.get("a", 7), places.get("a", 1)),
            (Some(&("a", 7)), None)
        );
        places.remove("b", 0);
        places.remove("a", 7);
        assert!(places.is_empty());
    }
}
