//! Follows an operation until it has ended, or until somebody stops watching. The operation does not care.
//!
//! [`feed`] brings the events and mends a broken stream; [`signals`] says when Ctrl-C or SIGTERM came;
//! [`ending`] turns how it ended into words and an exit code. The loop here is two functions: `select` only
//! chooses and is cancel-safe, `apply` acts.

pub mod ending;
mod feed;
mod signals;

use std::{pin::Pin, time::Duration};

use clap::ValueEnum;
use steep_protocol::{
    failure::{Code, Failure},
    v1::{self, operation_event::What},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use self::{
    feed::News,
    signals::{Signal, Signals},
};
use crate::{
    client::Client,
    output::{
        self, Output,
        progress::{Display, Style, Subject},
    },
};

const TIME_TO_ANSWER: Duration = Duration::from_secs(5);

/// What Ctrl-C and SIGTERM do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnInterrupt {
    // Stop watching; the operation goes on.
    Detach,
    // Cancel the operation and watch it clean up.
    Cancel,
    // Ask (needs a terminal).
    Ask,
}

/// Arguments of every command that follows an operation.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct FollowArgs {
    /// How progress is shown: bars need a terminal, plain is a key=value line
    /// per milestone and per ten seconds
    #[arg(long, value_name = "STYLE", default_value = "auto")]
    pub progress: Style,
    /// What Ctrl-C does [default: ask on a terminal, detach elsewhere]
    #[arg(long, value_name = "WHAT")]
    pub on_interrupt: Option<OnInterrupt>,
}

/// How following ended.
#[derive(Debug)]
pub enum Followed {
    /// With the operation.
    Ended {
        /// As it ended.
        operation: Box<v1::Operation>,
        /// Data on stdout has told how.
        is_told: bool,
    },
    /// Before the operation.
    Detached,
}

/// Follows the operation of `subject`, showing what happens, until it ends or the watcher leaves.
///
/// `may_ask`: whether `--no-input` allows questions. Fails with [`Code::Detached`] when `--timeout` passes
/// first, and with a connection failure when no agent can tell for a minute how the operation fares.
pub async fn until_ended(
    client: &Client<'_>,
    out: &Output,
    subject: &Subject,
    args: FollowArgs,
    may_ask: bool,
) -> Result<Followed, Failure> {
    let (news, arriving) = mpsc::channel(64);
    let feed = feed::run(client.clone(), subject.op_id.clone(), news);
    let on_interrupt = match args.on_interrupt {
        Some(OnInterrupt::Ask) | None if may_ask && out.can_ask() => OnInterrupt::Ask,
        Some(OnInterrupt::Cancel) => OnInterrupt::Cancel,
        _ => OnInterrupt::Detach,
    };
    let mut watcher = Watcher {
        out,
        subject,
        client: client.clone(),
        display: Display::new(out, args.progress, subject),
        arriving,
        signals: Signals::listen()?,
        on_interrupt,
        interrupted: false,
        question: None,
        progress: None,
    };
    tokio::pin!(feed);
    let followed = watcher.run(feed).await;
    watcher.display.pause();
    followed
}

struct Watcher<'a> {
    out: &'a Output,
    subject: &'a Subject,
    client: Client<'a>,
    display: Display,
    arriving: mpsc::Receiver<News>,
    signals: Signals,
    on_interrupt: OnInterrupt,
    interrupted: bool,
    question: Option<Question>,
    progress: Option<v1::Progress>,
}

struct Question {
    answer: oneshot::Receiver<Option<String>>,
    patience: Instant,
}

enum Happened {
    News(News),
    Signal(Signal),
    Answered(Option<String>),
    Unanswered,
    TimeIsUp,
}

impl Watcher<'_> {
    async fn run(&mut self, mut feed: Pin<&mut impl Future<Output = Failure>>) -> Result<Followed, Failure> {
        loop {
            let happened = tokio::select! {
                biased;
                happened = self.select() => happened,
                failure = &mut feed => return Err(failure),
            };
            if let Some(followed) = self.apply(happened).await? {
                return Ok(followed);
            }
        }
    }

    /// Chooses what happened next. Cancel-safe.
    async fn select(&mut self) -> Happened {
        let deadline = self.client.deadline();
        tokio::select! {
            biased;
            signal = self.signals.next() => Happened::Signal(signal),
            answer = answered(&mut self.question) => answer,
            Some(news) = self.arriving.recv() => Happened::News(news),
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Happened::TimeIsUp,
        }
    }

    async fn apply(&mut self, happened: Happened) -> Result<Option<Followed>, Failure> {
        match happened {
            Happened::News(News::Event(event)) => {
                if matches!(event.what, Some(What::Ended(_))) {
                    self.withdraw_question();
                }
                self.display.show(&event, self.out)?;
                return Ok(self.remember(event.what));
            }
            Happened::News(News::Lost(why)) => {
                let text = format!("lost sight of the operation ({}); looking for it again", output::safe(&why));
                self.display.talk(&text, self.out);
            }
            Happened::News(News::Found) => self.display.talk("found the operation again", self.out),
            Happened::Signal(signal) => return Ok(self.interrupted(signal).await),
            Happened::Answered(answer) => return Ok(self.answered(answer.as_deref()).await),
            Happened::Unanswered | Happened::TimeIsUp if self.question.is_some() => return Ok(Some(self.detach())),
            Happened::Unanswered => {}
            Happened::TimeIsUp => return Err(self.time_is_up()),
        }
        Ok(None)
    }

    /// Keeps what the last line will tell: the end itself need not repeat how much was copied.
    fn remember(&mut self, what: Option<What>) -> Option<Followed> {
        match what? {
            What::Progress(progress) => self.progress = Some(progress),
            What::Milestone(milestone) => {
                if milestone.event == "init.completed" {
                    let progress = self.progress.get_or_insert_default();
                    progress.rows_copied = milestone.rows_copied.unwrap_or(progress.rows_copied);
                    progress.bytes_copied = milestone.bytes_copied.unwrap_or(progress.bytes_copied);
                }
            }
            What::Ended(mut operation) => {
                operation.progress = operation.progress.or(self.progress.take());
                let is_told = !self.display.leaves_the_end_untold();
                return Some(Followed::Ended { operation: Box::new(operation), is_told });
            }
        }
        None
    }

    async fn interrupted(&mut self, signal: Signal) -> Option<Followed> {
        let again = std::mem::replace(&mut self.interrupted, true);
        match self.on_interrupt {
            _ if again => Some(self.detach()),
            OnInterrupt::Ask if signal == Signal::Interrupt => {
                self.display.pause();
                let question = "\nDetach (d), cancel (c), keep watching (k)? [d in 5 s] ";
                self.question = Some(Question {
                    answer: self.out.ask_in_background(question),
                    patience: Instant::now() + TIME_TO_ANSWER,
                });
                None
            }
            OnInterrupt::Cancel => {
                self.cancel().await;
                None
            }
            OnInterrupt::Ask | OnInterrupt::Detach => Some(self.detach()),
        }
    }

    async fn answered(&mut self, answer: Option<&str>) -> Option<Followed> {
        self.question = None;
        match answer.map(str::to_ascii_lowercase).as_deref() {
            Some("k" | "keep" | "keep watching") => {
                self.interrupted = false;
                self.display.resume(self.out);
                None
            }
            Some("c" | "cancel") => {
                self.cancel().await;
                None
            }
            // Whoever answers something else, or closes the terminal, does not want to destroy anything.
            _ => Some(self.detach()),
        }
    }

    /// Asks the agents to cancel, and goes on watching; a second interrupt meanwhile detaches.
    async fn cancel(&mut self) {
        let asked = self.client.cancel_operation(&self.subject.op_id, &self.subject.target).await;
        self.display.resume(self.out);
        match asked {
            Ok(_) => self.display.talk("cancelling; the agents clean up (Ctrl-C detaches)", self.out),
            Err(failure) => self.display.talk(&output::failure::text(&failure), self.out),
        }
    }

    fn detach(&mut self) -> Followed {
        let was_asked = self.question.take().is_some();
        self.display.pause();
        if was_asked {
            self.out.say("");
        }
        self.out.talk("detached; the operation goes on in the agents. To follow it again:");
        self.out.say(&format!("steepctl op watch {}", self.subject.op_id));
        Followed::Detached
    }

    fn withdraw_question(&mut self) {
        if self.question.take().is_some() {
            self.out.say("");
        }
    }

    fn time_is_up(&self) -> Failure {
        let op_id = &self.subject.op_id;
        Failure::new(Code::Detached, format!("operation {op_id} still ran when --timeout had passed"))
            .hint(format!("steepctl op watch {op_id}"))
    }
}

/// The answer to an open question, or that its time is up; never without a question. Cancel-safe.
async fn answered(question: &mut Option<Question>) -> Happened {
    let Some(question) = question else { return std::future::pending().await };
    tokio::select! {
        answer = &mut question.answer => Happened::Answered(answer.unwrap_or_default()),
        () = sleep_until(question.patience) => Happened::Unanswered,
    }
}
