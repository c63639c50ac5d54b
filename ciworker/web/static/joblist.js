/** The list as it stands on the page: a row for each job, newest first, changed in place. */

import { row } from "./row.js";
import { ended } from "./status.js";

const MOST_ROWS = 1000; // of a page that stays open for weeks

export class JobList {
  #element;
  #act;
  #jobs = new Map(); // id -> the job as it is shown
  #rows = new Map(); // id -> its element
  #heard = new Map(); // while the list is asked for: id -> what an event told; null: not shown
  #cancelling = new Set();

  /** The oldest job that is loaded, while there are older ones; else null. */
  next = null;

  /** element: an `ol`; act(job): a row's button was pressed. */
  constructor(element, act) {
    this.#element = element;
    this.#act = act;
  }

  get size() {
    return this.#jobs.size;
  }

  get(id) {
    return this.#jobs.get(id);
  }

  get projects() {
    return new Set([...this.#jobs.values()].map((job) => job.project));
  }

  /** Leave those alone that belong. */
  keep(belongs) {
    for (const [id, job] of [...this.#jobs]) if (!belongs(job)) this.#remove(id);
  }

  /** The list is being asked for: what an event tells from now on is newer than the answer. */
  begin() {
    this.#heard = new Map();
  }

  /** The answer: all that there is down to `next`. */
  show(jobs, next) {
    const listed = new Set(jobs.map((job) => job.id));
    for (const id of [...this.#jobs.keys()]) {
      if (!listed.has(id) && !this.#heard.has(id)) this.#remove(id);
    }
    this.add(jobs, next);
  }

  /** Older jobs, down to `next`. */
  add(jobs, next) {
    for (const job of jobs) {
      const newest = this.#heard.has(job.id) ? this.#heard.get(job.id) : job;
      if (newest) this.put(newest);
    }
    this.#heard = null;
    this.next = next;
  }

  /** An event: this is how the job is now. belongs: it is one of those that are shown. */
  hear(job, belongs) {
    this.#heard?.set(job.id, belongs ? job : null);
    if (!belongs) return this.#remove(job.id);
    if (this.#jobs.has(job.id) || job.id > (this.next ?? "")) this.put(job, "new");
    return this.#trim();
  }

  /** The job as it is now, in its place. arrival: a class of rows that were not there before. */
  put(job, arrival = null) {
    const known = this.get(job.id);
    if (known && JSON.stringify(known) === JSON.stringify(job)) return;
    if (ended(job)) this.#cancelling.delete(job.id);
    this.#draw(job, arrival);
  }

  /** Whether a cancel is under way: the row says so until the job has ended. */
  cancelling(id, is) {
    if (is) this.#cancelling.add(id);
    else this.#cancelling.delete(id);
    const job = this.get(id);
    if (job) this.#draw(job);
  }

  /** Focus the job `step` rows below the one that has the focus; without one, the first. */
  move(step) {
    const rows = [...this.#element.children];
    const at = rows.indexOf(document.activeElement.closest(".job"));
    const to = at < 0 ? 0 : Math.min(Math.max(at + step, 0), rows.length - 1);
    focus(rows[to]);
  }

  #draw(job, arrival = null) {
    const made = row(job, this.#act, this.#cancelling.has(job.id));
    const old = this.#rows.get(job.id);
    this.#jobs.set(job.id, job);
    this.#rows.set(job.id, made);
    if (old) return replace(old, made);
    if (arrival) made.classList.add(arrival);
    return this.#element.insertBefore(made, this.#olderThan(job.id));
  }

  #olderThan(id) {
    for (const made of this.#element.children) if (made.dataset.id < id) return made;
    return null;
  }

  #remove(id) {
    const made = this.#rows.get(id);
    if (!made) return;
    if (made.contains(document.activeElement)) focus(made.nextSibling ?? made.previousSibling);
    made.remove();
    this.#rows.delete(id);
    this.#jobs.delete(id);
  }

  /** Let the oldest go, unless the reader is down there. */
  #trim() {
    if (this.size <= MOST_ROWS || scrollY > innerHeight) return;
    while (this.size > MOST_ROWS) this.#remove(this.#element.lastChild.dataset.id);
    this.next = this.#element.lastChild.dataset.id;
  }
}

function focus(made) {
  made?.querySelector(".project").focus();
}

/** The focus stays on the same thing of the row. */
function replace(old, made) {
  const held = [".project", ".action"].find((one) => old.querySelector(one).matches(":focus"));
  old.replaceWith(made);
  if (held) made.querySelector(held).focus();
}
