"""What `ciworker doctor` saw of one thing."""

from dataclasses import dataclass

from ciworker.harmless import harmless


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw. mend: the one line to do about it; with `ok` it is a warning."""

    check: str
    ok: bool
    detail: str
    mend: str = ""

    def line(self) -> str:
        mark = ("warn" if self.mend else "ok  ") if self.ok else "FAIL"
        told = [f"{mark}  {self.check}: {self.detail}", *([f"      {self.mend}"] * bool(self.mend))]
        return "\n".join(map(harmless, told))
