/**
 * A page's end of the hub: what happens to jobs, as it happens.
 *
 * `openHub(hear)` calls `hear` with the hub's messages (see `hub.js`) and gives a function that
 * sends it one. The hub is the browser's SharedWorker or, where there is none, this page's own.
 * Where it can't be loaded at all, `hear` is told `{type: "unloaded"}`.
 */

const HUB = "/static/hub.js";

export function openHub(hear) {
  const joined = globalThis.SharedWorker ? shared(hear) : own(hear);
  addEventListener("pagehide", () => joined.send({ type: "bye" }));
  return (message) => joined.send(message);
}

/** Restored from the back-forward cache a page would have missed what came meanwhile. */
addEventListener("pageshow", (event) => event.persisted && location.reload());

/** After an upgrade of the worker, tabs that were open before keep the hub that they know. */
function shared(hear) {
  const { content: version } = document.querySelector('meta[name="version"]');
  const worker = new SharedWorker(HUB, { type: "module", name: `ciworker ${version}` });
  const said = [];
  const joined = {
    send(message) {
      said.push(message);
      worker.port.postMessage(message);
    },
  };
  worker.addEventListener("error", () => {
    joined.send = own(hear).send; // it could not be loaded
    said.filter((message) => message.type !== "hello").forEach((message) => joined.send(message));
  });
  worker.port.onmessage = ({ data }) => hear(data);
  live(joined);
  return joined;
}

/** Hold a lock as long as this tab lives, and let the hub wait for it: no sooner, or it gets it. */
function live(joined) {
  const name = `ciworker-tab-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
  navigator.locks?.request(name, () => {
    joined.send({ type: "hello", name });
    return new Promise(() => {});
  });
}

/** A hub of this page alone. Browsers give a server six connections: one that nobody looks at lets
    go of its own, and goes on from where it was once it is looked at. */
function own(hear) {
  const hub = import(HUB).then(({ Hub }) => new Hub());
  const send = (message) => hub.then((made) => made.hear(hear, message), () => {});
  const seen = () => send({ type: document.hidden ? "away" : "back" });
  hub.then((made) => made.join(hear), () => hear({ type: "unloaded" }));
  document.addEventListener("visibilitychange", seen);
  seen();
  return { send };
}
