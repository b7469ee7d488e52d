//! Calls the target that the environment variable `TARGET` names, with the bytes that libFuzzer makes.
#![no_main]

use std::sync::OnceLock;

use fuzz::targets::{ALL, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    let (_, run) = TARGET.get_or_init(|| {
        let name = std::env::var("TARGET").unwrap_or_default();
        let names = ALL.map(|(name, _)| name);
        *ALL.iter().find(|target| target.0 == name).unwrap_or_else(|| panic!("TARGET={name}: one of {names:?}"))
    });
    run(data);
});
