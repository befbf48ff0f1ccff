// Asks the coordinator, with the token of whoever looks.

const TOKEN = "tributary.token";
const RETRY_MS = [500, 1000, 2000, 5000];

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const session = {
  who: null,
  rights: new Map(),
  get token() {
    return sessionStorage.getItem(TOKEN);
  },
};

function headers(extra) {
  return { authorization: `Bearer ${session.token}`, ...extra };
}

async function refusal(response) {
  const document = await response.json().catch(() => null);
  const { code, message } = document?.error ?? {};
  return new ApiError(response.status, code ?? "unknown", message ?? `the coordinator answered ${response.status}`);
}

export async function ask(method, path, body) {
  let response;
  const content = body === undefined ? undefined : JSON.stringify(body);
  const sent = headers(content === undefined ? {} : { "content-type": "application/json" });
  try {
    response = await fetch(path, { method, body: content, headers: sent });
  } catch {
    throw new ApiError(0, "unreachable", "the coordinator does not answer");
  }
  if (response.ok) return response.json();
  const error = await refusal(response);
  if (error.status === 401) leave(error.message);
  throw error;
}

export const get = (path) => ask("GET", path);

// What may be known without signing in: whether there is an issuer to sign in with.
export async function signInWays() {
  const response = await fetch("/v1/sign-in");
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// Trades the code that the issuer sent back for a token.
export async function trade(body) {
  const sent = { "content-type": "application/json" };
  const response = await fetch("/v1/sign-in/oidc", { method: "POST", headers: sent, body: JSON.stringify(body) });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).token;
}

// Signs in if the token works. The API's own description says which role may do what.
export async function enter(token) {
  sessionStorage.setItem(TOKEN, token);
  try {
    const [who, description] = await Promise.all([get("/v1/whoami"), get("/openapi.json")]);
    const rights = new Map();
    for (const [path, item] of Object.entries(description.paths)) {
      for (const [method, operation] of Object.entries(item)) {
        rights.set(`${method} ${path}`, operation.security?.[0]?.token ?? null);
      }
    }
    session.who = who;
    session.rights = rights;
  } catch (error) {
    sessionStorage.removeItem(TOKEN);
    throw error;
  }
}

// Whether the role may use a route, as `post /v1/jobs/{job}/stop`.
export function may(operation) {
  const roles = session.rights.get(operation);
  return roles === null || (roles ?? []).includes(session.who?.role);
}

export function leave(reason) {
  sessionStorage.removeItem(TOKEN);
  session.who = null;
  document.dispatchEvent(new CustomEvent("signed-out", { detail: reason ?? "" }));
}

// Calls back whenever something changed: told by the coordinator, or by asking where it cannot tell.
//
// - `changed()`: look again
// - `live(state)`: "live", "asking" or "away"
export async function watch(changed, live, signal) {
  let failures = 0;
  while (!signal.aborted && session.token) {
    try {
      const response = await fetch("/v1/events", { headers: headers(), signal });
      if (response.status === 401) return leave((await refusal(response)).message);
      if (!response.ok) throw await refusal(response);
      live("live");
      failures = 0;
      await read(response.body, changed);
    } catch (error) {
      if (signal.aborted) return;
      live(error instanceof ApiError ? "asking" : "away");
      await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)], signal);
      failures += 1;
      changed();
    }
  }
}

async function read(body, changed) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    if (lines.some((line) => line.startsWith("data:"))) changed();
  }
}

function pause(milliseconds, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });
}
