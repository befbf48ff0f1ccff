//! Plays a scenario to its end.

use std::{
    hash::{Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_agent::policy::Approved;
use tributary_coordinator::blobs::BlobStore;
use tributary_protocol::{error_code::Refusal, id::Digest, message::Assignment, time::Timestamp};

use super::{
    FaultKind, Rule, Scenario, Summary, Violation,
    agent::AgentSite,
    certificates::{Certificates, name},
    checks::{Broken, Checks},
    coordinator::CoordinatorSite,
    network::{Down, IDLE_MS, Network, Stream, Up},
    queue::Queue,
};

/// When worlds begin.
const START: Timestamp = Timestamp(1_800_000_000_000);
/// After the last fault every job must end within this time, in milliseconds: a tenant that was told
/// to stay away comes back after five minutes at most.
const LIVENESS_MS: u64 = 3_600_000;
/// Events kept for a violation.
const TRACE_KEPT: usize = 60;
/// A folder of files that live in memory, where there is one.
const MEMORY_FOLDER: &str = "/dev/shm";

/// Who notices something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Agent,
    Coordinator,
}

/// What an agent works at.
#[derive(Debug, Clone)]
pub(super) enum Work {
    Examine(Box<Assignment>, Approved),
    Train(tributary_agent::session::RoundKey),
    Adapt(Digest),
}

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    /// A deadline of the coordinator.
    Coordinator,
    /// A deadline of an agent.
    Agent(u32),
    /// The handshake of a connection is done.
    Established(u32, usize),
    Up(usize, Up),
    Down(usize, Down),
    /// One side notices that a connection is gone.
    Gone(usize, Side, Option<Refusal>),
    Worked {
        tenant: u32,
        incarnation: u64,
        work: Work,
    },
    StartAgent(u32),
    StartCoordinator,
    Fault(usize),
    FastDisk,
    Resume(u32),
}

/// Everything there is.
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) now: Timestamp,
    pub(super) queue: Queue<Event>,
    pub(super) draw: Xoshiro256PlusPlus,
    pub(super) network: Network,
    pub(super) coordinator: CoordinatorSite,
    pub(super) agents: Vec<AgentSite>,
    pub(super) checks: Checks,
    broken: Option<Broken>,
    events: u64,
    checksum: std::hash::DefaultHasher,
    trace: std::collections::VecDeque<String>,
    /// Texts of events cost time, so they are made only when a failure is told.
    is_traced: bool,
}

/// Plays a scenario until every job has ended or a rule is broken.
///
/// # Errors
/// [`Violation`] with the last events before it.
///
/// # Panics
/// If there is no folder for temporary files.
pub fn play(scenario: &Scenario) -> Result<Summary, Violation> {
    run(scenario, false).or_else(|violation| {
        // The same again, with words.
        run(scenario, true).and(Err(violation))
    })
}

fn run(scenario: &Scenario, is_traced: bool) -> Result<Summary, Violation> {
    let memory = Path::new(MEMORY_FOLDER);
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("there is a folder for temporary files");
    let mut world = World::new(scenario, folder.path(), is_traced);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        let text = text.unwrap_or_else(|| "a panic without words".to_owned());
        world.broken.get_or_insert((Rule::Soundness, text));
    }
    world.end()
}

impl World {
    fn new(scenario: &Scenario, folder: &Path, is_traced: bool) -> Self {
        let blobs = BlobStore::open(&folder.join("coordinator")).expect("the folder is there");
        let site = |tenant| {
            let identity = Certificates::shared().tenant(tenant);
            let folder = folder.join(tenant.to_string());
            std::fs::create_dir(&folder).expect("the folder is new");
            AgentSite::new(name(tenant), identity, folder)
        };
        Self {
            now: START,
            queue: Queue::new(),
            draw: Xoshiro256PlusPlus::seed_from_u64(scenario.seed.rotate_left(32)),
            network: Network::new(scenario.delay_ms),
            coordinator: CoordinatorSite::new(blobs, START),
            agents: (0..scenario.tenants_max()).map(site).collect(),
            checks: Checks::default(),
            broken: None,
            events: 0,
            checksum: std::hash::DefaultHasher::new(),
            trace: std::collections::VecDeque::new(),
            is_traced,
            scenario: scenario.clone(),
        }
    }

    fn run(&mut self) {
        for tenant in 0..self.scenario.tenants {
            self.enrol(tenant);
            let at = self.now.after_ms(self.draw.random_range(0..2_000));
            self.queue.add(at, Event::StartAgent(tenant));
        }
        self.submit_jobs();
        for (place, fault) in self.scenario.faults.iter().enumerate() {
            self.queue.add(START.after_ms(fault.at_ms), Event::Fault(place));
        }
        let faults = self.scenario.faults.iter();
        let faults_over = faults.map(super::Fault::over_ms).max().unwrap_or(0);
        let limit = START.after_ms(faults_over + LIVENESS_MS);
        while self.broken.is_none()
            && let Some((at, event)) = self.queue.next()
        {
            self.now = at;
            if self.now > limit {
                let text = format!("waiting for: {}", self.waiting_for());
                return self.breaks((Rule::Liveness, text));
            }
            self.note(&event);
            self.take(event);
            if self.jobs_finished() == Some(self.scenario.jobs.len()) {
                return self.check_end();
            }
        }
        if self.broken.is_none() {
            let text = format!("nothing happens any more; waiting for: {}", self.waiting_for());
            self.breaks((Rule::Liveness, text));
        }
    }

    fn take(&mut self, event: Event) {
        let for_coordinator = matches!(
            event,
            Event::Coordinator | Event::Up(..) | Event::Gone(_, Side::Coordinator, _)
        );
        if for_coordinator && self.coordinator.busy_until > self.now {
            return self.queue.add(self.coordinator.busy_until, event);
        }
        match event {
            Event::Coordinator => {
                self.coordinate(|_, _| ());
            }
            Event::Agent(tenant) => self.wake_agent(tenant),
            Event::Established(tenant, link) => self.established(tenant, link),
            Event::Up(link, message) => {
                if self.network.link(link).open && self.coordinator.process.is_some() {
                    self.arrives(link, message);
                }
            }
            Event::Down(link, message) => {
                if self.network.link(link).open {
                    self.hears(link, message);
                }
            }
            Event::Gone(link, Side::Agent, refusal) => self.link_lost(link, refusal),
            Event::Gone(link, Side::Coordinator, _) => self.session_ended(link),
            Event::Worked { tenant, incarnation, work } => self.worked(tenant, incarnation, work),
            Event::StartAgent(tenant) => self.start_agent(tenant),
            Event::StartCoordinator => self.start_coordinator(),
            Event::Fault(place) => self.fault(place),
            Event::FastDisk => self.coordinator.write_ms = 0,
            Event::Resume(tenant) => self.admin(tenant, Event::Resume(tenant)),
        }
    }

    /// What an operator does waits until the coordinator is there.
    fn admin(&mut self, tenant: u32, event: Event) {
        if self.coordinator.process.is_none() {
            return self.queue.add(self.now.after_ms(500), event);
        }
        match event {
            Event::Resume(_) => self.resume_tenant(tenant),
            Event::Fault(place) => match self.scenario.faults[place].kind {
                FaultKind::Enrol { .. } => {
                    self.enrol(tenant);
                    self.queue.add(self.now.after_ms(100), Event::StartAgent(tenant));
                }
                FaultKind::Revoke { .. } => self.stop_tenant(tenant, true),
                FaultKind::Suspend { for_ms, .. } => {
                    self.stop_tenant(tenant, false);
                    self.queue.add(self.now.after_ms(for_ms), Event::Resume(tenant));
                }
                _ => {}
            },
            _ => {}
        }
    }

    fn fault(&mut self, place: usize) {
        match self.scenario.faults[place].kind {
            FaultKind::CrashAgent { tenant, down_ms } => self.crash_agent(tenant, down_ms),
            FaultKind::TornDebit { tenant, bytes, down_ms } => {
                self.agents[tenant as usize].tear(bytes, down_ms);
            }
            FaultKind::CrashCoordinator { after_actions, down_ms } => {
                if self.coordinator.process.is_some() {
                    self.coordinator.crash = Some((after_actions, down_ms));
                }
            }
            FaultKind::Partition { tenant, for_ms } => self.partition(tenant, for_ms),
            FaultKind::Reset { tenant } => {
                if let Some(link) = self.agents[tenant as usize].link {
                    self.network.close(link);
                    self.notice(link, Side::Agent, 1, 300);
                    self.notice(link, Side::Coordinator, 1, 300);
                }
            }
            FaultKind::Loss { tenant, for_ms, percent } => {
                self.network.lose(tenant, self.now.after_ms(for_ms), percent);
            }
            FaultKind::SlowDisk { for_ms, write_ms } => {
                self.coordinator.write_ms = write_ms;
                self.queue.add(self.now.after_ms(for_ms), Event::FastDisk);
            }
            FaultKind::TenantClock { tenant, step_ms } => {
                self.agents[tenant as usize].clock_ms += step_ms;
                // A timer of the machine does not follow the clock, but it looks at it again.
                self.queue.add(self.now.after_ms(1), Event::Agent(tenant));
            }
            FaultKind::CoordinatorClock { step_ms } => {
                self.coordinator.clock_ms += step_ms;
                self.queue.add(self.now.after_ms(1), Event::Coordinator);
            }
            FaultKind::Enrol { tenant }
            | FaultKind::Revoke { tenant }
            | FaultKind::Suspend { tenant, .. } => self.admin(tenant, Event::Fault(place)),
        }
    }

    fn partition(&mut self, tenant: u32, for_ms: u64) {
        self.network.cut(tenant, self.now.after_ms(for_ms));
        if let Some(link) = self.agents[tenant as usize].link
            && for_ms > IDLE_MS
        {
            self.network.close(link);
            self.notice(link, Side::Agent, IDLE_MS, IDLE_MS + 500);
            self.notice(link, Side::Coordinator, IDLE_MS, IDLE_MS + 500);
        }
    }

    /// The coordinator closes a connection and says why.
    pub(super) fn close_link(&mut self, link: usize, refusal: Option<Refusal>) {
        if self.network.close(link) {
            let stream = Stream::ControlDown;
            let at = self.network.arrival(link, stream, self.now, &mut self.draw);
            self.queue.add(at, Event::Gone(link, Side::Agent, refusal));
        }
    }

    /// A peer is gone: the other side notices at once if a packet says so, else when it hears nothing.
    pub(super) fn break_link(&mut self, link: usize, side: Side) {
        self.network.close(link);
        self.notice(link, side, 1, IDLE_MS);
    }

    fn notice(&mut self, link: usize, side: Side, from_ms: u64, to_ms: u64) {
        let wait_ms = self.draw.random_range(from_ms..=to_ms);
        self.queue.add(self.now.after_ms(wait_ms), Event::Gone(link, side, None));
    }

    /// Remembers the first broken rule.
    pub(super) fn breaks(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    fn note(&mut self, event: &Event) {
        self.events += 1;
        let (kind, subject) = match event {
            Event::Coordinator => (0, 0),
            Event::Agent(tenant) => (1, *tenant as usize),
            Event::Established(_, link) => (2, *link),
            Event::Up(link, _) => (3, *link),
            Event::Down(link, _) => (4, *link),
            Event::Gone(link, ..) => (5, *link),
            Event::Worked { tenant, .. } => (6, *tenant as usize),
            Event::StartAgent(tenant) => (7, *tenant as usize),
            Event::StartCoordinator => (8, 0),
            Event::Fault(place) => (9, *place),
            Event::FastDisk => (10, 0),
            Event::Resume(tenant) => (11, *tenant as usize),
        };
        (self.now.0, kind, subject).hash(&mut self.checksum);
        if !self.is_traced {
            return;
        }
        let at_ms = self.now.0 - START.0;
        let tenant = |link: usize| self.network.link(link).tenant;
        let text = match event {
            Event::Up(link, message) => format!("{at_ms} t{}> {}", tenant(*link), up(message)),
            Event::Down(link, message) => format!("{at_ms} t{}< {}", tenant(*link), down(message)),
            Event::Gone(link, side, refusal) => {
                format!("{at_ms} t{} connection gone for the {side:?} {refusal:?}", tenant(*link))
            }
            Event::Worked { tenant, work, .. } => match work {
                Work::Examine(assignment, _) => {
                    let key = tributary_agent::session::RoundKey::of(assignment);
                    format!("{at_ms} t{tenant} examined {}/{}", key.job, key.round)
                }
                Work::Train(key) => format!("{at_ms} t{tenant} trained {}/{}", key.job, key.round),
                Work::Adapt(_) => format!("{at_ms} t{tenant} adapted"),
            },
            Event::Fault(place) => format!("{at_ms} fault {:?}", self.scenario.faults[*place].kind),
            event => format!("{at_ms} {event:?}"),
        };
        if self.trace.len() == TRACE_KEPT {
            self.trace.pop_front();
        }
        self.trace.push_back(text);
    }

    fn end(mut self) -> Result<Summary, Violation> {
        let (seed, at_ms) = (self.scenario.seed, self.now.0 - START.0);
        if let Some((rule, detail)) = self.broken.take() {
            let trace = self.trace.into();
            return Err(Violation { seed, at_ms, rule, detail, trace });
        }
        let (rounds_committed, rounds_abandoned, updates_counted) = self.checks.tally();
        Ok(Summary {
            seed,
            tenants: self.scenario.tenants_max(),
            jobs: self.scenario.jobs.len(),
            jobs_finished: self.jobs_finished().unwrap_or(0),
            rounds_committed,
            rounds_unmasked: self.checks.num_unmasked,
            rounds_abandoned,
            updates_counted,
            debits: self.agents.iter().map(AgentSite::num_debits).sum(),
            faults: self.scenario.faults.len(),
            events: self.events,
            virtual_ms: at_ms,
            trace: self.checksum.finish(),
        })
    }
}

fn up(message: &Up) -> String {
    match message {
        Up::Control(message) => brief(message),
        Up::Download(blob) => format!("download {}", blob.digest.short()),
        Up::Offer(offer) => format!("offer {}/{}", offer.job, offer.round),
        Up::Payload(offer, _) => format!("payload {}/{}", offer.job, offer.round),
    }
}

fn down(message: &Down) -> String {
    match message {
        Down::Control(message) => brief(message),
        Down::Base(blob, answer) => {
            format!("base {} {:?}", blob.digest.short(), answer.as_ref().map(|_| ()))
        }
        Down::Offered(offer, answer) => format!("offered {}/{} {answer:?}", offer.job, offer.round),
        Down::Stored(offer, answer) => format!("stored {}/{} {answer:?}", offer.job, offer.round),
    }
}

/// The start of what a message says of itself.
fn brief(message: &impl std::fmt::Debug) -> String {
    format!("{message:?}").chars().take(160).collect()
}
