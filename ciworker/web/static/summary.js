/** What the job page says about the job around its log: header, phases, the cause of its end. */

import { element } from "./dom.js";
import { harmless, said } from "./said.js";
import { badge, began, ended, word } from "./status.js";
import { ago, duration, lasted } from "./time.js";

const HASH = 8; // characters shown of a commit
const at = (id) => document.getElementById(id);

/** Show the job everywhere, as the server tells it in detail. */
export function describe(job, cancelling) {
  document.title = `${harmless(job.project)}: ${word(job)} · ciworker`;
  at("status").replaceChildren(badge(job));
  at("project").replaceChildren(said(job.project));
  at("elapsed").replaceChildren(...(began(job) ? [lasted(began(job), job.finished_at)] : []));
  at("cancel").hidden = ended(job);
  at("cancel").disabled = cancelling;
  at("cancel").textContent = cancelling ? "Cancelling" : "Cancel";
  at("retry").hidden = !ended(job);
  at("facts").replaceChildren(...facts(job));
  at("phases").replaceChildren(...job.phases.map(phase));
  for (const id of ["cause-top", "cause-end"]) cause(at(id), job);
  at("history").hidden = !job.history;
  at("steps").replaceChildren(...(job.history ?? []).map(step));
  at("container").hidden = !job.container;
  if (job.container) at("container").replaceChildren(...container(job.container));
}

/** A step from one status to the next, or a note of what happened between two. */
function step({ at: when, from, to, reason, message }) {
  const move = from === to ? to : [from, to].filter(Boolean).join(" → ");
  const why = [reason?.replaceAll("_", " "), message].filter(Boolean).join(": ");
  return element("li", {}, element("time", { datetime: when }, when), ` ${move} `, said(why));
}

function container({ name, id, status, started_at, stopped_at, exit_code, error }) {
  const told = [
    status,
    started_at ? `started ${started_at}` : null,
    stopped_at ? `stopped ${stopped_at}` : null,
    exit_code === null ? null : `exit code ${exit_code}`,
    error,
  ].filter(Boolean);
  return ["Container ", element("code", { title: id }, name), ": ", said(told.join(", "))];
}

function facts(job) {
  const { branch, commit, describe: version, dirty } = job.source.vcs ?? {};
  return [
    job.place ? fact("queue", place(job.place)) : null,
    fact("image", said(job.image)),
    fact("command", element("code", {}, said(job.spec.run))),
    job.spec.git ? fact("repository", said(job.spec.git.url)) : null,
    branch ? fact("branch", said(branch)) : null,
    commit ? fact("commit", element("code", { title: harmless(commit) }, said(version ?? commit.slice(0, HASH)))) : null,
    dirty ? fact("dirty", "uncommitted changes") : null,
    job.attempt > 1 ? fact("attempt", `attempt ${job.attempt}`) : null,
    job.retry_of ? fact("retry-of", element("a", { href: `/jobs/${job.retry_of}` }, "a retry")) : null,
    fact("created", ago(job.created_at)),
    fact("id", element("code", {}, job.id)),
  ].filter((one) => one !== null);
}

const fact = (name, ...children) => element("span", { class: `fact ${name}` }, ...children);

const place = ({ number, queued }) =>
  `number ${number.toLocaleString("en")} of ${queued.toLocaleString("en")} in the queue`;

function phase({ name, seconds, since }) {
  const spent = 1000 * seconds;
  if (since === null) return element("li", { class: "phase" }, `${name} ${duration(spent)}`);
  const from = new Date(Date.parse(since) - spent).toISOString();
  return element("li", { class: "phase now" }, `${name} `, lasted(from, null));
}

/** How it ended and why; hidden until it has. */
function cause(panel, job) {
  panel.hidden = !ended(job);
  if (panel.hidden) return;
  const message = job.message === word(job) ? null : job.message;
  const exit = job.success || message?.includes(`exit code ${job.exit_code}`) ? null : job.exit_words;
  const why = [message, exit ? `(${exit})` : null, job.log_incomplete ? "The log may be incomplete." : null].filter(Boolean);
  panel.className = `outcome ${job.success ? "passed" : job.success === false ? "failed" : "error"}`;
  panel.replaceChildren(badge(job), ...(why.length ? [element("p", {}, said(why.join(" ")))] : []));
}
