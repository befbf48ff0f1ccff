//! From a seed to tenants, jobs, a network, and what goes wrong.

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::Serialize;
use tributary_protocol::job::JobSpec;

use super::{Fault, FaultKind};

/// Faults happen within this time, in milliseconds: about as long as the jobs take undisturbed.
const FAULTS_WITHIN_MS: u64 = 60_000;
/// Versions that the base of an asynchronous update may lie behind.
const STALENESS_MAX: u32 = 2;
/// Left out at each end of a trimmed mean: of three updates, one.
const TRIM: f64 = 0.34;

/// What a world consists of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    /// Seeds every delay and choice.
    pub seed: u64,
    /// Tenants that are enrolled from the start.
    pub tenants: u32,
    /// Tenants that a fault may enrol later.
    pub later_tenants: u32,
    /// What is trained.
    pub jobs: Vec<JobPlan>,
    /// Shortest and longest time of a message on its way, in milliseconds.
    pub delay_ms: (u64, u64),
    /// Shortest and longest local training, in milliseconds.
    pub training_ms: (u64, u64),
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// One job of a world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobPlan {
    /// How its updates are protected and combined.
    pub kind: JobKind,
    /// Rounds to commit.
    pub rounds: u64,
    /// Tenants that are invited.
    pub cohort_size: u32,
    /// Fewest updates of a round.
    pub cohort_size_min: u32,
    /// Updates at which a round commits at once.
    pub report_goal: u32,
    /// Input features of the model, which has two classes.
    pub inputs: u32,
}

/// How the updates of a job are protected and combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Local noise, one record is protected.
    LocalRecord,
    /// Local noise that is correlated over the rounds, one record is protected; really trained.
    Correlated,
    /// Local noise, the tenant is protected.
    LocalTenant,
    /// The same, each tenant at its own pace.
    Asynchronous,
    /// The same with the median in place of the mean.
    Median,
    /// The same with the mean of what is left without the extremes.
    TrimmedMean,
    /// Secure aggregation, the coordinator keeps to the protocol.
    SemiHonest,
    /// Secure aggregation with confirmed survivors.
    Malicious,
}

impl JobKind {
    const ALL: [Self; 8] = [
        Self::LocalRecord,
        Self::Correlated,
        Self::LocalTenant,
        Self::Asynchronous,
        Self::Median,
        Self::TrimmedMean,
        Self::SemiHonest,
        Self::Malicious,
    ];

    /// Whether the updates are masked.
    #[must_use]
    pub const fn is_masked(self) -> bool {
        matches!(self, Self::SemiHonest | Self::Malicious)
    }
}

impl JobPlan {
    /// The document of the job.
    ///
    /// # Panics
    /// Never for a plan of a scenario.
    #[must_use]
    pub fn spec(&self, number: usize) -> JobSpec {
        let Self { kind, rounds, cohort_size, cohort_size_min, report_goal, inputs } = self;
        let (trust, unit) = match kind {
            JobKind::LocalRecord | JobKind::Correlated => ("local", "record"),
            JobKind::SemiHonest | JobKind::Malicious => ("distributed", "tenant"),
            _ => ("local", "tenant"),
        };
        let secagg = |adversary| {
            format!(
                "[secagg]\nadversary = \"{adversary}\"\ndropout_max = 0.3\ncorrupt_max = 0.0\n\
                 step_timeout_ms = 4000\n"
            )
        };
        let more = match kind {
            // Fewer rounds than a job may need, so that runs end and new ones begin.
            JobKind::Correlated => {
                "[privacy.correlated]\nbands = 2\ngroups = 2\nrounds_max = 3\n".to_owned()
            }
            JobKind::Asynchronous => {
                format!("[round.asynchronous]\nstaleness_max = {STALENESS_MAX}\n")
            }
            JobKind::TrimmedMean => format!("[aggregation.trimmed-mean]\ntrim = {TRIM}\n"),
            JobKind::SemiHonest => secagg("semi-honest"),
            JobKind::Malicious => secagg("malicious-coordinator"),
            JobKind::LocalRecord | JobKind::LocalTenant | JobKind::Median => String::new(),
        };
        let rule = if *kind == JobKind::Median { "aggregation = \"median\"\n" } else { "" };
        let sampling_rate = if *kind == JobKind::Correlated { 1.0 } else { 0.1 };
        let text = format!(
            "name = \"job-{number}\"\ndataset = \"records\"\n{rule}[model.mlp]\ninputs = {inputs}\n\
             classes = 2\n[training]\nlocal_steps = 1\nsampling_rate = {sampling_rate:?}\n\
             batch_size_expected = 8\nclient_learning_rate = 0.1\nupdate_norm_max = 4.0\n\
             [privacy]\ntrust = \"{trust}\"\nunit = \"{unit}\"\nclipping_norm = 1.0\n\
             noise_multiplier = 1.0\ndelta = 1e-5\n[round]\nrounds = {rounds}\n\
             cohort_size = {cohort_size}\ncohort_size_min = {cohort_size_min}\n\
             report_goal = {report_goal}\nselection_timeout_ms = 3000\n\
             configuration_timeout_ms = 3000\nreport_timeout_ms = 12000\n{more}"
        );
        toml::from_str(&text).expect("the document is well-formed")
    }
}

impl Scenario {
    /// The scenario of a seed: a few tenants, one to three jobs, up to a dozen faults.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut draw = Xoshiro256PlusPlus::seed_from_u64(seed);
        let tenants = draw.random_range(4..=9);
        let later_tenants = draw.random_range(0..=2);
        let jobs = (0..draw.random_range(1..=3)).map(|_| job(&mut draw, tenants)).collect();
        let slow = draw.random_bool(0.3);
        let delay_ms = if slow { (40, 900) } else { (1, 60) };
        let training_ms = (20, draw.random_range(200..4_000));
        let mut scenario =
            Self { seed, tenants, later_tenants, jobs, delay_ms, training_ms, faults: Vec::new() };
        scenario.faults = faults(&mut draw, &scenario);
        scenario
    }

    /// A scenario with a large population and one job with local noise.
    #[must_use]
    pub fn crowd(seed: u64, tenants: u32, rounds: u64) -> Self {
        let cohort_size = (tenants / 10).max(2);
        let report_goal = cohort_size - cohort_size / 5;
        let job = JobPlan {
            kind: JobKind::LocalTenant,
            rounds,
            cohort_size,
            cohort_size_min: report_goal / 2,
            report_goal,
            inputs: 4,
        };
        let mut draw = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut scenario = Self {
            seed,
            tenants,
            later_tenants: 0,
            jobs: vec![job],
            delay_ms: (5, 200),
            training_ms: (100, 3_000),
            faults: Vec::new(),
        };
        scenario.faults = (0..tenants / 20).map(|_| fault(&mut draw, tenants)).collect();
        scenario.faults.sort_by_key(|fault| fault.at_ms);
        scenario
    }

    /// The same with only some of the faults, by their place in the list.
    #[must_use]
    pub fn only(&self, kept: &[usize]) -> Self {
        let faults = kept.iter().filter_map(|&place| self.faults.get(place).cloned()).collect();
        Self { faults, ..self.clone() }
    }

    /// Every tenant that there may be.
    #[must_use]
    pub const fn tenants_max(&self) -> u32 {
        self.tenants + self.later_tenants
    }
}

fn job(draw: &mut Xoshiro256PlusPlus, tenants: u32) -> JobPlan {
    let kind = JobKind::ALL[draw.random_range(0..JobKind::ALL.len())];
    // Two tenants may leave for good, and a cohort must still come together.
    let available = tenants - 1;
    // Masks and rules that leave some out need a few.
    let needs_three = kind.is_masked() || matches!(kind, JobKind::Median | JobKind::TrimmedMean);
    let smallest = if needs_three { 3 } else { 1 };
    let cohort_size = draw.random_range(smallest.max(2)..=available);
    let cohort_size_min =
        if needs_three { smallest } else { draw.random_range(1..=cohort_size.min(2)) };
    let report_goal = draw.random_range(cohort_size_min.max(cohort_size - 1)..=cohort_size);
    let (rounds, inputs) = (draw.random_range(2..=4), draw.random_range(1..=5));
    JobPlan { kind, rounds, cohort_size, cohort_size_min, report_goal, inputs }
}

fn faults(draw: &mut Xoshiro256PlusPlus, scenario: &Scenario) -> Vec<Fault> {
    let count = draw.random_range(0..=12);
    let mut faults: Vec<_> = (0..count).map(|_| fault(draw, scenario.tenants)).collect();
    for later in scenario.tenants..scenario.tenants_max() {
        let at_ms = draw.random_range(0..FAULTS_WITHIN_MS);
        faults.push(Fault { at_ms, kind: FaultKind::Enrol { tenant: later } });
    }
    if draw.random_bool(0.2) {
        let at_ms = draw.random_range(0..FAULTS_WITHIN_MS);
        faults.push(Fault { at_ms, kind: FaultKind::Revoke { tenant: 0 } });
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

fn fault(draw: &mut Xoshiro256PlusPlus, tenants: u32) -> Fault {
    let tenant = draw.random_range(0..tenants);
    let for_ms = draw.random_range(100..30_000);
    let down_ms = draw.random_range(50..20_000);
    let kind = match draw.random_range(0..12) {
        0 | 1 => FaultKind::CrashAgent { tenant, down_ms },
        2 => FaultKind::TornDebit { tenant, bytes: draw.random_range(0..900), down_ms },
        3..=5 => {
            let after_actions = draw.random_range(0..12);
            FaultKind::CrashCoordinator { after_actions, down_ms: down_ms / 2 }
        }
        6 => FaultKind::Partition { tenant, for_ms },
        7 => FaultKind::Reset { tenant },
        8 => FaultKind::Loss { tenant, for_ms, percent: draw.random_range(5..60) },
        9 => FaultKind::SlowDisk { for_ms, write_ms: draw.random_range(1..120) },
        10 => match draw.random_bool(0.5) {
            true => FaultKind::TenantClock { tenant, step_ms: draw.random_range(-90_000..=90_000) },
            false => FaultKind::CoordinatorClock { step_ms: draw.random_range(-3_000..=20_000) },
        },
        _ => FaultKind::Suspend { tenant, for_ms },
    };
    Fault { at_ms: draw.random_range(0..FAULTS_WITHIN_MS), kind }
}
