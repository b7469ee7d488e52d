//! Ports of every kind next to each other, on netdevs that others own: what passes between them, and what
//! happens when netdevs or the switch go. Whom which frame reaches on them is tested in `unaddressed`,
//! what changes while it runs in `operator`.
//!
//! What else the kernel has in store for ports on netdevs of others, and where it is tested:
//!
//! | | |
//! |---|---|
//! | a queue stays busy for a while after its socket is closed | `exchange`, `killed` |
//! | a deleted netdev is told by errors of its socket only | `exchange`, `xdp_device`, `packet_device`, `gone` |
//! | a socket that shares a UMEM must be bound with that flag alone | all binds: another flag is refused |
//! | a kick that says EAGAIN has sent 32 frames | `exchange`, `xdp_device` |
//! | long frames need a program and a socket that know pieces | `xdp_program`, `pairs` |
//! | a chunk holds 3840 bytes of a frame | `xdp_device`, `pairs` |
//! | a redirect into a veth without a program or GRO at its other end loses frames silently | `pairs`, whose guests have neither: we send by sockets, and redirect to sockets only |
//! | a program of others is in the way, for ever if it was left by netlink | `xdp_program`, `taken` |
//! | counters of rings wrap | the tests of `src/sys/xsk/ring.rs` |
//! | frames are received somewhere inside a chunk | `exchange`, `xdp_device`: every slot comes home |
//! | a UMEM for each socket costs a copy | `exchange`: one pool serves netdevs of several namespaces |
//! | a UMEM counts as locked memory | not here, as root may lock any: `check` looks at the limit, and the unit lifts it |
//! | a packet socket takes the outer tag out of a frame | `packet_device`, and the tagged frames of `unaddressed` |
//! | a second open of a tap with several queues splits its traffic, one of a tap with one is refused | `tap_device` |
//! | offloads of guests lose their header at an XDP program | `offloads` |
//!
//! No test: `io_uring` and its counts, `readv` on a tap being slower than `read` (a figure, no behaviour), since
//! the switch uses neither; device names that `ip` takes for words of its own, which is why `ip` is told `dev`.

mod gone;
mod killed;
mod offloads;
mod pairs;
mod taken;
