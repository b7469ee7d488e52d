//! Values that are written as one of a few words.

/// A value that is written as one of a few words.
pub trait Named: Copy + PartialEq + 'static {
    /// Each value with its word.
    const NAMES: &'static [(&'static str, Self)];

    /// The word for this value.
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }
}
