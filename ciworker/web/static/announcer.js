/** Says to screen readers, politely and summed up, how jobs ended. */

import { harmless } from "./said.js";
import { word } from "./status.js";

const PAUSE = 1500; // milliseconds in which ends are gathered, and that what was said stays

export class Announcer {
  #region;
  #ended = [];
  #timer = null;

  /** region: an element of role `status`. */
  constructor(region) {
    this.#region = region;
  }

  /** This job has just ended. */
  ended(job) {
    this.#ended.push(job);
    this.#timer ??= setTimeout(() => this.#speak(), PAUSE);
  }

  /** At once; ends that wait to be told wait as long again, so that it can be heard. */
  say(text) {
    this.#region.textContent = harmless(text);
    if (this.#timer === null) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#speak(), PAUSE);
  }

  #speak() {
    this.#timer = null;
    this.say(sentence(this.#ended.splice(0)));
  }
}

function sentence(jobs) {
  if (jobs.length === 1) return `${jobs[0].project}: ${word(jobs[0])}`;
  const passed = jobs.filter((job) => job.success).length;
  return `${jobs.length} jobs have ended, ${passed} of them passed`;
}
