"""The processes of `race_of_ranks`: a rank that trains when it is told to, and a crew of such.

In: a job, and then a line of JSON for each turn. Out: a line of JSON, what the turn took.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

# --- in a rank --------------------------------------------------------------------------------


class Slow:
    """A communicator whose messages take their time, and are counted."""

    def __init__(self, ranks, network: Network):
        self.size, self.rank, self.names = ranks.size, ranks.rank, ranks.names
        self._ranks, self._network = ranks, network

    @property
    def address(self) -> int:
        """Calls exchange by themselves where nothing is to take its time."""
        return 0 if self._network.delay else self._ranks.address

    def started(self, number, dtype):
        return self._ranks.started(number, dtype)

    def sum(self, array):
        return Late(self._ranks.sum(array), self._network)

    def gather(self, array):
        return Late(self._ranks.gather(array), self._network)


class Late:
    """What is under way, and arrives no sooner than the network allows."""

    def __init__(self, work, network: Network):
        self._work, self._network = work, network
        self._over = time.perf_counter() + network.delay

    def result(self):
        found = self._work.result()
        start = time.perf_counter()
        time.sleep(max(0.0, self._over - start))
        self._network.waited += time.perf_counter() - start
        return found


class Network:
    """What is imagined of the network, and counted of what travels in it."""

    def __init__(self) -> None:
        self.delay, self.bandwidth = 0.0, 0.0  # seconds a collective, bytes a second
        self.waited, self.gradient_bytes = 0.0, 0
        self._free = 0.0
        self._rings: list = []
        self._before = 0, 0.0

    def watch(self) -> None:
        """Slow and count the collectives of synchronized batch normalization."""
        from bngen.torch_bridge import distributed

        made = distributed.beside

        def beside(*given, **named):
            ranks = made(*given, **named)
            self._rings.append(ranks.ring)
            return Slow(ranks, self)

        distributed.beside = beside

    def begin(self) -> None:
        """Count anew."""
        self.waited, self.gradient_bytes = 0.0, 0
        self._before = self._seen()

    def found(self) -> dict:
        """What there was since then: seconds that this rank waited for others, and messages."""
        collectives, waited = (a - b for a, b in zip(self._seen(), self._before, strict=True))
        return {"waited": self.waited + waited, "collectives": collectives}

    def _seen(self) -> tuple[int, float]:
        return sum(r.next for r in self._rings), sum(r.waited for r in self._rings)

    def hook(self, _state, bucket):
        """DistributedDataParallel's, for a bucket of gradients: their average, at that speed."""
        import torch.distributed as dist

        buffer = bucket.buffer()
        nbytes = buffer.nbytes
        self.gradient_bytes += nbytes
        begun = time.perf_counter()
        work = dist.all_reduce(buffer.div_(dist.get_world_size()), async_op=True)

        def arrived(future):
            if self.bandwidth:
                # Of all ranks each sends and receives its share of the sum but once.
                ranks = dist.get_world_size()
                took = 2 * (ranks - 1) / ranks * nbytes / self.bandwidth
                self._free = max(begun, self._free) + took
                time.sleep(max(0.0, self._free - time.perf_counter()))
            return future.value()[0]

        return work.get_future().then(arrived)


def work(rank: int, folder: str, job: dict) -> None:
    """Train for as many steps as each line of the standard input says; tell how long that took."""
    network = Network()
    switch, step = trainer(rank, folder, job, network)
    step()
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        turn = json.loads(line)
        switch[0] = turn["stages"]
        network.delay, network.bandwidth = turn["delay"] / 1000, turn["bandwidth"] * 1e6
        step()  # from what the others have left in the caches
        network.begin()
        start = time.perf_counter()
        for _ in range(turn["steps"]):
            step()
        row = {
            "seconds": time.perf_counter() - start, **network.found(),
            "gradient_bytes": network.gradient_bytes // turn["steps"],
        }  # fmt: skip
        print(json.dumps(row), flush=True)


def trainer(
    rank: int, folder: str, job: dict, network: Network
) -> tuple[list[bool], Callable[[], None]]:
    """Whether there are stages, to be set; and one step of the training."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F

    from bngen.torch_bridge import region
    from tests.torch_bridge.small_networks import dense
    from tests.zoo_models import torchvision

    torch.set_num_threads(job["threads"] // job["ranks"])
    torch.manual_seed(0)
    share = job["batch"] // job["ranks"]
    small = job["network"] == "small"
    model = dense() if small else getattr(torchvision().models, job["network"])(weights=None)
    x = torch.randn(share, 3, job["image"], job["image"])
    if not job["bngen"]:
        x = x.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    if job["ranks"] > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=job["ranks"])
        network.watch()
    switch, shared = [True], region.is_shared
    region.is_shared = lambda: switch[0] and shared()
    model = parallel(model, job, network)
    labels = torch.arange(share) % 2
    # So slowly that nothing is learnt: gradients of what is known by heart are denormal numbers,
    # each of which takes a hundred times as long.
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return switch, step


def parallel(model, job: dict, network: Network):
    """The model as a contender has it."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import bngen
    from bngen.torch_bridge.backend import backend

    if job["bngen"] and not job["split"]:
        bngen.compile(model, sync_bn=job["sync"])
    if job["ranks"] == 1:
        return model
    model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    if job["slow"]:
        model.register_comm_hook(None, network.hook)
    torch._dynamo.config.optimize_ddp = job["split"]
    return torch.compile(model, backend=backend) if job["split"] else model


# --- outside ----------------------------------------------------------------------------------


class RankError(Exception):
    """A rank has ended, or takes too long; the message is one line."""


class Crew:
    """The processes of a contender, which have made their first step.

    Args:
        job: what they do.
        folder: where they meet, and what they write to standard error is kept.
        first: seconds that the first step may take.
        later: seconds that a turn may take.
    """

    def __init__(self, job: dict, folder: Path, first: float, later: float):
        self._folder, self._later, self._failed = folder, later, ""
        self._ranks: list[subprocess.Popen[str]] = []
        self._lines: list[queue.Queue[str]] = []
        for rank in range(job["ranks"]):
            self._start(rank, job)
        try:
            self._heard(first)
        except RankError as error:
            self._failed = str(error)
            self.stop()

    def _start(self, rank: int, job: dict) -> None:
        words = json.dumps([rank, str(self._folder), job])
        command = [sys.executable, "-m", "tests.race_of_ranks", "--rank", words]
        with open(self._folder / f"errors{rank}", "w") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            )  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        self._ranks.append(process)
        self._lines.append(lines)
        threading.Thread(target=_listen, args=(process, lines), daemon=True).start()

    def turn(self, job: dict) -> list[dict]:
        """What each rank tells of a turn.

        Raises:
            RankError: when one of them fails, or has failed.
        """
        if self._failed:
            raise RankError(self._failed)
        try:
            for process in self._ranks:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            return self._heard(self._later)
        except (RankError, BrokenPipeError) as error:
            self._failed = str(error)
            self.stop()
            raise RankError(self._failed) from None

    def _heard(self, seconds: float) -> list[dict]:
        deadline, rows = time.monotonic() + seconds, []
        for rank, lines in enumerate(self._lines):
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise RankError(f"rank {rank} takes more than {seconds:.0f} s") from None
            if not line:
                raise RankError(f"rank {rank} has ended: {self._last_words(rank)}")
            rows.append(json.loads(line))
        return rows

    def _last_words(self, rank: int) -> str:
        lines = (self._folder / f"errors{rank}").read_text().strip().splitlines()
        return lines[-1] if lines else "without a word"

    def stop(self) -> None:
        """End them."""
        for process in self._ranks:
            process.kill()
            process.wait()


def _listen(process: subprocess.Popen, lines: queue.Queue) -> None:
    """Pass a process's lines on, and "" when it has ended."""
    for line in process.stdout:
        lines.put(line)
    lines.put("")
