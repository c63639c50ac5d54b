import asyncio, time, pytest
from ciworker.errors import *
from tests.unit.control.lab import Life
ERR=[EngineUnavailable, EngineFailed, EngineRefused, ContainerMissing]
@pytest.mark.parametrize("after",[False,True])
@pytest.mark.parametrize("times",[1,1000])
@pytest.mark.parametrize("error",ERR,ids=lambda e:e.__name__)
@pytest.mark.parametrize("call",["image","create","attach","start","inspect","remove","signal","log","list","write","read"])
async def test_x(life: Life, call, error, times, after, capsys) -> None:
    if after and call in ("log","read"): return
    t=time.time()
    e=life.engine
    first=True
    if call=="log":
        e.fail("read", EngineUnavailable("cut"))
    for _ in range(times): e.fail(call,error("no"),1,after=after)
    cancel= call=="signal"
    a = await life.submit("echo hello; echo x >&2" if not cancel else "echo hello; sleep 30")
    b = await life.submit()
    if cancel:
        await life.running(a); await life.cancel(a)
    if call=="list":
        try: await life.resync.run()
        except Exception as ex: print("resync", repr(ex))
    try:
        async with asyncio.timeout(0.7): await life.ended(a)
        still=""
    except TimeoutError: still="(after recovery)"
    e._faults[call].clear()
    j=await life.ended(a)
    t2=time.time()-t
    k=await life.ended(b)
    with capsys.disabled():
        print(f"\n## {call:8} {error.__name__:18} x{times:<5} after={after} {still:17} {j.reason} att={j.attempt} {await life.text(a)} inc={j.log_incomplete} | next {k.reason} {k.attempt}| {t2:.2f} {j.message}", end="")
