//! Sets the system up: everything that administrators would do by hand on real machines.

use std::{fs, io, path::Path, time::Duration};

use serde::de::DeserializeOwned;
use tributary_protocol::id::Region;

use super::{
    Demo,
    agent::{AgentApi, AgentCommands},
    coordinator::{CoordinatorApi, CoordinatorCommands},
    documents::{AgentEndpoints, CoordinatorEndpoints},
    error::DemoError,
    folder,
    plan::{ALPHA, EPSILON_MAX},
};
use crate::{
    data::{fashion_mnist::FashionMnist, partition},
    population::DirichletPartition,
};

const START_LIMIT: Duration = Duration::from_secs(60);
const REGION: &str = "eu";

/// The running system.
#[derive(Debug)]
pub(super) struct System {
    pub(super) coordinator: CoordinatorApi,
    pub(super) agents: Vec<AgentApi>,
    /// What starts them, in the same order.
    pub(super) commands: Vec<AgentCommands>,
    pub(super) job: String,
}

impl Demo {
    /// Splits the data, starts coordinator and agents, and submits the job.
    pub(super) fn set_up(&mut self, dataset: &FashionMnist) -> Result<System, DemoError> {
        let root = self.folder.path().to_owned();
        let region = Region::new(REGION).expect("a valid name");
        let logs = self.logs();
        folder::make(&logs)?;
        let agents = self.split_data(dataset)?;

        self.progress.note("starting the coordinator");
        let commands = CoordinatorCommands::new(
            self.binaries.coordinator.clone(),
            root.join("coordinator"),
            self.stop.clone(),
        );
        commands.init()?;
        self.processes.add(commands.serve(logs.join("coordinator.log"))?);
        let endpoints: CoordinatorEndpoints =
            self.endpoints("the coordinator to listen", &commands.endpoints_file())?;
        let coordinator = commands.connect(&endpoints)?;

        self.progress.note(&format!("enrolling and starting {} agents", agents.len()));
        let mut apis = Vec::new();
        for agent in &agents {
            let token = commands.add_tenant(agent.tenant(), &region)?;
            agent.configure(&self.plan.job, &region)?;
            agent.enroll(&endpoints.quic, &token)?;
            self.processes.add(agent.run(logs.join(format!("{}.log", agent.tenant())))?);
        }
        for agent in &agents {
            apis.push(self.reach(agent)?);
        }
        let job = self.submit(&commands, &root)?;
        Ok(System { coordinator, agents: apis, commands: agents, job })
    }

    /// Waits until an agent serves.
    pub(super) fn reach(&mut self, agent: &AgentCommands) -> Result<AgentApi, DemoError> {
        let awaited = format!("{} to start", agent.name());
        let endpoints: AgentEndpoints = self.endpoints(&awaited, &agent.endpoints_file())?;
        Ok(AgentApi::new(agent.tenant().clone(), &endpoints))
    }

    fn split_data(&mut self, dataset: &FashionMnist) -> Result<Vec<AgentCommands>, DemoError> {
        let (tenants, seed) = (self.options.tenants, self.options.seed);
        let examples = self.plan.examples as usize;
        self.progress.note(&format!(
            "splitting {examples} images over {tenants} tenants, non-IID (Dirichlet {ALPHA}, seed {seed})"
        ));
        let partition = DirichletPartition { tenants, alpha: ALPHA, seed };
        let mut agents = Vec::new();
        for share in partition::split(&dataset.training_set()?, &partition, Some(examples))? {
            let folder = self.folder.path().join("agents").join(share.tenant.as_str());
            share.write(&folder)?;
            let program = self.binaries.agent.clone();
            agents.push(AgentCommands::new(program, folder, share.tenant, self.stop.clone()));
        }
        Ok(agents)
    }

    fn submit(&mut self, commands: &CoordinatorCommands, root: &Path) -> Result<String, DemoError> {
        let job = &self.plan.job;
        let privacy = &job.privacy;
        if let Some(noise_multiplier) = self.plan.noise_raised_from {
            self.progress.note(&format!(
                "noise multiplier raised from {noise_multiplier} to {:.3}, so that {} rounds stay \
                 within ε = {EPSILON_MAX}",
                privacy.noise_multiplier, job.round.rounds
            ));
        }
        self.progress.note(&format!(
            "submitting the job {}: {} rounds of {} steps, noise multiplier {:.3}, δ {:e}",
            job.name,
            job.round.rounds,
            job.training.local_steps,
            privacy.noise_multiplier,
            privacy.delta
        ));
        let file = root.join("job.toml");
        folder::write(&file, &self.plan.job_file()?)?;
        commands.submit(&file)
    }

    /// Waits for the `endpoints.json` of a process that was just started.
    fn endpoints<T: DeserializeOwned>(
        &mut self,
        awaited: &str,
        path: &Path,
    ) -> Result<T, DemoError> {
        self.wait_for(awaited, START_LIMIT, || match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| {
                DemoError::Document { origin: path.display().to_string(), source }
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DemoError::File { path: path.to_owned(), source }),
        })
    }
}
