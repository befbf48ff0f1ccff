// Builds elements, and brings what is shown up to date without losing focus, selection or scroll.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "onsubmit", "oninput", "onkeydown", "onpointermove", "onpointerleave", "onblur"];

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (HANDLERS.includes(name)) node[name] = value;
    else if (name === "value" || name === "disabled" || name === "checked") node[name] = value;
    else if (name === "key") node.dataset.key = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Makes the children of `target` what `wanted` holds, changing as little as possible.
export function show(target, ...wanted) {
  const holder = document.createElement("div");
  holder.append(...wanted.flat(Infinity).filter(Boolean));
  children(target, holder);
}

function children(from, to) {
  const keyed = new Map();
  for (const child of from.children) {
    if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  }
  let cursor = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const key = wanted.dataset?.key;
    const match = key === undefined ? unkeyed(cursor, wanted) : keyed.get(key);
    if (!match || match.nodeName !== wanted.nodeName) {
      from.insertBefore(wanted, cursor);
      continue;
    }
    if (match === cursor) cursor = cursor.nextSibling;
    else from.insertBefore(match, cursor);
    update(match, wanted);
  }
  while (cursor) {
    const next = cursor.nextSibling;
    cursor.remove();
    cursor = next;
  }
}

function unkeyed(cursor, wanted) {
  const fits = cursor && cursor.nodeName === wanted.nodeName && cursor.dataset?.key === undefined;
  return fits ? cursor : null;
}

function update(node, wanted) {
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  // Something the reader is just pointing at.
  if (node.hasAttribute("data-held")) return;
  // What the reader has unfolded stays unfolded.
  const own = (name) => name === "open" && node.nodeName === "DETAILS";
  for (const { name } of [...node.attributes]) {
    if (!wanted.hasAttribute(name) && !own(name)) node.removeAttribute(name);
  }
  for (const { name, value } of [...wanted.attributes]) {
    if (!own(name) && node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  for (const name of HANDLERS) node[name] = wanted[name];
  if ("disabled" in node) node.disabled = wanted.disabled;
  children(node, wanted);
}

// Says something to those who do not see the change.
export function announce(text) {
  const place = document.getElementById("announce");
  if (place.textContent !== text) place.textContent = text;
}

export function icon(name) {
  const paths = {
    jobs: "M4 6h10M4 12h16M4 18h7",
    models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
    tenants: "M4 20V9l8-5 8 5v11M9 20v-6h6v6",
    audit: "M7 3h10v18l-5-3-5 3zM10 8h4M10 12h4",
    leave: "M14 4h5v16h-5M10 8l-4 4 4 4M6 12h9",
  };
  return s("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, s("path", { d: paths[name] }));
}

// A note in place of content: nothing there, or something went wrong.
export function note(kind, title, text, ...more) {
  return h("div", { class: `note ${kind}`, role: kind === "bad" ? "alert" : null },
    h("p", { class: "note-title" }, title), text && h("p", {}, text), ...more);
}

export function pill(state, text) {
  return h("span", { class: `pill ${state}` }, h("span", { class: "dot", "aria-hidden": "true" }), text ?? state.replace("_", " "));
}

// Numbers that are read in columns.
export function fact(name, value, title) {
  return h("div", { class: "fact", title }, h("dt", {}, name), h("dd", {}, value));
}
