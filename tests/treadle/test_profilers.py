"""Profilers: what they find, where they write it, and that they watch only."""

import cProfile
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import treadle
import treadle.profilers
from treadle.errors import ConfigError, ModuleError, TreadleWarning
from treadle.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
    profiler_for,
)
from treadle.testing import Classifier, Points

KINDS = [SimpleProfiler, AdvancedProfiler, PyTorchProfiler]


def table(text: str) -> dict[str, list[str]]:
    """The rows of a SimpleProfiler's summary by action; the last two cells are total and share."""
    rows = [line.split() for line in text.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def sums(count: int) -> int:
    return sum(range(count))


def squares(count: int) -> int:
    return sum(number * number for number in range(count))


class TestEveryProfiler:
    @pytest.mark.parametrize("make", [*KINDS, PassThroughProfiler])
    def test_is_one(self, make: Any) -> None:
        assert isinstance(make(), Profiler)

    @pytest.mark.parametrize("make", KINDS)
    def test_refuses_a_stop_without_a_start(self, make: Any) -> None:
        """Never started, or stopped once too often: a span that is off by one measures nonsense."""
        profiler = make()
        with pytest.raises(ModuleError, match=r"stop\('augment'\) without a start"):
            profiler.stop("augment")
        with profiler.profile("augment"):
            pass
        with pytest.raises(ModuleError, match=r"stop\('augment'\) without a start"):
            profiler.stop("augment")

    @pytest.mark.parametrize("make", KINDS)
    def test_ends_a_span_that_an_error_ends(self, make: Any) -> None:
        profiler = make()
        with pytest.raises(ZeroDivisionError), profiler.profile("augment"):
            _ = 1 / 0
        with pytest.raises(ModuleError, match="without a start"):
            profiler.stop("augment")

    @pytest.mark.parametrize("make", KINDS)
    def test_takes_spans_inside_each_other_and_overlapping(self, make: Any) -> None:
        profiler = make()
        with profiler.profile("a"), profiler.profile("b"), profiler.profile("a"):
            pass
        profiler.start("a")
        profiler.start("b")
        profiler.stop("a")
        profiler.stop("b")
        for name in "ab":
            with pytest.raises(ModuleError, match="without a start"):
                profiler.stop(name)

    @pytest.mark.parametrize("make", KINDS)
    def test_starts_each_stage_with_nothing(self, make: Any, tmp_path: Path) -> None:
        """A span left open in one stage is not one of the next."""
        profiler = make()
        profiler.start("left open")
        profiler.setup("test", 0, lambda: tmp_path)
        with pytest.raises(ModuleError, match="without a start"):
            profiler.stop("left open")
        assert "left open" not in profiler.summary()

    @pytest.mark.parametrize("make", KINDS)
    def test_refuses_a_file_name_with_a_folder_in_it(self, make: Any) -> None:
        with pytest.raises(ConfigError, match="filename='runs/perf'"):
            make(filename="runs/perf")
        with pytest.raises(ConfigError, match="dirpath=3"):
            make(dirpath=3)


class TestTheSimpleProfiler:
    def test_counts_and_times_each_action(self) -> None:
        profiler = SimpleProfiler()
        for _ in range(3):
            with profiler.profile("outer"):
                with profiler.profile("inner"):
                    time.sleep(0.002)
                time.sleep(0.002)
        rows = table(profiler.summary())
        assert [rows["outer"][0], rows["inner"][0]] == ["3", "3"]
        assert float(rows["outer"][2]) > float(rows["inner"][2]) >= 0.006
        assert list(rows) == ["outer", "inner"]  # the longest first

    def test_counts_an_action_inside_itself_once(self) -> None:
        """A recursive function takes as long as its outermost call; no share is above the whole."""
        profiler = SimpleProfiler()

        def nested(depth: int) -> None:
            with profiler.profile("nested"):
                time.sleep(0.002)
                if depth:
                    nested(depth - 1)

        nested(3)
        count, _, _, share, _ = table(profiler.summary())["nested"]
        assert count == "1"
        assert float(share) <= 100

    def test_can_be_brief(self) -> None:
        profiler = SimpleProfiler(extended=False)
        with profiler.profile("augment"):
            pass
        header, row = profiler.summary().splitlines()[1:]
        assert header.split() == ["action", "mean", "(ms)", "total", "(s)"]
        assert len(row.split()) == 3

    def test_names_what_was_not_stopped(self) -> None:
        profiler = SimpleProfiler()
        profiler.start("augment")
        assert profiler.summary().endswith("started and not stopped: augment")

    def test_writes_to_standard_error_on_rank_0_only(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for rank in (0, 1):
            profiler = SimpleProfiler()
            profiler.setup("fit", rank, lambda: tmp_path)
            with profiler.profile(f"span of {rank}"):
                pass
            profiler.teardown("fit")
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("profile of fit, ")
        assert "span of 0" in err
        assert "span of 1" not in err
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("settings, name", [({"filename": "perf"}, "perf"), ({"dirpath": "."}, "simple")])
    def test_writes_a_file_for_each_stage_and_rank(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        settings: dict[str, Any],
        name: str,
    ) -> None:
        """In the run's folder, or in dirpath; and then nothing to standard error."""
        run, own = tmp_path / "run", tmp_path / "own"
        own.mkdir()
        monkeypatch.chdir(own)
        profiler = SimpleProfiler(**settings)
        for stage, rank in (("fit", 0), ("fit", 1), ("test", 0)):
            profiler.setup(stage, rank, lambda: run)
            profiler.teardown(stage)
        folder, empty = (own, run) if "dirpath" in settings else (run, own)
        assert sorted(path.name for path in folder.iterdir()) == [
            f"fit-{name}-rank0.txt",
            f"fit-{name}-rank1.txt",
            f"test-{name}-rank0.txt",
        ]
        assert not list(empty.glob("*"))
        assert capsys.readouterr().err == ""

    def test_asks_for_the_folder_when_it_writes(self, tmp_path: Path) -> None:
        """A run's folder is not known before its loggers have started."""
        folder: list[Path] = []
        profiler = SimpleProfiler(filename="perf")
        profiler.setup("fit", 0, lambda: folder[0])
        folder.append(tmp_path / "version_3")
        profiler.teardown("fit")
        assert (tmp_path / "version_3" / "fit-perf-rank0.txt").exists()


class TestTheAdvancedProfiler:
    def test_lists_a_function_under_the_innermost_action(self) -> None:
        """What an inner action does is not counted again for the outer one, before it or after."""
        profiler = AdvancedProfiler()
        with profiler.profile("outer"):
            sums(10)
            with profiler.profile("inner"):
                squares(10)
            sums(10)
        _, outer, inner = profiler.summary().split("function calls in")
        assert "(sums)" in outer
        assert "(squares)" not in outer
        assert "(squares)" in inner
        assert "(sums)" not in inner
        (line,) = (line for line in outer.splitlines() if "(sums)" in line)
        assert line.split()[0] == "2"

    def test_leaves_no_profile_running(self) -> None:
        profiler = AdvancedProfiler()
        profiler.start("left open")
        assert sys.getprofile() is not None or sys.version_info >= (3, 12)
        profiler.teardown("fit")
        assert sys.getprofile() is None
        with cProfile.Profile():  # from Python 3.12 on an error if another one is at work
            pass

    def test_lists_as_much_as_is_asked_for(self) -> None:
        profiler = AdvancedProfiler(line_count_restriction=1)
        with profiler.profile("work"):
            squares(10)
        listed = [line for line in profiler.summary().splitlines() if ".py:" in line or "{" in line]
        assert len(listed) == 1

    @pytest.mark.parametrize("value", [0, -1, 0.0, 1.5, True, "20", None])
    def test_refuses_another_restriction(self, value: Any) -> None:
        with pytest.raises(ConfigError, match="line_count_restriction"):
            AdvancedProfiler(line_count_restriction=value)

    def test_says_why_it_can_not_start_under_another(self) -> None:
        """``python -m cProfile train.py`` with this profiler: Python has one at a time."""
        profiler = AdvancedProfiler()
        with cProfile.Profile():
            if sys.version_info >= (3, 12):
                with pytest.raises(ConfigError, match="one cProfile at a time"):
                    profiler.start("work")
            else:
                with profiler.profile("work"):
                    squares(10)
                assert "(squares)" in profiler.summary()

    def test_writes_its_file(self, tmp_path: Path) -> None:
        profiler = AdvancedProfiler(filename="functions")
        profiler.setup("predict", 0, lambda: tmp_path)
        with profiler.profile("work"):
            squares(10)
        profiler.teardown("predict")
        assert "(squares)" in (tmp_path / "predict-functions-rank0.txt").read_text()


def watched(profiler: PyTorchProfiler, batches: int, folder: Path, stage: str = "fit", rank: int = 0) -> list[bool]:
    """A stage of so many batches. Returns in which of them torch's profiler was on."""
    action = {"fit": "run_training_batch", "test": "run_test_batch"}[stage]
    profiler.setup(stage, rank, lambda: folder)
    on = []
    for batch in range(batches):
        with profiler.profile(action), profiler.profile(f"span {batch}"):
            torch.ones(3).cumsum(0)
            on.append(torch.autograd._profiler_enabled())
        with profiler.profile("run_validation_batch"):
            pass
    profiler.teardown(stage)
    return on


def spans(trace: Path) -> list[str]:
    """The user's spans in a trace, in order."""
    events = json.loads(trace.read_text())["traceEvents"]
    found = [(event["ts"], event["name"]) for event in events if event.get("cat") == "user_annotation"]
    return [name for _, name in sorted(found) if name.startswith("span")]


class TestThePyTorchProfiler:
    def test_is_there_for_its_window_only(self, tmp_path: Path) -> None:
        """Batches before and after pay nothing; those of the warmup are not in the trace."""
        profiler = PyTorchProfiler(dirpath=tmp_path, wait=2, warmup=1, active=2)
        on = watched(profiler, 7, tmp_path)
        assert [batch for batch, enabled in enumerate(on) if enabled] == [3, 4]
        assert spans(tmp_path / "fit-pytorch-rank0-batch3.json") == ["span 3", "span 4"]
        text = (tmp_path / "fit-pytorch-rank0.txt").read_text()
        assert text.startswith("profile of fit, batches 3 to 4")
        assert "aten::cumsum" in text
        assert "span 3" in text

    def test_may_come_back(self, tmp_path: Path) -> None:
        profiler = PyTorchProfiler(filename="ops", wait=1, warmup=1, active=1, repeat=2)
        watched(profiler, 9, tmp_path, rank=1)
        assert spans(tmp_path / "fit-ops-rank1-batch2.json") == ["span 2"]
        assert spans(tmp_path / "fit-ops-rank1-batch5.json") == ["span 5"]
        assert len(list(tmp_path.glob("*.json"))) == 2
        text = (tmp_path / "fit-ops-rank1.txt").read_text()
        assert "batches 2 to 2" in text
        assert "batches 5 to 5" in text

    def test_counts_the_batches_of_its_stage(self, tmp_path: Path) -> None:
        """In a test, those of the test; a fit's validation does not move its window."""
        watched(PyTorchProfiler(filename="ops", wait=0, warmup=1, active=1), 3, tmp_path, "test")
        assert spans(tmp_path / "test-ops-rank0-batch1.json") == ["span 1"]

    def test_keeps_what_a_short_stage_recorded(self, tmp_path: Path) -> None:
        watched(PyTorchProfiler(dirpath=tmp_path, wait=0, warmup=1, active=9), 3, tmp_path)
        assert "batches 1 to 2" in (tmp_path / "fit-pytorch-rank0.txt").read_text()
        assert spans(tmp_path / "fit-pytorch-rank0-batch1.json") == ["span 1", "span 2"]
        assert not torch.autograd._profiler_enabled()

    @pytest.mark.parametrize("batches", [0, 3, 4])
    def test_says_so_when_it_recorded_nothing(self, tmp_path: Path, batches: int) -> None:
        """Before its window, or in its warmup."""
        profiler = PyTorchProfiler(dirpath=tmp_path, wait=3, warmup=1)
        with pytest.warns(TreadleWarning, match=rf"from batch 4 on .* the stage had {batches}\."):
            watched(profiler, batches, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_is_off_after_an_error(self, tmp_path: Path) -> None:
        """A batch that fails inside the window leaves no profiler behind, nor a span."""
        profiler = PyTorchProfiler(dirpath=tmp_path, wait=0, warmup=1, active=3)
        profiler.setup("fit", 0, lambda: tmp_path)
        for batch in range(2):
            profiler.start("run_training_batch")
            profiler.start(f"span {batch}")
            if batch == 1:
                break
            profiler.stop(f"span {batch}")
            profiler.stop("run_training_batch")
        profiler.teardown("fit")
        assert not torch.autograd._profiler_enabled()
        assert spans(tmp_path / "fit-pytorch-rank0-batch1.json") == ["span 1"]

    def test_writes_no_trace_unasked(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Then the table goes to standard error."""
        watched(PyTorchProfiler(wait=0, active=1, export_to_chrome=False, row_limit=1), 3, tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert "profile of fit, batches 1 to 1" in capsys.readouterr().err

    def test_notes_what_is_asked_for(self, tmp_path: Path) -> None:
        profiler = PyTorchProfiler(
            dirpath=tmp_path,
            wait=0,
            active=1,
            activities=[torch.profiler.ProfilerActivity.CPU],
            record_shapes=True,
            profile_memory=True,
            with_flops=True,
            with_modules=True,
            with_stack=True,
            group_by_input_shapes=True,
            sort_by_key="cpu_memory_usage",
        )
        watched(profiler, 2, tmp_path)
        text = (tmp_path / "fit-pytorch-rank0.txt").read_text()
        assert "Input Shapes" in text
        assert "CPU Mem" in text

    @pytest.mark.parametrize(
        "settings",
        [
            {"wait": -1},
            {"warmup": 0.5},
            {"active": 0},
            {"repeat": -1},
            {"repeat": True},
            {"row_limit": 0},
            {"sort_by_key": "cpu_tme_total"},
            {"group_by_input_shapes": True},
        ],
    )
    def test_refuses_what_can_not_be(self, settings: dict[str, Any]) -> None:
        """Before a run, not at the end of its window."""
        with pytest.raises(ConfigError, match=next(iter(settings))):
            PyTorchProfiler(**settings)


class TestANameForAProfiler:
    @pytest.mark.parametrize(
        "name, kind", [("simple", SimpleProfiler), ("advanced", AdvancedProfiler), ("pytorch", PyTorchProfiler)]
    )
    def test_is_one_of_three(self, name: str, kind: type) -> None:
        assert type(profiler_for(name)) is kind

    def test_may_be_an_object_or_nothing(self) -> None:
        own = SimpleProfiler(extended=False)
        assert profiler_for(own) is own
        assert profiler_for(None) is None

    def test_misspelled_is_an_error_with_the_right_one(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'advanced'"):
            profiler_for("advance")
        with pytest.raises(ConfigError, match="use one of 'simple', 'advanced', 'pytorch'"):
            profiler_for("xla")

    def test_is_not_a_class(self) -> None:
        with pytest.raises(ConfigError, match=r"profiler=SimpleProfiler\(\)"):
            profiler_for(SimpleProfiler)  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", [True, 3, object()])
    def test_is_not_any_object(self, value: Any) -> None:
        with pytest.raises(ConfigError, match="neither a name nor an object of a profiler"):
            profiler_for(value)


class TestTheNames:
    def test_are_all_there(self) -> None:
        for name in treadle.profilers.__all__:
            assert getattr(treadle.profilers, name) is not None

    def test_that_are_not_there_are_errors(self) -> None:
        with pytest.raises(AttributeError, match="XLAProfiler"):
            _ = treadle.profilers.XLAProfiler

    def test_load_only_what_is_used(self) -> None:
        code = "import sys; from treadle.profilers import SimpleProfiler; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        assert not {"torch", "cProfile", "pstats"} & set(done.stdout.split())


class Spanned(Classifier):
    """A module with a span of its own in its step."""

    fails_in_batch: int | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self.trainer.profiler.profile("my span"):
            if batch_idx == self.fails_in_batch:
                raise ZeroDivisionError
        return super().training_step(batch, batch_idx)


class TestATrainerWithAProfiler:
    def test_times_hooks_steps_and_own_spans(
        self, make_trainer: Callable[..., treadle.Trainer], capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_trainer(profiler="simple").fit(Spanned(), Points())
        rows = table(capsys.readouterr().err.partition("profile of fit")[2])
        assert rows["run_training_batch"][0] == "5"
        assert rows["[Module]Spanned.training_step"][0] == "5"
        assert rows["my"][1] == "5"
        assert any(name.startswith("[Callback]ModelCheckpoint.on_") for name in rows)

    def test_reports_each_stage(self, make_trainer: Callable[..., treadle.Trainer], tmp_path: Path) -> None:
        trainer = make_trainer(profiler=SimpleProfiler(filename="perf"))
        trainer.fit(Spanned(), Points())
        folder = trainer.run_folder
        trainer.test(datamodule=Points(), verbose=False)
        assert "run_training_batch" in (folder / "fit-perf-rank0.txt").read_text()
        assert "run_test_batch" in (folder / "test-perf-rank0.txt").read_text()

    @pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
    def test_trains_as_without(self, make_bare: Callable[..., treadle.Trainer], tmp_path: Path, profiler: str) -> None:
        """Watching changes nothing, to the last bit. Without a profiler, the module's own spans cost a no-op."""
        weights = []
        for chosen in (None, profiler):
            treadle.seed_everything(1)
            module = Spanned()
            make_bare(profiler=chosen).fit(module, Points())
            weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
        assert torch.equal(*weights)

    def test_reports_what_it_found_before_an_error(
        self, make_bare: Callable[..., treadle.Trainer], capsys: pytest.CaptureFixture[str]
    ) -> None:
        module = Spanned()
        module.fails_in_batch = 2
        with pytest.raises(ZeroDivisionError):
            make_bare(profiler="simple").fit(module, Points())
        text = capsys.readouterr().err.partition("profile of fit")[2]
        assert table(text)["[Module]Spanned.training_step"][0] == "3"
        assert "not stopped" not in text

    def test_refuses_an_unknown_one_at_once(self, make_bare: Callable[..., treadle.Trainer]) -> None:
        with pytest.raises(ConfigError, match="did you mean 'simple'"):
            make_bare(profiler="simpel")
