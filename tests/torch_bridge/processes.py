"""Ranks that are processes, with a process group of gloo over the loopback interface."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = 120.0
"""Seconds after which a rank is ended, come what may."""


def joined(rank: int, ranks: int, folder: str, timeout: float = 60.0, store: str = "store") -> None:
    """In a rank: meet the others."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{store}", rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=timeout),
    )  # fmt: skip


class Started:
    """Ranks that have been started.

    Args:
        job: a line of Python; ``{}`` stands for the number of the rank.
        ranks: how many.
        cache: bngen's folder for builds.
    """

    def __init__(self, job: str, ranks: int, cache: Path):
        env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "BNGEN_CACHE_DIR": str(cache)}
        env.pop("BNGEN_NO_CACHE", None)
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-c", job.replace("{}", str(rank))],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_) -> None:
        for p in self.ranks:
            p.kill()
            p.wait()

    def text(self, rank: int) -> str:
        """What a rank has written, when it has ended."""
        return self.ranks[rank].communicate(timeout=TIMEOUT)[0]

    def all_well(self) -> None:
        """Wait for all of them; each has to end without an error."""
        for rank, p in enumerate(self.ranks):
            text = self.text(rank)
            assert p.returncode == 0, text
