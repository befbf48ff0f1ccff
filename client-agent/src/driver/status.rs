//! What the agent shows of itself at `/v1/status`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tributary_privacy::ledger::{ChainStore, Ledger};
use tributary_protocol::id::{Digest, JobId, TenantId};

use crate::{
    adapter::Registry,
    policy::Policy,
    session::{Phase, View},
    train::Evaluation,
};

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusDocument {
    /// Whose agent it is.
    pub tenant: TenantId,
    /// What it does.
    pub phase: Phase,
    /// More about it.
    pub detail: String,
    /// The job it works for.
    pub job: Option<JobId>,
    /// The round it works for.
    pub round: Option<u64>,
    /// Training steps done in this round.
    pub step: u64,
    /// Training steps of this round.
    pub steps: u64,
    /// The base that is served.
    pub base: Option<BaseStatus>,
    /// The private adapter that is served.
    pub adapter: Option<AdapterStatus>,
    /// The newest base, which is not the served one where an older pair does better here.
    #[serde(default)]
    pub newest: Option<NewestStatus>,
    /// The ε that the most spent dataset has spent.
    pub epsilon: f64,
    /// The δ of that ε.
    pub delta: f64,
    /// Bytes of updates sent since the process started.
    pub bytes_sent: u64,
    /// Why the last job, or the agent itself, was refused.
    pub refused: Option<String>,
}

/// The base that is served.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BaseStatus {
    /// Names its file.
    pub digest: Digest,
    /// On the tenant's own held-out records, where there are any.
    pub accuracy: Option<f64>,
}

/// The newest base that was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NewestStatus {
    /// Names its file.
    pub digest: Digest,
    /// Of the base alone, on the tenant's own held-out records, where there are any.
    pub accuracy: Option<f64>,
    /// Whether adapting to it went to its end.
    pub complete: bool,
    /// Whether it is served.
    pub served: bool,
}

/// The private adapter that is served.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdapterStatus {
    /// Counted by this agent.
    pub version: u64,
    /// Of base and adapter on the tenant's own held-out records, where there are any.
    pub accuracy: Option<f64>,
}

/// The status, shared by the threads of one agent.
#[derive(Debug)]
pub struct SharedStatus(Mutex<StatusDocument>);

impl SharedStatus {
    /// The status of an agent that has just started.
    #[must_use]
    pub const fn new(tenant: TenantId, phase: Phase) -> Self {
        Self(Mutex::new(StatusDocument {
            tenant,
            phase,
            detail: String::new(),
            job: None,
            round: None,
            step: 0,
            steps: 0,
            base: None,
            adapter: None,
            newest: None,
            epsilon: 0.0,
            delta: 0.0,
            bytes_sent: 0,
            refused: None,
        }))
    }

    /// The status now.
    #[must_use]
    pub fn document(&self) -> StatusDocument {
        self.locked().clone()
    }

    /// Takes over what the session is doing.
    pub fn show(&self, view: View) {
        let mut status = self.locked();
        if view.phase != Phase::Training {
            (status.step, status.steps) = (0, 0);
        }
        status.phase = view.phase;
        status.detail = view.detail;
        status.refused = view.refused;
        let (job, round) = view.round.map(|key| (key.job, key.round.0)).unzip();
        (status.job, status.round) = (job, round);
        metrics::gauge!("tributary_connected").set(f64::from(u8::from(view.connected)));
    }

    /// Shows how far training is.
    pub fn training(&self, step: u32, steps: u32) {
        let mut status = self.locked();
        (status.step, status.steps) = (step.into(), steps.into());
    }

    /// Shows which model of a job is served, and what became of its newest base.
    pub fn serving(&self, registry: &Registry) {
        let accuracy = |found: Option<Evaluation>| found.map(|found| found.accuracy);
        let mut status = self.locked();
        if let Some(current) = registry.current() {
            let (digest, accuracy_of_base) = (current.base, accuracy(current.base_held_out));
            status.base = Some(BaseStatus { digest, accuracy: accuracy_of_base });
            let held_out = accuracy(current.held_out);
            status.adapter =
                current.adapter.map(|version| AdapterStatus { version, accuracy: held_out });
        }
        status.newest = registry.newest.as_ref().map(|newest| NewestStatus {
            digest: newest.base,
            accuracy: accuracy(newest.held_out),
            complete: newest.complete,
            served: newest.served,
        });
    }

    /// Counts bytes of an update that left.
    pub fn sent(&self, bytes: usize) {
        self.locked().bytes_sent += bytes as u64;
        metrics::counter!("tributary_update_bytes_sent").increment(bytes as u64);
    }

    /// Shows what the ledger says is spent.
    pub fn spent<S: ChainStore>(&self, ledger: &Ledger<S>, policy: &Policy, now_ms: u64) {
        let mut most = None;
        for (name, dataset) in &policy.datasets {
            let budget = dataset.budget();
            // The policy's numbers were checked; an event that cannot be accounted is not shown
            // as free but leaves the figure of before.
            let Ok(epsilon) = ledger.spent(name.as_str(), now_ms, &budget) else { continue };
            metrics::gauge!("tributary_epsilon_spent", "dataset" => name.to_string()).set(epsilon);
            if most.is_none_or(|(other, _)| epsilon > other) {
                most = Some((epsilon, budget.delta));
            }
        }
        if let Some((epsilon, delta)) = most {
            let mut status = self.locked();
            (status.epsilon, status.delta) = (epsilon, delta);
        }
    }

    fn locked(&self) -> MutexGuard<'_, StatusDocument> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
