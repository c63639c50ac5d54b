"""Behind nginx, as scripts/nginx.conf sets it up: submit, follow, the page, who asked."""

import asyncio
import json
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, frames, free_port
from tests.e2e.certificates import Certificate, certificate, trusting
from tests.e2e.follower import WAIT, let_go
from tests.e2e.test_listening import OnSocket
from tests.nginx import nginx

SITE = Path(__file__).parents[2] / "scripts" / "nginx.conf"
NAME = "localhost"
CLIENT = "127.0.0.2"  # an address of this machine too, and no trusted one


@dataclass(frozen=True)
class Proxy:
    port: int
    made: Certificate

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ciw-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def proxy(folder: Path) -> Proxy:
    """Where it will listen; a worker has to know that before it starts."""
    return Proxy(free_port(), certificate(folder, "ci.example.org"))


@asynccontextmanager
async def proxying(proxy: Proxy, folder: Path, server: str) -> AsyncIterator[None]:
    """Debian's nginx before a worker; of the site only names, port and files are changed."""
    if shutil.which("nginx") is None:
        pytest.fail("nginx is missing: run scripts/test, or apt-get install nginx-light")
    site = SITE.read_text()
    changes = {
        "server 127.0.0.1:8480;": f"server {server};",
        "listen 443 ssl;": f"listen 127.0.0.1:{proxy.port} ssl;",
        "server_name ci.example.org;": f"server_name {NAME};",
        "/etc/ssl/certs/ci.example.org.pem": str(proxy.made.cert),
        "/etc/ssl/private/ci.example.org.key": str(proxy.made.key),
    }
    for told, meant in changes.items():
        assert site.count(told) == 1, told
        site = site.replace(told, meant)
    async with nginx(folder, site) as process:
        async with asyncio.timeout(DEADLINE):
            while not await listens(proxy.port):
                assert process.returncode is None, (folder / "error.log").read_text()
                await asyncio.sleep(0.02)
        yield


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.fixture
async def proxied(new_worker: WorkerFactory, proxy: Proxy, folder: Path) -> AsyncIterator[Worker]:
    """A worker behind it, by a port."""
    worker = new_worker(public_url=proxy.url, trusted_proxies='["127.0.0.1"]', log_limit="64m")
    await worker.start()
    async with proxying(proxy, folder, f"127.0.0.1:{worker.port}"):
        yield worker


def session(proxy: Proxy, **more: str) -> aiohttp.ClientSession:
    trust = ssl.create_default_context(cafile=proxy.made.cert)
    connector = aiohttp.TCPConnector(ssl=trust, local_addr=(CLIENT, 0))
    return aiohttp.ClientSession(proxy.url, connector=connector, headers=more)


async def test_a_job_is_submitted_and_followed_through_the_proxy(
    proxied: Worker, proxy: Proxy, folder: Path
) -> None:
    tree = folder / "tree"
    tree.mkdir()
    (tree / "noise").write_bytes(bytes(n * n % 251 for n in range(3_000_000)))
    env = trusting(proxied, proxy.made) | {
        "CICLIENT_SERVER": proxy.url, "CICLIENT_TOKEN": proxied.token,
    }  # fmt: skip
    spell = "seq 50000; exit 3"
    code, out, err = await command(
        "ciclient", "submit", str(tree), "--", "sh", "-c", spell, env=env
    )
    assert code == 1, err
    assert out == b"".join(b"%d\n" % n for n in range(1, 50_001))
    listed = await command("ciclient", "list", "--json", env=env)
    (job,) = json.loads(listed[1])["items"]
    assert (job["exit_code"], job["log_lines"]) == (3, 50_000)
    assert (await command("ciclient", "logs", job["id"], env=env))[1] == out


async def test_lines_come_through_when_they_are_printed(proxied: Worker, proxy: Proxy) -> None:
    """A proxy that buffers would show the first line with the last one."""
    job = await proxied.submit(f"echo first; {WAIT}; echo last")
    async with session(proxy) as client, asyncio.timeout(DEADLINE):
        path = f"/api/v1/jobs/{job}/events"
        async with client.get(path, headers=proxied.headers) as answer:
            assert answer.status == 200
            events = frames(answer.content)
            seen: list[str] = []
            async for frame in events:
                if frame.event == "log":
                    seen += [record["text"] for record in frame.records]
                    if seen == ["first"]:
                        await let_go(proxied, job)
            assert seen == ["first", "last"]


async def test_a_person_logs_in_and_acts_through_the_proxy(proxied: Worker, proxy: Proxy) -> None:
    code, out, _ = await command("ciworker", "token", "link", env=proxied.environment)
    link = out.decode().strip()
    assert (code, link.startswith(f"{proxy.url}/login?code=")) == (0, True)
    own = {"Origin": proxy.url}
    async with session(proxy) as client:
        async with client.post(
            "/login", data={"code": link.partition("code=")[2]}, headers=own, allow_redirects=False
        ) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/")
            assert "; secure" in answer.headers["Set-Cookie"].lower()
        async with client.get("/") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
        job = await proxied.submit("sleep 3600", timeout="2h")
        async with client.get(f"/jobs/{job}") as answer:
            assert answer.status == 200
        cancel = f"/api/v1/jobs/{job}/cancel"
        async with client.post(cancel, headers={"Origin": "https://evil.example"}) as answer:
            assert answer.status == 403
        async with client.post(cancel, headers=own) as answer:
            assert answer.status == 202
    await proxied.wait(job)


async def test_behind_the_proxy_it_is_known_who_asks(proxied: Worker, proxy: Proxy) -> None:
    """What a client says itself of where it comes from is not believed."""
    invented = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"}
    async with (
        session(proxy, **proxied.headers, **invented) as client,
        client.post("/api/v1/resync") as answer,
    ):
        assert answer.status == 200
    _, page = await proxied.call("GET", "/audit?limit=1")
    assert page["items"][0]["address"] == CLIENT
    _, page = await proxied.call("GET", "/audit?since=2000-01-01&limit=500")
    assert "203.0.113.9" not in json.dumps(page)


@pytest.mark.attacks(38)
async def test_the_proxy_lets_no_other_host_in(proxied: Worker, proxy: Proxy) -> None:
    async with session(proxy) as client:
        for path in ("/healthz", "/", "/api/v1/jobs"):
            async with client.get(path, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
        async with client.get("/healthz") as answer:
            assert answer.status == 200
        async with client.get("/api/v1/jobs") as answer:
            assert answer.status == 401


async def test_by_a_unix_socket_it_is_the_same(proxy: Proxy, folder: Path, image: str) -> None:
    settings = {
        "default_image": image, "public_url": proxy.url, "trusted_proxies": '["unix"]',
    }  # fmt: skip
    worker = OnSocket(folder / "worker", settings)
    try:
        await worker.start()
        async with proxying(proxy, folder, f"unix:{worker.path}"):
            async with session(proxy, **worker.headers) as client:
                async with client.post("/api/v1/resync") as answer:
                    assert answer.status == 200
                async with client.get("/api/v1/audit") as answer:
                    told = (await answer.json())["items"][0]
                assert (told["action"], told["address"]) == ("resync", CLIENT)
            tree = folder / "tree"
            tree.mkdir()
            (tree / "x").write_text("x")
            env = trusting(worker, proxy.made) | {
                "CICLIENT_SERVER": proxy.url, "CICLIENT_TOKEN": worker.token,
            }  # fmt: skip
            done = await command(
                "ciclient", "submit", str(tree), "--", "sh", "-c", "seq 3", env=env
            )
            assert done[:2] == (0, b"1\n2\n3\n"), done[2]
    finally:
        await worker.destroy()
