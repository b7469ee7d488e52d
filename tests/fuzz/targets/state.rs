//! What a state file may hold: the values of its parts, as JSON, and bytes instead of the file. A start reads it or says
//! why not, and what it has read it reads again.

use std::cell::RefCell;
use std::fs;

use serde_json::Value;
use tempfile::TempDir;
use vifswitch::control::config::read_stored;
use vifswitch::control::desired::orphans;
use vifswitch::control::state::stored;

use super::Input;

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() {
        0 => file(input.0),
        1 => {
            let Ok(value) = serde_json::from_slice(input.0) else { return };
            let orphans = orphans::from_value(&value);
            assert_eq!(orphans::from_value(&orphans::to_value(&orphans)), orphans);
        }
        _ => {
            let Ok(value) = serde_json::from_slice::<Value>(input.0) else { return };
            if let Ok(read) = read_stored(&value) {
                super::config::check(&read.config);
                let mut written = serde_json::to_value(read.config.to_raw()).unwrap();
                read.unknown.restore_into(&mut written);
                keeps_keys(&value, &written);
                keeps_keys(&value["switch"], &written["switch"]);
                let again = read_stored(&written).unwrap_or_else(|why| panic!("{written}: {why}"));
                assert_eq!(again.config, read.config, "{written}");
            }
        }
    }
}

/// Each key with a value, known or not, is written again.
fn keeps_keys(read: &Value, written: &Value) {
    let keys = read.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    keys.for_each(|(key, _)| assert!(written.get(key).is_some(), "{key:?} is lost: {written}"));
}

/// Opens a state file of these bytes.
fn file(bytes: &[u8]) {
    thread_local!(static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) });
    FOLDER.with_borrow_mut(|folder| {
        let memory = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = folder.get_or_insert_with(memory).path().join("state.db");
        fs::write(&path, bytes).unwrap();
        if let Err(why) = stored(Some(&path)) {
            assert!(!why.to_string().is_empty());
        }
    });
}
