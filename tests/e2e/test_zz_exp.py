import asyncio
from tests.e2e.proxy import proxy
async def test_exp(new_worker):
    async with proxy() as between:
        worker = new_worker(docker_host=between.url, max_jobs="4")
        await worker.start()
        jobs = await asyncio.gather(*(worker.submit("seq 2000; exit 3") for _ in range(40)))
        for j in jobs: await worker.wait(j)
        for _ in range(20): await worker.run("echo hi")
        print({k: v for k, v in between.counts.items()})
