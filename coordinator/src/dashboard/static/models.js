// What agents serve, and what every model came from.

import { get } from "./api.js";
import { descent } from "./chart.js";
import { h, note, pill } from "./dom.js";
import { bytes, estimate, moment, plural, short } from "./format.js";

function figures(model) {
  const known = model.metrics.filter((one) => one.value !== null);
  if (known.length === 0) return h("span", { class: "faint" }, "–");
  return known.map((one) => h("div", {}, h("span", { class: "faint" }, `${one.metric} `), estimate(one.value, one.standard_error)));
}

export const models = {
  title: () => "Models",
  load: () => get("/v1/models"),
  draw(list) {
    const served = list.filter((model) => model.served);
    const head = h("div", { class: "head" }, h("h1", {}, "Models"),
      list.length > 0 && h("p", { class: "faint" }, plural(list.length, "version")));
    if (list.length === 0) return [head, note("empty", "No models yet", "Every job brings its first one.")];
    return [
      head,
      h("section", { class: "panel", "aria-labelledby": "served-title" },
        h("div", { class: "panel-head" }, h("h2", { id: "served-title" }, "Served by agents")),
        h("div", { class: "scroll" }, h("table", { class: "rows" },
          h("thead", {}, h("tr", {}, ["Job", "Version", "Evaluation", "Committed", "File"].map((text) => h("th", { scope: "col" }, text)))),
          h("tbody", {}, served.map((model) => h("tr", { key: model.job },
            h("th", { scope: "row" }, h("a", { href: `#/jobs/${model.job}` }, model.job)),
            h("td", {}, model.version, " ", pill(model.pinned ? "paused" : "served", model.pinned ? "chosen" : "newest")),
            h("td", {}, figures(model)),
            h("td", {}, moment(model.created_ms)),
            h("td", { class: "faint" }, h("code", { title: model.digest }, short(model.digest)), ` ${bytes(model.bytes)}`))))))),
      h("section", { class: "panel", "aria-labelledby": "descent-title" },
        h("div", { class: "panel-head" }, h("h2", { id: "descent-title" }, "Descent"),
          h("p", { class: "faint" }, "each dot a version, the large one is served")),
        h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Descent of the models" },
          descent(list, (model) => (location.hash = `#/jobs/${model.job}`))),
        h("details", { class: "figures" }, h("summary", {}, "As a table"),
          h("div", { class: "scroll" }, h("table", { class: "plain" },
            h("thead", {}, h("tr", {}, ["Model", "From", "Round", "Evaluation", "Committed"].map((text) => h("th", { scope: "col" }, text)))),
            h("tbody", {}, [...list].reverse().map((model) => h("tr", { key: `${model.job}/${model.version}` },
              h("th", { scope: "row" }, `${model.job}/${model.version}`),
              h("td", {}, model.parent_version ? `${model.parent_version.job}/${model.parent_version.version}` : "initial"),
              h("td", {}, model.round || "–"),
              h("td", {}, figures(model)),
              h("td", {}, moment(model.created_ms))))))))),
    ];
  },
};
