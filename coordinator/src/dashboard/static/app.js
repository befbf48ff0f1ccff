// Ties the page together: signing in, the places there are, and keeping them up to date.

import { enter, leave, session, watch } from "./api.js";
import { audit } from "./audit.js";
import { announce, h, icon, note, show } from "./dom.js";
import { duration } from "./format.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { models } from "./models.js";
import { returned, signIn } from "./sign-in.js";
import { tenants } from "./tenants.js";

const PLACES = { jobs, models, tenants, audit };
const LIVE = { live: "Live", asking: "Asking again and again", away: "The coordinator does not answer" };

const bar = document.getElementById("bar");
const main = document.getElementById("main");

let live = "away";
let watching = null;
let place = null;
let loaded = null;
let loading = false;
let stale = false;

function here() {
  const [name, argument] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  if (name === "jobs" && argument) return { key: location.hash, name, argument, view: job };
  return { key: location.hash, name: name in PLACES ? name : "jobs", view: PLACES[name] ?? jobs };
}

function drawBar() {
  const link = (name) => h("li", {}, h("a", { href: `#/${name}`, "aria-current": place?.name === name ? "page" : null },
    icon(name), h("span", {}, name[0].toUpperCase() + name.slice(1))));
  show(bar,
    h("a", { class: "brand", href: "#/jobs" }, h("img", { src: "/dashboard/mark.svg", alt: "", width: 28, height: 28 }), h("span", {}, "Tributary")),
    h("nav", { class: "places", "aria-label": "Places" }, h("ul", {}, Object.keys(PLACES).filter((name) => PLACES[name].may?.() ?? true).map(link))),
    h("div", { class: "who" },
      h("span", { class: `live ${live}`, title: LIVE[live] }, h("span", { class: "dot", "aria-hidden": "true" }), h("span", { class: "live-word" }, live === "live" ? "Live" : live === "asking" ? "Polling" : "Offline")),
      h("span", { class: "who-name" }, h("b", {}, session.who.name), h("span", { class: "faint" }, session.who.role)),
      h("button", { class: "button icon-button", type: "button", "aria-label": "Sign out", title: "Sign out", onclick: () => leave() }, icon("leave"))));
}

// Pixels that content can have.
function room() {
  const { paddingLeft, paddingRight } = getComputedStyle(main);
  // A page that is not shown has none, and is drawn again when it is.
  return Math.max(300, main.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight));
}

function draw() {
  if (!loaded || loaded.key !== place.key) return;
  const content = loaded.error
    ? [h("div", { class: "head" }, h("h1", {}, place.view.title(place.argument))),
      note("bad", "This cannot be shown", loaded.error.message, h("button", { class: "button", type: "button", onclick: reload }, "Try again"))]
    : place.view.draw(loaded.data, room());
  show(main, content);
}

async function reload() {
  if (!session.who) return;
  if (loading) {
    stale = true;
    return;
  }
  loading = true;
  const asked = place;
  try {
    loaded = { key: asked.key, data: await asked.view.load(asked.argument) };
  } catch (error) {
    // A hiccup does not take away what is there; the word in the bar says that it is old.
    if (error.status === 0 && loaded?.key === asked.key && loaded.data) loaded.old = true;
    else loaded = { key: asked.key, error };
  }
  loading = false;
  if (!session.who) return;
  draw();
  if (stale || asked !== place) {
    stale = false;
    reload();
  }
}

function go() {
  if (!session.who) return;
  const first = place === null;
  place = here();
  document.title = `${place.view.title(place.argument)} · Tributary`;
  drawBar();
  main.replaceChildren(h("div", { class: "loading", role: "status" }, h("span", { class: "unseen" }, "Loading"), [1, 2, 3].map(() => h("div", { class: "bone" }))));
  window.scrollTo(0, 0);
  if (!first) {
    main.focus({ preventScroll: true });
    announce(place.view.title(place.argument));
  }
  reload();
}

function begin() {
  document.body.classList.add("inside");
  place = null;
  watching = new AbortController();
  watch(() => document.hidden || reload(), (state) => {
    live = state;
    if (session.who) drawBar();
  }, watching.signal);
  go();
}

function askToSignIn(reason) {
  document.body.classList.remove("inside");
  watching?.abort();
  place = null;
  loaded = null;
  bar.replaceChildren();
  main.replaceChildren();
  document.title = "Sign in · Tributary";
  signIn(main, reason, begin);
}

// The seconds of what has begun or ends pass without asking anybody.
setInterval(() => {
  for (const time of main.querySelectorAll("time[data-until], time[data-since]")) {
    const { until, since } = time.dataset;
    time.textContent = duration(until ? until - Date.now() : Date.now() - since);
  }
}, 1000);

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.addEventListener("signed-out", (event) => askToSignIn(event.detail));
document.addEventListener("redraw", draw);
document.addEventListener("reload", reload);
document.addEventListener("visibilitychange", () => document.hidden || reload());
window.addEventListener("hashchange", go);
let width = main.clientWidth;
new ResizeObserver(() => {
  if (main.clientWidth === width) return;
  width = main.clientWidth;
  draw();
}).observe(main);

try {
  const token = (await returned()) ?? session.token;
  if (token) {
    await enter(token);
    begin();
  } else {
    askToSignIn("");
  }
} catch (error) {
  askToSignIn(error.message);
}
