/** Says what went wrong, until it is read or mended. */

import { element } from "./dom.js";

/** region: an element of role `alert`; it holds one notice. remedy: the button's word. Returns
    what takes the notice away. */
export function notice(region, text, remedy = "Dismiss", mend = () => {}) {
  const button = element("button", { type: "button" }, remedy);
  const made = element("div", { class: "notice" }, element("p", {}, text), button);
  button.addEventListener("click", () => {
    made.remove();
    mend();
  });
  region.replaceChildren(made);
  return () => made.remove();
}
