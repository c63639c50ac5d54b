/** The search field: asks the server about the whole log, and goes from hit to hit. */

import { search } from "./api.js";

const PAGE = 1000; // hits asked for at a time
const PATIENCE = 250; // ms after the last key

export class Search {
  #job;
  #view;
  #form;
  #parts;
  #hits = []; // numbers of lines, ascending
  #total = null; // null: not known yet
  #next = null; // the line to go on from; null: all were seen
  #place = -1;
  #asked = "";
  #abort = new AbortController();
  #timer = 0;
  #loading = null; // the signal of the load that is under way

  /** parts: {form, found, previous, next}. */
  constructor(job, view, parts) {
    this.#job = job;
    this.#view = view;
    this.#form = parts.form;
    this.#parts = parts;
    parts.form.addEventListener("input", () => this.#typed());
    parts.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#current() === this.#asked) this.move(1);
      else this.#ask();
    });
    parts.form.addEventListener("keydown", (event) => this.#pressed(event));
    parts.next.addEventListener("click", () => this.move(1));
    parts.previous.addEventListener("click", () => this.move(-1));
  }

  focus() {
    this.#form.elements.q.select();
    this.#form.elements.q.focus();
  }

  /** To the next hit (1) or the previous one (-1); past either end, round to the other. Nowhere
      while it is not known whether there are more hits. */
  async move(step) {
    if (!this.#hits.length) return;
    if (this.#place + step >= this.#hits.length && !(await this.#more())) return;
    this.#place = (this.#place + step + this.#hits.length) % this.#hits.length;
    this.#show();
  }

  #pressed(event) {
    if (event.key === "Enter" && event.shiftKey) {
      event.preventDefault();
      this.move(-1);
    } else if (event.key === "Escape") {
      this.#form.reset();
      this.#ask();
      document.getElementById("log").focus();
    }
  }

  #typed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), PATIENCE);
  }

  #current() {
    return JSON.stringify([this.#form.elements.q.value, this.#form.elements.regex.checked]);
  }

  async #ask() {
    clearTimeout(this.#timer);
    if (this.#current() === this.#asked) return;
    this.#asked = this.#current();
    this.#abort.abort();
    this.#abort = new AbortController();
    [this.#hits, this.#total, this.#next, this.#place] = [[], null, 1, -1];
    if (!this.#form.elements.q.value) {
      this.#say("");
      this.#view.find(new Set(), 0);
      return;
    }
    this.#say("searching …");
    if (!(await this.#load())) return;
    const { first } = this.#view;
    this.#place = Math.max(0, this.#hits.findIndex((number) => number >= first));
    this.#show();
  }

  /** Ask for more hits, of lines that came meanwhile too; one question at a time. */
  async #more() {
    if (this.#loading === this.#abort.signal) return false;
    this.#next ??= this.#hits.at(-1) + 1;
    return this.#load();
  }

  /** Ask until there are hits or none are left. False: it failed, or another search has begun. */
  async #load() {
    const { signal } = this.#abort;
    const q = this.#form.elements.q.value;
    const regex = this.#form.elements.regex.checked;
    const before = this.#hits.length;
    this.#loading = signal;
    try {
      while (this.#next !== null && this.#hits.length === before) {
        const query = { q, regex, from: this.#next, limit: PAGE };
        const { hits, total, next } = await search(this.#job, query, signal);
        signal.throwIfAborted();
        this.#hits.push(...hits.map((hit) => hit.n));
        this.#next = next;
        if (before === 0) this.#total = total;
      }
    } catch (error) {
      if (!signal.aborted) this.#say(error.message);
      return false;
    } finally {
      if (this.#loading === signal) this.#loading = null;
    }
    if (this.#next === null) this.#total = this.#hits.length;
    return true;
  }

  #show() {
    const number = this.#hits[this.#place] ?? 0;
    this.#view.find(new Set(this.#hits), number);
    this.#say(this.#count());
    if (!number) return;
    this.#view.follow(false);
    this.#view.reveal(number);
  }

  #count() {
    if (!this.#hits.length) return "no hit";
    const all = this.#total ?? `${this.#hits.length}+`;
    return `${(this.#place + 1).toLocaleString("en")} of ${all.toLocaleString("en")}`;
  }

  #say(text) {
    this.#parts.found.textContent = text;
    const none = !this.#hits.length;
    this.#parts.next.hidden = none;
    this.#parts.previous.hidden = none;
  }
}
