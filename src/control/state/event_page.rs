//! Pages of events: a reader gets events in order, a bounded number at a time, from the store and from memory, and a message
//! wherever ids are missing.

use std::sync::Arc;

use crate::control::state::event_filter::EventFilter;
use crate::control::state::events::Event;

/// Maximum events of a page.
pub const PAGE: usize = 256;

/// Maximum bytes of a page, beyond which it gets no further event.
pub const PAGE_BYTES: usize = 256 << 10;

/// Position of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// It has the events up to this id. `None`: it takes the oldest one that there is.
    pub id: Option<u64>,
    /// It has the rows of the store up to this number.
    pub row: i64,
}

impl Cursor {
    /// Behind this id.
    pub fn after(id: u64) -> Cursor {
        Cursor { id: Some(id), row: 0 }
    }
}

/// Events in order, with a message of the kind `gap` in place of missing ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// Those that match.
    pub events: Vec<Arc<Event>>,
    /// Position behind this page.
    pub next: Cursor,
    /// Nothing is behind it now.
    pub is_last: bool,
    bytes: usize,
}

impl Page {
    /// An empty page at a position.
    pub fn at(next: Cursor) -> Page {
        Page { next, ..Page::default() }
    }

    /// Appends the next event, if it matches, behind a message if ids are missing before it.
    pub fn push(&mut self, event: &Arc<Event>, filter: &EventFilter) {
        // An event of a version without ids is in order.
        if event.id > 0 {
            self.skip_to(event.id, None);
            self.next.id = Some(event.id);
        }
        if filter.matches(event) {
            self.add(event.clone());
        }
    }

    /// Reports the ids before `next_id` as missing, if there are any that the reader expects. `why`: if they are not gone for
    /// good.
    pub fn skip_to(&mut self, next_id: u64, why: Option<&str>) {
        let first = match (self.next.id, why) {
            (Some(last), _) => last + 1,
            (None, Some(_)) => 1,
            (None, None) => return,
        };
        if first >= next_id {
            return;
        }
        let text = match why {
            Some(why) => format!("stored events are missing here, because they cannot be read now: {why}"),
            None => {
                let last = next_id - 1;
                let which =
                    if first == last { format!("event {first} is") } else { format!("events {first} to {last} are") };
                format!("{which} missing here: no longer stored, or lost when the switch was killed")
            }
        };
        self.add(Event::gap(first, next_id, text).into());
        self.next.id = Some(next_id - 1);
    }

    /// Nothing more is stored; memory has the events behind `forgotten`. `why`: if stored ones cannot be read.
    pub fn end_stored(&mut self, forgotten: u64, why: Option<&str>) {
        self.skip_to(forgotten + 1, why);
        self.next.id = Some(self.next.id.unwrap_or_default().max(forgotten));
    }

    /// Reports that the reader is behind an id that this switch has not used yet, and continues behind `last`.
    pub fn rewind(&mut self, unknown: u64, newest: u64, last: u64) {
        let text = format!(
            "this switch has no event {unknown}: its newest one is {newest}, as its ids have begun again; its events since the \
             start follow"
        );
        self.add(Event::gap(unknown.saturating_add(1), last + 1, text).into());
        self.next = Cursor::after(last);
    }

    fn add(&mut self, event: Arc<Event>) {
        self.bytes += event.size();
        self.events.push(event);
    }

    /// Whether it gets no further event.
    pub fn is_full(&self) -> bool {
        self.events.len() >= PAGE || self.bytes >= PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::control::state::events::{EventKind, Gap};

    fn event(id: u64) -> Arc<Event> {
        Event { id, ..Event::new(EventKind::Config, SystemTime::UNIX_EPOCH) }.into()
    }

    fn reported(page: &Page) -> Vec<Result<u64, Gap>> {
        page.events.iter().map(|event| event.gap.map_or(Ok(event.id), Err)).collect()
    }

    fn gap(first_missing: u64, next_id: u64) -> Result<u64, Gap> {
        Err(Gap { first_missing, next_id })
    }

    #[test]
    fn each_missing_id_is_reported_once_also_to_those_who_filter() {
        let none = EventFilter { kinds: vec![EventKind::PortUp], ..EventFilter::default() };
        for (filter, is_all) in [(EventFilter::default(), true), (none, false)] {
            let mut page = Page::at(Cursor::after(3));
            [4, 7, 8, 10].iter().for_each(|id| page.push(&event(*id), &filter));
            page.skip_to(11, None);
            page.skip_to(13, None);
            let all = [Ok(4), gap(5, 7), Ok(7), Ok(8), gap(9, 10), Ok(10), gap(11, 13)];
            let expected: Vec<_> = all.into_iter().filter(|entry| is_all || entry.is_err()).collect();
            assert_eq!(reported(&page), expected);
            assert_eq!(page.next, Cursor::after(12));
        }
    }

    #[test]
    fn who_takes_the_oldest_event_misses_none_before_it() {
        let mut page = Page::at(Cursor::default());
        page.push(&event(0), &EventFilter::default());
        page.skip_to(5, None);
        page.push(&event(7), &EventFilter::default());
        assert_eq!((reported(&page), page.next), (vec![Ok(0), Ok(7)], Cursor::after(7)));
        // Unless stored ones cannot be read.
        let mut page = Page::at(Cursor::default());
        page.skip_to(7, Some("the disk is gone"));
        page.push(&event(7), &EventFilter::default());
        assert_eq!(reported(&page), [gap(1, 7), Ok(7)]);
        assert!(page.events[0].text.contains("the disk is gone"));
    }

    #[test]
    fn a_reader_of_unknown_ids_is_told_that_they_begin_again() {
        let mut page = Page::at(Cursor::after(900));
        page.rewind(900, 12, 4);
        page.push(&event(5), &EventFilter::default());
        assert_eq!(reported(&page), [gap(901, 5), Ok(5)]);
    }

    #[test]
    fn a_page_is_bounded() {
        let mut page = Page::at(Cursor::default());
        let mut id = 0;
        while !page.is_full() {
            id += 1;
            page.push(&Event { text: "x".repeat(3000), ..Event::clone(&event(id)) }.into(), &EventFilter::default());
        }
        assert!((50..PAGE as u64).contains(&id), "{id}");
    }
}
