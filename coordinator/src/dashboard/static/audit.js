// Who did what: the audit log, page by page, and whether it is whole.

import { get, may } from "./api.js";
import { announce, h, note, pill } from "./dom.js";
import { moment, plural, short } from "./format.js";

const PAGE = 50;

// The entry before which the page ends; none at the end of the log.
const before = [];
let verified = null;

const redraw = () => document.dispatchEvent(new Event("reload"));

async function verify() {
  verified = { busy: true };
  document.dispatchEvent(new Event("redraw"));
  try {
    const head = await get("/v1/audit/verify");
    verified = { head, at: Date.now() };
    announce(`the log is whole: ${plural(head.sequence, "entry").replace("entrys", "entries")}`);
  } catch (error) {
    verified = { error: error.message, at: Date.now() };
    announce(`the log does not verify: ${error.message}`);
  }
  document.dispatchEvent(new Event("redraw"));
}

function state() {
  const button = h("button", { class: "button", type: "button", key: "verify", disabled: verified?.busy, onclick: verify }, verified ? "Verify again" : "Verify");
  const words = !verified ? ["open", "Not verified in this tab", "Verifying reads every entry and checks the chain of hashes."]
    : verified.busy ? ["open", "Verifying…", "Every entry is read."]
      : verified.error ? ["bad", "The log does not verify", verified.error]
        : ["good", `Whole, ${verified.head.sequence} entries`, `Checked ${moment(verified.at)}. Note the head elsewhere: a rewritten log shows against it.`];
  return h("section", { class: `panel verify ${words[0]}`, "aria-label": "State of the log", key: "verify" },
    h("div", {}, h("p", { class: "note-title" }, words[1]), h("p", { class: "faint" }, words[2]),
      verified?.head && h("p", { class: "head-hash" }, h("code", {}, `${verified.head.sequence}:${verified.head.hash}`))),
    button);
}

// Digests are long, and the first part tells them apart.
const shortened = (text) => text.split(/\b([0-9a-f]{64})\b/).map((part, index) => index % 2 ? h("code", { title: part }, short(part)) : part);

export const audit = {
  title: () => "Audit",
  may: () => may("get /v1/audit"),
  load: () => get(`/v1/audit?last=${PAGE}${before.length ? `&before=${before.at(-1)}` : ""}`),
  draw(entries) {
    const rows = [...entries].reverse();
    const oldest = entries[0]?.sequence ?? 1;
    const turn = (text, able, act) => h("button", { class: "button", type: "button", key: text, disabled: !able, onclick: () => (act(), redraw()) }, text);
    return [
      h("div", { class: "head" }, h("h1", {}, "Audit")),
      state(),
      rows.length === 0 ? note("empty", "No entries here") : h("section", { class: "panel flush", key: "entries" }, h("div", { class: "scroll" }, h("table", { class: "rows stacked" },
        h("caption", { class: "unseen" }, "Audit entries, newest first"),
        h("thead", {}, h("tr", {}, ["Entry", "When", "Who", "What", "On", "Outcome", "More"].map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, rows.map((entry) => h("tr", { key: entry.sequence },
          h("td", { class: "number faint" }, entry.sequence),
          h("td", { class: "nowrap" }, moment(entry.recorded_ms)),
          h("th", { scope: "row" }, entry.actor.name, entry.actor.role !== entry.actor.name && h("span", { class: "faint roles" }, entry.actor.role)),
          h("td", { class: "nowrap" }, entry.act.replace("-", " ")),
          h("td", { class: "nowrap" }, shortened(entry.subject)),
          h("td", {}, pill(entry.outcome === "done" ? "tenant-reported" : "tenant-declined", entry.outcome)),
          h("td", { class: "why" }, shortened(entry.detail)))))))),
      h("nav", { class: "pages", "aria-label": "Pages of the log" },
        turn("Newer", before.length > 0, () => before.pop()),
        h("span", { class: "faint" }, rows.length ? `${oldest} – ${rows[0].sequence}` : ""),
        turn("Older", oldest > 1, () => before.push(oldest))),
    ];
  },
};
