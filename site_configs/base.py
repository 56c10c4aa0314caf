"""What a campaign needs to know about a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from parsl.providers.base import ExecutionProvider

Route = Literal["local"]
Device = Literal["cpu", "cuda", "xpu"]


@dataclass(frozen=True)
class Site:
    """One facility as the campaign sees it.

    Attributes:
        name: the site's name in the campaign.
        machine: the description it was made from, for people.
        route: how work reaches it.
        storage_root: where the site keeps its shard, models, updates and manifests for this campaign.
        provider: makes the Parsl provider that starts its blocks; called when the campaign starts, not before.
        device: torch device of a worker: cpu, cuda (also ROCm) or xpu.
        threads: torch threads of a worker.
        address: where workers find the driver.
        heartbeat_s: after twice this time without a word a block counts as lost.
        environment: variables set for the workers before Python starts.
        setup: shell lines before the workers start: modules, activation of the site's own environment.
    """

    name: str
    machine: str
    route: Route
    storage_root: Path
    provider: Callable[[str], ExecutionProvider]
    device: Device = "cpu"
    threads: int = 1
    address: str = "127.0.0.1"
    heartbeat_s: int = 10
    environment: Mapping[str, str] = field(default_factory=dict)
    setup: str = ""
