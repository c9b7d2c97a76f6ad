"""Exports: what the file computes, what it says of itself, what is refused, and what a stranger's file can't do."""

import json
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import treadle
from treadle.callbacks import EMAWeightAveraging, ModelCheckpoint
from treadle.cli import run
from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.export import Manifest, TensorSpec, export, load_exported, read_manifest, read_weights
from treadle.testing import Classifier, Points

SUFFIXES = [".pt2", ".onnx"]


@pytest.fixture(autouse=True)
def _installed() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        pytest.importorskip(package)


class Network(nn.Module):
    """A convolution with batch normalization: its outputs depend on buffers and on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)
        )
        for _ in range(3):
            self.layers(torch.randn(8, 3, 8, 8))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)  # type: ignore[no-any-return]


class Pairs(nn.Module):
    """Several inputs, some in a dict, and several outputs in one another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, left: Tensor, others: dict[str, Tensor], scale: float = 2.0) -> dict[str, Any]:
        product = left @ self.weight.T
        return {
            "product": product * scale,
            "sums": (others["right"].sum(1), torch.cat([left, left])),
            "tokens": others["tokens"] + 1,
        }


def both(folder: Path, module: nn.Module, suffix: str, **settings: Any) -> Any:
    path = folder / f"model{suffix}"
    export(module, path, **settings)
    return load_exported(path)


def raw(tensor: Tensor) -> Tensor:
    """Its bytes."""
    return tensor.contiguous().flatten().view(torch.uint8)


class TestAProgram:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_computes_what_the_module_does_in_eval_mode(self, suffix: str, tmp_path: Path) -> None:
        """Also for batches of sizes that nobody exported it with."""
        network = Network()
        program = both(tmp_path, network, suffix, example=torch.randn(4, 3, 8, 8))
        network.eval()
        for size in (1, 2, 4, 9):
            image = torch.randn(size, 3, 8, 8)
            (found,) = program(image)
            torch.testing.assert_close(found, network(image).detach(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_takes_and_returns_several_tensors(self, suffix: str, tmp_path: Path) -> None:
        pairs = Pairs()
        given = (torch.randn(3, 3), {"right": torch.randn(3, 5), "tokens": torch.arange(3)})
        program = both(tmp_path, pairs, suffix, example=given)
        assert [str(spec) for spec in program.manifest.inputs] == [
            "left float32[batch, 3]",
            "others_right float32[batch, 5]",
            "others_tokens int64[batch]",
        ]
        assert [str(spec) for spec in program.manifest.outputs] == [
            "product float32[batch, 4]",
            "sums_0 float32[batch]",
            "sums_1 float32[2*batch, 3]",
            "tokens int64[batch]",
        ]
        left, right, tokens = torch.randn(7, 3), torch.randn(7, 5), torch.arange(7)
        product, sums, twice, next_tokens = program(left, right, tokens)
        torch.testing.assert_close(product, (left @ pairs.weight.T * 2).detach())
        torch.testing.assert_close(sums, right.sum(1))
        assert torch.equal(twice, torch.cat([left, left]))
        assert torch.equal(next_tokens, tokens + 1)

    def test_takes_arguments_by_name(self, tmp_path: Path) -> None:
        class Shifted(nn.Module):
            def forward(self, x: Tensor, shift: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
                x = x if shift is None else x + shift
                return x if mask is None else x * mask

        program = both(tmp_path, Shifted(), ".pt2", example={"mask": torch.zeros(2, 3), "x": torch.randn(2, 3)})
        assert {spec.name for spec in program.manifest.inputs} == {"x", "mask"}
        order = [spec.name for spec in program.manifest.inputs]
        given = {"x": torch.ones(4, 3), "mask": torch.full((4, 3), 0.5)}
        assert torch.equal(program(*(given[name] for name in order))[0], torch.full((4, 3), 0.5))

    def test_of_one_sample_takes_several(self, tmp_path: Path) -> None:
        """torch would take a size of 1 for a constant."""
        program = both(tmp_path, Network(), ".pt2", example=torch.randn(1, 3, 8, 8))
        assert program(torch.randn(6, 3, 8, 8))[0].shape == (6, 5)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_of_a_fixed_batch_takes_no_other(self, suffix: str, tmp_path: Path) -> None:
        program = both(tmp_path, Network(), suffix, example=torch.randn(4, 3, 8, 8), dynamic_batch=False)
        assert program.manifest.inputs == (TensorSpec("image", "float32", (4, 3, 8, 8)),)
        with pytest.raises(ConfigError, match=r"input 'image' is float32\[2, 3, 8, 8\]"):
            program(torch.randn(2, 3, 8, 8))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_refuses_inputs_that_dont_fit(self, suffix: str, tmp_path: Path) -> None:
        program = both(
            tmp_path,
            Pairs(),
            suffix,
            example=(torch.randn(3, 3), {"right": torch.randn(3, 5), "tokens": torch.arange(3)}),
        )
        left, right, tokens = torch.randn(2, 3), torch.randn(2, 5), torch.arange(2)
        with pytest.raises(ConfigError, match="2 inputs where there are 3"):
            program(left, right)
        with pytest.raises(ConfigError, match=r"'others_right' is float32\[1, 5\]"):
            program(left, right[:1], tokens)
        with pytest.raises(ConfigError, match="'left' is float64"):
            program(left.double(), right, tokens)

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_may_leave_an_input_unused(self, suffix: str, tmp_path: Path) -> None:
        class First(nn.Module):
            def forward(self, first: Tensor, second: Tensor) -> Tensor:
                return first * 2

        program = both(tmp_path, First(), suffix, example=(torch.randn(2, 3), torch.randn(2, 1)))
        assert torch.equal(program(torch.ones(3, 3), torch.ones(3, 1))[0], torch.full((3, 3), 2.0))

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_may_hold_recurrence_and_attention(self, suffix: str, tmp_path: Path) -> None:
        """And says nothing of torch's own doubts about its layers."""

        class Reader(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(10, 8)
                self.memory = nn.LSTM(8, 8, batch_first=True)
                self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

            def forward(self, tokens: Tensor) -> Tensor:
                seen, _ = self.memory(self.embedding(tokens))
                return self.attention(seen).mean(1)  # type: ignore[no-any-return]

        program = both(tmp_path, Reader(), suffix, example=torch.randint(0, 10, (3, 5)))
        assert program(torch.randint(0, 10, (4, 5)))[0].shape == (4, 8)

    def test_may_decide_by_value_with_cond(self, tmp_path: Path) -> None:
        class Signed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))  # type: ignore[no-any-return]

        program = both(tmp_path, Signed(), ".pt2", example=torch.randn(3, 2))
        assert torch.equal(program(torch.ones(2, 2))[0], torch.full((2, 2), 2.0))
        assert torch.equal(program(-torch.ones(2, 2))[0], torch.full((2, 2), -2.0))

    def test_in_half_precision_keeps_it(self, tmp_path: Path) -> None:
        program = both(tmp_path, nn.Linear(3, 2).bfloat16(), ".pt2", example=torch.randn(4, 3).bfloat16())
        assert program.manifest.outputs[0].dtype == "bfloat16"
        assert program(torch.randn(2, 3).bfloat16())[0].dtype == torch.bfloat16


class TestTheModule:
    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors"])
    def test_stays_as_it_is(self, suffix: str, tmp_path: Path) -> None:
        """Weights, buffers, what requires gradients, and the mode of each part."""
        module = Network()
        module.layers[1].eval()
        module.layers[0].weight.requires_grad_(False)
        module.layers[5].weight.grad = torch.ones_like(module.layers[5].weight)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        modes = [part.training for part in module.modules()]
        export(module, tmp_path / f"model{suffix}", example=torch.randn(4, 3, 8, 8))
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        assert [part.training for part in module.modules()] == modes
        assert not module.layers[0].weight.requires_grad
        assert module.layers[5].weight.requires_grad
        assert module.layers[5].weight.grad is not None

    def test_keeps_its_buffers_even_if_forward_counts(self, tmp_path: Path) -> None:
        class Counting(nn.Module):
            calls: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x: Tensor) -> Tensor:
                self.calls += 1
                return x + self.calls

        module = Counting()
        program = both(tmp_path, module, ".pt2", example=torch.zeros(2, 1))
        assert module.calls == 0
        assert [float(program(torch.zeros(1, 1))[0]) for _ in range(2)] == [1.0, 2.0]

    def test_may_be_in_the_middle_of_a_run(self, tmp_path: Path, make_bare: Callable[..., treadle.Trainer]) -> None:
        class Exporting(treadle.callbacks.Callback):
            def on_train_epoch_end(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
                export(module, tmp_path / f"{trainer.current_epoch}.pt2", example=torch.randn(2, 2))
                assert module.training

        module = Classifier()
        make_bare(max_epochs=2, callbacks=[Exporting()]).fit(module, datamodule=Points())
        point = torch.randn(3, 2)
        first, last = (load_exported(tmp_path / f"{epoch}.pt2")(point)[0] for epoch in range(2))
        torch.testing.assert_close(last, module.eval()(point).detach())
        assert not torch.allclose(first, last)


class TestTheExample:
    def test_is_what_the_modules_own_step_gives_to_forward(self, tmp_path: Path) -> None:
        """A batch of Points is (index, point, class): nobody has to say which of them is the input."""
        module = Classifier()
        export(module, tmp_path / "model.pt2", data=Points(batch_size=3))
        assert read_manifest(tmp_path / "model.pt2").inputs == (TensorSpec("points", "float32", ("batch", 2)),)
        assert module.seen == []

    def test_is_the_modules_own_if_it_has_one(self, tmp_path: Path) -> None:
        module = Classifier()
        module.example_input_array = torch.zeros(5, 2)
        export(module, tmp_path / "model.pt2", data=Points(), dynamic_batch=False)
        assert read_manifest(tmp_path / "model.pt2").inputs[0].shape == (5, 2)

    def test_comes_from_the_training_data_if_there_is_no_other(self, tmp_path: Path) -> None:
        class OnlyTraining(treadle.DataModule):
            stages: list[str] = []  # noqa: RUF012 - shared on purpose

            def setup(self, stage: str) -> None:
                self.stages.append(stage)
                self.points = TensorDataset(torch.arange(8), torch.randn(8, 2), torch.zeros(8).long())

            def train_dataloader(self) -> Any:
                return DataLoader(self.points, 4, shuffle=True)

        module = Classifier()
        before = torch.get_rng_state()
        export(module, tmp_path / "model.pt2", data=OnlyTraining())
        assert OnlyTraining.stages == ["fit"]
        assert read_manifest(tmp_path / "model.pt2").inputs[0].shape == ("batch", 2)
        assert module.seen == []
        assert torch.equal(torch.get_rng_state(), before)

    def test_goes_through_the_hooks_around_its_transfer(self, tmp_path: Path) -> None:
        class Halved(Points):
            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                return [part[:2] for part in batch]

        export(Classifier(), tmp_path / "model.pt2", data=Halved(batch_size=4), dynamic_batch=False)
        assert read_manifest(tmp_path / "model.pt2").inputs[0].shape == (2, 2)

    def test_has_to_be_given_where_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no example of what forward of Network takes") as error:
            export(Network(), tmp_path / "model.pt2")
        assert "example_input_array" in error.value.fix
        with pytest.raises(ConfigError, match="there is no loader for prediction, validation or training"):
            export(Classifier(), tmp_path / "model.pt2")

    def test_that_cant_be_found_says_what_was_tried(self, tmp_path: Path) -> None:
        class Around(Classifier):
            def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
                return self.layers(batch[1])

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                raise KeyError("nothing")

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return self(batch[0]).mean()  # of the wrong shape

        with pytest.raises(ConfigError, match="predict_step doesn't call self") as error:
            export(Around(), tmp_path / "model.pt2", data=Points())
        assert "KeyError: 'nothing'" in error.value.why
        assert "training_step of train_dataloader's first batch" in error.value.why

    @pytest.mark.parametrize(
        "given,says",
        [
            ((torch.zeros(2, 2), 3), "is given a int"),
            ({"point": torch.zeros(2, 2)}, "'point', which forward of Classifier doesn't take"),
        ],
    )
    def test_is_of_tensors_for_arguments_there_are(self, given: Any, says: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=says):
            export(Classifier(), tmp_path / "model.pt2", example=given)


class TestTheCheck:
    """A file gets its name once it computes what the module does."""

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_fails_with_numbers_where_they_differ(self, suffix: str, tmp_path: Path) -> None:
        class Lying(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * (1.5 if torch.compiler.is_exporting() else 1.0)

        with pytest.raises(ModuleError, match=r"'output' differs by up to 1.5, in 2 of 2 elements") as error:
            export(Lying(), tmp_path / f"model{suffix}", example=torch.tensor([[1.0, 3.0]]))
        assert "at [0, 1] it is 4.5 in place of 3," in error.value.what
        assert "for a batch of 1" in error.value.what
        assert list(tmp_path.iterdir()) == []

    def test_allows_what_it_was_told_to(self, tmp_path: Path) -> None:
        class Nearly(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + (0.01 if torch.compiler.is_exporting() else 0.0)

        with pytest.raises(ModuleError, match="computes something else"):
            export(Nearly(), tmp_path / "model.pt2", example=torch.ones(2, 2))
        written = export(Nearly(), tmp_path / "model.pt2", example=torch.ones(2, 2), atol=0.02)
        assert written.checked is not None
        assert written.checked.largest_difference == pytest.approx(0.01, rel=1e-4)
        assert written.checked.batch_sizes == (1, 2, 3)
        assert "largest difference 0.01" in str(written)

    def test_names_a_forward_that_draws_random_numbers(self, tmp_path: Path) -> None:
        class Noisy(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + torch.rand_like(x)

        with pytest.raises(ModuleError, match="called twice with the same inputs, in eval mode, it gives two results"):
            export(Noisy(), tmp_path / "model.pt2", example=torch.zeros(2, 2))
        assert list(tmp_path.iterdir()) == []

    def test_counts_infinities_and_nans_as_equal(self, tmp_path: Path) -> None:
        class Logarithm(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.log()

        written = export(Logarithm(), tmp_path / "model.pt2", example=torch.tensor([[0.0, -1.0, 1.0]]))
        assert written.checked is not None
        assert written.checked.largest_difference == 0.0

    def test_leaves_the_file_that_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pt2"
        export(Network(), path, example=torch.randn(2, 3, 8, 8))
        before = path.read_bytes()

        class Lying(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * (2 if torch.compiler.is_exporting() else 1)

        with pytest.raises(ModuleError):
            export(Lying(), path, example=torch.ones(2, 2))
        assert path.read_bytes() == before
        assert [found.name for found in tmp_path.iterdir()] == ["model.pt2"]

    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors"])
    def test_of_a_file_that_the_disk_has_no_room_for_leaves_nothing(self, suffix: str, tmp_path: Path) -> None:
        """And the process lives on, also at its end. The room is a limit on the size of files."""
        code = (
            "import resource, signal, sys; from pathlib import Path; import torch; from treadle.export import export\n"
            "from treadle.errors import CheckpointError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "try: export(torch.nn.Linear(300, 300), Path(sys.argv[1]), example=torch.ones(2, 300))\n"
            "except CheckpointError as error: print(error.what)\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path / f"model{suffix}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, f"{tmp_path / f'model{suffix}'} was not written.\n"), done.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("setting", ["atol", "rtol"])
    @pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True])
    def test_takes_numbers_that_mean_something(self, setting: str, value: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=f"{setting}="):
            export(Network(), tmp_path / "model.pt2", example=torch.ones(2, 3, 8, 8), **{setting: value})


class TestAForwardThatCantBeExported:
    def test_is_told_in_one_line_why_and_where(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """And in nothing else: torch's graphs and logs are for those who work on it."""

        class Deciding(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.sum() > 0 else -x

        with pytest.raises(ModuleError, match="forward of Deciding can't be exported") as error:
            export(Deciding(), tmp_path / "model.pt2", example=torch.ones(2, 2))
        assert "data-dependent" in error.value.why
        assert "x if x.sum() > 0 else -x" in error.value.why
        assert "torch.cond" in error.value.fix
        assert capfd.readouterr() == ("", "")
        assert len(str(error.value).splitlines()) == 3

    def test_of_one_batch_size_alone_is_told_so(self, tmp_path: Path) -> None:
        class Fixed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.view(4, -1) * 1.0

        with pytest.raises(ModuleError, match="doesn't take any size of the batch") as error:
            export(Fixed(), tmp_path / "model.pt2", example=torch.ones(4, 2))
        assert "dynamic_batch=False" in error.value.fix
        assert len(str(error.value).splitlines()) == 3
        export(Fixed(), tmp_path / "model.pt2", example=torch.ones(4, 2), dynamic_batch=False)

    def test_that_fails_by_itself_is_told_so(self, tmp_path: Path) -> None:
        with pytest.raises(ModuleError, match="forward of Linear fails for the example") as error:
            export(nn.Linear(3, 1), tmp_path / "model.pt2", example=torch.ones(4, 2))
        assert "mat1 and mat2 shapes cannot be multiplied (4x2 and 3x1)" in error.value.why

    def test_may_raise_what_it_asserts(self, tmp_path: Path) -> None:
        class Distinct(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.unique()

        assert len(both(tmp_path, Distinct(), ".pt2", example=torch.ones(4, 2))(torch.ones(3, 2))[0]) == 1

    def test_returns_containers_that_need_no_code(self, tmp_path: Path) -> None:
        class Named(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return namedtuple("Result", "first second")(x, x + 1)

        with pytest.raises(ModuleError, match="Named can't be written as"):
            export(Named(), tmp_path / "model.pt2", example=torch.ones(4, 2))
        assert list(tmp_path.iterdir()) == []
        program = both(tmp_path, Named(), ".onnx", example=torch.ones(4, 2))
        assert [spec.name for spec in program.manifest.outputs] == ["first", "second"]

    def test_returns_tensors(self, tmp_path: Path) -> None:
        class Sized(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return x, {"size": x.shape[0]}

        with pytest.raises(ModuleError, match="returns a SymInt as 'output_1_size'"):
            export(Sized(), tmp_path / "model.pt2", example=torch.ones(4, 2))

    def test_may_return_none_beside_them(self, tmp_path: Path) -> None:
        class Optional(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return {"logits": x + 1, "loss": None}

        program = both(tmp_path, Optional(), ".pt2", example=torch.ones(4, 2))
        assert [spec.name for spec in program.manifest.outputs] == ["logits"]
        assert len(program(torch.ones(1, 2))) == 1


class TestTheManifest:
    @pytest.mark.parametrize("suffix", [*SUFFIXES, ".safetensors"])
    def test_says_what_the_weights_come_from(
        self, suffix: str, tmp_path: Path, make_trainer: Callable[..., treadle.Trainer]
    ) -> None:
        trainer = make_trainer(max_epochs=2)
        trainer.fit(Classifier(), datamodule=Points())
        assert isinstance(trainer.checkpoint_callback, ModelCheckpoint)
        checkpoint = Path(trainer.checkpoint_callback.best_model_path)
        module = Classifier.load_from_checkpoint(checkpoint)
        written = export(module, tmp_path / f"model{suffix}", data=Points(), checkpoint=checkpoint)
        found = read_manifest(tmp_path / f"model{suffix}")
        assert found == written.manifest
        assert (found.format, found.model) == (1, "Classifier")
        assert (found.epoch, found.global_step, found.created_from) == (1, 10, checkpoint.name)
        assert (found.treadle_version, found.torch_version) == (treadle.__version__, str(torch.__version__))
        names = [spec.name for spec in (*found.inputs, *found.outputs)]
        assert names == ([] if suffix == ".safetensors" else ["points", "output"])

    def test_is_json_and_back(self) -> None:
        manifest = Manifest.here("Net", (TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("y", "bool", ()),))
        assert Manifest.from_json(manifest.to_json(), Path("x")) == manifest
        assert json.loads(manifest.to_json())["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"format": True, "model": 3},
            {"inputs": [{"name": "x", "dtype": "load", "shape": []}]},
            {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]},
            {"inputs": [{"name": "x", "dtype": "float32", "shape": [1.5]}]},
            {"inputs": ["x"]},
            {"outputs": None},
            {"epoch": "1"},
        ],
    )
    def test_of_another_format_or_of_nonsense_is_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError):
            Manifest.from_json(json.dumps({**json.loads(Manifest.here("Net").to_json()), **change}), Path("model.pt2"))


class TestWeights:
    def test_are_bit_for_bit_the_modules(self, tmp_path: Path) -> None:
        """NaNs and numbers of every type included."""
        module = Network()
        module.register_buffer("odd", torch.tensor([float("nan"), -0.0, float("inf")]))
        module.register_buffer("short", torch.randn(3).bfloat16())
        module.register_buffer("flag", torch.tensor(True))
        module.register_buffer("empty", torch.empty(0, 3))
        module.register_buffer("part", torch.arange(12.0).view(3, 4).t()[1:])
        written = export(module, tmp_path / "model.safetensors")
        found = read_weights(tmp_path / "model.safetensors")
        assert found.keys() == module.state_dict().keys()
        for name, value in module.state_dict().items():
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
            assert torch.equal(raw(found[name]), raw(value))
        assert "bit for bit" in str(written)

    def test_that_are_tied_are_stored_once(self, tmp_path: Path) -> None:
        """And the usual loader of the format takes them, by either name."""
        from safetensors.torch import load_model

        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(100, 50)
                self.head = nn.Linear(50, 100, bias=False)
                self.head.weight = self.embedding.weight

        module, fresh, path = Tied(), Tied(), tmp_path / "model.safetensors"
        export(module, path)
        assert path.stat().st_size < 1.5 * module.head.weight.nbytes
        assert torch.equal(read_weights(path)["head.weight"], module.embedding.weight)
        load_model(fresh, path)
        assert torch.equal(fresh.head.weight, module.head.weight)
        assert fresh.head.weight is fresh.embedding.weight

    def test_that_are_no_tensors_are_refused(self, tmp_path: Path) -> None:
        class Extra(nn.Linear):
            def get_extra_state(self) -> Any:
                return {"a": 1}

        with pytest.raises(ModuleError, match="'_extra_state' in the state of Extra is a dict"):
            export(Extra(2, 2), tmp_path / "model.safetensors")
        assert list(tmp_path.iterdir()) == []

    def test_may_be_read_by_whoever_may_read_other_new_files(self, tmp_path: Path) -> None:
        export(Network(), tmp_path / "model.safetensors")
        (tmp_path / "other").touch()
        assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode

    @pytest.mark.parametrize("length", [0, 4, 30, 200])
    def test_that_are_cut_off_are_damaged(self, length: int, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        export(Network(), path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(CheckpointError):
            read_weights(path)


class TestTheCard:
    def make(self, folder: Path, make_trainer: Callable[..., treadle.Trainer], **settings: Any) -> str:
        trainer = make_trainer(max_epochs=1)
        trainer.fit(Classifier(hidden=3), datamodule=Points())
        trainer.save_checkpoint(folder / "run.ckpt")
        module = Classifier.load_from_checkpoint(folder / "run.ckpt")
        export(module, folder / "model.safetensors", checkpoint=folder / "run.ckpt", **settings)
        return (folder / "model.md").read_text(encoding="utf-8")

    def test_says_what_it_is_and_where_it_comes_from(
        self, tmp_path: Path, make_trainer: Callable[..., treadle.Trainer]
    ) -> None:
        card = self.make(tmp_path, make_trainer)
        assert card.startswith("# Classifier\n")
        assert "| hidden | 3 |" in card
        assert "run.ckpt, epoch 0, step 5" in card
        assert "| val_loss | 0." in card

    def test_says_how_to_load_it(self, tmp_path: Path, make_trainer: Callable[..., treadle.Trainer]) -> None:
        """What it says works."""
        card = self.make(tmp_path, make_trainer)
        code = card.split("```python\n")[1].split("```")[0].replace('"model.safetensors"', "path")
        names: dict[str, Any] = {"path": tmp_path / "model.safetensors"}
        exec(code, names)
        weights = read_weights(tmp_path / "model.safetensors")
        assert all(torch.equal(value, weights[name]) for name, value in names["module"].state_dict().items())

    def test_is_written_anew_until_somebody_edits_it(
        self, tmp_path: Path, make_trainer: Callable[..., treadle.Trainer]
    ) -> None:
        card, path = self.make(tmp_path, make_trainer), tmp_path / "model.md"
        written = export(Classifier(hidden=9), tmp_path / "model.safetensors")
        assert written.card == path
        assert "| hidden | 9 |" in path.read_text(encoding="utf-8")
        path.write_text(card + "Trained on a Tuesday.\n", encoding="utf-8")
        written = export(Classifier(hidden=5), tmp_path / "model.safetensors")
        assert written.card is None
        assert path.read_text(encoding="utf-8").endswith("Tuesday.\n")


class TestTheName:
    @pytest.mark.parametrize(
        "name,settings,fix",
        [
            ("model.pt", {}, "did you mean '.pt2'?"),
            ("model", {}, "use one of '.pt2', '.onnx', '.safetensors'."),
            ("model.pt2", {"format": "onx"}, "did you mean 'onnx'?"),
            ("model.pt2", {"format": "onnx"}, "name it 'model.onnx'."),
        ],
    )
    def test_says_the_format(self, name: str, settings: dict[str, str], fix: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as error:
            export(Network(), tmp_path / name, example=torch.ones(2, 3, 8, 8), **settings)  # type: ignore[arg-type]
        assert error.value.fix == fix

    def test_may_be_in_a_new_folder(self, tmp_path: Path) -> None:
        export(nn.Linear(2, 1), tmp_path / "new" / "er" / "model.pt2", example=torch.ones(2, 2))
        assert [path.name for path in (tmp_path / "new" / "er").iterdir()] == ["model.pt2"]

    def test_is_no_folders(self, tmp_path: Path) -> None:
        (tmp_path / "model.pt2").mkdir()
        with pytest.raises(ConfigError, match="is a folder"):
            export(nn.Linear(2, 1), tmp_path / "model.pt2", example=torch.ones(2, 2))
        with pytest.raises(CheckpointError, match="there is a folder of that name"):
            load_exported(tmp_path / "model.pt2")

    def test_of_weights_is_no_programs(self, tmp_path: Path) -> None:
        export(nn.Linear(2, 1), tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match="holds weights and no program"):
            load_exported(tmp_path / "model.safetensors")


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of a .pt2 file whose records were changed by somebody."""
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    other = path.with_name("other.pt2")
    with zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(f"other/{name}", content)
    return other


def with_json(record: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def changed(records: dict[str, bytes]) -> None:
        content = json.loads(records[record])
        change(content)
        records[record] = json.dumps(content).encode()

    return changed


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


class TestAStrangersFile:
    """A .pt2 file is read without executing anything that is in it, whatever torch's own loader would do."""

    @pytest.fixture
    def exported(self, tmp_path: Path) -> Path:
        class Doubled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([x, x * self.weight])

        export(Doubled(), tmp_path / "model.pt2", example=torch.ones(2, 3))
        return tmp_path / "model.pt2"

    def refused(self, path: Path, says: str) -> None:
        with pytest.raises(CheckpointError, match=says):
            load_exported(path)

    def test_that_was_only_packed_anew_is_read(self, exported: Path) -> None:
        """The tests below fail for what they change, and for nothing else."""
        assert load_exported(rewritten(exported, lambda records: None))(torch.ones(1, 3))[0].shape == (2, 3)

    def test_holds_nothing_of_the_data_or_the_machine(self, exported: Path) -> None:
        """The batch it was exported with, paths and lines of the code stay at home."""
        with zipfile.ZipFile(exported) as archive:
            (inputs,) = (name for name in archive.namelist() if "sample_inputs" in name)
            assert archive.getinfo(inputs).file_size == 0
            assert not [name for name in archive.namelist() if __file__.encode() in archive.read(name)]

    def test_with_pickled_inputs_is_refused(self, exported: Path, tmp_path: Path) -> None:
        torch.save(Bomb(tmp_path / "boom"), tmp_path / "bomb")
        with_bomb = (tmp_path / "bomb").read_bytes()
        path = rewritten(exported, lambda records: records.update({"data/sample_inputs/model.pt": with_bomb}))
        self.refused(path, "sample inputs, which are pickled")
        assert not (tmp_path / "boom").exists()
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever comes of it, the bomb went off first
            torch.export.load(path).module()
        assert (tmp_path / "boom").exists()

    def test_with_a_pickled_weight_is_refused(self, exported: Path) -> None:
        def pickled(config: Any) -> None:
            config["config"]["weight"]["use_pickle"] = True

        record = "data/weights/model_weights_config.json"
        self.refused(rewritten(exported, with_json(record, pickled)), "'weight' is no plain tensor")

    def test_with_a_pickled_object_is_refused(self, exported: Path) -> None:
        def custom(config: Any) -> None:
            config["config"]["thing"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}

        record = "data/constants/model_constants_config.json"
        self.refused(rewritten(exported, with_json(record, custom)), "'thing' is no plain tensor")

    @pytest.mark.parametrize(
        "record", ["data/aotinductor/model/model.so", "data/weights/model.pt", "models/other.json"]
    )
    def test_with_another_record_is_refused(self, record: str, exported: Path) -> None:
        self.refused(rewritten(exported, lambda records: records.update({record: b"{}"})), "it has a record")

    @pytest.mark.parametrize(
        "target",
        [
            "torch.hub.load",
            "torch.os.system",
            "math.__loader__.load_module",
            "_operator.methodcaller",
            "torch.ops.aten.from_file.default",
            "torch.ops.aten.save.default",
            "torch.ops.mine.own.default",
            "torch.ops.higher_order.call_torchbind",
            "torch.ops.load_library",
            "#mine",
        ],
    )
    def test_with_another_operator_is_refused(self, target: str, exported: Path) -> None:
        def calls(program: Any) -> None:
            program["graph_module"]["graph"]["nodes"][0]["target"] = target

        self.refused(rewritten(exported, with_json("models/model.json", calls)), "as 'target'")

    @pytest.mark.parametrize(
        "size",
        [
            "__import__('os').system('true')",
            "eval('1')",
            "Symbol('s0').func",
            "Mul('open(\\'boom\\')')",
            "Symbol('__import__')",
            "[s0 for s0 in (1,)]",
            "lambda: 1",
            "Max(*s0)",
            "exec",
            "s0 s1",
        ],
    )
    def test_with_code_in_place_of_a_size_is_refused(self, size: str, exported: Path) -> None:
        def sized(program: Any) -> None:
            (symbolic,) = program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][:1]
            symbolic["as_expr"]["expr_str"] = size

        self.refused(rewritten(exported, with_json("models/model.json", sized)), "as 'expr_str'")

    @pytest.mark.parametrize(
        "place,value,says",
        [
            (("guards_code",), ["__import__('os')"], "guards, which are Python code"),
            (("graph_module", "graph", "nodes", 0, "metadata"), {"torch_fn": "x;y"}, "metadata, which torch evaluates"),
            (("graph_module", "graph", "nodes", 0, "name"), "x = print(1)", "as 'name'"),
            (("graph_module", "graph", "inputs", 1, "as_tensor", "name"), "x=print(1)", "as 'name'"),
            (
                ("graph_module", "module_call_graph", 0, "signature", "forward_arg_names"),
                ["x=print(1)"],
                "as 'forward_arg",
            ),
            (
                ("graph_module", "module_call_graph", 0, "signature", "in_spec"),
                json.dumps([1, {"type": "builtins.dict", "context": '["x=print(1)"]', "children_spec": []}]),
                "as 'in_spec'",
            ),
            (
                ("graph_module", "module_call_graph", 0, "signature", "in_spec"),
                json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]),
                "as 'in_spec'",
            ),
            (
                ("graph_module", "module_call_graph", 0, "signature", "out_spec"),
                json.dumps(
                    [1, {"type": "builtins.dict", "context": '[{"__enum__": 1, "fqn": "os:x"}]', "children_spec": []}]
                ),
                "as 'out_spec'",
            ),
        ],
    )
    def test_with_what_becomes_source_code_is_refused(
        self, place: tuple[Any, ...], value: Any, says: str, exported: Path
    ) -> None:
        def changed(program: Any) -> None:
            for key in place[:-1]:
                program = program[key]
            assert place[-1] in program or isinstance(place[-1], int)
            program[place[-1]] = value

        self.refused(rewritten(exported, with_json("models/model.json", changed)), says)

    def test_of_other_makers_is_refused_with_the_way_to_load_it(self, tmp_path: Path) -> None:
        torch.export.save(torch.export.export(nn.Linear(2, 1), (torch.ones(2, 2),)), tmp_path / "model.pt2")
        self.refused(tmp_path / "model.pt2", "was not exported by treadle")

    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("kept", [0, 0.3, 0.9, 0.999])
    def test_that_is_cut_off_is_damaged(self, suffix: str, kept: float, tmp_path: Path) -> None:
        path = tmp_path / f"model{suffix}"
        export(nn.Linear(2, 1), path, example=torch.ones(2, 2))
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(CheckpointError) as error:
            load_exported(path)
        assert len(str(error.value).splitlines()) == 3
        with pytest.raises(CheckpointError):
            read_manifest(path)

    def test_with_a_flipped_bit_in_a_weight_is_damaged(self, exported: Path) -> None:
        content = bytearray(exported.read_bytes())
        at = content.index(torch.ones(3).numpy().tobytes())
        content[at] ^= 1
        exported.write_bytes(content)
        self.refused(exported, "is damaged")

    def test_as_onnx_of_other_makers_is_refused(self, tmp_path: Path) -> None:
        import onnx

        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", [x], [y]), ir_version=10)
        model.opset_import[0].version = 20
        onnx.save(model, tmp_path / "model.onnx")
        self.refused(tmp_path / "model.onnx", "was not exported by treadle")


class TestTheCommand:
    """``python -m my_project export``."""

    @pytest.fixture(autouse=True)
    def project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("jsonargparse")
        monkeypatch.chdir(tmp_path)

    def fit(self, *settings: str) -> treadle.Trainer:
        trainer = run(Classifier, Points, ["fit", "--trainer.max_epochs", "2", *QUIET, *settings])
        assert trainer is not None
        return trainer

    def export(self, *settings: str) -> None:
        assert run(Classifier, Points, ["export", *settings]) is None

    def test_writes_the_best_checkpoint(self, capsys: pytest.CaptureFixture[str]) -> None:
        trainer = self.fit("--model.hidden", "6")
        assert trainer.module is not None
        capsys.readouterr()
        self.export("--model.hidden", "6")
        said = capsys.readouterr().out
        assert said.startswith("model.pt2: Classifier from epoch=1-step=10.ckpt (epoch 1, step 10), ")
        assert said.endswith(
            "for batches of 1, 4, 5 are the module's: largest difference 0, allowed 0.0001 + 0.0001 * |value|\n"
        )
        point = torch.randn(3, 2)
        torch.testing.assert_close(load_exported(Path("model.pt2"))(point)[0], trainer.module.eval()(point).detach())

    def test_names_the_file_after_the_format(self) -> None:
        self.fit()
        self.export("--format", "onnx", "--ckpt_path", "last")
        self.export("--output", "weights.safetensors")
        assert {path.name for path in Path().iterdir()} == {"runs", "model.onnx", "weights.safetensors", "weights.md"}
        assert read_manifest(Path("model.onnx")).created_from == "last.ckpt"

    def test_takes_the_averaged_weights_that_predict_would(self) -> None:
        averaging = ["--trainer.callbacks+", "treadle.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay", "0.9"]
        trainer = self.fit(*averaging)
        assert trainer.module is not None
        (average,) = (callback for callback in trainer.callbacks if isinstance(callback, EMAWeightAveraging))
        self.export(*averaging, "--output", "averaged.safetensors")
        self.export("--output", "raw.safetensors")
        saved = torch.load(Path("runs/version_0/checkpoints/last.ckpt"), weights_only=True)
        averaged, weights = read_weights(Path("averaged.safetensors")), read_weights(Path("raw.safetensors"))
        name = "layers.0.weight"
        assert torch.equal(averaged[name], saved[average.checkpoint_key]["state_dict"][name])
        assert torch.equal(weights[name], saved["state_dict"][name])
        assert not torch.equal(averaged[name], weights[name])

    @pytest.mark.parametrize(
        "settings,says",
        [
            (["--output", "model.pt"], "has the suffix '.pt'"),
            (["--format", "tensorrt"], "'tensorrt' is not a format"),
            (["--atol", "-1"], r"atol=-1\.0"),
            (["--ckpt_path", "missing.ckpt"], "missing.ckpt is not"),
        ],
    )
    def test_says_what_is_wrong_and_writes_nothing(self, settings: list[str], says: str) -> None:
        self.fit()
        before = sorted(Path().rglob("*"))
        with pytest.raises(treadle.errors.TreadleError, match=says):
            self.export(*settings)
        assert sorted(Path().rglob("*")) == before

    def test_needs_a_run(self) -> None:
        with pytest.raises(CheckpointError, match="there is no 'best' checkpoint"):
            self.export()

    @pytest.mark.parametrize("package,output", [("onnxscript", "m.onnx"), ("safetensors", "m.safetensors")])
    def test_names_the_extra(self, package: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before anything is read."""
        monkeypatch.setattr("treadle.export.formats.find_spec", lambda name: None if name == package else name)
        with pytest.raises(ConfigError, match=f"{package} must be installed") as error:
            self.export("--output", output)
        assert error.value.fix == 'pip install "treadle[export]"'


QUIET = ("--trainer.enable_progress_bar", "false", "--seed_everything", "1")
