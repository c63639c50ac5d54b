/** A line of a log as an element: its number and time are drawn, not text, so nobody copies them. */

import { paint } from "./ansi.js";

const OPENING = "::group::";
const CLOSING = "::endgroup::";

/** The row of a record. group: the one that begins in it; closing: it is an `::endgroup::`. */
export function row(record, { group, closing = false, folded = false } = {}) {
  const line = bare(record);
  line.dataset.n = record.n;
  line.dataset.at = clock(record.at);
  if (record.end === false) line.classList.add("cut");
  if (closing) foot(line);
  if (group) head(line, group, folded);
  return line;
}

/** The row of a line that is not ended yet: it has no number. */
export function partialRow(record) {
  const line = bare(record);
  line.classList.add("partial");
  return line;
}

/** Show on a group's first row whether its lines are there and, once it is known, how many. */
export function expand(line, group, folded) {
  const [button, text] = line.children;
  const expanded = String(!folded);
  if (button.getAttribute("aria-expanded") !== expanded) button.setAttribute("aria-expanded", expanded);
  if (group.end === null || text.dataset.count !== undefined) return;
  const count = group.end - group.start;
  text.dataset.count = count === 1 ? "1 line" : `${count.toLocaleString("en")} lines`;
}

/** What is copied of some rows: their text as it was printed, pieces of a long line as one. */
export function copied(rows, range) {
  return rows
    .map((line, index) => {
      const ended = index < rows.length - 1 && !line.classList.contains("cut");
      return within(line.querySelector(".text"), range) + (ended ? "\n" : "");
    })
    .join("");
}

function bare(record) {
  const line = document.createElement("div");
  line.className = record.stream === "stdout" ? "line" : `line ${record.stream}`;
  const text = document.createElement("span");
  text.className = "text";
  paint(text, record.text);
  line.append(text);
  return line;
}

function within(element, range) {
  const part = document.createRange();
  part.selectNodeContents(element);
  if (part.compareBoundaryPoints(Range.START_TO_START, range) < 0) {
    part.setStart(range.startContainer, range.startOffset);
  }
  if (part.compareBoundaryPoints(Range.END_TO_END, range) > 0) {
    part.setEnd(range.endContainer, range.endOffset);
  }
  return part.toString();
}

function head(line, group, folded) {
  line.classList.add("group");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "fold";
  button.setAttribute("aria-label", `Group: ${group.title || "no title"}`);
  line.prepend(button);
  hide(OPENING, line.lastChild);
  expand(line, group, folded);
}

/** A group's last row is a rule, unless the job has something to say in it. */
function foot(line) {
  if (!hide(CLOSING, line.lastChild)) line.classList.add("group-end");
}

/** Have a command out of sight, but not what comes after it, which is returned. */
function hide(command, text) {
  const rest = text.textContent.slice(command.length);
  const hidden = document.createElement("span");
  hidden.className = "command";
  hidden.textContent = command;
  text.replaceChildren(hidden, rest);
  return rest.trim();
}

const two = (number) => String(number).padStart(2, "0");

/** The time of day here, to a millisecond. */
function clock(at) {
  const date = new Date(at);
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
  return `${time}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}
