//! A coordinator that dies where a schedule says, with its agents, in one thread and at one moment.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tributary_protocol::{
    id::{Digest, Region, TenantId},
    job::JobSpec,
    time::Timestamp,
    transport::tls::Identity,
};

use super::{
    super::{Core, Table, store},
    site::{InboxLine, Says, Site},
};
use crate::{
    aggregation,
    audit::{Act, AuditReader},
    blobs::BlobStore,
    registry::{self, ModelVersion},
    scheduler::{JobRecord, JobState, OfferAnswer, RoundSummary},
    store::{Batch, MemoryStore, Store, StoreError},
    tenants::{TenantContext, authority, authority::Authority, authority::PemPair, invite},
};

/// Time stands still, so that records can be compared with their times.
pub(super) const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// The authority, the coordinator's pair, and the agents' identities: made once for all worlds.
struct Pki {
    authority: PemPair,
    server: PemPair,
    agents: Vec<Identity>,
}

fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let pair = Authority::generate(NOW).expect("makes");
        let authority = Authority::load(&pair).expect("loads");
        let server = authority.issue_server(&["localhost".to_owned()], NOW).expect("issues");
        let agent = |index: usize| {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(vec![]).expect("parameters");
            let request = params.serialize_request(&key).expect("a request").der().to_vec();
            let leaf = authority.issue_agent(&tenant(index), &request, NOW, 90).expect("signs");
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
            Identity { chain: vec![leaf], key }
        };
        Pki { authority: pair, server, agents: (0..8).map(agent).collect() }
    })
}

fn tenant(index: usize) -> TenantId {
    TenantId::new(format!("t{index}")).expect("valid")
}

/// Survives the process.
#[derive(Debug, Clone, Default)]
struct Disk {
    records: Arc<Mutex<MemoryStore>>,
    /// How often the state of a secure aggregation was written by itself.
    aggregations: Arc<AtomicUsize>,
}

impl Store for Disk {
    fn scan(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.records.lock().expect("nobody panics").scan(table)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let aggregations = batch.tables().filter(|table| *table == Table::Aggregations).count();
        self.aggregations.fetch_add(aggregations, Ordering::Relaxed);
        self.records.lock().expect("nobody panics").apply(batch)
    }
}

/// What is compared.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    models: Vec<ModelVersion>,
    jobs: Vec<JobRecord>,
    rounds: Vec<RoundSummary>,
    heads: Vec<u64>,
    files: BTreeSet<String>,
}

pub(super) struct World {
    folder: TempDir,
    disk: Disk,
    /// `None` while dead.
    core: Option<Core>,
    sites: Vec<Site>,
    dies_at: Box<dyn Fn(usize) -> bool>,
    boundaries: usize,
    deaths: usize,
}

/// The process died on the way.
struct Died;

impl World {
    /// - `dies_at`: whether the process dies at a boundary between two actions, counted from 0
    pub(super) fn new(tenants: usize, dies_at: impl Fn(usize) -> bool + 'static) -> Self {
        // In memory where there is such a folder: a run flushes thousands of times.
        let memory = Path::new("/dev/shm");
        let folder =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let authority = Authority::load(&pki().authority).expect("loads");
        let site = |index: usize| {
            let identity = pki().agents[index].clone();
            Site::new(tenant(index), identity, authority.certificate().clone())
        };
        let sites = (0..tenants).map(site).collect();
        Self {
            folder: folder.expect("a folder"),
            disk: Disk::default(),
            core: None,
            sites,
            dies_at: Box::new(dies_at),
            boundaries: 0,
            deaths: 0,
        }
    }

    pub(super) const fn boundaries(&self) -> usize {
        self.boundaries
    }

    pub(super) const fn deaths(&self) -> usize {
        self.deaths
    }

    /// How often the state of a secure aggregation was written while masked updates arrived.
    pub(super) fn aggregations_written(&self) -> usize {
        self.disk.aggregations.load(Ordering::Relaxed)
    }

    /// Runs the jobs to their end.
    pub(super) fn run(&mut self, jobs: &[JobSpec]) -> Outcome {
        self.set_up();
        self.recover();
        for job in jobs {
            self.submit(job);
        }
        while !self.is_finished() {
            let index = self.sites.iter().position(|site| !site.inbox.lock().unwrap().is_empty());
            let Some(index) = index else { panic!("stuck: {:?}", self.waits()) };
            let message = self.sites[index].inbox.lock().unwrap().pop_front().expect("not empty");
            for says in self.sites[index].hear(message) {
                if self.say(index, says).is_err() {
                    self.recover();
                    break;
                }
            }
        }
        self.outcome()
    }

    /// Admits the tenants, before the first start.
    fn set_up(&mut self) {
        let mut batch = Batch::default();
        for site in &self.sites {
            let region = Region::new("eu").expect("valid");
            let context = TenantContext::new(site.tenant.clone(), region);
            let (mut record, _) = invite(context, None, [1; 32], Digest::of(b"ca"), NOW);
            record.invitation.used = Some(NOW);
            record.certificate = Some(Digest::of(&site.identity.chain[0]));
            record.put(&mut batch);
        }
        self.disk.apply(&batch).expect("memory");
    }

    fn boundary(&mut self) -> Result<(), Died> {
        self.boundaries += 1;
        if !(self.dies_at)(self.boundaries - 1) {
            return Ok(());
        }
        self.deaths += 1;
        self.core = None;
        for site in &mut self.sites {
            site.session = None;
            // Every other time what was sent just before still arrives; the answers do not.
            let sent: Vec<_> = site.inbox.lock().expect("nobody panics").drain(..).collect();
            if self.boundaries.is_multiple_of(2) {
                for message in sent {
                    site.hear(message);
                }
            }
        }
        Err(Died)
    }

    /// Runs a request, and what it leads to, as the core's task does.
    fn step<R>(&mut self, request: impl FnOnce(&mut Core, Timestamp) -> R) -> Result<R, Died> {
        let core = self.core.as_mut().expect("alive");
        let answer = request(core, NOW);
        core.scheduler.handle_timeout(NOW);
        self.settle()?;
        Ok(answer)
    }

    fn settle(&mut self) -> Result<(), Died> {
        loop {
            self.boundary()?;
            let core = self.core.as_mut().expect("alive");
            if !core.settle_next(NOW).expect("nothing fails") {
                return Ok(());
            }
        }
    }

    /// Starts the process until it lives, and connects everybody.
    fn recover(&mut self) {
        while self.start().is_err() {}
    }

    fn start(&mut self) -> Result<(), Died> {
        let authority = Authority::load(&pki().authority).expect("loads");
        let identity = authority::server_identity(&pki().server, &authority).expect("a pair");
        let blobs = BlobStore::open(self.folder.path()).expect("opens");
        let (store, administrator) = (Box::new(self.disk.clone()), Digest::of(b"token"));
        let folder = self.folder.path();
        let core = Core::restore(store, blobs, authority, identity, administrator, folder, NOW);
        self.core = Some(core.expect("everything is whole"));
        self.settle()?;
        for index in 0..self.sites.len() {
            let site = &self.sites[index];
            let (tenant, head) = (site.tenant.clone(), site.head());
            let shown = Digest::of(&site.identity.chain[0]);
            let line = Box::new(InboxLine(site.inbox.clone()));
            let who = tenant.clone();
            self.step(|core, now| core.scheduler.authenticate(&who, shown, now))?
                .expect("registered");
            let session = self.step(|core, now| core.open_session(&tenant, line, head, now))?;
            self.sites[index].session = Some(session);
        }
        Ok(())
    }

    /// Submits until the answer is heard, as a person would.
    fn submit(&mut self, spec: &JobSpec) {
        loop {
            let core = self.core.as_ref().expect("alive");
            if core.scheduler.job(&spec.name).is_ok() {
                return;
            }
            let initial = registry::initial_model(spec, 1, NOW, &core.blobs).expect("makes");
            let lattice = aggregation::plan_lattice(spec).expect("plans");
            let spec = spec.clone();
            let submitted = self.boundary().and_then(|()| {
                self.step(|core, now| core.scheduler.submit(spec, lattice, initial, 9, now))
            });
            match submitted {
                Ok(accepted) => return accepted.expect("valid"),
                Err(Died) => self.recover(),
            }
        }
    }

    fn say(&mut self, index: usize, says: Says) -> Result<(), Died> {
        let tenant = self.sites[index].tenant.clone();
        match says {
            Says::Accept(job, round) => {
                let credential = self.sites[index].identity.chain[0].clone();
                // An answer that comes too late is no fault.
                let _ = self.step(|core, now| {
                    core.scheduler.accepted(&tenant, &job, round, &credential, now)
                })?;
            }
            Says::Secagg(job, round, payload) => {
                let _ = self.step(|core, now| core.secagg(&tenant, &job, round, &payload, now))?;
            }
            Says::Upload(offer, bytes) => {
                let wanted = self.step(|core, _| core.offered(&tenant, &offer))?;
                if wanted == Ok(OfferAnswer::Receive) {
                    let core = self.core.as_ref().expect("alive");
                    core.blobs.put(&bytes).expect("stores");
                    self.boundary()?;
                }
                if wanted.is_ok() {
                    self.step(|core, now| core.reported(&tenant, &offer, now))?.expect("counts");
                }
            }
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        let core = self.core.as_ref().expect("alive");
        let mut states = core.scheduler.jobs().map(|job| job.record().state);
        states.all(|state| match state {
            JobState::Finished => true,
            JobState::Running => false,
            other => panic!("a job is {other:?}"),
        })
    }

    fn waits(&self) -> Vec<String> {
        let core = self.core.as_ref().expect("alive");
        core.scheduler.jobs().map(|job| core.scheduler.waiting_for(job, NOW)).collect()
    }

    /// Collects what is durable, and checks what must hold of any run.
    fn outcome(&self) -> Outcome {
        let rounds: Vec<RoundSummary> = store::load(&self.disk, Table::Rounds).expect("reads");
        for RoundSummary { job, round, contributors, abandoned, .. } in &rounds {
            assert_eq!(abandoned, &None, "{job}/{round}");
            for (tenant, update) in contributors {
                let site = self.sites.iter().find(|site| site.tenant == *tenant).expect("known");
                assert_eq!(site.debited(job, *round), Some(*update), "counted without a debit");
            }
        }
        let authority = Authority::load(&pki().authority).expect("loads");
        let audit = AuditReader::new(self.folder.path(), authority.fingerprint(), None);
        let entries = audit.tail(usize::MAX).expect("verifies");
        for RoundSummary { job, round, .. } in &rounds {
            let subject = format!("{job}/{round}");
            let audited = |entry: &&crate::audit::AuditEntry| {
                entry.act == Act::RoundCommit && entry.subject == subject
            };
            assert!(entries.iter().any(|entry| audited(&entry)), "{subject} is not in the log");
        }
        let files = std::fs::read_dir(self.folder.path().join("blobs")).expect("lists");
        let files: BTreeSet<_> = files
            .map(|entry| entry.expect("lists").file_name().into_string().expect("text"))
            .collect();
        let models: Vec<ModelVersion> = store::load(&self.disk, Table::Models).expect("reads");
        let latest = self.core.as_ref().expect("alive").scheduler.models();
        let states = models.iter().filter_map(|model| latest.latest(&model.job)?.optimizer_state);
        let needed = models.iter().map(|model| model.file.digest).chain(states);
        let needed: BTreeSet<_> = needed.map(|file| file.to_string()).collect();
        assert_eq!(files, needed, "files that nothing refers to, or that are lost");
        Outcome {
            models,
            jobs: store::load(&self.disk, Table::Jobs).expect("reads"),
            rounds,
            heads: self.sites.iter().map(|site| site.head().sequence).collect(),
            files,
        }
    }
}
