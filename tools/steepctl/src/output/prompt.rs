//! Questions to whoever sits at the terminal. They stand on stderr; the answer is one line of stdin.

use std::{io, thread};

use tokio::sync::oneshot;

use super::Output;

impl Output {
    /// Asks and waits; nothing when stdin has ended.
    pub fn ask(&self, question: &str) -> Option<String> {
        self.write_stderr(question);
        read_line()
    }

    /// Asks, and hands over the answer when it comes.
    ///
    /// A thread of its own waits for it. It cannot be told to stop: when the caller loses patience, it should
    /// end the program, not ask again.
    pub fn ask_in_background(&self, question: &str) -> oneshot::Receiver<Option<String>> {
        self.write_stderr(question);
        let (answer, receiver) = oneshot::channel();
        thread::spawn(move || {
            // Nobody may be waiting any more.
            let _ = answer.send(read_line());
        });
        receiver
    }
}

fn read_line() -> Option<String> {
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(line.trim().to_owned()),
    }
}
