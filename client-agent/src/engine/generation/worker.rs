//! The thread that steps the scheduler.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::Duration,
};

use thiserror::Error;
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};
use tributary_protocol::id::{Digest, TenantId};

use super::{
    Event, FinishReason, Finished, GenerationRequest, Input, Refusal, RequestId, Scheduler,
};
use tributary_protocol::transport::process;

/// How long the thread waits for news when nothing can run, so that deadlines still pass.
const IDLE_WAIT: Duration = Duration::from_millis(20);

/// Answers requests from any thread.
pub struct Generator {
    commands: Sender<Command>,
    next: AtomicU64,
    thread: JoinHandle<()>,
}

/// A request that was taken. Dropping it cancels what is left of it.
#[derive(Debug)]
pub struct Ticket {
    id: RequestId,
    events: UnboundedReceiver<Event>,
    commands: Sender<Command>,
}

/// Why there is no ticket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The scheduler does not take it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// What a generator asks of its thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Take a request.
    Submit {
        request: Box<GenerationRequest>,
        taken: oneshot::Sender<Result<(), Refusal>>,
        events: UnboundedSender<Event>,
    },
    /// Whoever asked is gone.
    Cancel(RequestId),
    /// Read the new version of an adapter, and say which one that is.
    Learn { folder: PathBuf, learned: Sender<Option<Digest>> },
    /// Take nothing new, and say when everything has ended.
    Drain(oneshot::Sender<()>),
}

impl Generator {
    /// Starts the thread.
    ///
    /// - `pool`: compute threads of its own; without them it uses the process's
    ///
    /// # Errors
    /// The operating system's, if it has no thread to give.
    pub fn start(scheduler: Scheduler, pool: Option<rayon::ThreadPool>) -> std::io::Result<Self> {
        Self::with_thread("generation", |commands| {
            let worker =
                Worker { scheduler, commands, clients: HashMap::new(), drained: Vec::new() };
            move || match pool {
                Some(pool) => pool.install(|| worker.run()),
                None => worker.run(),
            }
        })
    }

    /// Starts a thread that carries out commands.
    pub(super) fn with_thread<W: FnOnce() + Send + 'static>(
        name: &str,
        work: impl FnOnce(Receiver<Command>) -> W,
    ) -> std::io::Result<Self> {
        let (commands, received) = channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work(received))?;
        Ok(Self { commands, next: AtomicU64::new(0), thread })
    }

    /// Hands a request in; its id is replaced by a fresh one.
    ///
    /// # Errors
    /// [`SubmitError`] if it is not taken.
    pub async fn submit(&self, mut request: GenerationRequest) -> Result<Ticket, SubmitError> {
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        request.id = id;
        let (taken, answer) = oneshot::channel();
        let (events, received) = unbounded_channel();
        let request = Box::new(request);
        // Made before the answer is there: whoever stops waiting for it cancels too.
        let ticket = Ticket { id, events: received, commands: self.commands.clone() };
        let command = Command::Submit { request, taken, events };
        self.commands.send(command).map_err(|_| SubmitError::Stopped)?;
        answer.await.map_err(|_| SubmitError::Stopped)??;
        Ok(ticket)
    }

    /// Makes sure that requests with the present version of an adapter can be answered, wherever they
    /// are; waits until that is so. False if it cannot be.
    pub(crate) fn learn(&self, folder: &Path, digest: Digest) -> bool {
        let (learned, answer) = channel();
        let command = Command::Learn { folder: folder.to_owned(), learned };
        // An error means that the thread is gone, or the process, before it answered.
        let sent = self.commands.send(command).is_ok();
        sent && answer.recv().is_ok_and(|found| found.is_none_or(|found| found == digest))
    }

    /// Refuses new requests from now on; resolves once those that were taken have ended.
    pub fn drain(&self) -> impl Future<Output = ()> + Send + use<> {
        let (done, waiting) = oneshot::channel();
        let sent = self.commands.send(Command::Drain(done)).is_ok();
        async move {
            if sent {
                // An error means that the thread is gone, and all requests with it.
                let _ = waiting.await;
            }
        }
    }

    /// Whether the thread still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Ticket {
    /// The next event, for tasks that wait for several.
    ///
    /// The last one is [`Event::Finished`]; a thread that is gone counts as failed.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        self.events.poll_recv(context).map(|event| event.unwrap_or_else(Event::failed))
    }

    /// The next event.
    pub async fn event(&mut self) -> Event {
        self.events.recv().await.unwrap_or_else(Event::failed)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Nobody listens any more where the thread is gone.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}

struct Worker {
    scheduler: Scheduler,
    commands: Receiver<Command>,
    clients: HashMap<RequestId, Client>,
    drained: Vec<oneshot::Sender<()>>,
}

struct Client {
    tenant: TenantId,
    events: UnboundedSender<Event>,
}

impl Worker {
    fn run(mut self) {
        let mut worked = true;
        while self.take_commands(worked) {
            worked = match self.scheduler.step(process::now()) {
                Ok(worked) => worked,
                Err(error) => {
                    tracing::error!(%error, "a batch failed");
                    true
                }
            };
            self.hand_out();
            self.report();
        }
    }

    /// Takes what is there, and waits if there is nothing else to do. False when nobody is left.
    fn take_commands(&mut self, worked: bool) -> bool {
        loop {
            let idle = self.scheduler.is_idle();
            if idle {
                // No step will say that cancellations have left nothing.
                self.report();
                for drained in self.drained.drain(..) {
                    // Whoever waited for it may have gone.
                    let _ = drained.send(());
                }
            }
            let received = if idle {
                self.commands.recv().map_err(|_| TryRecvError::Disconnected)
            } else if worked {
                self.commands.try_recv()
            } else {
                self.commands.recv_timeout(IDLE_WAIT).map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            };
            match received {
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn command(&mut self, command: Command) {
        let now = process::now();
        match command {
            Command::Submit { request, taken, events } => {
                let (id, tenant) = (request.id, request.tenant.clone());
                let outcome = self.scheduler.handle(now, Input::Submit(request));
                match &outcome {
                    Ok(()) => {
                        self.clients.insert(id, Client { tenant, events });
                    }
                    Err(refusal) => count_refusal(&tenant, refusal),
                }
                // Whoever asked may have gone; the ticket's cancellation follows.
                let _ = taken.send(outcome);
            }
            Command::Cancel(id) => {
                if self.clients.contains_key(&id) {
                    let cancelled = self.scheduler.handle(now, Input::Cancel(id));
                    debug_assert!(cancelled.is_ok(), "only requests are refused");
                    self.hand_out();
                }
            }
            // Requests bring their adapters along. Nobody may wait for the answer any more.
            Command::Learn { learned, .. } => {
                let _ = learned.send(None);
            }
            Command::Drain(done) => {
                let draining = self.scheduler.handle(now, Input::Drain);
                debug_assert!(draining.is_ok(), "only requests are refused");
                self.drained.push(done);
            }
        }
    }

    fn hand_out(&mut self) {
        while let Some(output) = self.scheduler.poll_output() {
            let Some(client) = self.clients.get(&output.request) else { continue };
            let finished = if let Event::Finished(finished) = &output.event {
                count(&client.tenant, finished);
                true
            } else {
                false
            };
            // A client that has gone cancels by dropping its ticket.
            let _ = client.events.send(output.event);
            if finished {
                self.clients.remove(&output.request);
            }
        }
    }

    fn report(&self) {
        for (tenant, requests, blocks) in self.scheduler.held_by_tenants() {
            let labels = [("tenant", tenant.to_string())];
            metrics::gauge!("tributary_requests_held", &labels).set(requests as f64);
            metrics::gauge!("tributary_cache_blocks_held", &labels).set(blocks as f64);
        }
    }
}

/// Counts a request that was not taken.
pub(super) fn count_refusal(tenant: &TenantId, refusal: &Refusal) {
    let labels = [("tenant", tenant.to_string()), ("reason", refusal.reason().to_owned())];
    metrics::counter!("tributary_rejections", &labels).increment(1);
}

/// Counts a request that has ended.
pub(super) fn count(tenant: &TenantId, finished: &Finished) {
    let outcome = match finished.reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Deadline => "deadline",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Failed => "failed",
    };
    let tenant = tenant.to_string();
    let of = [("tenant", tenant.clone())];
    let labels = [("tenant", tenant.clone()), ("outcome", outcome.to_owned())];
    metrics::counter!("tributary_requests", &labels).increment(1);
    let seconds = |milliseconds: u64| milliseconds as f64 / 1000.0;
    metrics::histogram!("tributary_queue_seconds", &of).record(seconds(finished.queued_ms));
    for (kind, tokens) in [
        ("prompt", finished.prompt_tokens),
        ("cached", finished.cached_tokens),
        ("answer", finished.answer.len()),
    ] {
        let labels = [("tenant", tenant.clone()), ("kind", kind.to_owned())];
        metrics::counter!("tributary_tokens", &labels).increment(tokens as u64);
    }
    let generating = finished.total_ms.saturating_sub(finished.first_token_ms);
    if !finished.answer.is_empty() {
        let first = seconds(finished.first_token_ms);
        metrics::histogram!("tributary_first_token_seconds", &of).record(first);
    }
    if finished.answer.len() > 1 && generating > 0 {
        let rate = (finished.answer.len() - 1) as f64 / seconds(generating);
        metrics::histogram!("tributary_answer_tokens_per_second", &of).record(rate);
    }
}
