"""Numbers about a model that help to find out what is wrong with it, or how much it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import ConfigError


def grad_norm(module: nn.Module, norm_type: float | str = 2, group_separator: str = "/") -> dict[str, Tensor]:
    """The norm of each parameter's gradient, and of all of them together; to be logged with ``self.log_dict`` in
    ``on_before_optimizer_step``.

    Args:
        module: Whose parameters; those without a gradient are left out.
        norm_type: The p of the norm, above 0; ``"inf"`` for the largest element.
        group_separator: Stands between the kind of norm and the parameter's name.

    Returns:
        Tensors of shape ``()``, on the gradients' devices: ``grad_2.0_norm/layer.weight``, ..., and
        ``grad_2.0_norm_total``. Empty without gradients. Does not sync.

    Raises:
        ConfigError: A norm that there isn't.
    """
    try:
        p = float(norm_type)
    except ValueError:
        p = 0.0
    if not p > 0:
        raise ConfigError(
            f"grad_norm(norm_type={norm_type!r}).", why='a norm has a p above 0, or "inf".', fix="grad_norm(self, 2)"
        )
    norms = {
        f"grad_{p}_norm{group_separator}{name}": parameter.grad.detach().norm(p)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    if norms:
        norms[f"grad_{p}_norm_total"] = torch.stack(list(norms.values())).norm(p)
    return norms


def measure_flops(
    forward: Callable[[], Any], loss_of: Callable[[Any], Tensor] | None = None, *, display: bool = False
) -> int:
    """Floating point operations of one call, as torch counts them (matrix products, convolutions, attention).

    On the ``meta`` device nothing is computed and no memory taken: ``with torch.device("meta"): model = MyModel()``.

    Args:
        forward: Runs the model, for example ``lambda: model(batch)``.
        loss_of: From its result to a loss; its backward is counted, too, and gradients are left in the parameters.
        display: Print a table by submodule.

    Source:
        ``torch.utils.flop_counter``
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=display) as counter:
        result = forward()
        if loss_of is not None:
            loss_of(result).backward()
    return int(counter.get_total_flops())
