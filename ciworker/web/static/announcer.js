/** Says to screen readers, politely and summed up, how jobs ended. */

import { harmless } from "./said.js";
import { word } from "./status.js";

const PAUSE = 1500; // milliseconds in which what ends together is gathered

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

  say(text) {
    this.#region.textContent = harmless(text);
  }

  #speak() {
    this.say(sentence(this.#ended));
    this.#ended = [];
    this.#timer = null;
  }
}

function sentence(jobs) {
  if (jobs.length === 1) return `${jobs[0].project}: ${word(jobs[0])}`;
  const passed = jobs.filter((job) => job.success).length;
  return `${jobs.length} jobs have ended, ${passed} of them passed`;
}
