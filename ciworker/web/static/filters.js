/** Which jobs are shown: what the reader chose, kept in the page's address. */

// What each choice asks of the API; it knows no more of a completed job than that it is one.
const STATUSES = {
  queued: { status: "queued" },
  starting: { status: "starting" },
  running: { status: "running" },
  passed: { status: "completed", success: true },
  failed: { status: "completed", success: false },
  error: { status: "failed" },
  cancelled: { status: "cancelled" },
};

export class Filter {
  /** status: one of STATUSES, else all; project: a name, else all. */
  constructor(status, project) {
    this.status = Object.hasOwn(STATUSES, status) ? status : "";
    this.project = project.trim();
  }

  static ofAddress() {
    const query = new URLSearchParams(location.search);
    return new Filter(query.get("status") ?? "", query.get("project") ?? "");
  }

  get all() {
    return !this.status && !this.project;
  }

  get address() {
    const query = chosen({ status: this.status, project: this.project });
    return query ? `/?${query}` : "/";
  }

  /** The query of the API's list. */
  query(more) {
    return chosen({ status: STATUSES[this.status]?.status, project: this.project, ...more });
  }

  matches(job) {
    const { status, success } = STATUSES[this.status] ?? {};
    if (this.project && job.project !== this.project) return false;
    if (status && job.status !== status) return false;
    return success === undefined || job.success === success;
  }
}

function chosen(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  return new URLSearchParams(given).toString();
}
