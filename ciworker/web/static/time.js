/** Times that stay true while the page is open, by the worker's clock. */

import { now } from "./api.js";
import { element } from "./dom.js";

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const WEEK = 7 * DAY;

const absolute = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });
const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium" });

/** `0.4 s`, `12 s`, `3 min 5 s`, `2 h 4 min`: of milliseconds. */
export function duration(span) {
  if (span < 10 * SECOND) return `${(Math.max(0, span) / SECOND).toFixed(1)} s`;
  const seconds = Math.floor(span / SECOND);
  if (span < MINUTE) return `${seconds} s`;
  if (span < HOUR) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** `just now`, `12 s ago`, `3 min ago`, `2 h ago`, `3 d ago`, `31 Jan 2026`: of a moment. */
export function age(moment, at = now()) {
  const span = at - moment;
  if (span < 5 * SECOND) return "just now";
  if (span < MINUTE) return `${Math.floor(span / SECOND)} s ago`;
  if (span < HOUR) return `${Math.floor(span / MINUTE)} min ago`;
  if (span < DAY) return `${Math.floor(span / HOUR)} h ago`;
  if (span < WEEK) return `${Math.floor(span / DAY)} d ago`;
  return day.format(moment);
}

/** A `time` element that says how long ago this was; the exact time is its title. */
export function ago(instant) {
  return live("ago", instant, absolute.format(Date.parse(instant)));
}

/** A `time` element that says how long something took, or has taken so far if `to` is null. */
export function lasted(from, to) {
  const began = absolute.format(Date.parse(from));
  if (to === null) return live("lasts", from, `since ${began}`);
  const title = `${began} to ${absolute.format(Date.parse(to))}`;
  const made = element("time", { datetime: from, title });
  made.textContent = duration(Date.parse(to) - Date.parse(from));
  return made;
}

function live(kind, instant, title) {
  const made = element("time", { datetime: instant, title, "data-live": kind });
  update(made);
  return made;
}

function update(made) {
  const from = Date.parse(made.dateTime);
  const text = made.dataset.live === "ago" ? age(from) : whole(now() - from);
  if (made.textContent !== text) made.textContent = text;
}

/** A duration in whole seconds, since it is shown once a second. */
function whole(span) {
  return duration(Math.floor(Math.max(0, span) / SECOND) * SECOND).replace(".0", "");
}

function updateAll() {
  if (document.hidden) return;
  for (const made of document.querySelectorAll("time[data-live]")) update(made);
}

setInterval(updateAll, SECOND);
document.addEventListener("visibilitychange", updateAll);
