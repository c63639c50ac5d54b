/** Links to lines: `#L10` and `#L10-L20`, from the address and from clicks on numbers. */

const FORM = /^#?L?(\d{1,15})(?:-L?(\d{1,15}))?$/i;

/** `[from, to]` of an address's fragment, or of what a person types; null when it is neither. */
export function parse(text) {
  const match = FORM.exec(text.trim());
  if (!match) return null;
  const [from, to] = [Number(match[1]), Number(match[2] ?? match[1])];
  if (!from || !to) return null;
  return [Math.min(from, to), Math.max(from, to)];
}

export const fragment = ([from, to]) => (from === to ? `#L${from}` : `#L${from}-L${to}`);

export class Permalink {
  #view;
  #anchor = 0; // where a range begins

  /** blocks: the element whose rows' numbers are clicked. */
  constructor(blocks, view) {
    this.#view = view;
    blocks.addEventListener("click", (event) => this.#clicked(event));
    addEventListener("hashchange", () => this.open());
  }

  /** Show and highlight what the address asks for. False: it asks for nothing. */
  open() {
    const range = parse(location.hash);
    if (!range) return false;
    [this.#anchor] = range;
    this.#view.mark(...range);
    this.#view.follow(false);
    this.#view.reveal(range[0]);
    return true;
  }

  /** Have the group of the line that the address asks for open, whatever became of it. */
  unfold(outline) {
    const range = parse(location.hash);
    const group = range && outline.around(range[0]);
    if (group) outline.pin(group.start, false);
  }

  /** Go to these lines, and have the address say so. */
  go(range) {
    history.replaceState(history.state, "", fragment(range));
    this.open();
  }

  /** The number is drawn before the text, so a click on it is one on the row itself. */
  #clicked(event) {
    const line = event.target;
    if (!line.matches(".line") || !line.dataset.n) return;
    const number = Number(line.dataset.n);
    if (!event.shiftKey || !this.#anchor) this.#anchor = number;
    const range = [Math.min(this.#anchor, number), Math.max(this.#anchor, number)];
    history.replaceState(history.state, "", fragment(range));
    this.#view.mark(...range);
    if (event.shiftKey) getSelection().removeAllRanges();
  }
}
