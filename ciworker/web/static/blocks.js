/**
 * The rows that are in the document: blocks of them, a cell of lines each, without a gap, and a
 * space above and below them that stands for all other lines.
 *
 * Up to MOST_ROWS rows may be there, so that the browser's own search finds them, unless they are
 * so long or so full of colours that they cost more than MOST_COST; beyond, blocks far from the
 * view are dropped. No space is so high that a browser would cap it: past MOST_PIXELS it is drawn
 * to scale.
 */

import { Folds } from "./groups.js";
import { cellOf, firstOf, lastOf } from "./lines.js";

const MOST_ROWS = 50_000;
const MOST_COST = 16_000_000; // characters
const PIECE = 64; // characters that cost as much as one piece of text with its own colour
const MOST_PIXELS = 6_000_000;
const MARGIN = 1.5; // heights of the view that are loaded ahead
const LIGHT = 10_000; // what a row may cost before less is loaded ahead

export class Blocks {
  #parts;
  #lines;
  #makeRow;
  // {cell, element, drawn, rows, cost, shape}, by cell. drawn: the last line looked at; shape: of
  // the folds that it was drawn with, null if it is to be drawn anew.
  #blocks = [];
  #rows = 0;
  #cost = 0;
  #crowded = false; // some had to be dropped for their cost
  #folds = new Folds();

  /** parts: {scroller, above, blocks, below}. makeRow: the element of a record. */
  constructor(parts, lines, makeRow) {
    this.#parts = parts;
    this.#lines = lines;
    this.#makeRow = makeRow;
  }

  /** The cell of the first block; undefined when there is none. */
  get first() {
    return this.#blocks.at(0)?.cell;
  }

  get last() {
    return this.#blocks.at(-1)?.cell;
  }

  get count() {
    return this.#blocks.length;
  }

  /** The folds that all blocks are drawn with. */
  get folds() {
    return this.#folds;
  }

  // lines that may be seen

  /** The next cell with visible lines, or null. */
  after(cell, folds = this.#folds) {
    const line = folds.next(lastOf(cell) + 1);
    return line <= this.#lines.total ? cellOf(line) : null;
  }

  before(cell, folds = this.#folds) {
    const line = folds.previous(firstOf(cell) - 1);
    return line >= 1 ? cellOf(line) : null;
  }

  /** How many lines are visible, loaded or not. */
  get visible() {
    return this.#folds.before(this.#lines.total + 1);
  }

  /** The row of a line, if it is loaded. */
  row(number) {
    const block = this.#blocks.find((one) => one.cell === cellOf(number));
    if (!block || this.#folds.hides(number)) return undefined;
    const place = this.#folds.before(number) - this.#folds.before(firstOf(block.cell));
    return block.element.children[place];
  }

  *rows() {
    for (const block of this.#blocks) yield* block.element.children;
  }

  // what is loaded

  /** Rows may be shown wrongly: none is good enough for the next arrangement. */
  spoil() {
    for (const block of this.#blocks) block.shape = null;
  }

  get spoilt() {
    return this.#blocks.some((block) => block.shape === null);
  }

  /** Those of the cells that have no block, with all its lines so far, as these folds want it. */
  undrawn(cells, folds) {
    const whole = this.#blocks.filter((block) => this.#isWhole(block));
    const good = new Map(whole.map((block) => [block.cell, block.shape]));
    return cells.filter((cell) => good.get(cell) !== shape(folds, cell));
  }

  /** Have blocks of these cells and no others. found: cell -> records, of those to be drawn. */
  arrange(cells, found, folds) {
    const kept = new Map(this.#blocks.map((block) => [block.cell, block]));
    this.#folds = folds;
    this.#blocks = cells.map((cell) =>
      found.has(cell) ? this.#drawn(cell, found.get(cell)) : kept.get(cell),
    );
    this.#parts.blocks.replaceChildren(...this.#blocks.map((block) => block.element));
    this.#count();
    this.space();
  }

  /** Add blocks at the end or, with `above`, before the first. found: [cell, records], outwards. */
  add(found, above) {
    const blocks = found.map(([cell, records]) => this.#drawn(cell, records));
    if (above) blocks.reverse();
    const elements = blocks.map((block) => block.element);
    this.#parts.blocks[above ? "prepend" : "append"](...elements);
    this.#blocks[above ? "unshift" : "push"](...blocks);
    this.#count();
    this.space();
  }

  /** All lines so far of the last block's cell are drawn. */
  get complete() {
    return this.#isWhole(this.#blocks.at(-1));
  }

  /** Draw those of the last cell's records that are not yet. */
  grow(records) {
    this.#draw(this.#blocks.at(-1), records);
    this.#count();
  }

  /**
   * On which side a block is to be loaded: near the view first, then, if `all` may be, anywhere.
   * null: on none.
   */
  lacking(all) {
    const [first, last] = [this.#blocks.at(0), this.#blocks.at(-1)];
    if (!first) return null;
    const [{ top, bottom }, margin] = [this.#view(), this.#margin()];
    const below = this.after(last.cell) !== null;
    const above = this.before(first.cell) !== null;
    if (below && last.element.getBoundingClientRect().bottom < bottom + margin) return "below";
    if (above && first.element.getBoundingClientRect().top > top - margin) return "above";
    if (!all || this.#crowded || this.#lines.total > MOST_ROWS) return null;
    if (below) return "below";
    return above ? "above" : null;
  }

  #isWhole({ cell, drawn }) {
    return drawn >= Math.min(this.#lines.total, lastOf(cell));
  }

  #drawn(cell, records) {
    const element = document.createElement("div");
    element.className = "block";
    const drawn = firstOf(cell) - 1;
    const block = { cell, element, drawn, rows: 0, cost: 0, shape: shape(this.#folds, cell) };
    this.#draw(block, records);
    return block;
  }

  #draw(block, records) {
    const fresh = records.slice(block.drawn - firstOf(block.cell) + 1);
    const shown = fresh.filter((record) => !this.#folds.hides(record.n));
    const rows = shown.map(this.#makeRow);
    block.element.append(...rows);
    block.drawn += fresh.length;
    block.rows += rows.length;
    block.cost += rows.reduce((sum, row) => sum + cost(row.lastChild), 0);
    block.element.style.setProperty("--rows", block.rows);
  }

  #count() {
    this.#rows = this.#blocks.reduce((sum, block) => sum + block.rows, 0);
    this.#cost = this.#blocks.reduce((sum, block) => sum + block.cost, 0);
  }

  /** Drop the blocks that are farthest from the view while there are too many, but none near it. */
  trim() {
    const [{ top, bottom }, margin] = [this.#view(), this.#margin()];
    while (this.#over()) {
      const above = top - this.#blocks.at(0).element.getBoundingClientRect().bottom;
      const below = this.#blocks.at(-1).element.getBoundingClientRect().top - bottom;
      if (Math.max(above, below) < margin) break;
      this.#drop(above > below ? this.#blocks.shift() : this.#blocks.pop());
    }
    this.space();
  }

  /** Drop the first blocks while there are too many: the last one is to be looked at. */
  trimAbove() {
    while (this.#blocks.length > 1 && this.#over()) this.#drop(this.#blocks.shift());
    this.space();
  }

  #drop(block) {
    block.element.remove();
    this.#rows -= block.rows;
    this.#cost -= block.cost;
  }

  /** How near to the view, in pixels, all lines are to be loaded. */
  #margin() {
    return this.#view().height * MARGIN * Math.min(1, (LIGHT * this.#rows) / Math.max(1, this.#cost));
  }

  #over() {
    this.#crowded ||= this.#cost > MOST_COST;
    return this.#rows > MOST_ROWS || this.#cost > MOST_COST;
  }

  // where things are

  /** Make the spaces as high as the lines that they stand for, or to scale. */
  space() {
    const [first, last] = [this.first, this.last];
    if (first === undefined) return;
    const unit = this.#unit();
    const upper = this.#folds.before(firstOf(first));
    const lower = Math.max(0, this.visible - this.#folds.before(lastOf(last) + 1));
    this.#parts.above.style.blockSize = `${upper * unit}px`;
    this.#parts.below.style.blockSize = `${lower * unit}px`;
  }

  /** Pixels that a line takes in a space. */
  #unit() {
    const height = parseFloat(getComputedStyle(this.#parts.blocks).lineHeight);
    return Math.min(height, MOST_PIXELS / this.visible);
  }

  /** The first row in view: {element, number, offset in px}; undefined when none is. */
  top() {
    const { top, height } = this.#view();
    const reaches = (element) => element.getBoundingClientRect().bottom > top;
    const index = firstIndex(this.#blocks.length, (i) => reaches(this.#blocks[i].element));
    const rows = this.#blocks[index]?.element.children ?? [];
    const element = rows[firstIndex(rows.length, (i) => reaches(rows[i]))];
    if (!element) return undefined;
    const offset = element.getBoundingClientRect().top - top;
    return offset < height ? { element, number: Number(element.dataset.n), offset } : undefined;
  }

  /**
   * Scroll so that a row is so many pixels from the view's top. Its block has to be laid out for
   * that: where it is in a block that is not drawn is not where it will be.
   */
  place(element, offset) {
    this.#layOut(element.parentElement);
    const { top } = this.#view();
    const height = element.offsetHeight;
    const some = offset > -height ? offset : -height / 2; // some of the row stays in view
    this.#parts.scroller.scrollTop += element.getBoundingClientRect().top - top - some;
  }

  /** Scroll to the end of all. */
  pin() {
    const { scroller } = this.#parts;
    if (this.#blocks.length) this.#layOut(this.#blocks.at(-1).element);
    scroller.scrollTop = scroller.scrollHeight;
  }

  #layOut(block) {
    this.#parts.blocks.querySelector(".laid-out")?.classList.remove("laid-out");
    block.classList.add("laid-out");
  }

  /** The line that a view stands for that has nothing but a space in it; undefined otherwise. */
  missed() {
    const [first, last] = [this.#blocks.at(0), this.#blocks.at(-1)];
    if (!first) return undefined;
    const { top, bottom } = this.#view();
    const above = first.element.getBoundingClientRect().top - bottom;
    const below = top - last.element.getBoundingClientRect().bottom;
    if (above < 0 && below < 0) return undefined;
    const from = above >= 0 ? firstOf(first.cell) : this.#folds.next(lastOf(last.cell) + 1);
    const lines = Math.trunc((above >= 0 ? -above : below) / this.#unit());
    const place = this.#folds.before(from) + lines;
    return this.#folds.nth(Math.min(Math.max(0, place), this.visible - 1));
  }

  #view() {
    return this.#parts.scroller.getBoundingClientRect();
  }
}

/** What a row's text costs the browser, as a number of characters. */
const cost = (text) => text.textContent.length + PIECE * text.childNodes.length;

/** Which lines of a cell are visible, as something to compare. */
const shape = (folds, cell) => folds.shape(firstOf(cell), lastOf(cell));

/** The first index below `length` that `holds`, where all after it hold as well. */
function firstIndex(length, holds) {
  let [low, high] = [0, length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
