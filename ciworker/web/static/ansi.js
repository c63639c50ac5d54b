/**
 * Text that a job controls, as nodes that can do nothing but be read.
 *
 * Of all that a terminal obeys only SGR has an effect, and that through class names. What would
 * move a cursor, set a title, write a clipboard, hide or reorder text becomes visible instead, as
 * the terminal client shows it: controls in caret notation, the others by their code point. Text
 * reaches the page through `textContent` alone. Colour does not go on from one line to the next,
 * because any line may be the first that is shown.
 */

import { legibleOn, nearest, THEMED } from "./palette.js";

const SPECIALS =
  // SGR; C0 without TAB, DEL and C1; marks, separators and overrides of text direction; surrogates
  /\x1b\[([0-9;:]{0,64})m|[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const SPECIAL = new RegExp(SPECIALS.source); // keeps no place, as one with `g` does
const MOST_HEEDED = 2000; // sequences and controls of one line
const SGR = /\x1b\[[0-9;:]{0,64}m/g;

const ON = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike", 21: "underline" };
const OFF = {
  22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"],
};

/** The text without its SGR sequences: what search and groups look at. */
export const plain = (text) => (text.includes("\x1b") ? text.replace(SGR, "") : text);

/**
 * Cut one line into what is shown alike.
 *
 * Returns [{text, classes, control}]; control: the text stands for a character that is not shown.
 * The CR of a CRLF belongs to the line's end and is left out. What comes after MOST_HEEDED
 * sequences and controls is one piece, as harmless but plain.
 */
export function segments(line) {
  const text = line.endsWith("\r") ? line.slice(0, -1) : line;
  const found = [];
  let style = {};
  let start = 0;
  let heeded = 0;
  const add = (piece, control) =>
    piece && found.push({ text: piece, classes: classes(style), control });
  for (const match of text.matchAll(SPECIALS)) {
    add(text.slice(start, match.index), false);
    if (heeded++ === MOST_HEEDED) {
      found.push({ text: flat(text.slice(match.index)), classes: "", control: false });
      return found;
    }
    start = match.index + match[0].length;
    if (match[1] === undefined) add(visible(match[0]), true);
    else style = styled(style, match[1]);
  }
  add(text.slice(start), false);
  return found;
}

/** Put one line into an element. */
export function paint(element, line) {
  if (!SPECIAL.test(line)) {
    element.textContent = line;
    return;
  }
  element.replaceChildren(...segments(line).map(node));
}

function node({ text, classes: names, control }) {
  if (!names && !control) return document.createTextNode(text);
  const span = document.createElement("span");
  span.className = control ? `${names} control`.trim() : names;
  span.textContent = text;
  return span;
}

/** Harmless text without any marks. */
const flat = (text) =>
  text.replace(SPECIALS, (found, sgr) => (sgr === undefined ? visible(found) : ""));

function visible(char) {
  const code = char.charCodeAt(0);
  if (code < 0x20 || code === 0x7f) return `^${String.fromCharCode(code ^ 0x40)}`;
  return `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
}

/** The style after one SGR sequence; what is not known changes nothing. */
function styled(before, parameters) {
  let style = { ...before };
  const codes = parameters.split(";");
  while (codes.length) {
    const [first, ...sub] = codes.shift().split(":");
    const code = Number(first || 0);
    if (code === 0) style = {};
    else if (code === 38 || code === 48) {
      const colour = sub.length ? withColons(sub) : withSemicolons(codes);
      if (colour !== null) style[code === 38 ? "fg" : "bg"] = colour;
    } else if (code === 4 && sub[0] === "0") delete style.underline;
    else change(style, code);
  }
  return style;
}

function change(style, code) {
  if (ON[code]) style[ON[code]] = true;
  for (const name of OFF[code] ?? []) delete style[name];
  if (code === 39) delete style.fg;
  if (code === 49) delete style.bg;
  const [tens, unit] = [Math.floor(code / 10), code % 10];
  if (unit > 7) return;
  if (tens === 3) style.fg = unit;
  if (tens === 4) style.bg = unit;
  if (tens === 9) style.fg = unit + 8;
  if (tens === 10) style.bg = unit + 8;
}

/** `5:N`, `2::R:G:B` or `2:R:G:B`. */
function withColons([kind, ...rest]) {
  if (kind === "5") return nearest.indexed(Number(rest[0]));
  return kind === "2" ? nearest.rgb(rest.slice(-3).map(Number)) : null;
}

/** `5;N` or `2;R;G;B`, taken off `codes`. */
function withSemicolons(codes) {
  const kind = codes.shift();
  if (kind === "5") return nearest.indexed(Number(codes.shift()));
  return kind === "2" ? nearest.rgb(codes.splice(0, 3).map(Number)) : null;
}

function classes(style) {
  const names = ["bold", "dim", "italic", "underline", "strike"].filter((name) => style[name]);
  let [fg, bg] = [style.fg, style.bg];
  if (style.inverse) [fg, bg] = [bg ?? "paper", fg ?? "ink"];
  if (Number.isInteger(bg)) {
    names.push("on");
    if (!Number.isInteger(fg)) fg = legibleOn(bg);
  }
  if (fg >= THEMED) names.push("cube");
  if (fg !== undefined) names.push(`fg-${fg}`);
  if (bg !== undefined) names.push(`bg-${bg}`);
  return names.join(" ");
}
