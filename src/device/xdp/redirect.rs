//! The XDP program on a netdev that redirects its frames to the AF_XDP sockets.

use std::io;
use std::os::fd::BorrowedFd;

use super::drop_table::DropTable;
use super::program::{self, NoSocketAction, TagSource};
use super::tags::StrippingOff;
use crate::sys::bpf::{Attach, KernelFunction, Link, LoadError, Program, XskMap};
use crate::sys::running::Running;

/// The attached program. Detached on drop and at the end of the process.
#[derive(Debug)]
pub(super) struct Redirect {
    _link: Link,
    _program: Program,
    _sockets: XskMap,
    /// Early drops of the program.
    pub(super) drop_table: DropTable,
    /// Whether the netdev is running.
    pub(super) running: Running,
    /// Dropped last: tags stay in the frames while the program is attached.
    _tags: Option<StrippingOff>,
}

/// Which step of attaching failed.
#[derive(Debug)]
pub(super) enum Failure {
    Load(LoadError),
    Map(io::Error),
    Attach(io::Error),
}

impl Redirect {
    /// Attaches the program to the netdev `index` of the calling thread's namespace. `sockets`: one for each of its
    /// queues, in order, so that no frame bypasses them. `request`: reads VLAN tags from the driver's metadata.
    /// `stored`: kept while the program is attached.
    pub(super) fn attach(
        index: u32,
        sockets: &[BorrowedFd<'_>],
        attach: Attach,
        request: Option<KernelFunction>,
        stored: Option<StrippingOff>,
    ) -> Result<Redirect, Failure> {
        #[allow(clippy::cast_possible_truncation)] // far fewer queues
        let queues = sockets.len() as u32;
        let map = XskMap::new(queues).map_err(Failure::Map)?;
        for (queue, socket) in (0..queues).zip(sockets) {
            map.set(queue, *socket).map_err(Failure::Map)?;
        }
        let drop_table = DropTable::new(queues).map_err(Failure::Map)?;
        let running = Running::new(index).map_err(Failure::Map)?;
        let tags = request.map(|function| TagSource { function, ifindex: index });
        let program = program::load(&map, &drop_table, NoSocketAction::default(), tags).map_err(Failure::Load)?;
        let link = Link::attach(&program, index, attach).map_err(Failure::Attach)?;
        Ok(Redirect { _link: link, _program: program, _sockets: map, drop_table, running, _tags: stored })
    }
}
