"""The log's lines on the page: all of them, as they were printed, and nothing but text."""

import asyncio

import pytest
from playwright.async_api import expect

from ciclient.sanitise import clean_line
from tests.browser.conftest import Visit
from tests.browser.driver import Faults
from tests.browser.jobpage import JobPage, printed, texts
from tests.browser.loading import Loading
from tests.conftest import Attack
from tests.driver import Worker
from tests.e2e.follower import WAIT, let_go, stored

HOSTILE = [
    "<script>window.ran = true</script>",
    "<img src=x onerror='window.ran = true'><b>bold</b> &amp; &lt;",
    "javascript:window.ran=true",
    "\x1b]8;;javascript:window.ran=true\x07link\x1b]8;;\x07",
    '\x1b]8;;"><script>window.ran = true</script>\x1b\\link\x1b]8;;\x1b\\',
    "\x1b]52;c;aGVsbG8=\x07",
    "\x1b]0;a title\x07\x1b]2;another\x1b\\",
    "\x1b[2J\x1b[1;1Hhome\x1b[?1049h\x1bc\x1b[6n",
    "\x1bP1$tx\x1b\\ \x1b_app\x1b\\ \x1b^pm\x1b\\",
    "overwritten\rnew",
    "10%\r20%\r30%",
    "c1 \x9b2J \x9d0;title\x9c \x85 \x90",
    "bidi \u202egnp.exe\u202c \u2066\u2067\u2068\u2069 \u200e\u200f \u061c",
    "separators \u2028 \u2029 end",
    "nul \x00 bell \x07 backspace \x08\x08 del \x7f",
    "[/tmp [bold]test[a-b][/bold]",
    "test_tea.py::test[a-b] PASSED",
    "\x1b[999999999999m\x1b[38;5;999mx\x1b[38;2;300;-1;5my\x1b[38;5m\x1b[;;;;m",
    "\x1b[31",
    "data:text/html,<script>window.ran=true</script>",
    "::group::<script>window.ran = true</script>",
    "in the group \x1b]0;x\x07",
    "::endgroup::",
    "emoji 🎉 and combining e\u0301",
]
COLOURS = {
    "\x1b[31mx": ["fg-1"],
    "\x1b[1;92mx": ["bold", "fg-10"],
    "\x1b[3;4;2mx": ["dim", "italic", "underline"],
    "\x1b[7mx": ["fg-paper", "bg-ink"],
    "\x1b[7;31mx": ["on", "fg-15", "bg-1"],
    "\x1b[43mx": ["on", "fg-0", "bg-3"],
    "\x1b[97;44mx": ["on", "fg-15", "bg-4"],
    "\x1b[38;5;9mx": ["fg-9"],
    "\x1b[38;5;208mx": ["cube", "fg-72"],
    "\x1b[38;2;255;136;0mx": ["cube", "fg-72"],
    "\x1b[38:2::255:136:0mx": ["cube", "fg-72"],
    "\x1b[48;2;0;0;255mx": ["on", "fg-15", "bg-19"],
    "\x1b[38;5;255mx": ["cube", "fg-79"],
    "\x1b[1m\x1b[31m\x1b[22;39mx": [],
    "\x1b[4:3mx": ["underline"],
    "\x1b[4m\x1b[4:0mx": [],
    "\x1b[9mx": ["strike"],
}


async def test_opened_in_the_middle_of_a_job_it_shows_everything_from_line_1_and_goes_on(
    visit: Visit, shared: Worker
) -> None:
    count = "for n in $(seq 1 1200); do echo line $n; done"
    job_id = await shared.submit(f"{count}; {WAIT}; seq 1201 1300; exit 1")
    await shared.wait_for_text(job_id, b"line 1200\n")
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(1200)
    await let_go(shared, job_id)
    await log.has(1300)
    await expect(page.locator("#status")).to_have_text("tests failed")
    rows, records = await log.rows(), await stored(shared, job_id)
    assert [row.number for row in rows] == list(range(1, 1301))
    assert [row.text for row in rows] == texts(records)


async def test_a_page_without_a_line_yet_shows_the_first_one_when_it_comes(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"{WAIT}; echo first")
    await shared.wait(job_id, "running")
    page = await visit(shared, f"/jobs/{job_id}")
    await expect(page.locator("#status")).to_have_text("running")
    await let_go(shared, job_id)
    log = JobPage(page)
    await log.has(1)
    assert [(row.number, row.text) for row in await log.rows()] == [(1, "first")]


async def test_sgr_becomes_classes_and_never_a_style(visit: Visit, shared: Worker) -> None:
    job_id = await printed(shared, list(COLOURS))
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(len(COLOURS))
    for number, classes in enumerate(COLOURS.values(), 1):
        text = log.row(number).locator(".text")
        await expect(text).to_have_text("x")
        found = await text.evaluate("(e) => [...(e.querySelector('span')?.classList ?? [])]")
        assert found == classes, list(COLOURS)[number - 1]
    assert await page.locator("#blocks .line[style], #blocks .line [style]").count() == 0


# The contrasts of every colour without a ground of its own, and of a number, on the row's ground;
# of the others on their own.
CONTRASTS = """() => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const luminance = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((part) => {
            const level = part / 255;
            return level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (colour, ground) => {
        const [low, high] = [luminance(colour), luminance(ground)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const clear = 'rgba(0, 0, 0, 0)';
    const paper = getComputedStyle(document.getElementById('log')).backgroundColor;
    return [...document.querySelectorAll('#blocks .line')].flatMap((row) => {
        const own = getComputedStyle(row).backgroundColor;
        const ground = own === clear ? paper : own;
        const number = getComputedStyle(row, '::before').color;
        const spans = [...row.querySelectorAll('.text span')].map((span) => {
            const { color, backgroundColor } = getComputedStyle(span);
            return contrast(color, backgroundColor === clear ? ground : backgroundColor);
        });
        return [contrast(number, ground), ...spans];
    });
}"""


@pytest.mark.parametrize("ground", ["plain", "marked", "current", "hover"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_colour_can_be_read_in_both_themes_on_whatever_ground_its_line_has(
    visit: Visit, shared: Worker, scheme: str, ground: str
) -> None:
    colours = "".join(f"\x1b[38;5;{n}mfore\x1b[0;48;5;{n}mback\x1b[0m" for n in range(256))
    job_id = await printed(shared, [colours, *["x"] * 3])
    link = "#L1" if ground == "marked" else ""
    page = await visit(shared, f"/jobs/{job_id}{link}", color_scheme=scheme)
    log = JobPage(page)
    await log.has(4)
    if ground == "current":
        await log.search("fore")
        await log.current_is(1)
    if ground == "hover":
        await log.row(1).hover()
    contrasts = await page.evaluate(CONTRASTS)
    assert len(contrasts) == 4 + 512
    assert min(contrasts) >= 4.5


@pytest.mark.attacks(39)
async def test_a_log_of_hostile_strings_runs_nothing_and_is_shown_harmlessly(
    visit: Visit, shared: Worker, attack: Attack
) -> None:
    job_id = await printed(shared, HOSTILE, code=1)
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(len(HOSTILE))
    shown = [row.text for row in await log.rows()]
    expected = [clean_line(text, colour=False) for text in texts(await stored(shared, job_id))]
    assert shown == expected
    assert await page.evaluate("() => window.ran") is None
    assert await page.locator("#blocks :is(script, img, b, a, iframe)").count() == 0
    assert await page.title() == f"{(await shared.job(job_id))['project']}: tests failed · ciworker"
    # that the policy was not even asked is what the page's `faults` say at the end
    attack(39, tried=len(HOSTILE))


async def test_the_policy_would_stop_what_the_page_did_not(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    """The listener that the test above relies on hears of violations."""
    job_id = await printed(shared, ["x"])
    page = await visit(shared, f"/jobs/{job_id}")
    await page.evaluate("() => document.body.setAttribute('onclick', 'window.ran = true')")
    await page.locator("h1").click()
    assert await page.evaluate("() => window.ran") is None
    assert any("policy: script-src" in one for one in faults.found)
    faults.allow("policy: script-src|Content Security Policy")


FLOODS = {
    "long lines": "'%06d' % n + 'x' * 65000",
    "colours": "'\\x1b[1mx' * 13000",
    "many colours, short lines": "'\\x1b[1mx' * 1999",
    "controls": "chr(1) * 65000",
    "colours of nothing": "'\\x1b[1m' * 16000 + 'x'",
}
MOST_COST = 16_000_000  # characters
PIECE = 64  # characters that one element costs
MOST_PIECES = 4001  # of a line
MOST_ASKED = 60  # lines of which nothing is known yet

LOADED = """() => {
    const texts = [...document.querySelectorAll('#blocks .text')];
    const pieces = texts.map((text) => text.childNodes.length);
    const sum = (numbers) => numbers.reduce((all, one) => all + one, 0);
    return {
        characters: sum(texts.map((text) => text.textContent.length)),
        pieces: sum(pieces),
        most: Math.max(...pieces),
    };
}"""


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_log_of_huge_lines_is_bounded_in_the_page_and_can_be_read_to_its_end(
    visit: Visit, shared: Worker, flood: str
) -> None:
    program = f"for n in range(1, 601): print({FLOODS[flood]})"
    job = await shared.run("python3 flood.py", {"flood.py": program})
    assert job["log_lines"] == 600
    page = await visit(shared)
    log, loading = JobPage(page), Loading(page)
    await page.goto(f"{shared.url}/jobs/{job['id']}")
    await log.shows(1)
    await loading.over()
    for key, number in (("G", 600), ("w", 600), ("g", 1), ("G", 600)):
        await page.keyboard.press(key)
        await log.shows(number)
        await loading.over()
        loaded = await page.evaluate(LOADED)
        assert loaded["characters"] + PIECE * loaded["pieces"] <= MOST_COST, loaded
        assert loaded["most"] <= MOST_PIECES
    assert loading.asked
    if flood != "many colours, short lines":
        assert max(loading.asked) <= MOST_ASKED
    last = (await stored(shared, job["id"]))[-1]["text"]
    assert (await log.rows())[-1].text == clean_line(last, colour=False)


async def test_text_behind_the_end_of_a_group_can_be_read(visit: Visit, shared: Worker) -> None:
    run = "echo ::group::Tests; echo x; printf ::endgroup::; echo FAILED test_x; exit 1"
    page = await visit(shared, f"/jobs/{(await shared.run(run))['id']}")
    log = JobPage(page)
    await log.has(3)
    text = log.row(3).locator(".text")
    await expect(text).to_have_text("::endgroup::FAILED test_x")
    plain = await log.row(2).locator(".text").evaluate(LOOKS)
    assert await text.evaluate(LOOKS) == {**plain, "text": "FAILED test_x"}


# What of a row can be read, and how it looks.
LOOKS = """(element) => {
    const { color, backgroundImage } = getComputedStyle(element);
    const shown = [...element.childNodes].filter(
        (node) => node.nodeType === Node.TEXT_NODE || node.offsetWidth > 1,
    );
    return { color, backgroundImage, text: shown.map((node) => node.textContent).join('') };
}"""


async def test_an_unfinished_line_is_shown_and_replaced_by_the_line(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"echo first; printf ....; {WAIT}; echo .F; echo last")
    page = await visit(shared, f"/jobs/{job_id}")
    partial = page.locator("#partials .line")
    await expect(partial).to_have_text("....")
    log = JobPage(page)
    assert [row.text for row in await log.rows()] == ["first"]
    await let_go(shared, job_id)
    await log.has(3)
    await expect(partial).to_have_count(0)
    assert [row.text for row in await log.rows()] == ["first", ".....F", "last"]


async def test_copied_lines_are_plain_text_without_numbers_and_times(
    visit: Visit, shared: Worker
) -> None:
    lines = ["one", "", "  \x1b[31mthree\x1b[0m <b>", "::group::title", "::endgroup::", "last"]
    job_id = await printed(shared, lines, code=1)
    page = await visit(shared, f"/jobs/{job_id}")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await JobPage(page).has(len(lines))
    await page.keyboard.press("t")
    await page.evaluate(
        """() => {
            const texts = document.querySelectorAll('#blocks .text');
            const range = document.createRange();
            range.setStart(texts[0].firstChild, 1);
            range.setEnd(texts[texts.length - 1].firstChild, 2);
            getSelection().addRange(range);
        }"""
    )
    await page.keyboard.press("Control+C")
    copied = await page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "ne\n\n  three <b>\n::group::title\n::endgroup::\nla"


async def test_pieces_of_a_long_line_are_copied_as_one(visit: Visit, shared: Worker) -> None:
    job = await shared.run("head -c 150000 /dev/zero | tr '\\0' x; echo; echo end")
    page = await visit(shared, f"/jobs/{job['id']}")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await JobPage(page).has(4)
    await page.evaluate("() => getSelection().selectAllChildren(document.getElementById('blocks'))")
    await page.keyboard.press("Control+C")
    copied = await page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "x" * 150000 + "\nend"


async def test_stderr_and_the_workers_own_lines_are_told_apart(
    visit: Visit, shared: Worker
) -> None:
    job = await shared.run("echo out; echo err >&2; sleep 60", timeout="1s")
    records = await stored(shared, job["id"])
    assert {record["stream"] for record in records} >= {"stdout", "stderr"}
    page = await visit(shared, f"/jobs/{job['id']}")
    log = JobPage(page)
    await log.has(len(records))
    for record, row in zip(records, await log.rows(), strict=True):
        assert (record["stream"] in row.classes) == (record["stream"] != "stdout")


async def test_times_are_those_at_which_the_worker_read_the_lines(
    visit: Visit, shared: Worker
) -> None:
    job_id = await printed(shared, ["x"])
    page = await visit(shared, f"/jobs/{job_id}", timezone_id="Asia/Kolkata")
    log = JobPage(page)
    await log.has(1)
    (record,) = await stored(shared, job_id)
    minutes = (int(record["at"][11:13]) * 60 + int(record["at"][14:16]) + 5 * 60 + 30) % (24 * 60)
    expected = f"{minutes // 60:02}:{minutes % 60:02}{record['at'][16:23]}"
    await expect(log.row(1)).to_have_attribute("data-at", expected)


async def test_lines_that_come_while_the_page_opens_are_neither_lost_nor_shown_twice(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit("for n in $(seq 1 3000); do echo line $n; done; sleep 0.5; echo x")
    await shared.wait(job_id, "running")
    pages = await asyncio.gather(*(visit(shared, f"/jobs/{job_id}") for _ in range(3)))
    expected = texts(await _all(shared, job_id))
    for page in pages:
        log = JobPage(page)
        await log.has(3001)
        assert [row.text for row in await log.rows()] == expected


async def _all(worker: Worker, job_id: str) -> list[dict[str, object]]:
    await worker.wait(job_id)
    return await stored(worker, job_id)


@pytest.mark.attacks(39)
async def test_a_scripts_own_escape_of_a_name_stays_text(visit: Visit, shared: Worker) -> None:
    name = "<img src=x onerror=window.ran=1>\u200f[fdp.exe"
    job = await shared.run("true", project=name)
    assert job["project"] == name
    page = await visit(shared, f"/jobs/{job['id']}")
    await expect(page.get_by_role("heading", level=1)).to_have_text(clean_line(name, colour=False))
    assert await page.evaluate("() => window.ran") is None
