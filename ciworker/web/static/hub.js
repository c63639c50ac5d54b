/**
 * One connection for all tabs: the state changes of every job, and the lines of those that a tab
 * follows. A browser gives a server six connections, however many tabs there are.
 *
 * Loaded as a SharedWorker it serves every tab of the browser; where there is none, `live.js`
 * imports it and the page runs it itself. The position of each tab in each log is kept here, and
 * whenever the followed jobs change or the connection breaks, it connects anew from the lowest:
 * what a tab has already is not told it again, and nothing is left out.
 *
 * A tab sends `{type: "follow", id, after}`, `{type: "unfollow", id}`, `{type: "away"}` when it
 * needs no connection for now, `{type: "back"}`, `{type: "bye"}`. It hears `{type: "link", up,
 * resumed}` (resumed: no state change was missed), `{type: "status", job}` of any job, `{type:
 * "log", id, records}`, `{type: "partial", id, record}`, `{type: "end", id, job}`, `{type:
 * "waiting", id, is}` of a job whose lines have to wait because too many are followed, `{type:
 * "lost", id, detail}` of one that can't be followed, and `{type: "denied"}` when the session is
 * over.
 */

const EVENTS = "/api/v1/events";
const MOST_FOLLOWED = 32; // the server's bound
const SILENCE = 40_000; // ms; the server sends a comment every 15 s
const FIRST_DELAY = 300; // ms
const LAST_DELAY = 5000;

export class Hub {
  #tabs = new Map(); // tell -> Map of job -> {after: number of the last line it has, waiting}
  #away = new Set(); // those of them that need no connection
  #connection = null; // {abort, positions, stale}
  #running = false;
  #up = false;
  #last = null; // id of the last state change
  #planned = false;
  #delay = FIRST_DELAY;

  /** A tab that listens: `tell(message)`. */
  join(tell) {
    this.#tabs.set(tell, new Map());
    say(tell, { type: "link", up: this.#up, resumed: false });
    this.#run();
  }

  leave(tell) {
    this.#tabs.delete(tell);
    this.#away.delete(tell);
    this.#plan();
  }

  hear(tell, message) {
    if (message.type === "bye") return this.leave(tell);
    if (message.type === "follow") this.#follow(tell, message);
    if (message.type === "unfollow") this.#tabs.get(tell)?.delete(message.id);
    if (message.type === "away") this.#away.add(tell);
    if (message.type === "back" && this.#away.delete(tell)) this.#run();
    return this.#plan();
  }

  /** Connect anew in any case, for what is told at the start alone: the unfinished line. */
  #follow(tell, { id, after }) {
    this.#tabs.get(tell)?.set(id, { after, waiting: false });
    if (this.#connection) this.#connection.stale = true;
  }

  /** Look, once all that is said now has been said, whether the connection still fits. */
  #plan() {
    if (this.#planned) return;
    this.#planned = true;
    setTimeout(() => {
      this.#planned = false;
      if (this.#connection && !this.#fits(this.#connection)) this.#connection.abort.abort("anew");
    }, 0);
  }

  /** Lines of every followed job come from where the tab that is furthest behind needs them. */
  #fits({ positions, stale }) {
    if (stale || !this.#present.length) return false;
    const wanted = this.#wanted();
    if (wanted.size !== positions.size) return false;
    return [...wanted].every(([id, after]) => positions.has(id) && positions.get(id) <= after);
  }

  /** `[tell, followed]` of the tabs that need a connection. */
  get #present() {
    return [...this.#tabs].filter(([tell]) => !this.#away.has(tell));
  }

  /** Job -> the lowest position of its tabs; of as many as there may be, those that came first. */
  #wanted() {
    const wanted = new Map();
    for (const [, followed] of this.#present) {
      for (const [id, { after }] of followed) {
        wanted.set(id, Math.min(after, wanted.get(id) ?? Infinity));
      }
    }
    return new Map([...wanted].slice(0, MOST_FOLLOWED));
  }

  async #run() {
    if (this.#running) return;
    this.#running = true;
    try {
      while (this.#present.length) {
        const anew = await this.#connect();
        if (anew) continue;
        this.#linked(false);
        await pause(this.#delay * (0.5 + Math.random()));
        this.#delay = Math.min(this.#delay * 2, LAST_DELAY);
      }
    } finally {
      this.#running = false;
      this.#up = false;
    }
  }

  /** One connection until it ends, however it does. True: because another one is wanted. */
  async #connect() {
    const abort = new AbortController();
    const positions = this.#wanted();
    this.#connection = { abort, positions, stale: false };
    this.#seat(positions);
    const watch = new Watchdog(() => abort.abort("silent"));
    const resumed = this.#last !== null;
    try {
      const answer = await fetch(url(positions), {
        credentials: "same-origin",
        headers: resumed ? { "Last-Event-ID": this.#last } : {},
        signal: abort.signal,
      });
      if (!answer.ok) return await this.#refused(answer, positions, abort.signal);
      this.#delay = FIRST_DELAY;
      this.#linked(true, resumed);
      for await (const event of events(answer.body, () => watch.reset())) this.#take(event, positions);
    } catch (error) {
      if (!(error instanceof TypeError) && !abort.signal.aborted) console.error(error);
    } finally {
      watch.stop();
      this.#connection = null;
      abort.abort();
    }
    return abort.signal.reason === "anew";
  }

  /** Tell of each job that is followed whether its lines have to wait, as far as that changed. */
  #seat(positions) {
    for (const [tell, followed] of this.#present) {
      for (const [id, place] of followed) {
        const waiting = !positions.has(id);
        if (place.waiting !== waiting) say(tell, { type: "waiting", id, is: waiting });
        place.waiting = waiting;
      }
    }
  }

  /** Leave out what the server did not like. True: there was such a thing. */
  async #refused(answer, positions, signal) {
    if (answer.status === 401) this.#deny();
    if (!blamed(answer)) return false;
    if (answer.status === 400 && this.#last !== null) {
      this.#last = null; // of a store that was set back
      return true;
    }
    if ((await refusal([], signal)) !== null) return false; // it is none of the jobs
    const before = positions.size;
    for (const place of [...positions]) {
      const detail = await refusal([place], signal);
      if (detail !== null) this.#lose(place[0], detail, positions);
    }
    return positions.size < before;
  }

  #deny() {
    const tabs = [...this.#tabs.keys()];
    this.#tabs.clear();
    for (const tell of tabs) say(tell, { type: "denied" });
  }

  #lose(id, detail, positions) {
    positions.delete(id);
    for (const [tell, followed] of this.#tabs) {
      if (followed.delete(id)) say(tell, { type: "lost", id, detail });
    }
  }

  /** Tell what changed; that the connection was made anew does not matter if nothing was missed. */
  #linked(up, resumed = false) {
    if (up === this.#up && (resumed || !up)) return;
    this.#up = up;
    for (const tell of this.#tabs.keys()) say(tell, { type: "link", up, resumed });
  }

  #take({ name, id: eventId, data }, positions) {
    if (eventId) this.#last = eventId;
    const [kind, id] = name.split(".");
    if (kind === "status") {
      const job = JSON.parse(data[0]);
      for (const tell of this.#tabs.keys()) say(tell, { type: "status", job });
    } else if (kind === "log") this.#lines(id, data.map((one) => JSON.parse(one)), positions);
    else if (kind === "partial") this.#partial(id, JSON.parse(data[0]), positions);
    else if (kind === "end") this.#end(id, JSON.parse(data[0]), positions);
  }

  /** A tab that has less than the connection told so far gets it all by the next one. */
  #lines(id, records, positions) {
    const before = positions.get(id);
    const last = records.at(-1).n;
    positions.set(id, last);
    for (const [tell, followed] of this.#tabs) {
      const place = followed.get(id);
      if (!place || place.after < before || place.after >= last) continue;
      const fresh = records.filter((record) => record.n > place.after);
      place.after = last;
      say(tell, { type: "log", id, records: fresh });
    }
  }

  /** What a tab hears of a line that is not ended comes after all the lines before it. */
  #partial(id, record, positions) {
    for (const [tell, followed] of this.#tabs) {
      if (followed.get(id)?.after === positions.get(id)) say(tell, { type: "partial", id, record });
    }
  }

  /** Who has less than all the lines hears of the end after them, by the next connection. */
  #end(id, job, positions) {
    const last = positions.get(id);
    positions.delete(id);
    for (const [tell, followed] of this.#tabs) {
      const place = followed.get(id);
      if (!place || place.after < last) continue;
      followed.delete(id);
      say(tell, { type: "end", id, job });
    }
    this.#plan();
  }
}

/** A tab's own error is no broken connection. */
function say(tell, message) {
  try {
    tell(message);
  } catch (error) {
    reportError(error);
  }
}

/** Is it what was asked for that is refused? */
const blamed = ({ status }) => status >= 400 && status < 500 && status !== 401 && status !== 429;

/** Why the server refuses to tell the lines of these jobs; null when it does not. */
async function refusal(positions, signal) {
  const answer = await fetch(url(positions), { credentials: "same-origin", signal });
  if (blamed(answer)) return detail(answer);
  await answer.body?.cancel();
  return null;
}

async function detail(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

class Watchdog {
  #bark;
  #timer;

  constructor(bark) {
    this.#bark = bark;
    this.reset();
  }

  reset() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#bark, SILENCE);
  }

  stop() {
    clearTimeout(this.#timer);
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function url(positions) {
  const follow = [...positions].map(([id, after]) => `follow=${id}.${after}`);
  return follow.length ? `${EVENTS}?${follow.join("&")}` : EVENTS;
}

/** Server-sent events as they arrive: `{name, id, data: [line, …]}`; `heard` on any bytes. */
async function* events(body, heard) {
  let event = { name: "message", id: null, data: [] };
  for await (const line of textLines(body, heard)) {
    if (!line) {
      if (event.data.length) yield event;
      event = { name: "message", id: null, data: [] };
      continue;
    }
    const colon = line.indexOf(":");
    const value = line.slice(colon + 1).replace(/^ /, "");
    const field = line.slice(0, colon);
    if (field === "event") event.name = value;
    else if (field === "id") event.id = value;
    else if (field === "data") event.data.push(value);
  }
}

async function* textLines(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines;
  }
}

/** As a SharedWorker: one hub, a port for each tab. */
function serve() {
  const hub = new Hub();
  globalThis.onconnect = ({ ports: [port] }) => {
    const tell = (message) => port.postMessage(message);
    port.onmessage = ({ data }) => {
      if (data.type === "hello") gone(data.name, () => hub.leave(tell));
      else hub.hear(tell, data);
    };
    hub.join(tell);
  };
}

/** A tab that crashed says no bye; the lock that it holds as long as it lives is free then. */
function gone(name, leave) {
  globalThis.navigator.locks?.request(name, leave);
}

if (globalThis.SharedWorkerGlobalScope && globalThis instanceof SharedWorkerGlobalScope) serve();
