//! Things by small numbers.

/// Things by small numbers, which are used again.
pub(super) struct Slots<V> {
    places: Vec<Option<V>>,
    free: Vec<usize>,
}

impl<V> Default for Slots<V> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<V> Slots<V> {
    pub(super) fn insert(&mut self, value: V) -> usize {
        if let Some(key) = self.free.pop() {
            self.places[key] = Some(value);
            key
        } else {
            self.places.push(Some(value));
            self.places.len() - 1
        }
    }

    pub(super) fn take(&mut self, key: usize) -> Option<V> {
        let value = self.places.get_mut(key)?.take()?;
        self.free.push(key);
        Some(value)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
