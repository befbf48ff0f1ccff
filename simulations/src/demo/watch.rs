//! Follows the job from its first round to the last agent's adapter.

use std::time::Duration;

use super::{
    Demo, POLL_INTERVAL, coordinator,
    documents::{AgentStatus, JobState, JobStatus, ModelVersion},
    dropout::{Act, Dropout},
    error::DemoError,
    evaluation::PublicTest,
    http::HttpError,
    report::{DemoReport, TenantReport},
    setup::System,
    snapshot::Snapshot,
};
use crate::deadline::{Deadline, pause};

/// How long nothing at all may change before the demo gives up.
const STALL_LIMIT: Duration = Duration::from_secs(180);
/// Pause between two looks for the moment to kill an agent: its phases last tens of milliseconds.
const KILL_POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How long a running process may fail to answer.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// Watches one job.
#[derive(Debug)]
pub(super) struct Watcher<'demo> {
    demo: &'demo mut Demo,
    system: &'demo mut System,
    test: &'demo PublicTest,
    dropout: Dropout,
    clock: Deadline,
    /// Accuracy of each model version that was measured so far, oldest first.
    accuracies: Vec<(ModelVersion, f64)>,
}

/// What is compared to notice that something happens.
type Activity = (u64, Option<u64>, Vec<(String, u64, u64, Option<String>)>);

impl<'demo> Watcher<'demo> {
    pub(super) fn new(
        demo: &'demo mut Demo,
        system: &'demo mut System,
        test: &'demo PublicTest,
    ) -> Self {
        let (dropout, clock) = (Dropout::new(demo.options.secagg), Deadline::after(Duration::MAX));
        Self { demo, system, test, dropout, clock, accuracies: Vec::new() }
    }

    /// Watches until every agent has adapted to the final base.
    pub(super) fn watch(mut self) -> Result<DemoReport, DemoError> {
        let mut stall = Deadline::after(STALL_LIMIT);
        let mut silence = Deadline::after(SILENCE_LIMIT);
        let mut activity = None;
        self.kill_in_a_round(stall, silence)?;
        loop {
            self.demo.check()?;
            match self.look() {
                Ok((job, agents)) => {
                    silence = silence.restarted();
                    let now = activity_of(&job, &agents);
                    if activity.as_ref() != Some(&now) {
                        stall = stall.restarted();
                        activity = Some(now);
                    }
                    self.show(&job, agents.clone());
                    self.drop_out(&job)?;
                    if let Some(report) = self.finish(&job, &agents)? {
                        return Ok(report);
                    }
                    if stall.has_passed() {
                        return Err(stalled(&job, &agents));
                    }
                }
                Err(Trouble::Fatal(error)) => return Err(*error),
                Err(Trouble::Unanswered { process, source }) if silence.has_passed() => {
                    // A process that has ended explains its silence better than the silence does.
                    self.demo.check()?;
                    return Err(self.silent(process, source));
                }
                Err(Trouble::Unanswered { .. }) => {}
            }
            pause(POLL_INTERVAL);
        }
    }

    /// Looks at nothing but the job's phase until the agent that is to be killed is: asking all
    /// agents and measuring bases takes longer than a round.
    fn kill_in_a_round(&mut self, stall: Deadline, mut silence: Deadline) -> Result<(), DemoError> {
        while self.dropout.is_pending() && !stall.has_passed() {
            self.demo.check()?;
            match self.system.coordinator.job(&self.system.job) {
                Ok(job) => {
                    silence = silence.restarted();
                    self.drop_out(&job)?;
                    if job.state != JobState::Running {
                        break;
                    }
                }
                Err(source) if silence.has_passed() => {
                    return Err(self.silent(coordinator::NAME.to_owned(), source));
                }
                Err(_) => {}
            }
            pause(KILL_POLL_INTERVAL);
        }
        Ok(())
    }

    /// Kills the last tenant's agent in the middle of a round, and starts it again after it.
    fn drop_out(&mut self, job: &JobStatus) -> Result<(), DemoError> {
        let last = self.system.commands.len() - 1;
        let agent = self.system.commands[last].clone();
        match self.dropout.next(agent.tenant().as_str(), job) {
            Act::Nothing => {}
            Act::Kill => {
                self.demo.processes.kill(&agent.name());
                // What it said of itself before is no longer true.
                let _ = std::fs::remove_file(agent.endpoints_file());
                self.demo.progress.note(&format!(
                    "killed {} (kill -9) while round {} was {}; the others finish the round",
                    agent.name(),
                    job.round.unwrap_or_default(),
                    job.phase.as_deref().unwrap_or_default(),
                ));
            }
            Act::Start => {
                self.demo.progress.note(&format!("starting {} again", agent.name()));
                let log = self.demo.logs().join(format!("{}-again.log", agent.tenant()));
                let process = agent.run(log)?;
                self.demo.processes.add(process);
                self.system.agents[last] = self.demo.reach(&agent)?;
            }
        }
        Ok(())
    }

    /// Asks everybody once, and measures the bases that are new.
    fn look(&mut self) -> Result<(JobStatus, Vec<(String, AgentStatus)>), Trouble> {
        let of_coordinator =
            |source| Trouble::Unanswered { process: coordinator::NAME.to_owned(), source };
        let api = &self.system.coordinator;
        let job = api.job(&self.system.job).map_err(of_coordinator)?;
        let newest = self.accuracies.last().map(|(model, _)| model.digest.as_str());
        if newest != job.model.as_deref() {
            let models = api.models(&self.system.job).map_err(of_coordinator)?;
            for model in models.into_iter().skip(self.accuracies.len()) {
                let file = api.model_file(&model.digest).map_err(of_coordinator)?;
                let round = model.round.unwrap_or(0);
                let accuracy = self.test.accuracy(&file).map_err(|source| {
                    Trouble::Fatal(Box::new(DemoError::Evaluation { round, source }))
                })?;
                self.accuracies.push((model, accuracy));
            }
        }
        let running = self.system.agents.len() - usize::from(self.dropout.is_gone());
        let agents = self.system.agents[..running].iter().map(|agent| {
            let status = agent.status().map_err(|source| Trouble::Unanswered {
                process: format!("agent {}", agent.tenant),
                source,
            })?;
            Ok((agent.tenant.to_string(), status))
        });
        Ok((job, agents.collect::<Result<_, _>>()?))
    }

    fn show(&mut self, job: &JobStatus, agents: Vec<(String, AgentStatus)>) {
        let accuracy = self.accuracies.last().map(|&(_, accuracy)| accuracy);
        let snapshot = Snapshot::new(job, agents, accuracy);
        self.demo.progress.show(&snapshot, self.clock);
    }

    /// The report, once the job is finished and everybody has adapted to its last base.
    fn finish(
        &self,
        job: &JobStatus,
        agents: &[(String, AgentStatus)],
    ) -> Result<Option<DemoReport>, DemoError> {
        match job.state {
            _ if self.dropout.is_gone() => return Ok(None),
            JobState::Running => return Ok(None),
            JobState::Stopped | JobState::Failed => return Err(ended(job)),
            JobState::Finished => {}
        }
        let adapted = |(id, status): &(String, AgentStatus)| {
            job.model.as_deref().and_then(|model| adapted(id, status, model))
        };
        let tenants: Option<Vec<TenantReport>> = agents.iter().map(adapted).collect();
        let (first, last) = (self.accuracies.first(), self.accuracies.last());
        let (Some(tenants), Some((_, initial)), Some((_, accuracy))) = (tenants, first, last)
        else {
            return Ok(None);
        };
        Ok(Some(DemoReport {
            rounds: job.rounds_committed,
            initial_accuracy: *initial,
            base_accuracy: *accuracy,
            tenants,
            killed: self.dropout.killed().cloned(),
        }))
    }

    fn silent(&self, name: String, source: HttpError) -> DemoError {
        let process = self.demo.processes.named(&name);
        DemoError::Silent {
            seconds: SILENCE_LIMIT.as_secs(),
            log: process.map(|process| process.log().to_owned()).unwrap_or_default(),
            last_lines: process.map(|process| process.last_lines()).unwrap_or_default(),
            process: name,
            source,
        }
    }
}

/// Why one look failed.
enum Trouble {
    Fatal(Box<DemoError>),
    Unanswered { process: String, source: HttpError },
}

/// What a tenant reports once its adapter work on the base `digest` is done. It may still serve an
/// older pair that does better on its own held-out data.
fn adapted(id: &str, status: &AgentStatus, digest: &str) -> Option<TenantReport> {
    let newest = status.newest.as_ref().filter(|newest| newest.digest == digest)?;
    let base_accuracy = newest.accuracy.filter(|_| newest.complete && status.phase == "idle")?;
    let adapter = status.adapter.as_ref();
    let served = adapter.map(|adapter| adapter.accuracy);
    let served = served.unwrap_or_else(|| status.base.as_ref().and_then(|base| base.accuracy));
    Some(TenantReport {
        id: id.to_owned(),
        base_accuracy,
        adapter_accuracy: served.unwrap_or(base_accuracy),
        epsilon: status.epsilon,
        delta: status.delta,
        bytes_sent: status.bytes_sent,
        adapted: adapter.is_some(),
    })
}

fn activity_of(job: &JobStatus, agents: &[(String, AgentStatus)]) -> Activity {
    let of_agent = |(_, status): &(String, AgentStatus)| {
        (status.phase.clone(), status.step, status.bytes_sent, status.detail.clone())
    };
    (job.rounds_committed, job.round, agents.iter().map(of_agent).collect())
}

fn ended(job: &JobStatus) -> DemoError {
    DemoError::JobEnded {
        state: format!("{:?}", job.state).to_lowercase(),
        committed: job.rounds_committed,
        rounds: job.rounds,
        reason: job.waiting_for.clone().unwrap_or_else(|| "no reason given".to_owned()),
    }
}

/// Says who is waiting for what when nothing has happened for too long.
fn stalled(job: &JobStatus, agents: &[(String, AgentStatus)]) -> DemoError {
    let mut awaited = match job.state {
        JobState::Finished => "every agent to adapt to the final base".to_owned(),
        JobState::Running | JobState::Stopped | JobState::Failed => format!(
            "{} ({} of {} rounds are committed)",
            job.waiting_for.as_deref().unwrap_or("the next round"),
            job.rounds_committed,
            job.rounds
        ),
    };
    for (tenant, status) in agents {
        let reason = status.refused.as_deref().or(status.detail.as_deref()).unwrap_or_default();
        awaited += &format!("\n    agent {tenant} is {}: {reason}", status.phase);
    }
    DemoError::TooSlow { awaited, seconds: STALL_LIMIT.as_secs() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: &str) -> AgentStatus {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_tenant_is_done_when_it_idles_on_the_final_base() {
        let done = status(
            r#"{"phase":"idle","base":{"digest":"aa","accuracy":0.8},
                "newest":{"digest":"aa","accuracy":0.8,"complete":true,"served":true},
                "adapter":{"version":3,"accuracy":0.9},"epsilon":7.5,"delta":1e-5,"bytes_sent":9}"#,
        );
        assert_eq!(adapted("ash", &done, "bb"), None, "an older base");
        let report = adapted("ash", &done, "aa").unwrap();
        assert!(report.adapted && report.adapter_accuracy == 0.9);
        let mut busy = done.clone();
        busy.phase = "adapting".to_owned();
        assert_eq!(adapted("ash", &busy, "aa"), None);
        let mut plain = done;
        plain.adapter = None;
        let report = adapted("ash", &plain, "aa").unwrap();
        assert!(!report.adapted && report.adapter_accuracy == 0.8, "the base alone is served");
    }

    #[test]
    fn a_stall_says_what_everybody_does() {
        let job: JobStatus = serde_json::from_str(
            r#"{"state":"running","rounds_committed":2,"rounds":9,"model":"aa",
                "waiting_for":"2 of 4 updates"}"#,
        )
        .unwrap();
        let agents =
            [("elm".to_owned(), status(r#"{"phase":"idle","refused":"budget is spent"}"#))];
        let text = stalled(&job, &agents).to_string();
        for expected in ["2 of 4 updates", "2 of 9 rounds", "agent elm", "budget is spent"] {
            assert!(text.contains(expected), "{expected} is missing:\n{text}");
        }
    }
}
