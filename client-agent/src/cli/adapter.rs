//! `tributary-agent adapter`: versions of the private adapters.
//!
//! Every command works on the files of the site; an agent that runs there follows within a second.

use std::process::ExitCode;

use serde_json::{Value, json};
use tributary_protocol::{id::Digest, transport::process};

use super::{
    CliError, model_folder,
    options::{
        AdapterActivateOptions, AdapterCommand, AdapterExportOptions, AdapterImportOptions,
        AdapterSite, AdapterTrainOptions,
    },
    output,
};
use crate::{
    adapter::{Adapter, AdapterFolder, AdapterVersion, Origin, Registry, Served},
    compute::set_threads,
    config::Config,
    driver::{adapting::Bench, records::Records},
    feedback::{Examples, read_examples},
    policy::Policy,
    train::Evaluation,
};

pub(super) fn execute(command: &AdapterCommand) -> Result<ExitCode, CliError> {
    match command {
        AdapterCommand::Train(options) => train(options)?,
        AdapterCommand::List(site) => list(site)?,
        AdapterCommand::Activate(options) => activate(options)?,
        AdapterCommand::Rollback(site) => {
            change(site, |registry, now_ms| Ok(registry.roll_back(now_ms)?))?;
        }
        AdapterCommand::Import(options) => import(options)?,
        AdapterCommand::Export(options) => export(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A job's adapters, the base that they sit on now, and its records.
struct Place {
    folder: AdapterFolder,
    registry: Registry,
    current: Served,
    parameters: Vec<f32>,
    config: Config,
    records: Option<Records>,
    /// Labelled predictions among the records.
    num_feedback: usize,
}

impl Place {
    fn open(site: &AdapterSite) -> Result<Self, CliError> {
        let files = site.site.site();
        let config = Config::load(&files, &site.overrides.overrides())?;
        let policy = Policy::load(&files)?;
        set_threads(config.threads)?;
        let folder = AdapterFolder::new(&files);
        let registry = folder.registry(site.job.as_ref())?;
        let current = registry
            .current()
            .cloned()
            .ok_or_else(|| CliError::NothingServed { job: registry.job.clone() })?;
        let parameters = folder.read_base(&registry.model, current.base)?;
        let of_dataset = policy.datasets.get(&registry.dataset);
        let examples_max = of_dataset.and_then(|dataset| dataset.examples_max);
        let records = Records::load(&config, &registry.dataset, examples_max)?;
        let examples = match config.feedback {
            Some(_) => read_examples(&files.feedback(), &registry.dataset, &records.data)?,
            None => Examples::default(),
        };
        let num_feedback = examples.len();
        let records = Some(records.with_examples(&examples, config.held_out_fraction));
        Ok(Self { folder, registry, current, parameters, config, records, num_feedback })
    }

    fn bench(&self) -> Bench<'_> {
        let (model, parameters) = (&self.registry.model, self.parameters.as_slice());
        Bench { model, parameters, records: self.records.as_ref() }
    }

    /// Adds an adapter of the present base, and serves it where that is wanted.
    ///
    /// - `serve`: decides with the fresh registry in hand
    fn add(
        &self,
        adapter: &Adapter,
        origin: Origin,
        held_out: Option<Evaluation>,
        serve: bool,
    ) -> Result<(u64, bool), CliError> {
        let lock = self.folder.lock()?;
        let mut registry = self.folder.registry(Some(&self.registry.job))?;
        let now_ms = process::now().0;
        self.folder.write_adapter(&registry, adapter)?;
        let version = registry.add(AdapterVersion {
            version: 0,
            base: self.current.base,
            base_version: self.current.base_version,
            origin,
            created_ms: now_ms,
            held_out,
        });
        // Something else may be served since this one was measured against it.
        let serve = serve && registry.current() == Some(&self.current);
        if serve {
            registry.activate(version, now_ms)?;
        }
        self.folder.commit(registry, serve, &lock)?;
        Ok((version, serve))
    }
}

fn train(options: &AdapterTrainOptions) -> Result<(), CliError> {
    let place = Place::open(&options.adapters)?;
    let bench = place.bench();
    let start = match place.current.adapter {
        Some(version) => Some(place.folder.read_adapter(&place.registry, version)?),
        None => None,
    };
    let mut plan = place.config.adapter.clone();
    if let Some(budget) = options.time_budget_ms {
        plan.time_budget_ms = budget;
    }
    let base = place.current.base;
    let tuned = bench.fine_tune(base, start.as_ref(), &plan, base_seed(base), &mut || false);
    let present = bench.measure_served(&place.folder, &place.registry);
    let Some((adapter, held_out)) = tuned.adapter else {
        return Err(CliError::NotBetter { job: place.registry.job.clone() });
    };
    let not_worse = match (held_out, present) {
        (Some(found), Some(present)) => found.is_not_worse(&present, &place.registry.model),
        _ => true,
    };
    let wanted = not_worse && !options.no_activate;
    let (version, activated) = place.add(&adapter, Origin::Trained, held_out, wanted)?;
    report(
        &options.adapters,
        &json!({
            "job": place.registry.job, "version": version, "base": base,
            "base_version": place.current.base_version, "held_out": held_out,
            "base_held_out": tuned.base_held_out, "served_held_out": present, "activated": activated,
            "feedback": place.num_feedback,
        }),
        || {
            let figures = format!(
                "{} on held-out records, served before: {}",
                shown(held_out),
                shown(present)
            );
            let fate = if activated { "it is served now" } else { "it is not served" };
            format!("trained adapter {version}: {figures}; {fate}")
        },
    )
}

/// A starting number where the system has no entropy.
fn base_seed(base: Digest) -> u64 {
    base.as_bytes().iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}

fn list(site: &AdapterSite) -> Result<(), CliError> {
    let registry = AdapterFolder::new(&site.site.site()).registry(site.job.as_ref())?;
    if site.site.json {
        return output::json(&json!({
            "job": registry.job, "dataset": registry.dataset, "serving": registry.current(),
            "newest": registry.newest, "versions": registry.versions,
        }));
    }
    let active = registry.current().and_then(|current| current.adapter);
    let rows = registry.versions.iter().map(|known| {
        let origin = match known.origin {
            Origin::Trained => "trained",
            Origin::Imported => "imported",
        };
        vec![
            known.version.to_string(),
            format!("{} ({})", known.base_version, known.base.short()),
            origin.to_owned(),
            crate::calendar::date(known.created_ms),
            shown(known.held_out),
            if active == Some(known.version) { "served" } else { "" }.to_owned(),
        ]
    });
    output::table(&["adapter", "base", "origin", "made", "held out", ""], rows.collect())?;
    match registry.current() {
        Some(current) => output::line(&format!("job {}: {}", registry.job, described(current))),
        None => output::line(&format!("job {}: nothing is served", registry.job)),
    }
}

fn activate(options: &AdapterActivateOptions) -> Result<(), CliError> {
    change(&options.adapters, |registry, now_ms| Ok(registry.activate(options.version, now_ms)?))
}

/// Changes what a job serves, and serves that job.
fn change(
    site: &AdapterSite,
    change: impl FnOnce(&mut Registry, u64) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let folder = AdapterFolder::new(&site.site.site());
    let lock = folder.lock()?;
    let mut registry = folder.registry(site.job.as_ref())?;
    change(&mut registry, process::now().0)?;
    // What cannot be read must not become what is served.
    crate::driver::serving::serving(&folder, &registry)?;
    let registry = folder.commit(registry, true, &lock)?;
    let serving = registry.current();
    report(site, &json!({"job": registry.job, "serving": serving}), || {
        let detail = serving.map_or_else(|| "nothing".to_owned(), described);
        format!("job {}: {detail}", registry.job)
    })
}

fn import(options: &AdapterImportOptions) -> Result<(), CliError> {
    let place = Place::open(&options.adapters)?;
    let (registry, base) = (&place.registry, place.current.base);
    let adapter = Adapter::import(&options.folder, &registry.model, base)?;
    let held_out = place.bench().held_out(&place.parameters, Some(&adapter));
    let (version, activated) = place.add(&adapter, Origin::Imported, held_out, options.activate)?;
    report(
        &options.adapters,
        &json!({
            "job": registry.job, "version": version, "base": base, "held_out": held_out,
            "activated": activated,
        }),
        || format!("imported adapter {version}: {} on held-out records", shown(held_out)),
    )
}

fn export(options: &AdapterExportOptions) -> Result<(), CliError> {
    let folder = AdapterFolder::new(&options.adapters.site.site());
    let registry = folder.registry(options.adapters.job.as_ref())?;
    let known = registry.version(options.version)?;
    let adapter = folder.read_adapter(&registry, options.version)?;
    adapter.export(&options.folder, &registry.model)?;
    if let Some(base) = &options.base {
        let files = options.adapters.site.site();
        let config = Config::load(&files, &options.adapters.overrides.overrides())?;
        let parameters = folder.read_base(&registry.model, known.base)?;
        let source = config.datasets.get(&registry.dataset);
        model_folder::write(base, &registry.model, &parameters, source)?;
    }
    report(
        &options.adapters,
        &json!({
            "job": registry.job, "version": known.version, "base": known.base, "folder": options.folder,
        }),
        || format!("wrote adapter {} to {}", known.version, options.folder.display()),
    )
}

fn report(
    site: &AdapterSite,
    document: &Value,
    line: impl FnOnce() -> String,
) -> Result<(), CliError> {
    if site.site.json { output::json(document) } else { output::line(&line()) }
}

fn described(current: &Served) -> String {
    let base = format!("base {} ({})", current.base_version, current.base.short());
    match current.adapter {
        Some(version) => format!("{base} with adapter {version}, {}", shown(current.held_out)),
        None => format!("{base} alone, {}", shown(current.held_out)),
    }
}

fn shown(evaluation: Option<Evaluation>) -> String {
    evaluation.map_or_else(
        || "unmeasured".to_owned(),
        |found| format!("{:.1} % right, loss {:.4}", found.accuracy * 100.0, found.loss),
    )
}
