// Who takes part: standing, connection, quotas; and stopping somebody.

import { get, may } from "./api.js";
import { confirm, sending } from "./dialog.js";
import { h, note, pill } from "./dom.js";
import { bytes, plural, whole } from "./format.js";

const QUOTAS = [["rounds", "rounds_per_day", whole], ["bytes", "bytes_per_day", bytes], ["requests", "requests_per_day", whole]];

function used(tenant) {
  return h("dl", { class: "used" }, QUOTAS.map(([name, quota, write]) => {
    const limit = tenant.quotas[quota];
    return h("div", {}, h("dt", {}, name), h("dd", {}, write(tenant.used[name]), typeof limit === "number" && ` of ${write(limit)}`));
  }));
}

function actions(tenant) {
  const path = `/v1/tenants/${tenant.tenant}`;
  const reason = { label: "Reason", hint: "The tenant hears it, and the audit log keeps it.", max: 256 };
  const stop = (verb, operation, title, text, danger) => may(`post /v1/tenants/{tenant}/${operation}`) &&
    h("button", { class: "button small", type: "button", key: operation, "aria-label": `${verb} ${tenant.tenant}`, onclick: () => confirm({
      title, text, verb, danger, field: reason, act: sending(`${path}/${operation}`, (said) => ({ reason: said }), `${tenant.tenant}: ${verb.toLowerCase()} done`),
    }) }, verb);
  return h("div", { class: "actions" },
    tenant.standing === "active" && stop("Suspend", "suspend", `Suspend ${tenant.tenant}?`, "Its connection is cut at once and it leaves its open rounds. It can be resumed."),
    tenant.standing === "suspended" && may("post /v1/tenants/{tenant}/resume") && h("button", { class: "button small", type: "button", key: "resume", "aria-label": `Resume ${tenant.tenant}`, onclick: () => confirm({
      title: `Resume ${tenant.tenant}?`, text: `It was suspended: ${tenant.reason}`, verb: "Resume", act: sending(`${path}/resume`, undefined, `${tenant.tenant} may act again`),
    }) }, "Resume"),
    tenant.standing !== "revoked" && stop("Revoke", "revoke", `Revoke ${tenant.tenant}?`, "Its certificate stops to work for good. To come back it needs a new invitation.", true));
}

export const tenants = {
  title: () => "Tenants",
  load: () => get("/v1/tenants"),
  draw(list) {
    const connected = list.filter((tenant) => tenant.connected).length;
    return [
      h("div", { class: "head" }, h("h1", {}, "Tenants"),
        list.length > 0 && h("p", { class: "faint" }, `${plural(list.length, "tenant")}, ${connected} connected`)),
      list.length === 0
        ? note("empty", "No tenants yet", "Invite the first one:", h("pre", {}, "tributary-coordinator tenant add NAME --region REGION"))
        : h("section", { class: "panel flush" }, h("div", { class: "scroll" }, h("table", { class: "rows stacked" },
          h("caption", { class: "unseen" }, "Tenants"),
          h("thead", {}, h("tr", {}, ["Tenant", "Region", "Connection", "Used today", "Ledger", "Isolation"].map((text) => h("th", { scope: "col" }, text)),
            h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")))),
          h("tbody", {}, list.map((tenant) => h("tr", { key: tenant.tenant },
            h("th", { scope: "row" }, tenant.tenant, h("span", { class: "faint roles" }, tenant.roles.join(", ") || "no role")),
            h("td", { "data-name": "Region" }, tenant.region),
            h("td", { "data-name": "Connection" }, tenant.standing !== "active" ? pill(`tenant-${tenant.standing}`, tenant.standing)
              : pill(tenant.connected ? "tenant-reported" : "tenant-offline", tenant.connected ? "connected" : tenant.enrolled ? "offline" : "not enrolled"),
            tenant.reason && h("p", { class: "faint why" }, tenant.reason)),
            h("td", { "data-name": "Used today" }, used(tenant)),
            h("td", { "data-name": "Ledger", title: "Entries that the coordinator has countersigned" }, plural(tenant.ledger_sequence, "entry").replace("entrys", "entries")),
            h("td", { "data-name": "Isolation", class: "faint" }, [tenant.isolation.data, tenant.isolation.model, tenant.isolation.compute].map((level) => level.replace("-", " ")).join(", ")),
            h("td", { class: "act" }, actions(tenant)))))))),
    ];
  },
};
