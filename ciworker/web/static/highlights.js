/** Which lines are set off: those that a link asks for, hits of a search, the hit to look at. */

const CLASSES = ["marked", "hit", "current"];

export class Highlights {
  #marked = [0, 0];
  #hits = new Set();
  #current = 0;

  mark(from, to) {
    this.#marked = [from, to];
  }

  /** hits: numbers of lines. current: one of them, or 0. */
  find(hits, current) {
    this.#hits = hits;
    this.#current = current;
  }

  /** Set a row off as it should be. */
  dress(row) {
    const number = Number(row.dataset.n);
    const [from, to] = this.#marked;
    const is = [from <= number && number <= to, this.#hits.has(number), number === this.#current];
    for (const [index, name] of CLASSES.entries()) {
      if (is[index] !== row.classList.contains(name)) row.classList.toggle(name, is[index]);
    }
  }
}
