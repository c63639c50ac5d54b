// The theme: the system's, until the switch says otherwise.
// A classic script in the head, since it has to be set before the first paint.
(() => {
  const KEY = "theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");

  const systems = () => (system.matches ? "dark" : "light");
  const current = () => root.dataset.theme ?? systems();

  function apply(theme) {
    if (theme === null) delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  function say(button) {
    button.setAttribute("aria-pressed", String(current() === "dark"));
  }

  function toggle() {
    const wanted = current() === "dark" ? "light" : "dark";
    if (wanted === systems()) localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, wanted);
    apply(localStorage.getItem(KEY));
  }

  apply(localStorage.getItem(KEY));
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const follow = () => {
      apply(localStorage.getItem(KEY));
      say(button);
    };
    button.addEventListener("click", () => {
      toggle();
      say(button);
    });
    system.addEventListener("change", follow);
    addEventListener("storage", follow); // the switch was used in another tab
    say(button);
  });
})();
