"""Know before you run: what a training step takes, without a GPU and without its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from treadle.batches import apply
from treadle.data import DataModule, training_stream
from treadle.errors import ConfigError, DataError
from treadle.estimating.estimate import Estimate, estimate_of
from treadle.estimating.layout import Layout, layout_of
from treadle.estimating.ledger import Ledger
from treadle.estimating.rehearsal import Rehearsal
from treadle.module import Module
from treadle.precision import Precision, precision_for
from treadle.seeding import isolated_rng
from treadle.splitting import split
from treadle.strategies import Strategy

__all__ = ["Estimate", "Layout", "Ledger", "estimate", "estimate_of_a_fit", "report"]


def estimate(
    module: nn.Module,
    batch: Any,
    *,
    optimizer_of: Callable[[Any], Any] | None = None,
    ranks: int = 1,
    strategy: str | Strategy | Layout = "auto",
    precision: str | int | Precision = "32-true",
    accumulate: int = 1,
) -> Estimate:
    """Parameters, memory and FLOPs of one training step on ``batch``.

    Two steps of a copy are run whose tensors have shapes and no memory. On one rank and with DDP, weights, gradients,
    optimizer state, activations and the peak are to the byte those of torch's CPU allocator, but for what a kernel takes
    and frees inside of itself; other devices have kernels and an allocator of their own. With sharding they are divided as
    the strategy does, and the peak is approximate.

    Args:
        module: A treadle Module, real or made on the ``meta`` device. It stays as it is.
        batch: One batch of one rank: from a loader, or any tensors of its shapes in tuples, lists and dicts.
        optimizer_of: What makes the optimizers of a module; default: its ``configure_optimizers``.
        ranks: How many there are.
        strategy: A name, an object of one, or the :class:`Layout` it amounts to.
        precision: A name, or an object made for the CPU.
        accumulate: Batches in a step.

    Raises:
        ConfigError: The strategy doesn't fit the ranks; an unknown name.
        ModuleError: The module has lazy layers, or holds what can't be copied.
    """
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ConfigError(f"accumulate={accumulate!r}.", why="a step is of one batch or several.", fix="accumulate=1")
    layout = layout_of(strategy, ranks)
    chosen = precision_for("bf16-mixed" if precision == "float8" else precision)
    with isolated_rng():
        rehearsal = Rehearsal(
            module, batch, precision=chosen, layout=layout, keeps=layout.keeps_gradients or accumulate > 1
        )
        measured = rehearsal.measure(optimizer_of)
    if precision == "float8":  # which only some GPUs can compute in
        measured.problems.append(
            "float8 is counted as bf16-mixed: copies of linear layers' weights and inputs are smaller"
        )
    return estimate_of(
        measured,
        layout,
        module=type(module).__name__,
        precision="float8" if precision == "float8" else chosen.name,
        compute=chosen.compute,
        accumulate=accumulate,
    )


def report(module: Module, data: Any = None, **settings: Any) -> str:
    """:func:`estimate_of_a_fit` in words."""
    return estimate_of_a_fit(module, data, **settings).described()


def estimate_of_a_fit(
    module: Module,
    data: Any = None,
    *,
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str | Strategy | Layout = "auto",
    precision: str | int | Precision = "32-true",
    accumulate_grad_batches: int = 1,
    micro_batch_size: int | None = None,
) -> Estimate:
    """The estimate for the first batch that a fit would read. The arguments have the Trainer's names.

    Args:
        module: See :func:`estimate`.
        data: A DataModule, a loader or several; None: the module's own.
        devices: Ranks on each node, which this machine need not have.
        micro_batch_size: Samples of the batch in one pass; the others lie on the device meanwhile.

    Raises:
        ConfigError: See :func:`estimate`; ``num_nodes`` or ``micro_batch_size`` is less than 1.
        DataError: There is no batch, or it can't be split.
    """
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int) or num_nodes < 1:
        raise ConfigError(f"num_nodes={num_nodes!r} makes no sense.", why="it is how many machines.", fix="num_nodes=1")
    with isolated_rng():
        batch = first_batch(module if data is None else data)
    parts = [batch] if micro_batch_size is None else [part.batch for part in split(batch, micro_batch_size)]
    found = estimate(
        module,
        apply(parts[0], Tensor.clone) if len(parts) > 1 else batch,  # else a view of all samples
        ranks=devices * num_nodes,
        strategy=strategy,
        precision=precision,
        accumulate=accumulate_grad_batches * len(parts),
    )
    rest = sum(leaf.nbytes for part in parts[1:] for leaf in tree_leaves(part) if isinstance(leaf, Tensor))
    return replace(found, batch=found.batch + rest, peak=None if found.peak is None else found.peak + rest)


def first_batch(data: Any) -> Any:
    """The first batch of training data: of a DataModule, which is set up, of a Module's own loader, or of loaders.

    Raises:
        DataError: There is none.
    """
    if isinstance(data, (DataModule, Module)):
        if isinstance(data, DataModule):
            data.prepare_data()
            data.setup("fit")
        data = data.train_dataloader()
    stream = training_stream(data, name="the train loader")
    try:
        for batch in stream:
            return batch
    finally:
        stream.close()
    raise DataError(
        "the train loader gave no batch.", why="an estimate is of a step on one.", fix="check the size of the data set."
    )
