//! Ports of every kind together, on foreign netdevs: forwarding between kinds, lost netdevs, kills. Which port receives
//! which frame is tested in `tests/switching/unaddressed`, changes under traffic in `tests/cli/operator.rs`.
//!
//! Properties of the kernel that ports on foreign netdevs meet, and where they are tested:
//!
//! | | |
//! |---|---|
//! | a queue stays busy for a while after its socket is closed | `xsk_queue`, `killed` |
//! | a deleted netdev is reported by errors of its socket only | `xsk_queue`, `xdp`, `packet`, `gone` |
//! | a socket that shares a UMEM must be bound with that flag alone | all binds: another flag is refused |
//! | a kick that returns EAGAIN has sent 32 frames | `xsk_queue`, `xdp` |
//! | long frames need multi-buffer support of program and socket | `xdp_program`, `pairs` |
//! | a chunk holds 3840 bytes of a frame | `xdp`, `pairs` |
//! | a redirect into a veth without a program or GRO at its peer loses frames silently | `pairs`, whose guests have neither: the switch sends by sockets, and redirects to sockets only |
//! | a foreign program prevents attaching, permanently if it was attached by netlink | `xdp_program`, `taken` |
//! | ring counters wrap | `src/sys/xsk/ring.rs` |
//! | frames are received at any offset in a chunk | `xsk_queue`, `xdp`: every slot is freed |
//! | one UMEM per socket costs a copy | `xsk_queue`: one pool serves netdevs of several namespaces |
//! | a UMEM counts as locked memory | not tested, as root may lock any amount: `check` reads the limit, and the unit lifts it |
//! | a packet socket strips the outer tag of a frame | `packet`, and the tagged frames of `unaddressed` |
//! | a second open of a multi-queue tap splits its traffic, of a single-queue tap it is refused | `tap` |
//! | offloads of guests lose their `virtio_net_hdr` at an XDP program | `offloads` |
//!
//! Not tested, because the switch does not use it: `io_uring`, `readv` on a tap. Device names that `ip` takes for
//! keywords are the reason that tests pass `dev`.

mod gone;
mod killed;
mod offloads;
mod pairs;
mod taken;
