//! Values that configurations share: a change copies what it changes, and comparing the rest compares addresses.

use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// A value that clones share until one of them changes it.
#[derive(Default)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// Whether both are the same value at the same address. Equal values may have two.
    pub fn is_same(&self, other: &Shared<T>) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Shared<T> {
    /// The address of the value, which identifies it.
    pub fn address(&self) -> *const T {
        Arc::as_ptr(&self.0)
    }
}

impl<T: Clone> Shared<T> {
    /// The value; a copy if others share it.
    pub fn into_inner(self) -> T {
        Arc::unwrap_or_clone(self.0)
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Shared<T> {
        Shared(Arc::new(value))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(self.0.clone())
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Shared<T>) -> bool {
        self.is_same(other) || **self == **other
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Copies the value first if others share it.
impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The parts in which two lists may differ: both without the values that they share at their beginnings and ends.
pub fn differing<'v, T>(old: &'v [Shared<T>], new: &'v [Shared<T>]) -> (&'v [Shared<T>], &'v [Shared<T>]) {
    let (first, last) = shared_ends(old, new);
    (&old[first..old.len() - last], &new[first..new.len() - last])
}

/// Numbers of values that two lists share at their beginnings and at their ends.
fn shared_ends<T>(old: &[Shared<T>], new: &[Shared<T>]) -> (usize, usize) {
    let is_same = |(old, new): &(&Shared<T>, &Shared<T>)| old.is_same(new);
    let first = old.iter().zip(new).take_while(is_same).count();
    let (old, new) = (&old[first..], &new[first..]);
    (first, old.iter().rev().zip(new.iter().rev()).take_while(is_same).count())
}

/// Shares the values of a list that are equal to one with the same id in `other`, so that comparing them costs nothing.
pub(super) fn share<T: PartialEq>(list: &mut [Shared<T>], other: &[Shared<T>], id: fn(&T) -> &String) {
    let (first, last) = shared_ends(other, list);
    let (other, end) = (&other[first..other.len() - last], list.len() - last);
    let known: HashMap<&str, &Shared<T>> = other.iter().map(|value| (id(value).as_str(), value)).collect();
    for value in &mut list[first..end] {
        if let Some(&same) = known.get(id(value).as_str()).filter(|known| **known == value) {
            *value = same.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_change_of_one_clone_leaves_the_others() {
        let mut one = Shared::from(vec![1]);
        let other = one.clone();
        assert!(one.is_same(&other));
        one.push(2);
        assert_eq!((one.as_slice(), other.as_slice()), (&[1, 2][..], &[1][..]));
        assert!(one != other && !one.is_same(&other));
        one.pop();
        assert!(one == other && !one.is_same(&other), "equal at another address");
    }

    #[test]
    fn equal_values_are_shared() {
        let list = |ids: &[&str]| ids.iter().map(|&id| Shared::from(id.to_owned())).collect::<Vec<_>>();
        let (old, mut new) = (list(&["a", "b", "c"]), list(&["c", "x", "a"]));
        share(&mut new, &old, |id| id);
        assert!(new[0].is_same(&old[2]) && new[2].is_same(&old[0]) && new == list(&["c", "x", "a"]));
    }

    proptest! {
        /// What is left out is at both ends of both lists, and as much as possible.
        #[test]
        fn only_shared_ends_are_left_out(old in prop::collection::vec(0usize..4, 0..8), new in prop::collection::vec(0usize..4, 0..8)) {
            let values: Vec<Shared<usize>> = (0..4).map(Shared::from).collect();
            let list = |of: &[usize]| of.iter().map(|&value| values[value].clone()).collect::<Vec<_>>();
            let (before, after) = (list(&old), list(&new));
            let (differing_old, differing_new) = differing(&before, &after);
            let left_out = before.len() - differing_old.len();
            prop_assert_eq!(left_out, after.len() - differing_new.len());
            let first = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
            let rest = |of: &[usize]| of[first..].to_vec();
            let last = rest(&old).iter().rev().zip(rest(&new).iter().rev()).take_while(|(old, new)| old == new).count();
            prop_assert_eq!(left_out, first + last);
            prop_assert_eq!(differing_old, &before[first..before.len() - last]);
            prop_assert_eq!(differing_new, &after[first..after.len() - last]);
        }
    }
}
