//! The desired configuration as rows: one JSON text per network, VM with its ports, and uplink. The rest is one row. A
//! change writes the rows that it changes.
//!
//! The file has the configuration in one of two [forms](Form). A file that is closed has it as a whole, as versions that
//! know no rows read it. The first change replaces it by rows, and raises the format of the file, so that these versions
//! refuse it in place of starting with an old configuration.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, Transaction, params};
use serde::de::Error;
use serde_json::{Map, Value};

use super::file::{FORMAT, FORMAT_ROWS};
use super::rows::{CONFIG, text};
use crate::control::config::{Config, UnknownParts};

/// The lists whose items are rows.
const LISTS: [&str; 3] = ["networks", "vms", "uplinks"];

/// List of the row with the rest.
const REST: &str = "";

/// How the file has the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As one text.
    Whole,
    /// As rows.
    Rows,
}

impl Form {
    /// Format version of a file in this form.
    pub fn format(self) -> i64 {
        match self {
            Form::Whole => FORMAT,
            Form::Rows => FORMAT_ROWS,
        }
    }
}

/// An item of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    /// Ascending in the order of the list, with gaps.
    place: i64,
    text: Arc<str>,
}

/// Items of a list by id.
type List = HashMap<Arc<str>, Row>;

/// A configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    lists: [List; 3],
    /// All but the items, as JSON.
    rest: Arc<str>,
}

impl Rows {
    /// Rows of a stored value, which may be any.
    pub fn of(config: &Value) -> Rows {
        Rows::placed(config.clone(), None)
    }

    /// Rows of a configuration, with parts that this version does not know. Only what differs from the configuration `before`
    /// is serialised; the rest is as in its rows.
    pub fn of_config(config: &Config, unknown: &UnknownParts, before: Option<(&Config, &Rows)>) -> Rows {
        let known = before.map(|(_, rows)| rows);
        if !unknown.is_empty() {
            let mut whole = config.to_sparse();
            unknown.restore_into(&mut whole);
            return Rows::placed(whole, known);
        }
        let Some((before, known)) = before else { return Rows::placed(config.to_sparse(), None) };
        let networks = changed(&before.networks, &config.networks, |network| &network.id);
        let vms = changed(&before.vms, &config.vms, |vm| &vm.id);
        let uplinks = changed(&before.uplinks, &config.uplinks, |uplink| &uplink.id);
        let part = Config { switch: config.switch.clone(), networks, vms, uplinks };
        let (rest, new) = split(part.to_sparse());
        let ids: [&mut dyn Iterator<Item = &String>; 3] = [
            &mut config.networks.iter().map(|network| &network.id),
            &mut config.vms.iter().map(|vm| &vm.id),
            &mut config.uplinks.iter().map(|uplink| &uplink.id),
        ];
        let mut lists: [List; 3] = Default::default();
        for (((ids, new), known), list) in ids.into_iter().zip(new).zip(&known.lists).zip(&mut lists) {
            let mut new: HashMap<Arc<str>, Arc<str>> = new.unwrap_or_default().into_iter().collect();
            let item = |id: &String| match new.remove_entry(id.as_str()) {
                Some(item) => Some(item),
                None => known.get_key_value(id.as_str()).map(|(id, row)| (id.clone(), row.text.clone())),
            };
            *list = placed(ids.filter_map(item), known);
        }
        Rows { lists, rest: text(&rest).into() }
    }

    /// Rows of a value, at the places of `known`, as far as the order allows.
    fn placed(config: Value, known: Option<&Rows>) -> Rows {
        let (rest, items) = split(config);
        let mut lists: [List; 3] = Default::default();
        for (index, (list, items)) in lists.iter_mut().zip(items).enumerate() {
            let none = List::new();
            let known = known.map_or(&none, |rows| &rows.lists[index]);
            *list = placed(items.unwrap_or_default().into_iter(), known);
        }
        Rows { lists, rest: text(&rest).into() }
    }

    /// The configuration as one value.
    pub fn to_value(&self) -> serde_json::Result<Value> {
        let mut rows: Vec<(&str, i64, &str)> = vec![(REST, 0, &self.rest)];
        for (name, list) in LISTS.iter().zip(&self.lists) {
            rows.extend(list.values().map(|row| (*name, row.place, &*row.text)));
        }
        joined(rows)
    }

    fn rows(&self) -> impl Iterator<Item = (&str, &str, i64, &str)> {
        let lists = LISTS.iter().zip(&self.lists);
        let items = lists.flat_map(|(name, list)| list.iter().map(|(id, row)| (*name, &**id, row.place, &*row.text)));
        items.chain([(REST, "", 0, &*self.rest)])
    }

    /// Whether this row is the same.
    fn has(&self, (list, id, place, text): (&str, &str, i64, &str)) -> bool {
        match LISTS.iter().position(|name| *name == list) {
            // Most texts are the same string.
            Some(list) => self.lists[list]
                .get(id)
                .is_some_and(|row| row.place == place && (std::ptr::eq(&*row.text, text) || &*row.text == text)),
            None => &*self.rest == text,
        }
    }

    fn has_id(&self, (list, id): (&str, &str)) -> bool {
        LISTS.iter().position(|name| *name == list).is_none_or(|list| self.lists[list].contains_key(id))
    }
}

/// Items that are not in the list before, or were other ones.
fn changed<T: PartialEq + Clone>(before: &[T], now: &[T], id: fn(&T) -> &String) -> Vec<T> {
    let is_same = |(before, now): &(&T, &T)| before == now;
    // Most are at the same place.
    let same = before.iter().zip(now).take_while(is_same).count();
    let known: HashMap<&str, &T> = before[same..].iter().map(|item| (id(item).as_str(), item)).collect();
    let differs = |item: &&T| known.get(id(item).as_str()) != Some(item);
    now[same..].iter().filter(differs).cloned().collect()
}

/// The items of each list with their ids, and the rest, which has the lists without the items. `None`: the list remains in
/// the rest, because its items have no ids of their own.
#[allow(clippy::type_complexity)] // a list of pairs per list
fn split(mut config: Value) -> (Value, [Option<Vec<(Arc<str>, Arc<str>)>>; 3]) {
    let items = LISTS.map(|name| {
        let items = config.get_mut(name)?.as_array_mut()?;
        let mut ids: Vec<&str> =
            items.iter().map(|item| item.as_object()?.get("id")?.as_str()).collect::<Option<_>>()?;
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        let row = |item: Value| (item["id"].as_str().unwrap_or_default().into(), text(&item).into());
        Some(std::mem::take(items).into_iter().map(row).collect())
    });
    (config, items)
}

/// The inverse of [`split`], of lists, places and texts.
fn joined(mut rows: Vec<(&str, i64, &str)>) -> serde_json::Result<Value> {
    rows.sort_unstable_by_key(|(list, place, _)| (*list, *place));
    let (mut config, mut lists) = (Value::Null, Map::new());
    for (list, _, text) in rows {
        let item = serde_json::from_str(text)?;
        if list == REST {
            config = item;
        } else if let Value::Array(items) = lists.entry(list).or_insert_with(|| Value::Array(Vec::new())) {
            items.push(item);
        }
    }
    if !lists.is_empty() {
        config
            .as_object_mut()
            .ok_or_else(|| serde_json::Error::custom("it has items and is no table"))?
            .append(&mut lists);
    }
    Ok(config)
}

/// Rows in this order. Each keeps the place that it has in `known`, if the one before has a lower one.
fn placed(items: impl Iterator<Item = (Arc<str>, Arc<str>)>, known: &List) -> List {
    let mut next = 0;
    let row = |(id, text): (Arc<str>, Arc<str>)| {
        let place = known.get(&id).map_or(next, |row| row.place.max(next));
        next = place + 1;
        (id, Row { place, text })
    };
    items.map(row).collect()
}

/// Makes the table have `wanted`. `written`: what it has; `None` if unknown.
pub fn write(transaction: &Transaction<'_>, wanted: &Rows, written: Option<&Rows>) -> rusqlite::Result<()> {
    if written.is_none() {
        transaction.execute_batch(
            "CREATE TABLE IF NOT EXISTS entities (list TEXT NOT NULL, id TEXT NOT NULL, place INTEGER NOT NULL,
             json TEXT NOT NULL, PRIMARY KEY (list, id)) STRICT;
             DELETE FROM entities;",
        )?;
    }
    let mut remove = transaction.prepare("DELETE FROM entities WHERE list = ?1 AND id = ?2")?;
    for (list, id, ..) in written.iter().flat_map(|rows| rows.rows()) {
        if !wanted.has_id((list, id)) {
            remove.execute([list, id])?;
        }
    }
    let mut put = transaction.prepare(
        "INSERT INTO entities VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (list, id) DO UPDATE SET place = excluded.place, json = excluded.json",
    )?;
    for row in wanted.rows().filter(|row| !written.is_some_and(|rows| rows.has(*row))) {
        let (list, id, place, text) = row;
        put.execute(params![list, id, place, text])?;
    }
    Ok(())
}

/// Replaces the configuration in one form by the one in the other form, which has been written.
pub fn switch(transaction: &Transaction<'_>, form: Form) -> rusqlite::Result<()> {
    if form == Form::Rows {
        transaction.execute("DELETE FROM desired WHERE part = ?1", [CONFIG])?;
    }
    transaction.pragma_update(None, "user_version", form.format())
}

/// The stored rows as one value, or why they are none; `None` without rows.
pub fn read(database: &Connection) -> rusqlite::Result<Option<serde_json::Result<Value>>> {
    if !database.table_exists(None, "entities")? {
        return Ok(None);
    }
    let mut find = database.prepare("SELECT list, place, json FROM entities")?;
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let rows: Vec<(String, i64, String)> = find.query_map([], row)?.collect::<Result<_, _>>()?;
    let rows: Vec<_> = rows.iter().map(|(list, place, text)| (list.as_str(), *place, text.as_str())).collect();
    Ok((!rows.is_empty()).then(|| joined(rows)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::testgen;
    use proptest::prelude::*;
    use serde_json::json;

    fn unknown() -> UnknownParts {
        UnknownParts::default()
    }

    proptest! {
        /// Rows have all of a configuration, also if only what differs from the one before was serialised. Places ascend, and
        /// what has not changed has the same row.
        #[test]
        fn rows_of_a_change_are_those_of_all((old, new) in testgen::two()) {
            let before = Rows::of_config(&old, &unknown(), None);
            prop_assert_eq!(before.to_value().unwrap(), old.to_sparse());
            let after = Rows::of_config(&new, &unknown(), Some((&old, &before)));
            prop_assert_eq!(after.to_value().unwrap(), new.to_sparse());
            prop_assert_eq!(&Rows::of_config(&new, &unknown(), Some((&new, &after))), &after);
            prop_assert_eq!(&Rows::placed(new.to_sparse(), Some(&before)), &after, "as with unknown parts");
            let is_prefix = new.vms.len() >= old.vms.len() && old.vms.iter().zip(&new.vms).all(|(old, new)| old.id == new.id);
            for vm in new.vms.iter().filter(|vm| is_prefix && old.vms.contains(vm)) {
                let row = |rows: &Rows| rows.lists[1][vm.id.as_str()].clone();
                prop_assert!(Arc::ptr_eq(&row(&before).text, &row(&after).text), "not serialised again");
                prop_assert_eq!(row(&before).place, row(&after).place);
            }
        }
    }

    #[test]
    fn any_value_is_kept() {
        for value in [
            Value::Null,
            json!(7),
            json!({"vms": [], "planets": 8}),
            json!({"vms": [{"id": "b", "x": [1]}, {"id": "a"}], "networks": [{"id": "b"}], "switch": {}}),
            json!({"vms": [{"id": "a"}, {"id": "a"}], "uplinks": [{"id": 7}, 3]}),
            json!({"vms": {"a": 1}, "networks": 7}),
        ] {
            assert_eq!(Rows::of(&value).to_value().unwrap(), value);
        }
    }

    #[test]
    fn a_row_keeps_its_place_while_it_is_behind_the_one_before() {
        let list = |ids: &[&str], known: &List| {
            let list = placed(ids.iter().map(|&id| (id.into(), "".into())), known);
            ids.iter().map(|&id| list[id].place).collect::<Vec<_>>()
        };
        let known = placed(["a", "b", "c"].iter().map(|&id| (id.into(), "".into())), &List::new());
        assert_eq!(list(&["a", "c", "d"], &known), [0, 2, 3]);
        assert_eq!(list(&["c", "a", "b"], &known), [2, 3, 4]);
        assert_eq!(list(&["x", "a", "b", "c"], &known), [0, 1, 2, 3]);
    }
}
