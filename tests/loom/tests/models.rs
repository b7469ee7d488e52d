//! Runs the models. `LOOM_MAX_PREEMPTIONS` changes the maximum of preemptions per execution.

macro_rules! models {
    ($($module:ident::$name:ident)*) => {$(
        #[test]
        fn $name() {
            println!("{}: {} executions", stringify!($name), vifswitch_loom::explore(vifswitch_loom::$module::$name));
        }
    )*};
}

models! {
    frame::a_chain_arrives_whole
    frame::a_slot_has_one_holder
    frame::every_slot_is_returned
    switch::a_changed_rate_gives_no_tokens
    switch::a_token_is_granted_once
    switch::no_remainder_is_lost
    switch::nobody_is_refused_while_tokens_last
    switch::workers_share_one_burst
    worker::a_full_ring_returns_frames_and_keeps_order
    worker::a_worker_that_sleeps_twice_is_woken_twice
    worker::no_wake_up_is_lost
    worker::peers_wake_each_other
}
