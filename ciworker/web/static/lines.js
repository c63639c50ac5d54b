/**
 * The lines of one log as the page knows them: how many there are, and those that were looked at
 * last. Lines are kept in cells of CELL; what is not at hand is fetched by range, fewer cells at
 * a time where lines are long.
 */

export const CELL = 20; // a line may have 64 KiB, so a cell no more than 1.25 MiB
const MOST_CELLS = 600;
const MOST_CHARACTERS = 8_000_000; // of the lines that are kept
const BATCH = 10; // cells
const BATCH_CHARACTERS = 2_000_000;

/** The cell that holds a line. Cells count from 0, lines from 1. */
export const cellOf = (number) => Math.floor((number - 1) / CELL);
export const firstOf = (cell) => cell * CELL + 1;
export const lastOf = (cell) => (cell + 1) * CELL;

export class Lines {
  #fetch;
  #cells = new Map(); // cell -> {records from the first on, characters}, least recently used first
  #most = 0; // characters of the largest cell so far

  /** fetch(from, limit): up to so many records from that line on. */
  constructor(fetch) {
    this.#fetch = fetch;
    this.total = 0;
  }

  /** How many cells are to be had at a time. */
  get batch() {
    return Math.max(1, Math.min(BATCH, Math.floor(BATCH_CHARACTERS / this.#most)));
  }

  /** Take records that follow each other; those that are known already change nothing. */
  append(records) {
    for (const record of records) {
      if (record.n <= this.total) continue;
      this.total = record.n;
      const cell = cellOf(record.n);
      if (record.n === firstOf(cell)) this.#use(cell);
      if (this.#cells.has(cell)) this.#push(cell, this.#cells.get(cell), record);
    }
    this.#forget();
  }

  /** There are so many lines, whatever is at hand of them. */
  reach(total) {
    this.total = Math.max(this.total, total);
  }

  /** The records of a cell as far as they are at hand without a gap to its end so far, or null. */
  at(cell) {
    const kept = this.#cells.get(cell);
    return kept && this.#whole(cell, kept) ? kept.records : null;
  }

  /** Cell -> its records, of each of these ascending cells; what is not at hand is fetched. */
  async cells(cells) {
    const used = new Map(cells.map((cell) => [cell, this.#use(cell)]));
    const lacking = cells.filter((cell) => !this.#whole(cell, used.get(cell)));
    try {
      await Promise.all(runs(lacking).map(([first, last]) => this.#load(first, last, used)));
    } finally {
      this.#forget();
    }
    return new Map(cells.map((cell) => [cell, used.get(cell).records]));
  }

  async #load(first, last, used) {
    let from = firstOf(first) + used.get(first).records.length;
    while (from <= Math.min(this.total, lastOf(last))) {
      const found = await this.#fetch(from, lastOf(last) - from + 1);
      if (!found.length) throw new Error(`line ${from} of the log is not there`);
      for (const record of found) this.#push(cellOf(record.n), used.get(cellOf(record.n)), record);
      from = found.at(-1).n + 1;
      this.reach(from - 1);
    }
  }

  #whole(cell, { records }) {
    return firstOf(cell) + records.length > Math.min(this.total, lastOf(cell));
  }

  /** Add a record to what there is of its cell, unless it came meanwhile. */
  #push(cell, kept, record) {
    if (firstOf(cell) + kept.records.length !== record.n) return;
    kept.records.push(record);
    kept.characters += record.text.length;
    this.#most = Math.max(this.#most, kept.characters);
  }

  #use(cell) {
    const kept = this.#cells.get(cell) ?? { records: [], characters: 0 };
    this.#cells.delete(cell);
    this.#cells.set(cell, kept);
    return kept;
  }

  #forget() {
    let characters = 0;
    for (const kept of this.#cells.values()) characters += kept.characters;
    for (const [cell, kept] of this.#cells) {
      if (this.#cells.size <= MOST_CELLS && characters <= MOST_CHARACTERS) break;
      if (cell === cellOf(this.total)) continue; // it has to go on
      this.#cells.delete(cell);
      characters -= kept.characters;
    }
  }
}

/** `[first, last]` of each run of cells that follow each other. */
function runs(cells) {
  const found = [];
  for (const cell of cells) {
    if (found.at(-1)?.[1] === cell - 1) found.at(-1)[1] = cell;
    else found.push([cell, cell]);
  }
  return found;
}
