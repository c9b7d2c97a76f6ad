"""Numbers about a model."""

from typing import Any

import pytest
import torch
from torch import nn

from treadle.diagnostics import grad_norm, measure_flops
from treadle.errors import ConfigError
from treadle.testing import Classifier, MemoryLogger, Points


class TestGradientNorms:
    def test_are_one_for_each_parameter_and_one_for_all(self) -> None:
        layer = nn.Linear(1, 1)
        layer.weight.grad, layer.bias.grad = torch.tensor([[3.0]]), torch.tensor([-4.0])
        assert {name: float(norm) for name, norm in grad_norm(layer).items()} == {
            "grad_2.0_norm/weight": 3.0,
            "grad_2.0_norm/bias": 4.0,
            "grad_2.0_norm_total": 5.0,
        }
        assert float(grad_norm(layer, "inf")["grad_inf_norm_total"]) == 4.0

    def test_leave_out_what_has_no_gradient(self) -> None:
        assert grad_norm(nn.Linear(1, 1)) == {}

    @pytest.mark.parametrize("p", [0, -1, "two"])
    def test_of_no_such_kind_are_an_error(self, p: Any) -> None:
        with pytest.raises(ConfigError, match="norm_type"):
            grad_norm(nn.Linear(1, 1), p)

    def test_can_be_logged(self, make_bare: Any) -> None:
        class Watches(Classifier):
            def on_before_optimizer_step(self, optimizer: Any) -> None:
                self.log_dict(grad_norm(self.layers[0]))

        logger = MemoryLogger()
        make_bare(logger=logger, log_every_n_steps=1).fit(Watches(), datamodule=Points())
        assert logger.rows[0]["grad_2.0_norm_total"] > 0


class TestOperations:
    def test_are_those_of_a_matrix_product_and_its_backward(self) -> None:
        """Two for each multiply and add: 2 x 8 x 4 x 3 forward; backward the same for the weights (and the inputs)."""
        layer, batch = nn.Linear(4, 3, bias=False), torch.ones(8, 4)
        assert measure_flops(lambda: layer(batch)) == 2 * 8 * 4 * 3
        assert measure_flops(lambda: layer(batch), lambda out: out.sum()) == 2 * 2 * 8 * 4 * 3

    def test_are_counted_without_computing(self) -> None:
        with torch.device("meta"):
            layer, batch = nn.Linear(4096, 4096), torch.ones(1024, 4096)
        assert measure_flops(lambda: layer(batch)) == 2 * 1024 * 4096 * 4096
