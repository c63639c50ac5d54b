/** What a job's status and reason look like: a kind (shape and colour) and a word. */

import { element, icon } from "./dom.js";

const KINDS = { failed: "error", cancelled: "cancelled" };

/** queued, starting, running, passed, failed (did not pass), error (no verdict), cancelled. While
    its environment is made, a queued job looks as a starting one. */
export function kind(job) {
  if (job.waits_for) return "starting";
  if (job.status === "completed") return job.success ? "passed" : "failed";
  return KINDS[job.status] ?? job.status;
}

/** True once the job can change no more. */
export function ended(job) {
  return ["completed", "cancelled", "failed"].includes(job.status);
}

/** The status in a word or two; of an ended job its reason: `tests failed`, `timed out`. */
export function word(job) {
  if (job.waits_for) return "setup";
  return (job.reason ?? job.status).replaceAll("_", " ");
}

/** When what the job does now, or did, began; null while it waits in the queue. */
export function began(job) {
  return job.waits_for ? job.created_at : job.started_at;
}

/** Icon and word, coloured. */
export function badge(job) {
  return element("span", { class: `status ${kind(job)}` }, icon(kind(job)), word(job));
}
