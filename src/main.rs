//! vifswitch
fn main() {}
