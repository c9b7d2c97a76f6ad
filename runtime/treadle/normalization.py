"""Batch normalization over the batches of all ranks."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from treadle.collectives import Ranks


@final
class SyncBatchNorm(_BatchNorm):
    """Mean and variance over the samples of all ranks, however many each has; on any device, unlike torch's own.

    In eval mode as any batch normalization. Every training forward is collective: one all-reduce, and one in its backward.
    """

    ranks: Ranks

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name for it
        if input.dim() < 2:
            raise ValueError(f"batch normalization of a tensor of shape {tuple(input.shape)}: it has no channels")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        uses_batch = self.training or self.running_mean is None
        if not uses_batch or self.ranks.size == 1:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        here = 0.0 if self.ranks.repeats else 1.0
        count = wide.new_full((1,), here * wide.numel() / wide.shape[1])
        total = self.ranks.total(torch.cat([here * wide.sum(axes), count]))
        mean = total[:-1] / total[-1]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        squares = self.ranks.total(here * (wide - mean.view(shape)).square().sum(axes))
        variance = squares / total[-1]
        if self.training and self.track_running_stats:
            self._remember(mean.detach(), squares.detach(), total[-1].detach())
        result = (wide - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        normalized: Tensor = result.to(input.dtype)
        return normalized

    def _remember(self, mean: Tensor, squares: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate: Any = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_((squares / (count - 1)).to(self.running_var.dtype), rate)


def convert(module: nn.Module, ranks: Ranks) -> nn.Module:
    """``module`` with each batch normalization in it replaced by one over all ranks, its parameters and statistics the same
    tensors. Changed in place, but for a module that is one itself."""
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        synced = SyncBatchNorm(
            module.num_features,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
            device="meta",
        )
        synced.weight, synced.bias = module.weight, module.bias
        for name, buffer in module._buffers.items():
            synced._buffers[name] = buffer
        synced.train(module.training)
        synced.ranks = ranks
        return synced
    for name, child in module.named_children():
        replacement = convert(child, ranks)
        if replacement is not child:
            setattr(module, name, replacement)
    return module
