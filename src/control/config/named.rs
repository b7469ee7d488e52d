//! Enumerations with keywords.

/// An enumeration with keywords.
pub trait Named: Copy + PartialEq + 'static {
    /// Values with keywords.
    const NAMES: &'static [(&'static str, Self)];

    /// Keyword of this value.
    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }
}
