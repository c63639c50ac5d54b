/** The jobs page: the list, kept true by the hub's events, its filters, keys and buttons. */

import { Announcer } from "./announcer.js";
import { json, login, post } from "./api.js";
import { element } from "./dom.js";
import { Filter } from "./filters.js";
import { JobList } from "./joblist.js";
import { keys } from "./keys.js";
import { openHub } from "./live.js";
import { notice } from "./notices.js";
import { harmless } from "./said.js";
import { ended } from "./status.js";

const PAGE = 50;
const MOST_PER_REQUEST = 500;
const MOST_REQUESTS = 10; // in search of jobs that match what the API can't filter by
const PATIENCE = 700; // ms until a connection that is lost is spoken of

const at = (id) => document.getElementById(id);
const form = at("filters");
const tell = (...said) => notice(at("notices"), ...said);
const announcer = new Announcer(at("announcer"));
const list = new JobList(at("jobs"), act);
const missed = element("p", { class: "more muted" });
let filter = Filter.ofAddress();
let loading = new AbortController();
let failed = false; // a notice says that they could not be loaded
let wantsOlder = false; // older ones were asked for, and have not come yet
let looked = 0; // how many of the newest jobs were looked at

// what is shown

/** At least `wanted` matching jobs older than `cursor`, as far as there are any:
    `[jobs, cursor of older ones, how many were looked at]`. */
async function find(wanted, cursor, signal) {
  const jobs = [];
  let count = 0;
  for (let requests = 0; requests < MOST_REQUESTS; requests += 1) {
    const limit = Math.min(wanted, MOST_PER_REQUEST);
    const page = await json(`/jobs?${filter.query({ limit, cursor })}`, { signal });
    jobs.push(...page.items.filter((job) => filter.matches(job)));
    count += page.items.length;
    cursor = page.next;
    if (!cursor || jobs.length >= wanted) break;
  }
  return [jobs, cursor, count];
}

/** Load anew what is shown, and a page at least; with the older ones that it comes in the way of. */
function load() {
  const wanted = wantsOlder ? list.size + PAGE : Math.max(PAGE, list.size);
  return ask(async (signal) => {
    const [jobs, next, count] = await find(wanted, null, signal);
    list.show(jobs, next);
    looked = count;
  });
}

function loadOlder() {
  wantsOlder = true;
  return ask(async (signal) => {
    const [jobs, next, count] = await find(PAGE, list.next, signal);
    list.add(jobs, next);
    looked += count;
  });
}

/** Ask the server for jobs; one question at a time, the last counts. */
async function ask(question) {
  loading.abort();
  loading = new AbortController();
  const { signal } = loading;
  list.begin();
  at("jobs").setAttribute("aria-busy", "true");
  try {
    await question(signal);
    if (failed) at("notices").replaceChildren();
    failed = wantsOlder = false;
    settle();
  } catch (error) {
    if (signal.aborted) return;
    failed = true;
    tell(`The jobs could not be loaded: ${why(error)}`, "Try again", load);
  }
}

/** Everything that depends on which jobs are shown. */
function settle() {
  const empty = list.size === 0 && list.next === null;
  for (const project of list.projects) offer(project);
  at("jobs").setAttribute("aria-busy", "false");
  at("jobs").hidden = list.size === 0;
  at("older").hidden = list.next === null;
  missed.hidden = list.size > 0 || list.next === null;
  missed.textContent = `None of the newest ${looked.toLocaleString("en")} jobs that were looked at matches.`;
  at("none").hidden = !empty || !filter.all;
  at("no-match").hidden = !empty || filter.all;
}

// what happens

function hear(message) {
  if (message.type === "status") changed(message.job);
  else if (message.type === "link") linked(message);
  else if (message.type === "denied") login();
  else if (message.type === "unloaded") {
    tell("Live updates could not be loaded. Reload the page.", "Reload", () => location.reload());
  }
}

function changed(job) {
  const before = list.get(job.id);
  if (before && ended(job) && !ended(before)) announcer.ended(job);
  list.hear(job, filter.matches(job));
  if (at("jobs").getAttribute("aria-busy") === "false") settle();
}

let lost = null;

/** What happened while the connection was lost is told, or has to be asked for. */
function linked({ up, resumed }) {
  if (up) {
    clearTimeout(lost);
    lost = null;
    at("connection").textContent = "";
    if (failed || !resumed) load();
  } else {
    lost ??= setTimeout(() => (at("connection").textContent = "Reconnecting …"), PATIENCE);
  }
}

// what the reader does

function act(job) {
  return ended(job) ? retry(job) : cancel(job);
}

async function cancel(job) {
  list.cancelling(job.id, true);
  try {
    await post(`/jobs/${job.id}/cancel`);
  } catch (error) {
    list.cancelling(job.id, false);
    tell(`${harmless(job.project)}: ${why(error)}`);
  }
}

async function retry(job) {
  try {
    const made = await post(`/jobs/${job.id}/retry`);
    if (!list.get(made.id)) changed(made); // else an event told more of it
    announcer.say(`${job.project}: submitted again`);
  } catch (error) {
    tell(`${harmless(job.project)}: ${why(error)}`);
  }
}

/** A browser's own words for a server that cannot be reached help nobody. */
function why(error) {
  return error instanceof TypeError ? "the worker cannot be reached" : error.message;
}

function choose(wanted) {
  if (wanted.address === filter.address) return;
  history.pushState(null, "", wanted.address);
  apply(wanted);
}

/** Show what the address asks for. */
function apply(wanted) {
  filter = wanted;
  wantsOlder = false;
  form.elements.status.value = filter.status;
  form.elements.project.value = filter.project;
  list.keep((job) => filter.matches(job));
  load();
}

const chosen = () => new Filter(form.elements.status.value, form.elements.project.value);

/** Offer this project to the filter. */
function offer(project) {
  const known = [...at("projects").options].some((option) => option.value === project);
  if (!known) at("projects").append(element("option", { value: project }));
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", () => choose(chosen()));
form.elements.project.addEventListener("search", () => choose(chosen())); // its cross was pressed
addEventListener("popstate", () => apply(Filter.ofAddress()));
at("older").addEventListener("click", loadOlder);
at("show-all").addEventListener("click", () => choose(new Filter("", "")));
at("origin").textContent = location.origin;
at("older").parentElement.before(missed);
keys({
  j: () => list.move(1),
  k: () => list.move(-1),
  "/": () => form.elements.project.focus(),
});

openHub(hear);
apply(filter);
