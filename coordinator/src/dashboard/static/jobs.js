// All jobs at a glance.

import { get } from "./api.js";
import { spark } from "./chart.js";
import { h, note, pill } from "./dom.js";
import { estimate, plural, significant, whole } from "./format.js";

// The newest estimate of a metric that is not drowned by noise.
export function newest(job, metric) {
  return series(job, metric).at(-1);
}

export function series(job, metric) {
  return job.metrics.flatMap(({ version, releases, estimates }) => {
    const found = estimates.find((one) => one.metric === metric && one.value !== null);
    return found ? [{ version, releases, value: found.value, error: found.standard_error }] : [];
  });
}

const ORDER = ["running", "paused", "failed", "stopped", "finished"];

function row(job) {
  const share = job.rounds_committed / job.rounds;
  const accuracy = newest(job, "accuracy");
  const loss = newest(job, "loss");
  const shown = accuracy ? ["accuracy", accuracy, "accuracy"] : loss ? ["loss", loss, "loss"] : null;
  return h("li", { key: job.job },
    h("a", { class: "job-row", href: `#/jobs/${job.job}` },
      h("div", { class: "job-name" }, h("strong", {}, job.job), pill(job.state)),
      h("div", { class: "job-progress" },
        h("span", { class: "meter", "aria-hidden": "true" }, h("progress", { max: job.rounds, value: job.rounds_committed, tabindex: -1 })),
        h("span", { class: "figure" }, `${whole(job.rounds_committed)} of ${plural(job.rounds, "round")}`),
        h("span", { class: "unseen" }, `, ${Math.round(share * 100)} per cent`)),
      h("p", { class: "job-waits" }, job.waiting_for),
      h("div", { class: "job-figure" },
        shown ? [spark(series(job, shown[0]), shown[0]), h("span", {}, h("b", {}, estimate(shown[1].value, shown[1].error)), ` ${shown[2]}`)]
          : h("span", { class: "faint" }, "no metrics"),
        job.privacy && h("span", { class: "faint" }, `ε ${significant(job.privacy.epsilon)} revealed`))));
}

export const jobs = {
  title: () => "Jobs",
  load: () => get("/v1/jobs"),
  draw(list) {
    const sorted = [...list].sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || b.priority - a.priority || a.job.localeCompare(b.job));
    const running = list.filter((job) => job.state === "running").length;
    return [
      h("div", { class: "head" }, h("h1", {}, "Jobs"),
        list.length > 0 && h("p", { class: "faint" }, `${plural(list.length, "job")}, ${running} running`)),
      list.length === 0
        ? note("empty", "No jobs yet", "Submit the first one from wherever the coordinator runs:",
          h("pre", {}, "tributary-coordinator job submit job.toml"))
        : h("ul", { class: "job-list" }, sorted.map(row)),
    ];
  },
};
