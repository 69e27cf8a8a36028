//! What was started is taken down again: when its guard drops, and just as well on Ctrl-C or SIGTERM.

use std::{
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{process, say};

type Undo = Box<dyn FnOnce() + Send>;

static UNDOS: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static INSTALL: Once = Once::new();

/// Runs its closure once: on drop, or on an interrupt if that comes first.
#[must_use = "what it guards is undone when this drops"]
pub struct Cleanup(u64);

/// Makes `undo` certain to run once, whether the caller returns, fails or is interrupted.
pub fn cleanup(undo: impl FnOnce() + Send + 'static) -> Cleanup {
    INSTALL.call_once(|| {
        // Without a handler an interrupt would only leave things behind, which `cluster down` mends.
        let _ = ctrlc::set_handler(on_interrupt);
    });
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    UNDOS.lock().expect("nobody panics while holding the list").push((id, Box::new(undo)));
    Cleanup(id)
}

impl Cleanup {
    /// Keeps what was made.
    pub fn keep(self) {
        take(self.0);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Some(undo) = take(self.0) {
            undo();
        } else if INTERRUPTED.load(Ordering::SeqCst) {
            // The interrupt's own thread is undoing it, and ends the process when it is done.
            std::thread::sleep(Duration::from_secs(120));
        }
    }
}

fn take(id: u64) -> Option<Undo> {
    let mut undos = UNDOS.lock().expect("nobody panics while holding the list");
    let at = undos.iter().position(|(other, _)| *other == id)?;
    Some(undos.remove(at).1)
}

fn on_interrupt() {
    if INTERRUPTED.swap(true, Ordering::SeqCst) {
        return;
    }
    say::heading("interrupted, cleaning up");
    process::end_foreground();
    loop {
        let last = UNDOS.lock().expect("nobody panics while holding the list").pop();
        match last {
            Some((_, undo)) => undo(),
            None => std::process::exit(130),
        }
    }
}
