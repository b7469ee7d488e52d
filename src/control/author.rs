//! Who makes a request: the process that connected to the API, and the id of the request.
//!
//! While a request is handled, its author is a task-local value, so that the [`Handle`](crate::control::api::handle::Handle)
//! can send it along with whatever is requested from the controller.

use std::future::Future;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who made a request; or the switch itself, for a change of its own: its own process, with the request id `vifswitch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Author {
    /// User of the process that connected to the unix socket.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// Id of that process, unless it is in another PID namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// Id of the request: `X-Request-Id` of the client, or a generated one.
    pub request_id: String,
}

tokio::task_local! {
    static AUTHOR: Author;
}

impl Author {
    /// Handles a request of this author.
    pub async fn scope<T>(self, handled: impl Future<Output = T>) -> T {
        AUTHOR.scope(self, handled).await
    }

    /// The switch itself.
    pub fn of_switch() -> Author {
        let (uid, pid) = (rustix::process::geteuid().as_raw(), std::process::id());
        Author { uid: Some(uid), pid: Some(pid), request_id: "vifswitch".to_owned() }
    }

    /// The author of the request that this task handles; `None` outside of requests.
    pub fn current() -> Option<Author> {
        AUTHOR.try_with(Clone::clone).ok()
    }
}
