// Loads the page again where a part of it did not come: without one of its modules it stays dead.
// Browsers drop what they are loading when an interface of their machine comes or goes, as those of
// containers do where the worker is on that machine too (ERR_NETWORK_CHANGED, Chromium 150).
// A classic script, the head's first, since it has to listen before other parts are asked for.
(() => {
  const KEY = "loads";
  const MOST = 4;
  const FIRST_PAUSE = 250; // milliseconds
  const missed = [];

  function isPart(target) {
    if (target instanceof HTMLLinkElement) return target.rel === "stylesheet";
    return target instanceof HTMLScriptElement;
  }

  function again() {
    const loads = 1 + Number(sessionStorage.getItem(KEY));
    if (loads >= MOST) return tell();
    sessionStorage.setItem(KEY, loads);
    setTimeout(() => location.reload(), FIRST_PAUSE * 2 ** (loads - 1));
  }

  function tell() {
    sessionStorage.removeItem(KEY);
    const told = document.createElement("p");
    told.className = "notice";
    told.setAttribute("role", "alert");
    told.textContent = `Parts of this page did not come (${missed.join(", ")}): load it again.`;
    document.querySelector("main").prepend(told);
  }

  addEventListener("error", ({ target }) => {
    if (isPart(target)) missed.push((target.src || target.href).split("/").at(-1));
  }, true);
  addEventListener("load", () => {
    if (missed.length > 0) again();
    else sessionStorage.removeItem(KEY);
  });
})();
