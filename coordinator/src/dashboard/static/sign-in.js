// Signing in: with an access token, or at the issuer that the coordinator trusts.

import { enter, signInWays, trade } from "./api.js";
import { h, show } from "./dom.js";

const ATTEMPT = "tributary.sign-in";

const text = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const random = () => text(crypto.getRandomValues(new Uint8Array(32)));

// Leaves for the issuer; `returned` goes on when it sends the reader back.
async function depart(oidc) {
  const attempt = { state: random(), nonce: random(), verifier: random(), place: location.hash };
  const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(attempt.verifier));
  sessionStorage.setItem(ATTEMPT, JSON.stringify(attempt));
  const address = new URL(oidc.authorization_endpoint);
  const parameters = {
    response_type: "code", client_id: oidc.client_id, redirect_uri: location.origin + "/", scope: oidc.scope,
    state: attempt.state, nonce: attempt.nonce,
    code_challenge: text(new Uint8Array(hash)), code_challenge_method: "S256",
  };
  for (const [name, value] of Object.entries(parameters)) address.searchParams.set(name, value);
  location.assign(address);
}

// Finishes what `depart` began, if the issuer has just sent the reader back.
export async function returned() {
  const answer = new URLSearchParams(location.search);
  if (!answer.has("state")) return null;
  const attempt = JSON.parse(sessionStorage.getItem(ATTEMPT) ?? "null");
  sessionStorage.removeItem(ATTEMPT);
  history.replaceState(null, "", "/" + (attempt?.place ?? ""));
  if (!attempt || attempt.state !== answer.get("state")) throw new Error("this sign-in was not begun here; please begin again");
  if (answer.has("error")) throw new Error(answer.get("error_description") ?? answer.get("error"));
  return trade({
    code: answer.get("code"), code_verifier: attempt.verifier, nonce: attempt.nonce, redirect_uri: location.origin + "/",
  });
}

// Shows the form; `done` is called once somebody is signed in.
export function signIn(main, reason, done) {
  const error = h("p", { class: "field-error", id: "token-error", role: "alert" }, reason);
  const input = h("input", {
    id: "token", name: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "token-hint token-error",
  });
  const button = h("button", { class: "button primary wide", type: "submit" }, "Sign in");
  const issuer = h("div", { class: "issuer" });
  const form = h("form", {
    class: "sign-in",
    onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      error.textContent = "";
      try {
        await enter(input.value.trim());
        done();
      } catch (failure) {
        error.textContent = failure.message;
        button.disabled = false;
        input.select();
      }
    },
  },
  h("img", { src: "/dashboard/mark.svg", alt: "", width: 44, height: 44 }),
  h("h1", {}, "Tributary"),
  h("p", { class: "lead" }, "The coordinator of your federation."),
  h("label", { for: "token" }, "Access token"), input,
  h("p", { class: "hint", id: "token-hint" }, "From ", h("code", {}, "tributary-coordinator token add"), ". It stays in this tab and goes when you close it."),
  error, button, issuer);
  show(main, h("div", { class: "sign-in-place" }, form));
  input.focus();
  signInWays().then(({ oidc }) => {
    if (!oidc) return;
    const name = new URL(oidc.issuer).host;
    show(issuer, h("p", { class: "or" }, "or"),
      h("button", { class: "button wide", type: "button", onclick: () => depart(oidc) }, `Continue with ${name}`));
  }).catch(() => {
    // Without this the token still works, and its form says so if not.
  });
}
