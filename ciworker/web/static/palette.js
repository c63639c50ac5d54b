/**
 * The colours that a log may use: 16 that each theme chooses, and a cube of four levels a side.
 *
 * A page without inline style can't show any colour of 16 million. These come near enough;
 * `log.css` has a class for each.
 */

export const THEMED = 16; // 0-7 and their bright ones, as terminals count them
const BLACK = 0;
const WHITE = 15;
const LEVELS = 4;
const STEP = 255 / (LEVELS - 1);
const XTERM = [0, 95, 135, 175, 215, 255]; // levels of xterm's cube of 216
const DARK = new Set([0, 1, 4, 5, 12]); // of the 16, those that white is read on
const DARK_CUBE = 0.18; // relative luminance; below it white is read better than black

const byte = (value) => Math.min(255, Math.max(0, Number.isFinite(value) ? value : 0));

export const nearest = {
  /** Of one of xterm's 256 colours; null when there is none of that number. */
  indexed(number) {
    if (!Number.isInteger(number) || number < 0 || number > 255) return null;
    if (number < THEMED) return number;
    if (number >= 232) return this.rgb(Array(3).fill(8 + 10 * (number - 232)));
    const place = number - THEMED;
    const levels = [Math.floor(place / 36), Math.floor(place / 6) % 6, place % 6];
    return this.rgb(levels.map((level) => XTERM[level]));
  },

  /** Of red, green and blue, 0 to 255 each. */
  rgb(parts) {
    const [red, green, blue] = [0, 1, 2].map((i) => Math.round(byte(parts[i]) / STEP));
    return THEMED + (red * LEVELS + green) * LEVELS + blue;
  },
};

/** Black or white, whichever is read better on this colour. */
export function legibleOn(colour) {
  if (colour < THEMED) return DARK.has(colour) ? WHITE : BLACK;
  const place = colour - THEMED;
  const levels = [Math.floor(place / LEVELS ** 2), Math.floor(place / LEVELS) % LEVELS, place % LEVELS];
  const [red, green, blue] = levels.map((level) => (level / (LEVELS - 1)) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < DARK_CUBE ? WHITE : BLACK;
}
