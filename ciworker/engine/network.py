"""The network that containers with `network` are on: a bridge of our own.

On the engine's default one all containers of the machine reach each other, and no rule can tell
jobs from others. The bridge's interface has a name that rules can use (`ciworker firewall`).

Traffic between its containers is off: the engine drops it by iptables, which the kernel asks only
while `net.bridge.bridge-nf-call-iptables` is 1. Tried: with 0 they reach each other.
"""

from collections.abc import Mapping
from typing import Any

from ciworker.errors import EngineRefused

NAME = "ciworker"
BRIDGE = "ciworker0"

_BRIDGE_NAME = "com.docker.network.bridge.name"
_BETWEEN = "com.docker.network.bridge.enable_icc"


def network_config() -> dict[str, object]:
    """The body of the engine's call that makes a network."""
    return {
        "Name": NAME,
        "CheckDuplicate": True,  # before version 25 two may have one name
        "Driver": "bridge",
        "EnableIPv6": False,
        "Options": {_BRIDGE_NAME: BRIDGE, _BETWEEN: "false"},
    }


def assert_safe(network: Mapping[str, Any]) -> None:
    """That a network of our name, whoever made it, keeps its containers apart.

    Args:
        network: as the engine describes it. Its addresses may be chosen by the operator.

    Raises:
        EngineRefused: it does not, or `ciworker firewall` would not know its interface.
    """
    options = network.get("Options") or {}
    found = (
        network.get("Driver"),
        options.get(_BRIDGE_NAME),
        options.get(_BETWEEN),
        network.get("EnableIPv6"),
    )
    if found != ("bridge", BRIDGE, "false", False):
        raise EngineRefused(
            f"the network {NAME!r} is not as the worker makes it (driver bridge without IPv6, "
            f"{_BRIDGE_NAME}={BRIDGE}, {_BETWEEN}=false): `docker network rm {NAME}` has it made "
            "again"
        )
