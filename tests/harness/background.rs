//! A runtime beside the spec's own, for what must go on while the spec waits for steepctl.
//!
//! Connections and writers live here: a spec may call a blocking command without stopping them.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("harness").enable_all().build().expect("a runtime can be made")
    })
}
