//! A generator whose work is done by another process.
//!
//! Lines of JSON go to its standard input and come from its standard output. The process ends when
//! its input ends, so none outlives the agent. One that ends by itself fails the requests it had and
//! is started anew for the next one.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command as ProcessCommand, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender},
    },
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
};

use super::{
    Event, FinishReason, Finished, GenerationRequest, Generator, Refusal, RequestId, Work,
    worker::{Command, count, count_refusal},
};

/// The program of a process, and what it is told first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The first line on its standard input.
    pub greeting: String,
    /// Whose requests it answers.
    pub tenant: TenantId,
}

/// Says why a process does not answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It cannot be started or spoken to.
    #[error("{} cannot be run", path.display())]
    Run {
        /// The executable.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended or spoke nonsense before it was ready.
    #[error("{} ended before it was ready; its lines in the log say why", path.display())]
    NotReady {
        /// The executable.
        path: PathBuf,
    },
}

/// A line to the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToProcess {
    /// Take a request.
    Submit(Box<Submission>),
    /// Whoever asked is gone.
    Cancel(RequestId),
    /// Read an adapter's folder anew.
    Learn(PathBuf),
    /// Take nothing new, and say when everything has ended.
    Drain,
}

/// A request, with the digest of its adapter in place of the adapter.
#[derive(Debug, Serialize, Deserialize)]
pub struct Submission {
    /// Its name.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Names its adapter.
    pub adapter: Option<Digest>,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// What is wanted.
    pub work: Work,
    /// When it is no longer wanted.
    pub deadline: Option<Timestamp>,
}

/// A line from the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromProcess {
    /// It is ready; the first line.
    Ready(Ready),
    /// Whether a request was taken.
    Taken(RequestId, Result<(), Refusal>),
    /// Something happened to a request.
    Event(RequestId, Event),
    /// What the folder of an adapter holds; nothing if it cannot be used.
    Learned(PathBuf, Option<Digest>),
    /// Everything has ended.
    Drained,
}

/// What a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Names the base's content.
    pub base: Digest,
    /// Tokens of one request.
    pub context_max: usize,
}

impl Generator {
    /// Starts a process and waits until it is ready.
    ///
    /// # Errors
    /// [`ProcessError`] if it does not become ready.
    pub fn start_process(program: Program) -> Result<(Self, Ready), ProcessError> {
        let clients = Shared::default();
        let (running, ready) = Running::start(&program, clients.clone())?;
        let path = program.path.clone();
        let name = format!("process of {}", program.tenant);
        let generator = Self::with_thread(&name, |commands| {
            let keeper = Keeper { program, clients, running: Some(running) };
            move || keeper.run(&commands)
        });
        let generator = generator.map_err(|source| ProcessError::Run { path, source })?;
        Ok((generator, ready))
    }
}

/// Who waits for lines from the process.
#[derive(Default)]
struct Clients {
    by_id: HashMap<RequestId, Client>,
    drained: Vec<oneshot::Sender<()>>,
    learning: Vec<(PathBuf, Sender<Option<Digest>>)>,
    /// Whether the process has ended.
    ended: bool,
}

struct Client {
    tenant: TenantId,
    taken: Option<oneshot::Sender<Result<(), Refusal>>>,
    events: UnboundedSender<Event>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Clients>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that runs.
struct Running {
    child: Child,
    input: ChildStdin,
}

impl Running {
    fn start(program: &Program, clients: Shared) -> Result<(Self, Ready), ProcessError> {
        let path = || program.path.clone();
        let failed = |source| ProcessError::Run { path: path(), source };
        let mut command = ProcessCommand::new(&program.path);
        command.args(&program.arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let input = child.stdin.take().expect("piped");
        let output = child.stdout.take().expect("piped");
        let mut running = Self { child, input };
        running.write(&program.greeting).map_err(failed)?;
        let mut lines = BufReader::new(output);
        let mut first = String::new();
        lines.read_line(&mut first).map_err(failed)?;
        let Ok(FromProcess::Ready(ready)) = serde_json::from_str(&first) else {
            return Err(ProcessError::NotReady { path: path() });
        };
        clients.lock().ended = false;
        let tenant = program.tenant.clone();
        std::thread::Builder::new()
            .name(format!("answers of {tenant}"))
            .spawn(move || listen(lines, &clients, &tenant))
            .map_err(failed)?;
        Ok((running, ready))
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes())?;
        self.input.flush()
    }

    fn send(&mut self, line: &ToProcess) -> std::io::Result<()> {
        self.write(&serde_json::to_string(line).map_err(std::io::Error::other)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended; whether or not, nothing of it is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands out what the process says, until it ends.
fn listen(lines: BufReader<ChildStdout>, clients: &Shared, tenant: &TenantId) {
    for line in lines.lines() {
        let line = line.ok().and_then(|line| serde_json::from_str(&line).ok());
        let Some(line) = line else { break };
        clients.lock().take_in(line);
    }
    let mut clients = clients.lock();
    tracing::warn!(%tenant, requests = clients.by_id.len(), "the tenant's process has ended");
    // Dropping the senders tells everybody.
    let drained = std::mem::take(&mut clients.drained);
    clients.by_id.clear();
    clients.learning.clear();
    clients.ended = true;
    drop(drained);
}

impl Clients {
    fn take_in(&mut self, line: FromProcess) {
        match line {
            FromProcess::Ready(_) => {}
            FromProcess::Taken(id, outcome) => {
                let Some(client) = self.by_id.get_mut(&id) else { return };
                let taken = client.taken.take();
                if let Err(refusal) = &outcome {
                    count_refusal(&client.tenant, refusal);
                    self.by_id.remove(&id);
                }
                // Whoever asked may have gone; the ticket's cancellation follows.
                let _ = taken.map(|taken| taken.send(outcome));
            }
            FromProcess::Event(id, event) => {
                let Some(client) = self.by_id.get(&id) else { return };
                let finished = matches!(event, Event::Finished(_));
                if let Event::Finished(finished) = &event {
                    count(&client.tenant, finished);
                }
                // A client that has gone cancels by dropping its ticket.
                let _ = client.events.send(event);
                if finished {
                    self.by_id.remove(&id);
                }
            }
            FromProcess::Learned(folder, digest) => {
                // Without a digest the sender is dropped: there is no version that could be used.
                for (_, learned) in self.learning.extract_if(.., |(of, _)| *of == folder) {
                    if digest.is_some() {
                        // Whoever waited for it may have gone.
                        let _ = learned.send(digest);
                    }
                }
            }
            FromProcess::Drained => {
                for drained in self.drained.drain(..) {
                    // Whoever waited for it may have gone.
                    let _ = drained.send(());
                }
            }
        }
    }
}

/// Keeps the process running and speaks to it.
struct Keeper {
    program: Program,
    clients: Shared,
    running: Option<Running>,
}

impl Keeper {
    fn run(mut self, commands: &Receiver<Command>) {
        let mut draining = false;
        while let Ok(command) = commands.recv() {
            match command {
                Command::Submit { taken, .. } if draining => {
                    // Whoever asked may have gone.
                    let _ = taken.send(Err(Refusal::Draining));
                }
                Command::Submit { request, taken, events } => {
                    self.submit(*request, taken, events);
                }
                Command::Cancel(id) => {
                    let known = self.clients.lock().by_id.remove(&id);
                    if let Some(client) = known {
                        count(&client.tenant, &Finished::without_work(FinishReason::Cancelled));
                        self.say(&ToProcess::Cancel(id));
                    }
                }
                Command::Learn { folder, learned } => {
                    if self.revive() {
                        self.clients.lock().learning.push((folder.clone(), learned));
                        self.say(&ToProcess::Learn(folder));
                    }
                }
                Command::Drain(done) => {
                    draining = true;
                    let mut clients = self.clients.lock();
                    if clients.ended {
                        continue;
                    }
                    clients.drained.push(done);
                    drop(clients);
                    self.say(&ToProcess::Drain);
                }
            }
        }
    }

    fn submit(
        &mut self,
        request: GenerationRequest,
        taken: oneshot::Sender<Result<(), Refusal>>,
        events: UnboundedSender<Event>,
    ) {
        if !self.revive() {
            // Dropping the sender says that there is nobody.
            return;
        }
        let GenerationRequest { id, tenant, adapter, prompt, work, deadline } = request;
        let client = Client { tenant: tenant.clone(), taken: Some(taken), events };
        {
            // It may have ended since; then nobody would tell this client.
            let mut clients = self.clients.lock();
            if clients.ended {
                return;
            }
            clients.by_id.insert(id, client);
        }
        let adapter = adapter.map(|adapter| adapter.digest());
        let submission = Submission { id, tenant, adapter, prompt, work, deadline };
        self.say(&ToProcess::Submit(Box::new(submission)));
    }

    /// Starts the process anew if it has ended; false if that fails.
    fn revive(&mut self) -> bool {
        if !self.clients.lock().ended {
            return true;
        }
        self.running = None;
        match Running::start(&self.program, self.clients.clone()) {
            Ok((running, _)) => {
                self.running = Some(running);
                true
            }
            Err(error) => {
                let tenant = &self.program.tenant;
                tracing::error!(%tenant, %error, "the tenant's process cannot be started");
                false
            }
        }
    }

    fn say(&mut self, line: &ToProcess) {
        let outcome = self.running.as_mut().map(|running| running.send(line));
        if let Some(Err(error)) = outcome {
            // It is ending; the listening thread tells whoever waits.
            tracing::debug!(%error, "the process does not listen");
        }
    }
}
