// One job: what its round waits for, its curves, what it cost in privacy, its models.

import { get, may } from "./api.js";
import { curve, history } from "./chart.js";
import { confirm, sending } from "./dialog.js";
import { fact, h, note, pill } from "./dom.js";
import { bytes, duration, estimate, moment, plural, short, significant, whole } from "./format.js";
import { series } from "./jobs.js";

const STEPS = {
  local: ["selection", "configuration", "reporting", "committed"],
  asynchronous: ["buffering", "committed"],
  distributed: ["selection", "configuration", "key_exchange", "reporting", "unmasking", "committed"],
};
const VERSIONS_SHOWN = 8;
// What a panel's border and padding take of its width, in pixels.
const PANEL_EDGES = 38;
const STATES = ["invited", "accepted", "reported", "declined", "connected", "offline", "suspended", "revoked"];

const unfolded = new Set();

function actions(job) {
  const path = `/v1/jobs/${job.job}`;
  const button = (verb, name, operation, question) => may(`post /v1/jobs/{job}/${operation}`) &&
    h("button", { class: "button", type: "button", key: operation, onclick: () => confirm({ verb, ...question, act: sending(`${path}/${operation}`, undefined, name) }) }, verb);
  if (job.state !== "running" && job.state !== "paused") return null;
  return h("div", { class: "actions" },
    job.state === "running" && button("Pause", `${job.job} is paused`, "pause", {
      title: `Pause ${job.job}?`, text: "The open round is finished; no further one begins until the job is resumed.",
    }),
    job.state === "paused" && button("Resume", `${job.job} goes on`, "resume", {
      title: `Resume ${job.job}?`, text: "The next round begins as soon as enough tenants are there.",
    }),
    button("Stop", `${job.job} was stopped`, "stop", {
      title: `Stop ${job.job} for good?`, danger: true,
      text: "An open round is given up, and what its tenants have spent on it is lost. Models that were committed stay. A stopped job cannot be resumed.",
    }));
}

function facts(job) {
  const { terms } = job;
  return h("dl", { class: "facts" },
    fact("Data set", terms.dataset),
    fact("Parameters", whole(terms.num_parameters)),
    fact("Privacy", `${terms.trust}, per ${terms.unit}`, "Who adds the noise, and whose presence it hides"),
    fact("Noise multiplier", significant(terms.noise_multiplier), "Noise deviation over clipping norm"),
    fact("Clipping norm", significant(job.clipping_norm), "The open round's, where it adapts"),
    fact("Cohort", `${terms.cohort_size_min}–${terms.report_goal} of ${terms.cohort_size}${terms.asynchronous ? ", asynchronous" : ""}`, "Fewest updates, goal, and tenants invited or training at once"),
    fact("Regions", terms.regions.length ? terms.regions.join(", ") : "all"),
    fact("Priority", job.priority),
    fact("Submitted", moment(job.submitted)));
}

function stepper(job) {
  const steps = STEPS[job.terms.asynchronous ? "asynchronous" : job.terms.trust] ?? STEPS.local;
  const at = steps.indexOf(job.phase);
  return h("ol", { class: "steps", "aria-label": "Phases of the round" }, steps.map((step, index) =>
    h("li", { class: index < at ? "past" : index === at ? "now" : "next", "aria-current": index === at ? "step" : null },
      h("span", {}, step.replace("_", " ")))));
}

function round(job) {
  const open = job.state === "running" || (job.state === "paused" && job.waits_until !== null);
  const counts = STATES.map((state) => [state, job.tenants.filter((tenant) => tenant.state === state).length]);
  const sorted = [...job.tenants].sort((a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state) || a.tenant.localeCompare(b.tenant));
  return h("section", { class: "panel", "aria-labelledby": "round-title", key: "round" },
    h("div", { class: "panel-head" }, h("h2", { id: "round-title" }, open ? `Round ${job.round}` : "Last round"),
      open && job.phase_since !== null && h("p", { class: "faint" }, `${job.phase.replace("_", " ")} for `, h("time", { "data-since": job.phase_since }, duration(Date.now() - job.phase_since)))),
    open && stepper(job),
    h("p", { class: "waits", "aria-live": "polite" }, job.waiting_for,
      job.waits_until !== null && h("span", { class: "deadline" }, " · until ", moment(job.waits_until), ", in ",
        h("time", { "data-until": job.waits_until }, duration(job.waits_until - Date.now())))),
    job.tenants.length === 0
      ? note("empty", "No tenants", "No tenant is where this job's data may be.")
      : [h("ul", { class: "counts", "aria-label": "Tenants by state" }, counts.filter(([, count]) => count > 0).map(([state, count]) =>
        h("li", {}, pill(`tenant-${state}`, `${count} ${state}`)))),
      h("div", { class: "scroll" }, h("table", { class: "rows stacked" },
        h("caption", { class: "unseen" }, "Each tenant's part in the round"),
        h("thead", {}, h("tr", {}, ["Tenant", "State", "Why"].map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, sorted.map((tenant) => h("tr", { key: tenant.tenant },
          h("th", { scope: "row" }, tenant.tenant),
          h("td", {}, pill(`tenant-${tenant.state}`, tenant.state)),
          h("td", { class: "why" }, tenant.detail))))))]);
}

function curves(job, width) {
  const drawn = [["Accuracy", "accuracy", [0, 1]], ["Loss", "loss", [0, Infinity]]]
    .map(([name, metric, limits]) => ({ name, tone: metric, limits, points: series(job, metric) }))
    .filter(({ points }) => points.length > 0);
  const inner = width - PANEL_EDGES;
  const beside = inner >= 720 && drawn.length > 1;
  const each = Math.floor(beside ? (inner - 28) / 2 : inner);
  return h("section", { class: "panel", "aria-labelledby": "curves-title", key: "curves" },
    h("div", { class: "panel-head" }, h("h2", { id: "curves-title" }, "Federated evaluation"),
      drawn.length > 0 && h("p", { class: "faint" }, "noisy, with one standard error")),
    drawn.length === 0
      ? note("empty", "No figures", "Metrics leave the sites only if the job has a table [evaluation], and then with noise.")
      : h("div", { class: beside ? "charts beside" : "charts" }, drawn.map((one) => curve({ ...one, width: each }))));
}

function spending(job, cost) {
  const planned = cost.epsilon_planned;
  const bounded = (epsilon) => (epsilon === null ? "beyond what can be computed" : significant(epsilon));
  const tenant = (one) => h("tr", { key: one.tenant },
    h("th", { scope: "row" }, one.tenant),
    h("td", { class: "number" }, h("b", {}, significant(one.epsilon))),
    h("td", { class: "wide-cell" }, planned !== null && one.epsilon !== null && h("meter", {
      min: 0, max: planned, value: one.epsilon, "aria-label": `${one.tenant}: ε ${significant(one.epsilon)} of ${significant(planned)} planned`,
    })),
    h("td", { class: "number extra" }, `${whole(one.updates)} of ${whole(job.rounds)}`),
    h("td", { class: "number extra" }, whole(one.ledger_sequence)));
  return h("section", { class: "panel", "aria-labelledby": "privacy-title", key: "privacy" },
    h("div", { class: "panel-head" }, h("h2", { id: "privacy-title" }, "Privacy"),
      h("p", { class: "faint" }, `δ ${significant(cost.delta)}, per ${cost.unit}`)),
    h("dl", { class: "facts" },
      fact("ε planned", bounded(planned), "Of a tenant that is in every round"),
      job.privacy && fact("ε of the sums", bounded(job.privacy.epsilon), "What the committed sums revealed, with the survivors they had"),
      job.privacy && fact("ε allowed", bounded(job.privacy.epsilon_worst_case), "The worst case in the same rounds, which agents debit")),
    cost.tenants.length === 0
      ? note("empty", "Nothing spent", "No update has become part of a model yet.")
      : h("div", { class: "scroll" }, h("table", { class: "rows" },
        h("caption", { class: "unseen" }, "ε of the counted releases of each tenant"),
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Tenant"), h("th", { scope: "col", class: "number" }, "ε counted"),
          h("th", { scope: "col", class: "wide-cell" }, planned === null ? "" : "of planned"), h("th", { scope: "col", class: "number extra" }, "Updates"),
          h("th", { scope: "col", class: "number extra", title: "Entries that the coordinator has countersigned, over all jobs" }, "Ledger"))),
        h("tbody", {}, cost.tenants.map(tenant)))),
    h("p", { class: "hint" }, "Computed from the job's terms and the updates counted here. Each tenant's own ledger and policy decide: they also hold releases that no model contains, other jobs, and the budget, which only the tenant knows."));
}

function versions(job, models) {
  const own = models.filter((model) => model.job === job.job).reverse();
  const all = unfolded.has(job.job);
  const shown = all ? own : own.slice(0, VERSIONS_SHOWN);
  const served = own.find((model) => model.served);
  const figure = (model, metric) => {
    const found = model.metrics.find((one) => one.metric === metric);
    return found && found.value !== null ? estimate(found.value, found.standard_error) : "–";
  };
  const measured = own.some((model) => model.metrics.length > 0);
  const promote = (model) => confirm({
    title: `Have agents serve version ${model.version}?`, verb: `Serve version ${model.version}`,
    text: `They serve it, and adapt to it, until another one is chosen. Training goes on from the newest version. Now they serve version ${served?.version}.`,
    act: sending(`/v1/jobs/${job.job}/promote`, { version: model.version }, `agents serve version ${model.version}`),
  });
  const follow = () => confirm({
    title: "Have agents follow the newest version?", verb: "Follow the newest",
    text: `They move to version ${own[0].version} now, and to every later one when it is committed.`,
    act: sending(`/v1/jobs/${job.job}/promote`, { version: null }, "agents follow the newest version"),
  });
  const back = () => confirm({
    title: `Roll back to version ${served.version - 1}?`, verb: "Roll back",
    text: `Agents go from version ${served.version} to ${served.version - 1}, and stay there until another one is chosen.`,
    act: sending(`/v1/jobs/${job.job}/rollback`, undefined, `agents serve version ${served.version - 1}`),
  });
  const mayPromote = may("post /v1/jobs/{job}/promote");
  return h("section", { class: "panel", "aria-labelledby": "versions-title", key: "versions" },
    h("div", { class: "panel-head" }, h("h2", { id: "versions-title" }, "Models"),
      mayPromote && served && h("div", { class: "actions" },
        served.pinned && h("button", { class: "button", type: "button", key: "follow", onclick: follow }, "Follow the newest"),
        served.version > 0 && h("button", { class: "button", type: "button", key: "back", onclick: back }, "Roll back"))),
    served && h("p", { class: "lead" }, `Agents serve version ${served.version}${served.pinned ? ", chosen" : ", the newest"}.`),
    h("div", { class: "scroll" }, h("table", { class: "rows" },
      h("caption", { class: "unseen" }, "Model versions, newest first"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Version"), h("th", { scope: "col", class: "extra" }, "From"),
        measured && ["Accuracy", "Loss"].map((text) => h("th", { scope: "col", class: text === "Loss" ? "number extra" : "number" }, text)),
        h("th", { scope: "col", class: measured ? "extra" : null }, "Committed"), h("th", { scope: "col", class: "extra" }, "File"),
        h("th", { scope: "col" }, h("span", { class: "unseen" }, "Action")))),
      h("tbody", {}, shown.map((model) => h("tr", { key: model.version, class: model.served ? "served" : null },
        h("th", { scope: "row" }, model.version, model.served && pill("served", "served")),
        h("td", { class: "extra" }, model.parent_version ? model.parent_version.job === job.job ? model.parent_version.version
          : h("a", { href: `#/jobs/${model.parent_version.job}` }, `${model.parent_version.job}/${model.parent_version.version}`) : "initial"),
        measured && ["accuracy", "loss"].map((metric) => h("td", { class: metric === "loss" ? "number extra" : "number" }, figure(model, metric))),
        h("td", { class: measured ? "extra" : null }, moment(model.created_ms)),
        h("td", { class: "faint extra" }, h("code", { title: model.digest }, short(model.digest)), ` ${bytes(model.bytes)}`),
        h("td", { class: "act" }, mayPromote && !model.served && h("button", { class: "button small", type: "button", onclick: () => promote(model), "aria-label": `Serve version ${model.version}` }, "Serve"))))))),
    own.length > VERSIONS_SHOWN && h("button", { class: "button small", type: "button", key: "more", "aria-expanded": String(all), onclick: () => {
      if (all) unfolded.delete(job.job);
      else unfolded.add(job.job);
      document.dispatchEvent(new Event("redraw"));
    } }, all ? "Show fewer" : `Show all ${own.length}`));
}

function rounds(job, list) {
  const ended = list.map((one) => ({ ...one, updates: Object.keys(one.contributors).length }));
  const abandoned = ended.filter((one) => one.abandoned);
  return h("section", { class: "panel", "aria-labelledby": "rounds-title", key: "rounds" },
    h("div", { class: "panel-head" }, h("h2", { id: "rounds-title" }, "Rounds"),
      ended.length > 0 && h("p", { class: "faint" }, `${plural(ended.length - abandoned.length, "round")} committed, ${abandoned.length} abandoned`)),
    ended.length === 0 ? note("empty", "No round has ended yet") : [
      h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Updates of the last rounds" }, history(ended, job.terms.report_goal)),
      abandoned.length > 0 && h("ul", { class: "reasons" }, abandoned.slice(-5).reverse().map((one) =>
        h("li", { key: one.round }, h("b", {}, `Round ${one.round}`), ` ${one.abandoned}`, h("span", { class: "faint" }, ` ${moment(one.ended)}`))))]);
}

export const job = {
  title: (name) => name,
  async load(name) {
    const path = `/v1/jobs/${encodeURIComponent(name)}`;
    const [job, ended, cost, models] = await Promise.all([get(path), get(`${path}/rounds`), get(`${path}/spending`), get("/v1/models")]);
    return { job, ended, cost, models };
  },
  draw({ job, ended, cost, models }, width) {
    return [
      h("nav", { class: "crumbs", "aria-label": "Where you are" }, h("a", { href: "#/jobs" }, "Jobs")),
      h("div", { class: "head" },
        h("div", { class: "head-name" }, h("h1", {}, job.job), pill(job.state)),
        actions(job)),
      job.failure && note("bad", "The job failed", job.failure),
      h("div", { class: "progress-line" },
        h("progress", { max: job.rounds, value: job.rounds_committed, "aria-label": "Rounds committed" }),
        h("span", { class: "figure" }, `${whole(job.rounds_committed)} of ${plural(job.rounds, "round")}`)),
      facts(job), round(job), curves(job, width), spending(job, cost), versions(job, models), rounds(job, ended),
    ];
  },
};
