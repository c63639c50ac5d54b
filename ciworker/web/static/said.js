/**
 * What a job says of itself outside its log: its project, command, branch, the cause of its end.
 *
 * It is shown as harmlessly as the log is (see `ansi.js`), without colours.
 */

import { segments } from "./ansi.js";
import { element } from "./dom.js";

/** The text with what a terminal would obey made visible. */
export const harmless = (text) =>
  text
    .split("\n")
    .map((line) => segments(line).map((part) => part.text).join(""))
    .join("\n");

/** An element of that text, which changes no direction around it. */
export const said = (text) => element("bdi", {}, harmless(text));
