// Asks before something that cannot be taken back, and says how it went.

import { ask } from "./api.js";
import { announce, h } from "./dom.js";

// Asks, acts, and closes; a refusal is shown where the question was.
//
// - `title`, `text`: what will happen
// - `verb`: the button, as the thing it does
// - `danger`: whether it ends something for good
// - `field`: `{ label, hint, max }` of a text that is needed
// - `act(text)`: does it
export function confirm({ title, text, verb, danger, field, act }) {
  return new Promise((done) => {
    const input = field && h("input", { id: "dialog-text", name: "text", maxlength: field.max, required: true, autocomplete: "off" });
    const error = h("p", { class: "field-error", role: "alert" });
    const yes = h("button", { class: danger ? "button danger" : "button primary", type: "submit" }, verb);
    const no = h("button", { class: "button", type: "button", onclick: () => dialog.close() }, "Cancel");
    const form = h("form", { method: "dialog" },
      h("h2", { id: "dialog-title" }, title),
      h("p", { id: "dialog-words" }, text),
      input && h("label", { for: "dialog-text" }, field.label), input,
      input && field.hint && h("p", { class: "hint" }, field.hint),
      error,
      h("div", { class: "dialog-actions" }, no, yes));
    const dialog = h("dialog", { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-words" }, form);
    let outcome = null;
    form.onsubmit = async (event) => {
      event.preventDefault();
      yes.disabled = true;
      error.textContent = "";
      try {
        outcome = await act(input ? input.value.trim() : undefined);
        dialog.close();
      } catch (failure) {
        error.textContent = failure.message;
        yes.disabled = false;
      }
    };
    const opener = document.activeElement;
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (opener?.isConnected) opener.focus();
      else document.getElementById("main").focus();
      done(outcome);
    });
    document.body.append(dialog);
    dialog.showModal();
    (input ?? no).focus();
  });
}

// A request to the coordinator as an act of `confirm`, which is announced when it was done.
export const sending = (path, body, done) => async (text) => {
  const answer = await ask("POST", path, typeof body === "function" ? body(text) : body);
  announce(done);
  return answer;
};
