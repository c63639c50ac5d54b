/**
 * The log as it is seen: jumps to any of its lines, follows its end, folds its groups.
 *
 * What is loaded is `Blocks`' business; here it is decided what to load. A change that comes
 * while lines are fetched for another one makes those pointless: each takes a new `aim`, and
 * whoever waited looks whether his is still it. Folds that are wanted are drawn by whatever is
 * arranged next, so that none is lost with a change that failed or was overtaken.
 */

import { Blocks } from "./blocks.js";
import { Highlights } from "./highlights.js";
import { expand, partialRow, row } from "./line.js";
import { cellOf, firstOf, lastOf } from "./lines.js";

const MOST_REDRAWN = 2; // batches of cells that a fold changes in place
const FAR = 5; // batches that following may be behind before it jumps
const AT_END = 4; // px
const DOWN = { ArrowDown: true, PageDown: true, " ": true, j: true, ArrowUp: false, PageUp: false, k: false };

export class LogView {
  #parts;
  #lines;
  #outline;
  #tell;
  #blocks;
  #highlights = new Highlights();
  #state = { ended: false, passed: false };
  #folds; // those that are wanted
  #goal = null; // [line, align] of a jump that is under way
  #aim = 0;
  #begun = false; // it was said what to show first
  #settled = false;
  #filling = false;
  #frame = 0;
  #following = false;
  #unfinished = new Map(); // stream -> record
  #pinned = 0; // where the end was when it was scrolled to
  #moved = false; // the reader scrolls down, and not a jump

  /**
   * parts: {scroller, above, blocks, below, partials}.
   * tell: {following(is), counted(total), failed(error)}.
   */
  constructor(parts, lines, outline, tell) {
    this.#parts = parts;
    this.#lines = lines;
    this.#outline = outline;
    this.#tell = tell;
    this.#blocks = new Blocks(parts, lines, (record) => this.#row(record));
    this.#folds = this.#blocks.folds;
    parts.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#watchReader();
    parts.blocks.addEventListener("click", (event) => this.#clicked(event));
    const observer = new ResizeObserver(() => this.#following && this.#pin());
    for (const part of [parts.scroller, parts.blocks, parts.partials]) observer.observe(part);
  }

  /** The number of the first line in view; 0 when there is none. */
  get first() {
    return this.#blocks.top()?.number ?? 0;
  }

  // what comes

  /** There are more lines; they are drawn, with what is unfinished behind them, once a frame. */
  grown() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#refresh();
    });
  }

  /** The last, unfinished line of a stream; empty: there is none any more. */
  partial(record) {
    if (record.text) this.#unfinished.set(record.stream, record);
    else if (!this.#unfinished.delete(record.stream)) return;
    this.grown();
  }

  clearPartials() {
    this.#unfinished.clear();
    this.grown();
  }

  /** The groups of the whole log are known, or won't be: everything may be loaded now. */
  settle() {
    this.#settled = true;
    this.#fill();
  }

  /** Try again what could not be fetched. */
  retry() {
    this.grown();
    if (this.#goal) return this.#jump(...this.#goal);
    return this.#refold();
  }

  // following

  get following() {
    return this.#following;
  }

  /** Hold on to the end, or let go. */
  follow(is) {
    this.#moved = false;
    this.#hold(is);
  }

  top() {
    this.follow(false);
    return this.show(1, "top");
  }

  end() {
    this.#moved = false;
    return this.#toLast();
  }

  // looking at lines

  /** Show a line, also one of a folded group; align: `center`, `top`, `end`, or px from the top. */
  reveal(number, align = "center") {
    if (this.#folds.hides(number)) {
      this.#outline.pin(this.#outline.around(number).start, false);
      this.#reckon();
    }
    return this.show(number, align);
  }

  /** Show a line; a hidden one gives its place to the one before it. */
  show(number, align) {
    this.#moved = false;
    return this.#jump(number, align);
  }

  /** Highlight these lines. */
  mark(from, to) {
    this.#highlights.mark(from, to);
    this.#dress();
  }

  /** The lines that a search found, and the one to look at now (0: none). */
  find(hits, current) {
    this.#highlights.find(hits, current);
    this.#dress();
  }

  /** Do something that changes heights, and keep what is in view where it is. */
  steadily(change) {
    const kept = this.#blocks.top();
    change();
    if (this.#following) this.#pin();
    else if (kept?.element.isConnected) this.#blocks.place(kept.element, kept.offset);
  }

  #hold(is) {
    if (this.#following === is) return;
    this.#following = is;
    this.#tell.following(is);
    if (is) this.#toLast();
  }

  #toLast() {
    return this.#jump(this.#lines.total, "end");
  }

  async #jump(number, align) {
    this.#aim += 1;
    this.#begun = true;
    const line = this.#folds.previous(Math.min(Math.max(1, number), this.#lines.total));
    if (!line) return;
    this.#goal = [number, align];
    if (this.#outdated || !this.#blocks.row(line)) {
      if (!(await this.#arrange(this.#around(cellOf(line))))) return;
    }
    this.#goal = null;
    this.#align(line, align);
    this.#fill();
  }

  #dress() {
    for (const line of this.#blocks.rows()) this.#highlights.dress(line);
  }

  #align(line, align) {
    const { scroller } = this.#parts;
    const element = this.#blocks.row(line);
    if (align === "end") this.#toEnd();
    else if (align === "top" && line === 1) scroller.scrollTop = 0;
    else if (align === "center") {
      this.#blocks.place(element, (scroller.clientHeight - element.offsetHeight) / 2);
    } else this.#blocks.place(element, align === "top" ? 0 : align);
  }

  /** The cell and its neighbours, as far as they will be visible. */
  #around(cell) {
    const [before, after] = [this.#blocks.before(cell, this.#folds), this.#blocks.after(cell, this.#folds)];
    return [before, cell, after].filter((one) => one !== null);
  }

  /**
   * Have these cells drawn, as their folds are wanted, and no others. False: their lines can't be
   * had now, or something else came meanwhile.
   */
  async #arrange(cells) {
    const [aim, folds, found] = [++this.#aim, this.#folds, new Map()];
    const lacking = () => this.#blocks.undrawn(cells, folds).filter((cell) => !found.has(cell));
    while (lacking().length) {
      const fetched = await this.#fetched(lacking());
      if (!fetched || aim !== this.#aim) return false;
      for (const [cell, records] of fetched) found.set(cell, records);
    }
    this.#aim += 1; // nothing that was chosen among the former blocks may be added to these
    this.#blocks.arrange(cells, found, folds);
    this.#drawUnfinished();
    this.#expandHeads();
    return true;
  }

  /** Cell -> its records; null when they can't be had now, which has been told. */
  async #fetched(cells) {
    try {
      return await this.#lines.cells(cells);
    } catch (error) {
      this.#tell.failed(error);
      return null;
    }
  }

  #row(record) {
    const group = this.#outline.at(record.n);
    const folded = group !== undefined && this.#blocks.folds.hides(record.n + 1);
    const line = row(record, { group, folded, closing: this.#outline.ends(record.n) });
    this.#highlights.dress(line);
    return line;
  }

  // loading

  /** Draw what came at the end, and follow it. */
  #refresh() {
    const { total } = this.#lines;
    this.#tell.counted(total);
    const tail = this.#blocks.last;
    if (tail !== undefined && !this.#grow()) this.#fetchTail();
    this.#drawUnfinished();
    if (tail === undefined) {
      if (this.#begun && total && !this.#goal) this.#following ? this.#toLast() : this.top();
    } else if (this.#following && cellOf(total) - tail > FAR * this.#lines.batch) {
      if (!this.#goal) this.#toLast();
    } else {
      this.#blocks.space();
      if (this.#following) this.#toEnd();
      this.#fill();
    }
  }

  /** Draw what is unfinished, unless lines that stand before it are not drawn yet. */
  #drawUnfinished() {
    const early = this.#blocks.last === undefined ? this.#lines.total > 0 : !this.#blocks.complete;
    const rows = early ? [] : [...this.#unfinished.values()].map(partialRow);
    this.#parts.partials.replaceChildren(...rows);
  }

  /** Draw the rest of the last block, as far as there is one. False: it is not at hand. */
  #grow() {
    if (this.#blocks.complete) return true;
    const records = this.#lines.at(this.#blocks.last);
    if (records) this.#blocks.grow(records);
    return records !== null;
  }

  async #fetchTail() {
    if (await this.#fetched([this.#blocks.last])) this.grown();
  }

  /** Show the last line, and before it what is at hand of those that are not drawn yet. */
  #toEnd() {
    while (this.#grow()) {
      const found = this.#beyond("below").map((cell) => [cell, this.#lines.at(cell)]);
      const absent = found.findIndex(([, records]) => !records);
      if (!found.length || absent === 0) break;
      this.#blocks.add(absent < 0 ? found : found.slice(0, absent), false);
    }
    this.#blocks.trimAbove();
    this.#pin();
  }

  /** Load block after block while some are wanted. */
  async #fill() {
    if (this.#filling) return;
    this.#filling = true;
    try {
      while (await this.#extend()) await turn();
    } finally {
      this.#filling = false;
    }
  }

  /** Load some blocks; false when none are wanted, or none can be had. */
  async #extend() {
    const aim = this.#aim;
    const side = this.#blocks.lacking(this.#settled);
    if (!side) return false;
    const [tail, wanted] = [this.#blocks.last, this.#beyond(side)];
    const found = await this.#fetched(side === "below" ? [tail, ...wanted] : [...wanted].reverse());
    if (!found) return false;
    const cells = this.#beyond(side).filter((cell) => found.has(cell)); // fewer if they are long
    if (aim !== this.#aim || cells[0] !== wanted[0]) return true;
    this.steadily(() => {
      if (side === "below") this.#blocks.grow(found.get(tail));
      this.#blocks.add(cells.map((cell) => [cell, found.get(cell)]), side === "above");
      this.#blocks.trim();
    });
    return true;
  }

  /** A batch of cells next to the blocks, outwards. */
  #beyond(side) {
    const next = (cell) => (side === "below" ? this.#blocks.after(cell) : this.#blocks.before(cell));
    const cells = [];
    let cell = next(side === "below" ? this.#blocks.last : this.#blocks.first);
    while (cell !== null && cells.length < this.#lines.batch) {
      cells.push(cell);
      cell = next(cell);
    }
    return cells;
  }

  // groups

  /** The job's state or the groups changed. redraw: rows that are there may be shown wrongly. */
  async regroup({ ended, passed } = this.#state, redraw = false) {
    this.#state = { ended, passed };
    if (redraw) this.#blocks.spoil();
    this.#reckon();
    await this.#refold();
    this.#expandHeads();
  }

  /** Is the group that begins in this line to be folded? */
  folded(start) {
    return this.#folds.hides(start + 1);
  }

  /** Fold or unfold the group that begins in this line. */
  toggle(start) {
    this.#outline.pin(start, !this.folded(start));
    return this.regroup();
  }

  /** Fold all groups or, if they are, unfold them. */
  toggleAll() {
    const { starts } = this.#outline;
    const fold = starts.some((start) => !this.folded(start));
    for (const start of starts) this.#outline.pin(start, fold);
    return this.regroup();
  }

  /** Learn anew which lines are to be hidden. */
  #reckon() {
    const folds = this.#outline.folds({ ...this.#state, total: this.#lines.total });
    if (folds.differs(this.#folds)) this.#folds = folds;
    this.#parts.scroller.classList.toggle("grouped", this.#outline.starts.length > 0);
  }

  /** What is drawn is not what is wanted. */
  get #outdated() {
    return this.#folds !== this.#blocks.folds || this.#blocks.spoilt;
  }

  /** Draw anew what a change of folds concerns: in place if that is little, else around the view. */
  async #refold() {
    if (!this.#outdated) return undefined;
    if (this.#goal) return this.#jump(...this.#goal);
    if (!this.#blocks.count) return this.#arrange([]);
    const [kept, cells] = [this.#blocks.top(), this.#window()];
    const few = this.#blocks.undrawn(cells, this.#folds).length <= this.#mostRedrawn;
    if (!few || !cells.length) return this.#reshow(kept);
    if (!(await this.#arrange(cells))) return undefined;
    this.#return(kept);
    return this.#fill();
  }

  get #mostRedrawn() {
    return MOST_REDRAWN * this.#lines.batch;
  }

  /** The cells from the first to the last block that are to have visible lines; [] if too many. */
  #window() {
    const { first, last } = this.#blocks;
    const most = this.#blocks.count + this.#mostRedrawn;
    const cells = [];
    let line = this.#folds.next(firstOf(first));
    while (line <= this.#lines.total && cellOf(line) <= last) {
      if (cells.push(cellOf(line)) > most) return [];
      line = this.#folds.next(lastOf(cellOf(line)) + 1);
    }
    return cells;
  }

  /** Show again what is in view. */
  #reshow(kept) {
    if (this.#following) return this.#toLast();
    return kept ? this.#jump(kept.number, kept.offset) : this.#jump(1, "top");
  }

  /** Bring what was at the top back there; if it is hidden now, its group's first line. */
  #return(kept) {
    if (this.#following) return this.#toEnd();
    const line = kept && this.#blocks.row(this.#blocks.folds.previous(kept.number));
    if (line) this.#blocks.place(line, kept.offset);
    this.#blocks.trim();
  }

  /** Have the first rows of groups say what is drawn of them. */
  #expandHeads() {
    for (const line of this.#parts.blocks.querySelectorAll(".line.group")) {
      const group = this.#outline.at(Number(line.dataset.n));
      if (group) expand(line, group, this.#blocks.folds.hides(group.start + 1));
    }
  }

  #clicked(event) {
    const line = event.target.closest(".line.group");
    const selecting = event.target.closest(".text") && !getSelection().isCollapsed;
    if (!line || event.target === line || selecting) return;
    this.toggle(Number(line.dataset.n));
  }

  // scrolling

  /** Note whether it is the reader who moves down: by wheel, finger, key, or the scroll bar. */
  #watchReader() {
    const { scroller } = this.#parts;
    const noted = (type, moves) =>
      scroller.addEventListener(type, (event) => (this.#moved = moves(event)), { passive: true });
    noted("wheel", (event) => event.deltaY > 0);
    noted("touchmove", () => true);
    noted("pointerdown", (event) => event.target === scroller);
    document.addEventListener("keydown", ({ key, target }) => {
      if (!target.matches("input")) this.#moved = DOWN[key] ?? this.#moved;
    });
  }

  #scrolled() {
    this.#holdOrLetGo();
    const line = this.#blocks.missed();
    if (line === undefined) this.#fill();
    else if (this.#left() <= AT_END) this.#toLast();
    else this.#jump(line, "top");
  }

  /** Pixels to the end. */
  #left() {
    const { scroller } = this.#parts;
    return scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop;
  }

  /** Moving up lets go of the end; a reader who reaches it takes hold again. */
  #holdOrLetGo() {
    const { scroller, below } = this.#parts;
    const atEnd = this.#left() <= AT_END && below.offsetHeight === 0;
    if (this.#following && !atEnd && scroller.scrollTop < this.#pinned - 1) this.#hold(false);
    else if (this.#moved && atEnd && !this.#state.ended) this.#hold(true);
  }

  #pin() {
    this.#blocks.pin();
    this.#pinned = this.#parts.scroller.scrollTop;
  }
}

/** Let the browser draw and others run. */
const turn = () => new Promise((resolve) => setTimeout(resolve, 0));
