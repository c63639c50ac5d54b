"""Live over any trouble: cut connections, 502s, restarts of the worker, many tabs."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import NewContext, Visit
from tests.browser.driver import Faults, login_link
from tests.browser.jobpage import JobPage, texts
from tests.browser.proxy import Proxy, proxy
from tests.driver import Worker, free_port
from tests.e2e.follower import WAIT, let_go, stored

LINES_A_TROUBLE = 150
PRINT = """\
import sys, time
for n in range(int(sys.argv[1])):
    print("line", n, file=sys.stderr if n % 3 == 0 else sys.stdout, flush=True)
    time.sleep(0.01)
"""


@pytest_asyncio.fixture(loop_scope="session")
async def behind(new_worker: Callable[..., Worker]) -> AsyncIterator[tuple[Worker, Proxy]]:
    """A worker that answers, and a proxy before it."""
    port = free_port()
    worker = new_worker(allowed_hosts=json.dumps([f"127.0.0.1:{port}"]))
    await worker.start()
    async with proxy(port, worker.port) as between:
        yield worker, between


async def opened(context_of: NewContext, worker: Worker, between: Proxy, path: str) -> Page:
    """A page of the worker as seen through the proxy."""
    page = await (await context_of()).new_page()
    link = await login_link(worker)
    await page.goto(link.replace(worker.url, between.url))
    await page.get_by_role("button").click()
    await page.wait_for_url(f"{between.url}/")
    await page.goto(f"{between.url}{path}")
    return page


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("troubles", [6, pytest.param(20, marks=pytest.mark.chaos)])
async def test_over_cuts_and_restarts_the_page_shows_every_line_once(
    behind: tuple[Worker, Proxy], new_context: NewContext, faults: Faults, troubles: int
) -> None:
    faults.allow("ERR_|Failed to load")
    (worker, between), count = behind, LINES_A_TROUBLE * troubles
    job_id = await worker.submit(f"python3 print.py {count}; {WAIT}; exit 3", {"print.py": PRINT})
    page = await opened(new_context, worker, between, f"/jobs/{job_id}")
    log = JobPage(page)
    for trouble in range(troubles):
        await log.has(LINES_A_TROUBLE * trouble + 20)
        await between.has_streams(1)
        if trouble % 2:
            await worker.stop()
            await worker.start()
        else:
            assert between.cut() > 0
    await log.has(count)
    await let_go(worker, job_id)
    await expect(page.locator("#status")).to_have_text("tests failed")
    rows, records = await log.rows(), await stored(worker, job_id)
    assert [row.number for row in rows] == list(range(1, count + 1))
    assert [row.text for row in rows] == texts(records)


async def test_while_the_worker_is_away_the_page_says_that_it_reconnects_and_then_goes_on(
    behind: tuple[Worker, Proxy], new_context: NewContext, faults: Faults
) -> None:
    faults.allow("ERR_|Failed to load")
    worker, between = behind
    job_id = await worker.submit(f"echo first; {WAIT}; echo second")
    page = await opened(new_context, worker, between, f"/jobs/{job_id}")
    log, connection = JobPage(page), page.locator("#connection")
    await log.has(1)
    await worker.stop()
    await expect(connection).to_have_text("Reconnecting …")
    await let_go(worker, job_id)
    await worker.start()
    await expect(connection).to_have_text("")
    await expect(page.locator("#status")).to_have_text("passed")
    await log.has(2)
    assert [row.text for row in await log.rows()] == ["first", "second"]


async def test_after_502s_the_page_recovers(
    behind: tuple[Worker, Proxy], new_context: NewContext, faults: Faults
) -> None:
    faults.allow("ERR_|Failed to load|502")
    worker, between = behind
    job_id = await worker.submit(f"echo first; {WAIT}; echo second")
    page = await opened(new_context, worker, between, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(1)
    between.refusing = True
    between.cut()
    await expect(page.locator("#connection")).to_have_text("Reconnecting …")
    await let_go(worker, job_id)
    await worker.wait(job_id)
    between.refusing = False
    await expect(page.locator("#status")).to_have_text("passed")
    await log.has(2)
    assert [row.text for row in await log.rows()] == ["first", "second"]


async def test_a_page_that_was_opened_while_the_worker_is_away_shows_the_log_when_it_is_back(
    behind: tuple[Worker, Proxy], new_context: NewContext, faults: Faults
) -> None:
    faults.allow("ERR_|Failed to load|502")
    worker, between = behind
    job = await worker.run("seq 1 700")
    page = await opened(new_context, worker, between, "/")
    await page.route("**/api/v1/jobs/*/log*", lambda route: route.abort())
    await page.goto(f"{between.url}/jobs/{job['id']}")
    await expect(page.locator("#status")).to_have_text("passed")
    await page.unroute_all()
    between.cut()
    log = JobPage(page)
    await log.has(700)
    assert [row.text for row in await log.rows()] == [str(n) for n in range(1, 701)]


async def test_seven_tabs_are_all_live_over_one_connection(
    behind: tuple[Worker, Proxy], new_context: NewContext
) -> None:
    worker, between = behind
    jobs = [await worker.submit(f"echo a; {WAIT}; echo b") for _ in range(2)]
    for job_id in jobs:
        await worker.wait(job_id, "running")
    context = await new_context()
    pages = [await context.new_page() for _ in range(7)]
    await pages[0].goto((await login_link(worker)).replace(worker.url, between.url))
    await pages[0].get_by_role("button").click()
    await pages[0].wait_for_url(f"{between.url}/")
    of = [jobs[n % 2] for n in range(7)]
    await asyncio.gather(
        *(page.goto(f"{between.url}/jobs/{job}") for page, job in zip(pages, of, strict=True))
    )
    for page in pages:
        await JobPage(page).has(1)
    await between.has_streams(1)
    for job_id in jobs:
        await let_go(worker, job_id)
    for page in pages:
        await expect(page.locator("#status")).to_have_text("passed")
        await JobPage(page).has(2)
        assert [row.text for row in await JobPage(page).rows()] == ["a", "b"]
    assert between.streams() == 1


async def test_a_tab_that_joins_others_on_a_job_sees_its_unfinished_line_too(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"printf ...; {WAIT}; echo .")
    page = await visit(shared, f"/jobs/{job_id}")
    await expect(page.locator("#partials .line")).to_have_text("...")
    other = await page.context.new_page()
    await other.goto(page.url)
    await expect(other.locator("#partials .line")).to_have_text("...")
    await let_go(shared, job_id)
    for one in (page, other):
        await JobPage(one).has(1)
        assert [row.text for row in await JobPage(one).rows()] == ["...."]


async def test_a_closed_tab_is_followed_for_no_longer(
    behind: tuple[Worker, Proxy], new_context: NewContext
) -> None:
    worker, between = behind
    jobs = [await worker.submit(f"echo a; {WAIT}") for _ in range(2)]
    page = await opened(new_context, worker, between, f"/jobs/{jobs[0]}")
    other = await page.context.new_page()
    await other.goto(f"{between.url}/jobs/{jobs[1]}")
    await JobPage(other).has(1)
    await between.follows(*jobs)
    await other.close()
    await between.follows(jobs[0])
    for job_id in jobs:
        await let_go(worker, job_id)
    await expect(page.locator("#status")).to_have_text("passed")


async def test_without_a_shared_worker_the_page_is_live_by_itself(
    new_context: NewContext, shared: Worker
) -> None:
    job_id = await shared.submit(f"echo first; {WAIT}; echo second")
    context = await new_context()
    await context.add_init_script("delete window.SharedWorker")
    page = await context.new_page()
    await page.goto(await login_link(shared, next=f"/jobs/{job_id}"))
    await page.get_by_role("button").click()
    log = JobPage(page)
    await log.has(1)
    assert await page.evaluate("() => typeof SharedWorker") == "undefined"
    await let_go(shared, job_id)
    await expect(page.locator("#status")).to_have_text("passed")
    await log.has(2)
    assert [row.text for row in await log.rows()] == ["first", "second"]


# what one tab does to others


async def test_a_job_asked_for_in_small_letters_is_live_and_so_are_other_tabs(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"echo a; {WAIT}; echo b")
    page = await visit(shared, f"/jobs/{job_id}")
    await JobPage(page).has(1)
    other = await page.context.new_page()
    await other.goto(f"{shared.url}/jobs/{job_id.lower()}")
    await JobPage(other).has(1)
    await let_go(shared, job_id)
    for one in (page, other):
        await expect(one.locator("#status")).to_have_text("passed")
        await JobPage(one).has(2)


async def test_a_tab_that_knows_more_lines_than_there_are_is_told_and_others_stay_live(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("400")
    first, second = [await shared.submit(f"echo a; {WAIT}; echo b") for _ in range(2)]
    page = await visit(shared, f"/jobs/{first}")
    await JobPage(page).has(1)
    other = await page.context.new_page()
    records = [
        {"n": n, "at": "2026-01-01T00:00:00.000Z", "stream": "stdout", "text": "gone"}
        for n in range(1, 901)
    ]

    async def gone(route: Route) -> None:
        tail = records[-1:] if "tail=1" in route.request.url else records
        await route.fulfill(body="".join(json.dumps(record) + "\n" for record in tail))

    await other.route("**/log?*", gone)  # as if the store had been set back after it asked
    await other.goto(f"{shared.url}/jobs/{second}")
    notice = other.get_by_role("alert")
    await expect(notice).to_contain_text(f"line 900 of job {second} is past its last one")
    await expect(notice).to_contain_text("Reload the page")
    await let_go(shared, first)
    await expect(page.locator("#status")).to_have_text("passed")
    await JobPage(page).has(2)
    await other.unroute_all()
    await notice.get_by_role("button", name="Reload").click()
    await JobPage(other).has(1)
    await let_go(shared, second)
    await JobPage(other).has(2)


@pytest.mark.parametrize("status", [b"404 Not Found", b"403 Forbidden", b"500 Oops"])
async def test_answers_that_are_none_of_the_workers_are_a_lost_connection(
    behind: tuple[Worker, Proxy], new_context: NewContext, faults: Faults, status: bytes
) -> None:
    faults.allow("ERR_|Failed to load")
    worker, between = behind
    job_id = await worker.submit(f"echo first; {WAIT}; echo second")
    page = await opened(new_context, worker, between, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(1)
    between.refusal = b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\n<oh>"
    between.refusing = True
    between.cut()
    await expect(page.locator("#connection")).to_have_text("Reconnecting …")
    between.refusing = False
    await expect(page.locator("#connection")).to_have_text("")
    await expect(page.get_by_role("alert")).to_be_empty()
    await let_go(worker, job_id)
    await expect(page.locator("#status")).to_have_text("passed")
    await log.has(2)


async def test_where_the_hub_cannot_be_loaded_the_page_says_so(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("ERR_FAILED")
    job = await shared.run("echo done")
    page = await visit(shared)
    await page.add_init_script("delete window.SharedWorker")
    await page.route("**/static/hub.js", lambda route: route.abort())
    for path in ("/", f"/jobs/{job['id']}"):
        await page.goto(f"{shared.url}{path}")
        await expect(page.get_by_role("alert")).to_contain_text("Live updates could not be loaded")
    await JobPage(page).has(1)
    await page.unroute_all()
    await page.get_by_role("button", name="Reload").click()
    await expect(page.locator("#status")).to_have_text("passed")
    await expect(page.get_by_role("alert")).to_be_empty()


async def test_where_the_shared_worker_cannot_be_loaded_the_page_is_live_by_itself(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("404")
    page = await visit(shared)
    await page.add_init_script(
        """const Real = SharedWorker;
        window.SharedWorker = class {
            constructor(_url, options) { return new Real("/static/missing.js", options); }
        };"""
    )
    job_id = await shared.submit(f"echo first; {WAIT}; echo second")
    await page.goto(f"{shared.url}/jobs/{job_id}")
    await JobPage(page).has(1)
    await let_go(shared, job_id)
    await expect(page.locator("#status")).to_have_text("passed")
    await JobPage(page).has(2)


async def test_a_tab_of_another_version_has_a_hub_of_its_own(
    behind: tuple[Worker, Proxy], new_context: NewContext
) -> None:
    worker, between = behind
    page = await opened(new_context, worker, between, "/")
    await between.has_streams(1)
    same = await page.context.new_page()
    await same.goto(between.url)
    job_id = await worker.submit("true")
    await expect(same.locator(f'.job[data-id="{job_id}"]')).to_be_visible()
    await between.has_streams(1)
    upgraded = await page.context.new_page()

    async def upgrade(route: Route) -> None:
        answer = await route.fetch()
        body = re.sub(
            r'name="version" content="\w+"', r'name="version" content="2"', await answer.text()
        )
        await route.fulfill(response=answer, body=body)

    await upgraded.route(f"{between.url}/", upgrade)
    await upgraded.goto(between.url)
    await between.has_streams(2)


async def test_a_tab_that_says_no_bye_is_followed_for_no_longer(
    behind: tuple[Worker, Proxy], new_context: NewContext
) -> None:
    worker, between = behind
    jobs = [await worker.submit(f"echo a; {WAIT}") for _ in range(2)]
    page = await opened(new_context, worker, between, f"/jobs/{jobs[0]}")
    other = await page.context.new_page()
    await other.add_init_script(
        "addEventListener('pagehide', (event) => event.stopImmediatePropagation())"
    )
    await other.goto(f"{between.url}/jobs/{jobs[1]}")
    await JobPage(other).has(1)
    await between.follows(*jobs)
    await other.close()
    await between.follows(jobs[0])


async def test_a_hidden_tab_without_a_shared_worker_lets_go_of_its_connection_and_goes_on_later(
    behind: tuple[Worker, Proxy], new_context: NewContext
) -> None:
    worker, between = behind
    job_id = await worker.submit(f"echo first; {WAIT}; echo second; echo third")
    page = await opened(new_context, worker, between, "/")
    await page.add_init_script("delete window.SharedWorker")
    await page.goto(f"{between.url}/jobs/{job_id}")
    log = JobPage(page)
    await log.has(1)
    await between.has_streams(1)

    async def hide(is_hidden: bool) -> None:
        await page.evaluate(
            """(hidden) => {
                Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
                document.dispatchEvent(new Event('visibilitychange'));
            }""",
            is_hidden,
        )

    await hide(True)
    await between.has_streams(0)
    await let_go(worker, job_id)
    await worker.wait(job_id)
    assert await log.numbers() == [1]
    await hide(False)
    await expect(page.locator("#status")).to_have_text("passed")
    await log.has(3)
    assert [row.text for row in await log.rows()] == ["first", "second", "third"]
    await expect(page.locator("#connection")).to_have_text("")


# the hub itself

HUB = """
    const { Hub } = await import("/static/hub.js");
    window.hub = new Hub();
    window.tab = (name, tell = () => {}) => {
        const made = (message) => {
            window.heard.push([name, message]);
            tell(message);
        };
        hub.join(made);
        return (message) => hub.hear(made, message);
    };
    window.heard = [];
    window.of = (name, type) => heard.filter(([to, { type: is }]) => to === name && is === type)
        .map(([, message]) => message);
"""
# A server in its place, whose streams the test writes.
STREAMS = """
    window.asked = [];
    const real = window.fetch;
    window.fetch = async (url, options) => {
        const { signal } = options;
        if (!url.startsWith("/api/v1/events")) return real(url, options); // the page's own
        asked.push(url);
        return new Response(new ReadableStream({
            start(stream) {
                window.push = (name, data, id = "") => {
                    const said = [data].flat().map((one) => `data: ${JSON.stringify(one)}\\n`);
                    const event = `id: ${id}\\nevent: ${name}\\n${said.join("")}\\n`;
                    stream.enqueue(new TextEncoder().encode(event));
                };
                window.cut = () => stream.close();
                signal.addEventListener("abort", () => stream.error(signal.reason));
            },
        }));
    };
    window.lines = (from, to) => Array.from({ length: to - from + 1 }, (_, i) => ({ n: from + i }));
"""


async def hub_in(page: Page, *scripts: str) -> None:
    for script in (*scripts, HUB):
        await page.evaluate(f"async () => {{ {script} }}")


async def test_more_jobs_than_can_be_followed_have_their_turn_when_others_end(
    new_worker: Callable[..., Worker], visit: Visit
) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    running = await worker.submit(f"echo a; {WAIT}")
    await worker.wait_for_text(running, b"a")
    queued = [await worker.submit("true") for _ in range(33)]
    page = await visit(worker)
    await hub_in(page)
    await page.evaluate(
        """(ids) => {
            for (const [n, id] of ids.entries()) tab(`tab ${n}`)({ type: "follow", id, after: 0 });
        }""",
        [*queued[:32], running, queued[32]],
    )
    for name in ("tab 32", "tab 33"):
        await page.wait_for_function("(name) => of(name, 'waiting').length", arg=name)
    assert await page.evaluate("of('tab 32', 'waiting')") == [
        {"type": "waiting", "id": running, "is": True}
    ]
    assert await page.evaluate("of('tab 31', 'waiting')") == []
    await worker.call("POST", f"/jobs/{queued[5]}/cancel")
    await page.wait_for_function("() => of('tab 32', 'log').length")
    assert await page.evaluate("of('tab 32', 'log')[0].records.map((one) => one.text)") == ["a"]
    assert [one["is"] for one in await page.evaluate("of('tab 32', 'waiting')")] == [True, False]
    assert [one["is"] for one in await page.evaluate("of('tab 33', 'waiting')")] == [True]
    assert len(await page.evaluate("of('tab 5', 'end')")) == 1


async def test_who_followed_just_before_the_end_has_all_lines_before_it(page: Page) -> None:
    await hub_in(page, STREAMS)
    await page.evaluate("() => tab('far')({ type: 'follow', id: 'X', after: 100 })")
    await page.wait_for_function("() => asked.at(-1)?.endsWith('follow=X.100')")
    await page.evaluate(
        """() => {
            push("log.X", lines(101, 102));
            push("end.X", { id: "X", log_lines: 102 });
            tab("behind")({ type: "follow", id: "X", after: 50 });
        }"""
    )
    await page.wait_for_function("() => asked.at(-1).endsWith('follow=X.50')")
    assert await page.evaluate("[of('behind', 'log').length, of('behind', 'end').length]") == [0, 0]
    await page.evaluate(
        """() => {
            push("log.X", lines(51, 102));
            push("end.X", { id: "X", log_lines: 102 });
        }"""
    )
    await page.wait_for_function("() => of('behind', 'end').length")
    told = "(name) => of(name, 'log').flatMap((one) => one.records).map((one) => one.n)"
    assert await page.evaluate(told, "behind") == list(range(51, 103))
    assert await page.evaluate(told, "far") == [101, 102]
    assert await page.evaluate("of('far', 'end').length") == 1


async def test_a_tabs_own_error_is_no_broken_connection(page: Page, faults: Faults) -> None:
    faults.allow("a tab's own")
    await hub_in(page, STREAMS)
    await page.evaluate(
        """() => {
            tab("bad", ({ type }) => { if (type === "status") throw new Error("a tab's own"); });
            tab("good");
        }"""
    )
    await page.wait_for_function("() => of('good', 'link').some((one) => one.up)")
    count = await page.evaluate("asked.length")
    for number in (1, 2):
        await page.evaluate("(id) => push('status', { id }, id)", str(number))
        await page.wait_for_function("(count) => of('good', 'status').length === count", arg=number)
    assert await page.evaluate("asked.length") == count
    assert len([one for one in faults.found if "a tab's own" in one]) == 2


async def test_what_no_server_should_say_does_not_end_the_hub(page: Page, faults: Faults) -> None:
    faults.allow("SyntaxError")
    await hub_in(page, STREAMS)
    await page.evaluate("() => { tab('one'); }")
    await page.wait_for_function("() => of('one', 'link').some((one) => one.up)")
    await page.evaluate("push('status', undefined, '1')")  # `data: undefined` is no JSON
    await page.wait_for_function("() => of('one', 'link').at(-1).up === false")
    await page.wait_for_function("() => of('one', 'link').at(-1).up")
    await page.evaluate("push('status', { id: 'X' }, '2')")
    await page.wait_for_function("() => of('one', 'status').length === 1")


async def test_tabs_are_told_of_the_connection_only_what_concerns_them(page: Page) -> None:
    await hub_in(page, STREAMS)
    await page.evaluate("() => { window.send = tab('one'); }")
    await page.wait_for_function("() => of('one', 'link').length === 2")
    await page.evaluate("push('status', { id: 'X' }, '7')")
    await page.wait_for_function("() => of('one', 'status').length === 1")
    await page.evaluate("send({ type: 'follow', id: 'X', after: 0 })")
    await page.wait_for_function("() => asked.at(-1).endsWith('follow=X.0')")
    await page.evaluate("push('status', { id: 'X' }, '8')")
    await page.wait_for_function("() => of('one', 'status').length === 2")
    await page.evaluate("cut()")
    await page.wait_for_function("() => of('one', 'link').length === 4")
    links = [(one["up"], one["resumed"]) for one in await page.evaluate("of('one', 'link')")]
    assert links == [(False, False), (True, False), (False, False), (True, True)]
