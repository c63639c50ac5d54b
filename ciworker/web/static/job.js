/** The job page: the job's facts and its log, kept true by the hub, its switches, keys, buttons. */

import { Announcer } from "./announcer.js";
import { json, logPath, login, passing, post, Problem, records, search } from "./api.js";
import { command, COMMANDS, MOST_COMMANDS, Outline } from "./groups.js";
import { keys } from "./keys.js";
import { copied } from "./line.js";
import { Lines } from "./lines.js";
import { openHub } from "./live.js";
import { LogView } from "./log.js";
import { notice } from "./notices.js";
import { parse, Permalink } from "./permalink.js";
import { Search } from "./search.js";
import { ended, word } from "./status.js";
import { describe } from "./summary.js";

const PATIENCE = 700; // ms until a connection that is lost is spoken of
const RETRY_PAUSE = 500; // ms
const OUTLINE_PATIENCE = 300; // ms that the first lines wait until it is known which are folded
const LOOK_PATIENCE = 10_000; // ms that a look at the job may take
const LOOK_PAUSE = 500; // ms between looks at the job, when much happens around it
const MOST_TRIES = 20; // to learn the groups
const BUSY = 429; // too many searches at once

const at = (id) => document.getElementById(id);
const id = location.pathname.split("/").at(-1).toUpperCase(); // as the worker says it
const announcer = new Announcer(at("announcer"));
const tell = (text, remedy, mend) => notice(at("notices"), text, remedy, mend);

const lines = new Lines((from, limit) => records(id, { from, limit }));
const outline = new Outline();
const view = new LogView(
  {
    scroller: at("log"),
    above: at("above"),
    blocks: at("blocks"),
    below: at("below"),
    partials: at("partials"),
  },
  lines,
  outline,
  {
    following: (is) => (at("follow").checked = is),
    counted: (total) => (at("count").textContent = counted(total)),
    failed,
  },
);
const permalink = new Permalink(at("blocks"), view);
const finder = new Search(id, view, {
  form: at("search"),
  found: at("found"),
  previous: at("previous"),
  next: at("next"),
});

let job = null; // in detail
let cancelling = false;
let early = []; // records that open or close a group, and came before the outline was known

// the job

let asking = null;
let again = false;

/** Ask for the job in detail, which the stream does not tell. One question at a time: an answer
    that came late would put the job back to what it was. */
function look() {
  again = true;
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

async function ask() {
  while (again) {
    again = false;
    const found = await detail();
    if (found) show(found);
  }
}

let unsay = () => {};

/** The job in detail; null if the worker refuses it, which is told until it no longer does. */
async function detail() {
  for (;;) {
    try {
      const found = await json(`/jobs/${id}`, { signal: AbortSignal.timeout(LOOK_PATIENCE) });
      unsay();
      return found;
    } catch (error) {
      if (passing(error)) {
        await pause(RETRY_PAUSE);
        continue;
      }
      if (!(error instanceof Problem)) throw error;
      unsay = tell(error.message, "Try again", look);
      return null;
    }
  }
}

/** The job as the stream tells it, now; in detail as soon as that is known. */
function merge(told) {
  if (job) show({ ...job, ...told, place: null });
  look();
}

function show(found) {
  const before = job;
  if (before && ended(before) && !ended(found)) return; // asked for before the end was told
  job = found;
  if (ended(job)) lines.reach(job.log_lines);
  if (ended(job)) cancelling = false;
  if (before && before.status !== job.status) announcer.say(`${job.project}: ${word(job)}`);
  describe(job, cancelling);
  at("follow").disabled = ended(job);
  if (!before || ended(before) !== ended(job)) {
    regroup({ ended: ended(job), passed: job.success === true });
  }
  if (ended(job)) view.clearPartials();
}

let looking = null;

/** Look again, but not for each of many events. */
function lookSoon() {
  looking ??= setTimeout(() => {
    looking = null;
    look();
  }, LOOK_PAUSE);
}

// what happens

function hear(message) {
  if (message.type === "link") linked(message.up);
  else if (message.type === "denied") login();
  else if (message.type === "unloaded") dead("Live updates could not be loaded.");
  else if (message.type === "status") changed(message.job);
  else if (message.id !== id) return;
  else if (message.type === "log") logged(message.records);
  else if (message.type === "partial") view.partial(message.record);
  else if (message.type === "end") merge(message.job);
  else if (message.type === "waiting") waits(message.is);
  else if (message.type === "lost") dead(`This log is live no longer: ${message.detail}.`);
}

const dead = (why) => tell(`${why} Reload the page.`, "Reload", () => location.reload());

function changed(other) {
  if (other.id === id) merge(other);
  else if (job?.status === "queued") lookSoon();
}

let unwait = () => {};

/** There are more running jobs open in this browser than can be followed at once. */
function waits(is) {
  unwait();
  if (is) unwait = tell("Too many running jobs are open: this log goes on when another one ends.");
}

/** The state of a job that sets up an environment is not told, but its lines are. */
function logged(fresh) {
  if (job && !job.started_at && !ended(job)) lookSoon();
  if (early && early.length <= MOST_COMMANDS) {
    early.push(...fresh.filter((record) => command(record.text)));
  }
  lines.append(fresh);
  const grouped = !early && fresh.filter((record) => outline.add(record.n, record.text)).length > 0;
  for (const stream of new Set(fresh.map((record) => record.stream))) view.partial({ stream, text: "" });
  if (grouped) regroup();
  view.grown();
}

/** A group that is over folds, but not under the eyes of somebody who has let go of the end. */
function regroup(state) {
  if (!view.following) {
    const open = outline.starts.filter((start) => !view.folded(start));
    for (const start of open) outline.pin(start, false);
  }
  view.regroup(state);
}

let lost = null;

function linked(up) {
  if (up) {
    clearTimeout(lost);
    lost = null;
    at("connection").textContent = "";
    look();
    view.retry();
  } else {
    view.clearPartials();
    lost ??= setTimeout(() => (at("connection").textContent = "Reconnecting …"), PATIENCE);
  }
}

// the log

/** Lines could not be fetched. Without a connection it is tried until there is one. */
function failed(error) {
  if (passing(error)) setTimeout(() => view.retry(), RETRY_PAUSE);
  else tell(`Lines could not be loaded: ${error.message}`, "Try again", () => view.retry());
}

/** Show the log, once there is a connection. */
async function open() {
  let tail;
  try {
    [, tail] = await Promise.all([look(), records(id, { tail: 1 })]);
  } catch (error) {
    if (passing(error)) setTimeout(open, RETRY_PAUSE);
    else if (!(error instanceof Problem)) throw error;
    else tell(error.message, "Try again", open);
    return;
  }
  lines.reach(tail.at(-1)?.n ?? 0);
  send({ type: "follow", id, after: lines.total });
  const groups = outlined();
  await Promise.race([groups, pause(OUTLINE_PATIENCE)]);
  if (!permalink.open()) {
    if (job && ended(job)) await view.show(1, "top");
    else view.follow(true);
  }
  await groups;
}

/** Learn the groups of the lines that are stored, then those of lines that came meanwhile. */
async function outlined() {
  let [from, count] = [1, 0];
  while (from !== null && count < MOST_COMMANDS) {
    const { hits, next } = await commands(from);
    for (const hit of hits) outline.add(hit.n, hit.text);
    [from, count] = [next, count + hits.length];
  }
  if (from !== null || early.length > MOST_COMMANDS) outline.cap();
  for (const record of early) outline.add(record.n, record.text);
  early = null;
  permalink.unfold(outline);
  if (outline.starts.length) await view.regroup(undefined, true);
  view.settle();
}

/** Lines from `from` on that open or close a group; none if the server doesn't tell. */
async function commands(from) {
  for (let tries = 0; tries < MOST_TRIES; tries += 1) {
    try {
      return await search(id, { q: COMMANDS, regex: true, from, limit: 1000 });
    } catch (error) {
      if (!passing(error) && error.status !== BUSY) break;
      await pause(RETRY_PAUSE);
    }
  }
  outline.cap();
  tell("The groups could not be loaded: the log is shown without them.", "Reload", () => location.reload());
  return { hits: [], next: null };
}

// what the reader does

async function cancel() {
  cancelling = true;
  describe(job, cancelling);
  try {
    await post(`/jobs/${id}/cancel`);
    announcer.say("cancelling");
  } catch (error) {
    cancelling = false;
    describe(job, cancelling);
    tell(error.message);
  }
}

async function retry() {
  try {
    location.assign(`/jobs/${(await post(`/jobs/${id}/retry`)).id}`);
  } catch (error) {
    tell(error.message);
  }
}

/** A switch of how lines look, remembered in this browser. */
function remembered(name, initial, apply) {
  const box = at(name);
  box.checked = (localStorage.getItem(`log.${name}`) ?? String(initial)) === "true";
  apply(box.checked);
  box.addEventListener("change", () => {
    localStorage.setItem(`log.${name}`, String(box.checked));
    view.steadily(() => apply(box.checked));
  });
}

/** Copied lines are their text alone, however they are drawn. */
function copy(event) {
  const selection = getSelection();
  if (selection.isCollapsed || event.target.closest?.("input")) return;
  const range = selection.getRangeAt(0);
  const rows = [...at("log").querySelectorAll(".line")].filter((line) => range.intersectsNode(line));
  if (!rows.length) return;
  event.clipboardData.setData("text/plain", copied(rows, range));
  event.preventDefault();
}

function goTo(event) {
  event.preventDefault();
  const range = parse(at("goto-form").elements.lines.value);
  at("goto").close();
  if (range) permalink.go(range);
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const counted = (total) => (total === 1 ? "1 line" : `${total.toLocaleString("en")} lines`);
const press = (name) => () => !at(name).disabled && at(name).click();
const scroll = (by) => at("log").scrollBy({ top: by * parseFloat(getComputedStyle(at("blocks")).lineHeight) });
const end = () => {
  if (job && !ended(job)) view.follow(true);
  view.end();
};

at("raw").href = logPath(id);
at("download").href = logPath(id);
at("download").download = `${id}.log`;
remembered("times", false, (is) => at("log").classList.toggle("times", is));
remembered("wrap", true, (is) => at("log").classList.toggle("unwrapped", !is));
at("follow").addEventListener("change", () => view.follow(at("follow").checked));
at("cancel").addEventListener("click", cancel);
at("retry").addEventListener("click", retry);
at("to-top").addEventListener("click", () => view.top());
at("to-end").addEventListener("click", end);
at("goto-form").addEventListener("submit", goTo);
document.addEventListener("copy", copy);
keys({
  "/": () => finder.focus(),
  n: () => finder.move(1),
  N: () => finder.move(-1),
  g: () => view.top(),
  G: end,
  Home: () => view.top(),
  End: end,
  j: () => scroll(1),
  k: () => scroll(-1),
  l: () => at("goto").showModal(),
  o: () => view.toggleAll(),
  f: press("follow"),
  t: press("times"),
  w: press("wrap"),
  a: () => at(job && ended(job) ? "retry" : "cancel").focus(),
  d: press("download"),
  h: () => location.assign("/"),
});

const send = openHub(hear);
at("log").focus({ preventScroll: true });
await open();
