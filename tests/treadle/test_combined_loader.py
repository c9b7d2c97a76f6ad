"""Several loaders in one."""

import multiprocessing
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.data import CombinedLoader
from treadle.errors import ConfigError, DataError
from treadle.testing import Classifier, NoisyPoints

LONG, SHORT = [1, 2, 3], [10, 20]


class Unsized:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class TestEachMode:
    @pytest.mark.parametrize(
        "mode, expected",
        [
            ("min_size", [([1, 10], 0, 0), ([2, 20], 1, 0)]),
            ("max_size_cycle", [([1, 10], 0, 0), ([2, 20], 1, 0), ([3, 10], 2, 0)]),
            ("max_size", [([1, 10], 0, 0), ([2, 20], 1, 0), ([3, None], 2, 0)]),
            ("sequential", [(1, 0, 0), (2, 1, 0), (3, 2, 0), (10, 0, 1), (20, 1, 1)]),
        ],
    )
    @pytest.mark.parametrize("kind", [list, Unsized])
    def test_gives_the_batch_its_index_and_its_loaders(self, mode: Any, expected: Any, kind: Any) -> None:
        """Again and again, and with a length where its loaders have one."""
        loader = CombinedLoader([kind(LONG), kind(SHORT)], mode)
        assert list(loader) == list(loader) == expected
        if kind is list:
            assert len(loader) == len(expected)

    def test_is_the_shortest_unless_said(self) -> None:
        assert CombinedLoader([LONG, SHORT]).mode == "min_size"

    @pytest.mark.parametrize("order", [[LONG, SHORT, LONG], [SHORT, LONG, LONG]])
    def test_cycles_whatever_the_order(self, order: list[Any]) -> None:
        *_, (last, _, _) = CombinedLoader([Unsized(batches) for batches in order], "max_size_cycle")
        assert sorted(last) == [3, 3, 10]

    def test_can_be_iterated_twice_at_once(self) -> None:
        loader = CombinedLoader([LONG])
        one, other = iter(loader), iter(loader)
        assert [next(one)[0], next(one)[0], next(other)[0]] == [[1], [2], [1]]

    def test_reads_worker_processes(self) -> None:
        before = set(multiprocessing.active_children())
        loader = CombinedLoader([DataLoader(range(4), 2, num_workers=1), DataLoader(range(2), 2)], "max_size_cycle")  # type: ignore[arg-type]
        assert [[part.tolist() for part in batch] for batch, *_ in loader] == [[[0, 1], [0, 1]], [[2, 3], [0, 1]]]
        assert set(multiprocessing.active_children()) == before


class TestTheCollection:
    def test_gives_its_batches_its_own_shape(self) -> None:
        Pair = namedtuple("Pair", ["one", "two"])
        a, b, c, d = (DataLoader(range(n, n + 1)) for n in range(4))  # type: ignore[arg-type]
        loader = CombinedLoader(OrderedDict(x=[a, (b,)], y=Pair(c, {"z": d})))
        ((batch, _, _),) = loader
        assert batch == {"x": [0, (1,)], "y": (2, {"z": 3})}
        assert type(batch["y"]) is Pair
        assert loader.flattened == [a, b, c, d]

    def test_has_lists_of_batches_for_loaders_too(self) -> None:
        """A list in it is a collection only if there is a DataLoader in it."""
        batches = [torch.zeros(1), torch.ones(1)]
        loader = CombinedLoader({"list": batches, "loaders": [batches, DataLoader(range(2))]})  # type: ignore[arg-type]
        assert len(loader.flattened) == 3
        assert [batch for batch, *_ in loader] == [
            {"list": 0.0, "loaders": [0.0, 0]},
            {"list": 1.0, "loaders": [1.0, 1]},
        ]

    def test_may_be_a_single_loader(self) -> None:
        assert list(CombinedLoader(Unsized(SHORT))) == [(10, 0, 0), (20, 1, 0)]

    def test_is_there_to_be_read(self) -> None:
        loaders = {"a": LONG, "b": SHORT}
        assert CombinedLoader(loaders).iterables is loaders
        assert CombinedLoader(loaders).flattened == [LONG, SHORT]

    def test_can_be_filled_with_other_loaders(self) -> None:
        loader = CombinedLoader({"a": LONG, "b": SHORT})
        loader.flattened = [SHORT, SHORT]
        assert loader.iterables == {"a": SHORT, "b": SHORT}
        assert [batch for batch, *_ in loader] == [{"a": 10, "b": 10}, {"a": 20, "b": 20}]
        with pytest.raises(ConfigError, match="1 flattened for the 2 loaders"):
            loader.flattened = [SHORT]
        with pytest.raises(DataError, match=r"loader\['b'\] is 5, which can't be iterated"):
            loader.flattened = [SHORT, 5]


class TestLimits:
    @pytest.mark.parametrize(
        "mode, limits, expected",
        [
            ("sequential", 1, [1, 10]),
            ("sequential", [0, 2], [10, 20]),
            ("sequential", [0.7, 0.5], [1, 2, 10]),
            ("min_size", [2, 1], [[1, 10]]),
            ("max_size", [2, 1], [[1, 10], [2, None]]),
            ("max_size_cycle", [3, 1], [[1, 10], [2, 10], [3, 10]]),
        ],
    )
    def test_end_each_loader_earlier(self, mode: Any, limits: Any, expected: Any) -> None:
        loader = CombinedLoader([LONG, SHORT], mode)
        assert loader.limits is None
        loader.limits = limits
        assert loader.limits == (limits if isinstance(limits, list) else [limits] * 2)
        assert [batch for batch, *_ in loader] == expected
        assert len(loader) == len(expected)
        loader.limits = None
        assert loader.limits is None

    def test_give_a_length_to_what_has_none(self) -> None:
        loader = CombinedLoader([Unsized(LONG), SHORT])
        loader.limits = [2, 2]
        assert len(loader) == 2

    @pytest.mark.parametrize("limits", [-1, 1.5, [1], [1, 2, 3], [1, "2"], True])
    def test_that_make_no_sense_are_errors(self, limits: Any) -> None:
        with pytest.raises(ConfigError):
            CombinedLoader([LONG, SHORT]).limits = limits


class TestALength:
    @pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size", "sequential"])
    def test_that_is_not_known_is_a_type_error_that_names_the_loader(self, mode: Any) -> None:
        with pytest.raises(TypeError, match=r"has no length: loader\['b'\] can't tell"):
            len(CombinedLoader({"a": LONG, "b": Unsized(SHORT)}, mode))


class TestBadInput:
    @pytest.mark.parametrize("nothing", [[], {}, (), {"a": {}}])
    def test_without_a_loader_is_an_error(self, nothing: Any) -> None:
        with pytest.raises(DataError, match="has no loader"):
            CombinedLoader(nothing)

    @pytest.mark.parametrize(
        "mode, fix",
        [("max_size_cycel", "did you mean 'max_size_cycle'"), ("x", "use one of 'min_size'"), (None, "use")],
    )
    def test_of_an_unknown_mode_names_the_nearest(self, mode: Any, fix: str) -> None:
        with pytest.raises(ConfigError, match=r"CombinedLoader\(mode=") as error:
            CombinedLoader([LONG], mode)
        assert error.value.fix.startswith(fix)

    @pytest.mark.parametrize("thing", [5, None, DataLoader, object()])
    def test_that_can_not_be_iterated_is_named(self, thing: Any) -> None:
        with pytest.raises(DataError, match=r"loader\['b'\]\[1\] is .*, which can't be iterated"):
            CombinedLoader({"a": LONG, "b": [DataLoader(range(2)), thing]})  # type: ignore[arg-type]

    def test_with_another_one_in_it_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="a CombinedLoader in a CombinedLoader"):
            CombinedLoader([LONG, CombinedLoader([SHORT])])

    @pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
    def test_with_an_empty_loader_in_it_names_that(self, mode: Any) -> None:
        for empty in ([], Unsized([])):
            with pytest.raises(DataError, match=r"loader\[1\] (has no batches|gave no batch)"):
                list(CombinedLoader([LONG, empty], mode))


class Sums(Classifier):
    """Trained on batches of points from two loaders."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        losses = [super(Sums, self).training_step(part, batch_idx) for part in (batch["few"], *batch["many"])]
        return torch.stack(losses).mean()


class Killed(BaseException):
    """No handler of the Trainer saves on it."""


class KillAfter(treadle.Callback):
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(
        self, trainer: treadle.Trainer, module: treadle.Module, batch: Any, batch_idx: int
    ) -> None:
        if trainer.progress.batches == self.batches:
            raise Killed


class TestAFitOnSeveralLoaders:
    def fit(self, root: Path, kill_after: int = -1, ckpt_path: str | None = None) -> Sums:
        """Two epochs of 5 batches; a checkpoint after each."""
        treadle.seed_everything(1 if ckpt_path is None else 999)
        loaders = {
            "few": DataLoader(NoisyPoints(8), 4, shuffle=True),
            "many": [DataLoader(NoisyPoints(n), 4, shuffle=True, num_workers=n == 12) for n in (20, 12)],
        }
        model = Sums()
        trainer = treadle.Trainer(
            default_root_dir=root,
            max_epochs=2,
            enable_progress_bar=False,
            log_every_n_steps=1,
            callbacks=[KillAfter(kill_after), ModelCheckpoint(every="1 step")],
        )
        try:
            trainer.fit(model, loaders, ckpt_path=ckpt_path)
        except Killed:
            assert kill_after > 0
        return model

    def test_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        """Killed in the middle of a shorter loader's second pass, and at its end."""
        whole = self.fit(tmp_path / "whole")
        assert len(whole.seen) == 3 * 10
        rows = (tmp_path / "whole/runs/version_0/metrics.csv").read_text()
        for kill_after in (3, 5, 9):
            root = tmp_path / str(kill_after)
            first = self.fit(root, kill_after)
            second = self.fit(root, ckpt_path="last")
            assert first.seen + second.seen == whole.seen
            for one, other in zip(second.parameters(), whole.parameters(), strict=True):
                assert torch.equal(one, other)
            assert (root / "runs/version_0/metrics.csv").read_text() == rows
