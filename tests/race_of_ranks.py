"""Two ranks of one thread against one process of two: ``python -m tests.race_of_ranks``.

One process trains with a batch on all threads; its rivals share the same batch out to ranks of one
thread each, under DistributedDataParallel. All take turns of a few steps, in one run. ``--delay``
makes each collective of synchronized batch normalization take at least so many milliseconds, as a
network would; the last column is the time of a step that a rank has waited for such collectives.

One machine is all that this can see: ranks share its memory bandwidth, and gloo its loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

NETWORKS = ("densenet121", "resnet50", "mobilenet_v2", "resnet18")


@dataclass(frozen=True)
class Contender:
    """A way to train.

    Attributes:
        name: as it is shown.
        ranks: processes; the threads are shared out to them.
        bngen: whether bngen compiles the model, or PyTorch runs it, channels-last.
        sync: whether batch normalization is synchronized.
        delay: milliseconds that a collective of that takes at least.
    """

    name: str
    ranks: int = 2
    bngen: bool = True
    sync: bool = False
    delay: float = 0.0


def contenders(delays: list[float]) -> list[Contender]:
    """All that take part."""
    return [
        Contender("one process", ranks=1),
        Contender("two ranks"),
        Contender("two ranks, SyncBN", sync=True),
        *(Contender(f"two ranks, SyncBN, {ms:g} ms", sync=True, delay=ms) for ms in delays),
        Contender("PyTorch, one process", ranks=1, bngen=False),
        Contender("PyTorch, two ranks", bngen=False),
    ]


# --- a rank -----------------------------------------------------------------------------------


def work(rank: int, folder: str, job: dict) -> None:
    """Train for as many steps as each line of the standard input says; tell how long that took."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch.nn.parallel import DistributedDataParallel

    import bngen
    from tests.zoo_models import torchvision

    contender = Contender(**job["contender"])
    torch.set_num_threads(job["threads"] // contender.ranks)
    torch.manual_seed(0)
    share = job["batch"] // contender.ranks
    model = getattr(torchvision().models, job["network"])(weights=None).train()
    x = torch.randn(share, 3, job["image"], job["image"])
    if not contender.bngen:
        x = x.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    waited = [0.0]
    if contender.ranks > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=contender.ranks)
        watch(waited, contender.delay / 1000)
    if contender.bngen:
        bngen.compile(model, sync_bn=contender.sync)
    if contender.ranks > 1:
        model = DistributedDataParallel(model)
    labels = torch.zeros(share, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    step()
    for line in sys.stdin:
        waited[0], start = 0.0, time.perf_counter()
        for _ in range(int(line)):
            step()
        print(json.dumps([time.perf_counter() - start, waited[0]]), flush=True)


def watch(waited: list[float], delay: float) -> None:
    """Count the time that is waited for synchronized layers, and make it at least so long."""
    from bngen.torch_bridge import distributed

    class Work(distributed._Work):
        def __init__(self, work, array):
            super().__init__(work, array)
            self._over = time.perf_counter() + delay

        def result(self):
            start = time.perf_counter()
            found = super().result()
            time.sleep(max(0.0, self._over - time.perf_counter()))
            waited[0] += time.perf_counter() - start
            return found

    distributed._Work = Work


# --- the race ---------------------------------------------------------------------------------


class Running:
    """The processes of a contender."""

    def __init__(self, contender: Contender, options: argparse.Namespace, folder: str):
        job = {
            "contender": contender.__dict__, "threads": options.threads, "batch": options.batch,
            "image": options.image, "network": options.network,
        }  # fmt: skip
        self.times: list[float] = []
        self.waits: list[float] = []
        command = [sys.executable, "-m", "tests.race_of_ranks", "--rank"]
        self._ranks = [
            subprocess.Popen(
                [*command, json.dumps([rank, folder, job])], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            )
            for rank in range(contender.ranks)
        ]  # fmt: skip

    def turn(self, steps: int) -> None:
        """So many steps; the slowest rank counts."""
        for p in self._ranks:
            p.stdin.write(f"{steps}\n")
            p.stdin.flush()
        rows = [json.loads(p.stdout.readline()) for p in self._ranks]
        self.times.append(max(seconds for seconds, _ in rows) / steps)
        self.waits.append(max(waited for _, waited in rows) / steps)

    def stop(self) -> None:
        """End them."""
        for p in self._ranks:
            p.kill()
            p.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--batch", type=int, default=16, help="images of all ranks together")
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2, help="of all ranks together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--delay", type=float, nargs="*", default=[0.1, 1.0, 5.0])
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        work(*json.loads(options.rank))
        return
    running: dict[Contender, Running] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for i, contender in enumerate(contenders(options.delay)):
                own = os.path.join(folder, str(i))
                os.mkdir(own)
                running[contender] = Running(contender, options, own)
                running[contender].turn(1)  # built, and warm
            for round_ in range(options.rounds):
                for contender in list(running)[:: 1 - 2 * (round_ % 2)]:
                    running[contender].turn(options.steps)
        finally:
            for each in running.values():
                each.stop()
    fastest = next(iter(running.values()))
    print(f"{options.network}, batch {options.batch}, {options.image}x{options.image}, "
          f"{options.threads} threads; ms a step, medians of {options.rounds} turns")  # fmt: skip
    print("| | ms | speed | ms waited |\n|---|--:|--:|--:|")
    base = statistics.median(fastest.times[1:])
    for contender, each in running.items():
        middle, waited = (statistics.median(v[1:]) for v in (each.times, each.waits))
        row = f"{1000 * middle:.1f} | {base / middle:.2f} | {1000 * waited:.1f}"
        print(f"| {contender.name} | {row} |")


if __name__ == "__main__":
    main()
