/** Calls of the worker's API, with the session that the page was opened with. */

const API = "/api/v1";
const NDJSON = "application/x-ndjson";

/** The worker's refusal: `message` says what to do. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Is it worth trying again soon? There was no connection, or no answer in time, or something
    before the worker says so. */
export const passing = (error) =>
  error instanceof TypeError ||
  error.name === "TimeoutError" ||
  (error instanceof Problem && error.status >= 502);

/** Milliseconds that the worker's clock is ahead of this machine's, as far as is known. */
let ahead = 0;

/** The time by the worker's clock, in milliseconds. */
export const now = () => Date.now() + ahead;

/** One call under the API's prefix: the response, once it is good. A dead session goes to /login. */
export async function call(path, options = {}) {
  const answer = await fetch(API + path, { credentials: "same-origin", ...options });
  if (answer.ok) return answer;
  if (answer.status === 401) login();
  throw new Problem(answer.status, await detail(answer));
}

export async function json(path, options) {
  const answer = await call(path, options);
  noteTime(answer);
  return answer.json();
}

export const post = (path) => json(path, { method: "POST" });

let leaving = false;
addEventListener("submit", ({ target }) => (leaving ||= target.method === "post")); // the log-out's

/** Go where a person without a session is told how to get one; once, or the second going would
    break off the first. */
export function login() {
  if (leaving) return;
  leaving = true;
  const { location } = globalThis;
  location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
}

export const logPath = (id) => `${API}/jobs/${id}/log`;

/** Up to `limit` line records of a job's log from line `from` on, or its `tail` last ones. */
export async function records(id, query, signal) {
  const path = `/jobs/${id}/log?${new URLSearchParams(query)}`;
  const answer = await call(path, { headers: { Accept: NDJSON }, signal });
  const lines = (await answer.text()).split("\n");
  lines.pop();
  return lines.map((line) => JSON.parse(line));
}

/** `{hits, total, next}` of a search from line `from` on. */
export function search(id, { q, regex = false, from = 1, limit }, signal) {
  const query = new URLSearchParams({ q, from, limit });
  if (regex) query.set("regex", "true");
  return json(`/jobs/${id}/log/search?${query}`, { signal });
}

async function detail(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `the server answered ${answer.status} ${answer.statusText}`.trim();
  }
}

/** `Date` counts whole seconds; half of one is the most likely rest. */
function noteTime(answer) {
  const told = Date.parse(answer.headers.get("Date") ?? "");
  const offset = told + 500 - Date.now();
  ahead = Math.abs(offset) > 2000 ? offset : 0;
}
