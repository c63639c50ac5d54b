/**
 * The groups of a log, and which of its lines are folded away.
 *
 * A group goes from a line `::group::TITLE` to `::endgroup::`, to the next group (they do not
 * nest, as on GitHub), or to the end of the log. Numbers of lines count from 1.
 */

import { plain } from "./ansi.js";

const COMMAND = /^::(group|endgroup)::(.*)$/;
const FOREVER = Number.MAX_SAFE_INTEGER - 1; // the last line of a group that is still open
export const MOST_COMMANDS = 10_000; // that are heeded; lines after them belong to no group
const NEAR_THE_END = 20; // lines; so close before the end, a group has the lines that tell why

/** What the outline asks the server's search for. */
export const COMMANDS = "^::(group|endgroup)::";

/** `{kind, title}` of a line that opens or closes a group, else null. */
export function command(text) {
  const match = text.includes("::") ? COMMAND.exec(plain(text).trimEnd()) : null;
  return match && { kind: match[1], title: match[2].trim() };
}

export class Outline {
  #groups = new Map(); // by first line, in the order of lines
  #open = null;
  #last = null;
  #ends = new Set();
  #seen = 0;
  #commands = 0;
  #pinned = new Map(); // first line -> folded, where the reader decided

  /** Take notice of a line that may open or close a group; lines come in their order. */
  add(number, text) {
    const found = number > this.#seen ? command(text) : null;
    if (!found) return false;
    this.#seen = number;
    const closing = found.kind === "endgroup";
    if ((closing || this.#full) && !this.#open) return false;
    if (this.#open) this.#open.end = closing ? number : number - 1;
    if (closing) this.#ends.add(number);
    this.#open = closing || this.#full ? null : { start: number, end: null, title: found.title };
    this.#commands += 1;
    if (this.#open) {
      this.#last = this.#open;
      this.#groups.set(number, this.#open);
    }
    return true;
  }

  /** No group is opened any more; one that is open may still end. */
  get #full() {
    return this.#commands >= MOST_COMMANDS;
  }

  /** Take no notice of lines any more, nor of a group whose end is not known. */
  cap() {
    this.#groups.delete(this.#open?.start);
    this.#open = null;
    this.#seen = Infinity;
  }

  /** The group that begins in this line. */
  at(number) {
    return this.#groups.get(number);
  }

  /** The line is an `::endgroup::` of a group. */
  ends(number) {
    return this.#ends.has(number);
  }

  get starts() {
    return [...this.#groups.keys()];
  }

  /** The group that this line is in. */
  around(number) {
    const groups = [...this.#groups.values()];
    return groups.findLast((group) => group.start <= number && number <= (group.end ?? FOREVER));
  }

  /** Say that the reader wants it so, whatever else. */
  pin(start, folded) {
    this.#pinned.set(start, folded);
  }

  /**
   * Is it folded? Groups are open while they run and folded when they are over. Where the job did
   * not pass, the last one stays open if the job stopped in it, or just after it.
   */
  folded(group, { ended, passed, total }) {
    const pinned = this.#pinned.get(group.start);
    if (pinned !== undefined) return pinned;
    if (group.end === null) return ended && passed;
    return !ended || passed || group !== this.#last || group.end <= total - NEAR_THE_END;
  }

  /** What is to be hidden, given how the job is. */
  folds(state) {
    const ranges = [];
    for (const group of this.#groups.values()) {
      const last = group.end ?? FOREVER;
      if (last > group.start && this.folded(group, state)) ranges.push([group.start + 1, last]);
    }
    return new Folds(ranges);
  }
}

/** Ranges of hidden lines, and the way between numbers of lines and places among visible ones. */
export class Folds {
  #ranges; // [first, last, hidden before first], ascending and apart

  constructor(ranges = []) {
    let before = 0;
    this.#ranges = ranges.map(([first, last]) => {
      const range = [first, last, before];
      before += last - first + 1;
      return range;
    });
  }

  differs(other) {
    const same = ([first, last], index) =>
      first === other.#ranges[index][0] && last === other.#ranges[index][1];
    return this.#ranges.length !== other.#ranges.length || !this.#ranges.every(same);
  }

  /** Which of these lines are visible, as something to compare. */
  shape(first, last) {
    const edges = [];
    let line = this.next(first);
    while (line <= last) {
      const upto = Math.min(this.#lastBeside(line), last);
      edges.push(line, upto);
      line = this.next(upto + 1);
    }
    return edges.join();
  }

  hides(number) {
    const range = this.#upTo(number);
    return range !== undefined && number <= range[1];
  }

  /** How many visible lines stand before line `number`. */
  before(number) {
    const range = this.#upTo(number - 1);
    if (!range) return number - 1;
    return number - 1 - range[2] - (Math.min(number - 1, range[1]) - range[0] + 1);
  }

  /** The line that has `place` visible ones before it. */
  nth(place) {
    let [low, high] = [0, this.#ranges.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.before(this.#ranges[middle][0]) <= place) low = middle + 1;
      else high = middle;
    }
    const range = this.#ranges[low - 1];
    return range ? place + 1 + range[2] + (range[1] - range[0] + 1) : place + 1;
  }

  /** The first visible line that is `number` or after it, be it past the log's end. */
  next(number) {
    const range = this.#upTo(number);
    return range && number <= range[1] ? this.next(range[1] + 1) : number;
  }

  /** The last line of those that stand beside a visible one without a fold between. */
  #lastBeside(number) {
    const range = this.#ranges[this.#countUpTo(number)];
    return range ? range[0] - 1 : FOREVER;
  }

  /** The last visible line that is `number` or before it; 0 when there is none. */
  previous(number) {
    const range = this.#upTo(number);
    return range && number <= range[1] ? this.previous(range[0] - 1) : number;
  }

  /** The last range that begins at `number` or before. */
  #upTo(number) {
    return this.#ranges[this.#countUpTo(number) - 1];
  }

  #countUpTo(number) {
    let [low, high] = [0, this.#ranges.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#ranges[middle][0] <= number) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
