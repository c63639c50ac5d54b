/** Single keys that do what buttons do, while nobody is typing; they can be turned off. */

import { element } from "./dom.js";

const TYPING = "input:not([type=radio], [type=checkbox]), textarea, select";
const STORED = "keys.single";

/**
 * actions: by `event.key`. `?` and the button `#help` open the dialog `#keys`, which lists them.
 * A button whose `data-key` names one of them does the same.
 */
export function keys(actions) {
  const dialog = document.getElementById("keys");
  const known = { "?": () => dialog.showModal(), ...actions };
  const single = singleKeys(dialog);
  document.getElementById("help").addEventListener("click", known["?"]);
  for (const button of document.querySelectorAll("button[data-key]")) {
    button.addEventListener("click", known[button.dataset.key]);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.length === 1 && !single.checked) return;
    if (event.target.matches(TYPING) || !Object.hasOwn(known, event.key)) return;
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    known[event.key]();
  });
}

/** The switch for keys of one character, remembered in this browser (WCAG 2.1.4). */
function singleKeys(dialog) {
  const box = element("input", { type: "checkbox" });
  box.checked = localStorage.getItem(STORED) !== "false";
  box.addEventListener("change", () => localStorage.setItem(STORED, String(box.checked)));
  dialog.append(element("label", { class: "single-keys" }, box, "Keys of a single character"));
  return box;
}
