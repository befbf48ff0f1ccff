// Draws curves with their standard error, and small pictures of history.

import { announce, h, s } from "./dom.js";
import { estimate, moment, plural, significant } from "./format.js";

const EDGE = { top: 12, right: 14, bottom: 26, left: 44 };
const HEIGHT = 190;

function ticks(low, high, count) {
  const span = high - low || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.ceil(low / step - 1e-9) * step;
  const found = [];
  for (let value = first; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

function path(points) {
  return points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

// A curve over model versions.
//
// - `points`: `[{ version, value, error, releases }]`, oldest first, without gaps
// - `width`: in pixels
export function curve({ name, points, width, tone, limits }) {
  const inner = { width: width - EDGE.left - EDGE.right, height: HEIGHT - EDGE.top - EDGE.bottom };
  const versions = points.map((point) => point.version);
  const [first, last] = [Math.min(...versions), Math.max(...versions)];
  let low = Math.min(...points.map((point) => point.value - point.error));
  let high = Math.max(...points.map((point) => point.value + point.error));
  const margin = (high - low || 0.1) * 0.12;
  low = Math.max(limits[0], low - margin);
  high = Math.min(limits[1], high + margin);
  const x = (version) => EDGE.left + (last === first ? 0.5 : (version - first) / (last - first)) * inner.width;
  const y = (value) => EDGE.top + (1 - (Math.min(high, Math.max(low, value)) - low) / (high - low || 1)) * inner.height;
  const upper = points.map((point) => [x(point.version), y(point.value + point.error)]);
  const lower = points.map((point) => [x(point.version), y(point.value - point.error)]).reverse();
  const middle = points.map((point) => [x(point.version), y(point.value)]);
  const newest = points.at(-1);

  const cursor = s("g", { class: "cursor", visibility: "hidden" },
    s("line", { y1: EDGE.top, y2: HEIGHT - EDGE.bottom }), s("circle", { r: 4 }));
  const reading = h("p", { class: "reading" }, words(newest));
  // What is on the page may be an earlier drawing that was brought up to date, so it is looked up.
  const shown = (event) => {
    const figure = event.currentTarget.closest("figure");
    return [figure.querySelector(".cursor"), figure.querySelector(".reading")];
  };
  const choose = (event, index, aloud) => {
    const [marker, text] = shown(event);
    const at = Math.max(0, Math.min(points.length - 1, index));
    const point = points[at];
    const [line, dot] = marker.children;
    line.setAttribute("x1", x(point.version));
    line.setAttribute("x2", x(point.version));
    dot.setAttribute("cx", x(point.version));
    dot.setAttribute("cy", y(point.value));
    marker.setAttribute("visibility", "visible");
    for (const held of [marker, text]) held.setAttribute("data-held", "");
    event.currentTarget.dataset.chosen = at;
    text.textContent = words(point);
    if (aloud) announce(`${name}: ${words(point)}`);
  };
  const rest = (event) => {
    const [marker, text] = shown(event);
    for (const held of [marker, text]) held.removeAttribute("data-held");
    marker.setAttribute("visibility", "hidden");
    text.textContent = words(newest);
    delete event.currentTarget.dataset.chosen;
  };
  const keys = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
  const picture = s("svg", {
    class: `curve ${tone}`, viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, tabindex: 0, role: "img",
    "aria-label": `${name} over model versions ${first} to ${last}; newest ${words(newest)}. Arrow keys read single versions.`,
    onpointermove: (event) => {
      const at = event.clientX - event.currentTarget.getBoundingClientRect().left;
      const distances = points.map((point) => Math.abs(x(point.version) - at));
      choose(event, distances.indexOf(Math.min(...distances)), false);
    },
    onpointerleave: rest,
    onblur: rest,
    onkeydown: (event) => {
      if (!(event.key in keys)) return;
      event.preventDefault();
      const chosen = Number(event.currentTarget.dataset.chosen ?? points.length - 1);
      choose(event, chosen + keys[event.key], true);
    },
  },
  ticks(low, high, 4).map((value) => s("g", { class: "tick" },
    s("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
    s("text", { x: EDGE.left - 8, y: y(value) + 4, "text-anchor": "end" }, significant(value)))),
  ticks(first, last, Math.max(2, Math.floor(inner.width / 70))).filter(Number.isInteger).map((version) =>
    s("text", { class: "version", x: x(version), y: HEIGHT - 8, "text-anchor": "middle" }, version)),
  s("path", { class: "band", d: `${path(upper.concat(lower))}Z` }),
  s("path", { class: "line", d: path(middle) }),
  points.length < 40 && middle.map(([cx, cy]) => s("circle", { class: "point", cx, cy, r: 2.5 })),
  cursor);
  return h("figure", { class: "chart", key: `curve-${name}` },
    h("figcaption", {}, h("span", { class: "chart-name" }, name), reading), picture, table(name, points));
}

const words = (point) => `version ${point.version}: ${estimate(point.value, point.error)}, ${plural(point.releases, "release")}`;

function table(name, points) {
  return h("details", { class: "figures" }, h("summary", {}, "Figures"),
    h("div", { class: "scroll" }, h("table", { class: "plain" },
      h("caption", { class: "unseen" }, `${name} by model version`),
      h("thead", {}, h("tr", {}, ["Version", name, "Standard error", "Releases"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, [...points].reverse().map((point) => h("tr", {}, h("td", {}, point.version),
        h("td", {}, significant(point.value, 4)), h("td", {}, significant(point.error, 2)), h("td", {}, point.releases)))))));
}

// A line without axes, for lists.
export function spark(points, tone) {
  const [width, height] = [88, 26];
  if (points.length < 2) return s("svg", { class: "spark", width, height, "aria-hidden": "true" });
  const values = points.map((point) => point.value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const place = values.map((value, index) => [
    2 + (index / (values.length - 1)) * (width - 4),
    3 + (1 - (value - low) / (high - low || 1)) * (height - 6),
  ]);
  return s("svg", { class: `spark ${tone}`, viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    s("path", { class: "line", d: path(place) }),
    s("circle", { class: "point", cx: place.at(-1)[0], cy: place.at(-1)[1], r: 2.2 }));
}

// How the last rounds ended: a bar for each, as high as its updates are many.
export function history(rounds, goal) {
  const shown = rounds.slice(-60);
  const [slot, height] = [9, 44];
  const most = Math.max(goal, ...shown.map((round) => round.updates));
  const width = Math.max(slot * shown.length, slot);
  return s("svg", { class: "history", viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `The last ${plural(shown.length, "round")}: ${shown.filter((round) => round.abandoned).length} abandoned` },
  shown.map((round, index) => {
    const tall = round.abandoned ? 6 : Math.max(4, (round.updates / most) * (height - 2));
    return s("rect", { class: round.abandoned ? "abandoned" : "committed", x: index * slot, y: height - tall, width: slot - 3, height: tall, rx: 1.5 },
      s("title", {}, `round ${round.round}: ${round.abandoned ? "abandoned" : plural(round.updates, "update")}, ${moment(round.ended)}`));
  }));
}

// Descent of all models: a lane for each job, a dot for each version, a line to what it came from.
export function descent(models, open) {
  const lanes = [...new Set(models.map((model) => model.job))];
  const most = Math.max(...lanes.map((job) => models.filter((model) => model.job === job).length));
  const [step, lane, left] = [most > 60 ? Math.max(5, 900 / most) : 16, 44, 12];
  const places = new Map();
  for (const model of models) {
    places.set(`${model.job}/${model.version}`, [left + model.version * step, 30 + lanes.indexOf(model.job) * lane]);
  }
  const width = Math.max(260, left * 2 + most * step);
  const height = lanes.length * lane + 10;
  const lines = models.flatMap((model) => {
    const parent = model.parent_version && places.get(`${model.parent_version.job}/${model.parent_version.version}`);
    if (!parent) return [];
    const [x, y] = places.get(`${model.job}/${model.version}`);
    const bend = parent[1] === y ? `M${parent[0]} ${y}L${x} ${y}` : `M${parent[0]} ${parent[1]}C${parent[0]} ${y} ${x - 24} ${parent[1]} ${x} ${y}`;
    return [s("path", { class: parent[1] === y ? "line" : "line start", d: bend })];
  });
  return s("svg", { class: "descent", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Descent of ${plural(models.length, "model version")} of ${plural(lanes.length, "job")}; the table below has the same` },
    lines,
    lanes.map((job, index) => s("text", { x: left - 4, y: 16 + index * lane }, job)),
    models.map((model) => {
      const [cx, cy] = places.get(`${model.job}/${model.version}`);
      return s("circle", { class: model.served ? "served" : "version", cx, cy, r: model.served ? 5.5 : Math.min(3.5, step / 3), onclick: () => open(model) },
        s("title", {}, `${model.job}, version ${model.version}${model.served ? ", served" : ""}`));
    }));
}
