"""What one rank of thousands pays: FSDP and a mesh set up, one step, the plan of a sharded checkpoint.

python benchmarks/ranks_at_scale.py [--plot FILE] [--ranks 8 64 1024 16384]

torch's ``fake`` process group stands for the other ranks: their collectives return at once, with nothing in them. So
this is what rank 0 itself does and holds, without the time on the wire. Each row is a process of its own.

The mesh is flat: weights are split over the eight ranks of a node, however many nodes there are. What grows is the time
for its groups, since torch makes an object for each group of the job, also for those that rank 0 isn't in. FSDP over all
ranks is flat up to about as many ranks as the parameters have rows. Beyond, most ranks have no row of most parameters,
and still each takes part: ``fully_shard`` makes an empty tensor for each rank and parameter, and gathers, which it pads
to one row per rank, are larger than the weights. So at thousands of ranks, use the mesh.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pickle
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RANKS = (8, 64, 1024, 16384)
NODE = 8
"""Ranks of a node: the mesh splits layers over 2 of them and weights over 4, and repeats that on every node."""
STRATEGIES = ("fsdp", "mesh")
PHASES = ("groups", "place", "first step", "step", "plan")
MEMORY = ("weights and moments", "peak")


def measure(strategy: str, count: int) -> dict[str, float]:
    """Seconds of each phase and megabytes, of rank 0 among ``count``."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel
    from torch import Tensor, nn
    from torch.distributed.checkpoint import DefaultSavePlanner
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from treadle.collectives import Ranks
    from treadle.environments import World
    from treadle.precision import FullPrecision
    from treadle.strategies.fsdp import FSDP
    from treadle.strategies.mesh import Mesh

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (-1, 3, 64)).permute(3, 0, 2, 1, 4)
            x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            down: Tensor = self.down(torch.relu(self.up(x)))
            return x + down

    class Language(nn.Module):
        def __init__(self, width: int = 512, depth: int = 6, tokens: int = 4096) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(tokens, width), nn.Linear(width, tokens)
            self.blocks = nn.ModuleList(Block(width) for _ in range(depth))

        def training_step(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for block in self.blocks:
                x = block(x)
            logits = self.head(x)
            return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    torch.set_num_threads(1)
    warm_up(torch)
    found: dict[str, float] = {}
    base = resident()

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        found[phase] = time.perf_counter() - start

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    ranks = Ranks(World(rank=0, size=count, started=True), torch.device("cpu"))
    plan = {"blocks.*.qkv": "colwise", "blocks.*.out": "rowwise", "blocks.*.up": "colwise", "blocks.*.down": "rowwise"}
    makers: dict[str, Callable[[], Any]] = {
        "fsdp": FSDP,
        "mesh": lambda: Mesh(data="auto", shard=NODE // 2, tensor=2, plan=plan),  # type: ignore[arg-type]
    }
    sharding = makers[strategy]()
    with timed("groups"):
        sharding.start(ranks, FullPrecision())
    with torch.device("meta"):
        module = Language()
    with timed("place"):
        sharding.place(module)
    step = sharding.method(module, "training_step")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    batch = torch.randint(4096, (2, 128))
    for phase in ("first step", "step"):
        with timed(phase):
            step(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()["state"]}
    with timed("plan"):
        planner = DefaultSavePlanner()
        planner.set_up_planner(state, is_coordinator=True)
        local = planner.create_local_plan()
        planner.create_global_plan([local])
    parts = [p.to_local() for p in module.parameters()]  # type: ignore[operator]
    found["weights and moments"] = 3 * sum(part.numel() * part.element_size() for part in parts) / 1e6
    found["peak"] = peak() - base
    found["sent to rank 0"] = len(pickle.dumps(local)) / 1e6
    found["parameters"] = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    return found


def warm_up(torch: Any) -> None:
    """What the first use of torch costs, once in a process, on any number of ranks."""
    x = torch.randn(64, 64, requires_grad=True)
    torch.optim.AdamW([x], fused=True)
    torch.nn.functional.cross_entropy(x @ x, torch.zeros(64, dtype=torch.int64)).backward()


def resident() -> float:
    """Megabytes that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def in_its_own_process(strategy: str, count: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", strategy, str(count)], check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(results: dict[tuple[str, int], dict[str, float]], ranks: list[int], file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    seconds, megabytes = figure.subplots(1, 2)
    for style, strategy in zip(("-", "--"), STRATEGIES, strict=True):
        for axes, names in ((seconds, PHASES), (megabytes, MEMORY)):
            for index, name in enumerate(names):
                values = [results[strategy, count][name] for count in ranks]
                axes.plot(ranks, values, style, marker="o", color=f"C{index}", label=f"{strategy}: {name}")
    for axes, title in ((seconds, "seconds of rank 0"), (megabytes, "megabytes of rank 0")):
        axes.set(xscale="log", yscale="log", xlabel="ranks", title=title, xticks=ranks, xticklabels=ranks)
        axes.minorticks_off()
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="multiples of 8")
    parser.add_argument("--plot", metavar="FILE", help="draw it, with matplotlib")
    parser.add_argument("--one", nargs=2, metavar=("STRATEGY", "RANKS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    if arguments.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    columns = [*PHASES, *MEMORY, "sent to rank 0"]
    print("rank 0: seconds of each phase, megabytes of memory beyond the imports, megabytes of its plan")
    print(f"{'':6}{'ranks':>8}" + "".join(f"{column:>{max(11, len(column) + 2)}}" for column in columns))
    results = {}
    for strategy in STRATEGIES:
        for count in arguments.ranks:
            results[strategy, count] = found = in_its_own_process(strategy, count)
            print(
                f"{strategy:6}{count:8,}" + "".join(f"{found[c]:{max(11, len(c) + 2)}.3f}" for c in columns), flush=True
            )
    if arguments.plot:
        draw(results, list(arguments.ranks), arguments.plot)


if __name__ == "__main__":
    main()
