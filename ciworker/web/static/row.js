/** One job as a row of the list. */

import { element, icon } from "./dom.js";
import { harmless, said } from "./said.js";
import { badge, began, ended } from "./status.js";
import { ago, lasted } from "./time.js";

const HASH = 8; // characters shown of a commit

/** The row's element. act(job): its button was pressed; cancelling: a cancel is under way. */
export function row(job, act, cancelling) {
  const made = element("li", { class: "job" }, badge(job), link(job), what(job), source(job));
  made.dataset.id = job.id;
  if (began(job)) made.append(cell("took", lasted(began(job), job.finished_at)));
  made.append(cell("when", ago(job.created_at)), button(job, act, cancelling));
  return made;
}

const cell = (name, ...children) => element("span", { class: name }, ...children);

function link(job) {
  return element("a", { class: "project", href: `/jobs/${job.id}` }, said(job.project));
}

/** The sentence that says why, of a job that ended badly; else what it runs. */
function what(job) {
  const bad = ended(job) && !job.success && job.message;
  const shown = bad ? said(job.message) : element("code", {}, said(job.spec.run));
  const made = cell(bad ? "what why" : "what", shown);
  made.title = shown.textContent;
  return made;
}

function source(job) {
  const { branch, commit, dirty } = job.source.vcs ?? {};
  const parts = [
    branch ? icon("branch") : null,
    branch ? element("span", { title: harmless(branch) }, said(branch)) : null,
    commit ? element("code", { title: harmless(commit) }, said(commit.slice(0, HASH))) : null,
    dirty ? element("span", { class: "dirty", title: "with uncommitted changes" }, "dirty") : null,
  ];
  return cell("source", ...parts);
}

function button(job, act, cancelling) {
  const name = ended(job) ? "Retry" : cancelling ? "Cancelling" : "Cancel";
  const of = element("span", { class: "visually-hidden" }, ` ${harmless(job.project)}`);
  const made = element("button", { class: "action", type: "button" }, name, of);
  made.disabled = cancelling;
  made.addEventListener("click", () => act(job));
  return made;
}
