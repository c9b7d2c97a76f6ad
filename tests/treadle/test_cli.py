"""The command line of a project: config files, overlays, overrides, and what a mistake says."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jsonargparse")

import treadle
from treadle.checkpoint import Checkpoint, read
from treadle.cli import main, run
from treadle.errors import CheckpointError, ConfigError, TreadleError
from treadle.testing import Classifier, Points

CONFIG = """\
seed_everything: 1
trainer:
  max_epochs: 2
  enable_progress_bar: false
  callbacks:
    - class_path: treadle.callbacks.EarlyStopping
      init_args:
        monitor: val_loss
        patience: 9
model:
  hidden: 8
data:
  batch_size: 5
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with train.yaml in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text(CONFIG)
    return tmp_path


def command(*arguments: str) -> treadle.Trainer:
    trainer = run(Classifier, Points, list(arguments))
    assert trainer is not None
    return trainer


def fit(*arguments: str) -> treadle.Trainer:
    return command("fit", "--config", "train.yaml", *arguments)


def mistake(*arguments: str) -> ConfigError:
    """What the command says; it has written nothing by then."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(ConfigError) as error:
        run(Classifier, Points, list(arguments))
    assert sorted(Path.cwd().rglob("*")) == before
    assert error.value.why
    assert error.value.fix
    return error.value


class TestSettings:
    def test_come_from_the_file(self) -> None:
        trainer = fit()
        assert trainer.global_step == 2 * 20 // 5
        assert trainer.module is not None
        assert trainer.module.hparams.hidden == 8
        assert trainer.early_stopping_callback is not None
        assert trainer.early_stopping_callback.patience == 9

    def test_come_from_the_command_line_first(self) -> None:
        trainer = fit("--trainer.max_epochs", "1", "--model.hidden=3", "--data.size", "40")
        assert trainer.global_step == 8
        assert trainer.module is not None
        assert trainer.module.hparams == {"hidden": 3, "learning_rate": 0.05}

    def test_come_from_overlays_in_order(self, project: Path) -> None:
        """A later file overrides what it names and leaves the rest."""
        (project / "small.yaml").write_text("trainer: {max_epochs: 1}\nmodel: {hidden: 2}\n")
        (project / "smaller.yaml").write_text("model: {hidden: 1}\n")
        trainer = fit("--config", "small.yaml", "--config", "smaller.yaml")
        assert trainer.module is not None
        assert (trainer.current_epoch, trainer.module.hparams.hidden, trainer.global_step) == (1, 1, 4)

    def test_are_pythons_defaults_otherwise(self) -> None:
        trainer = command("fit", "--trainer.fast_dev_run", "true")
        assert trainer.module is not None
        assert trainer.module.hparams.hidden == 4

    def test_seed_everything_first(self) -> None:
        """Two runs of one file have the same weights at the end, another seed has others."""

        def weights(*arguments: str) -> torch.Tensor:
            trainer = fit("--trainer.max_epochs", "1", "--trainer.logger", "false", *arguments)
            assert trainer.module is not None
            return torch.cat([parameter.flatten() for parameter in trainer.module.parameters()])

        first = weights()
        assert torch.equal(first, weights())
        assert not torch.equal(first, weights("--seed_everything", "2"))


class TestPrintConfig:
    def test_shows_every_setting_and_runs_nothing(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            fit("--model.hidden", "3", "--print_config")
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert "hidden: 3" in shown
        assert "accumulate_grad_batches: 1" in shown
        assert [path.name for path in project.iterdir()] == ["train.yaml"]

    def test_shows_a_config(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What it prints can be given back."""
        with pytest.raises(SystemExit):
            fit("--trainer.max_epochs", "1", "--print_config")
        (project / "printed.yaml").write_text(capsys.readouterr().out)
        assert command("fit", "--config", "printed.yaml").global_step == 4


class TestTheSavedConfig:
    def test_starts_the_same_run_anew(self, project: Path) -> None:
        fit("--trainer.max_epochs", "1")
        command("fit", "--config", "runs/version_0/config.yaml")
        rows = [(project / f"runs/version_{n}/metrics.csv").read_text() for n in (0, 1)]
        assert rows[0] == rows[1]
        configs = [(project / f"runs/version_{n}/config.yaml").read_text() for n in (0, 1)]
        assert configs[0] == configs[1]

    def test_of_a_resumed_run_stays_the_only_one(self, project: Path) -> None:
        """Continued with the same settings: one folder, one config."""
        fit("--trainer.max_steps", "3")
        trainer = fit("--trainer.max_steps", "3", "--ckpt_path", "last")
        assert trainer.global_step == 3
        assert [path.name for path in (project / "runs").iterdir()] == ["version_0"]
        assert len(list((project / "runs/version_0").glob("config*"))) == 1

    def test_of_a_run_resumed_with_other_settings_lies_beside_it(self, project: Path) -> None:
        fit("--trainer.max_epochs", "1")
        fit("--ckpt_path", "last")
        names = sorted(path.name for path in (project / "runs/version_0").glob("config*"))
        assert names == ["config-step=4.yaml", "config.yaml"]

    def test_is_not_written_where_nothing_is(self, project: Path) -> None:
        fit("--trainer.fast_dev_run", "true")
        assert [path.name for path in project.iterdir()] == ["train.yaml"]


class TestAMisspelledKey:
    @pytest.mark.parametrize(
        "wrong, line, what, fix",
        [
            ("trainr", "trainr: {max_epochs: 1}", "trainr", "'trainer'"),
            ("model.hiden", "model: {hiden: 1}", "model.hiden", "'hidden'"),
            ("trainer.max_epoch", "trainer: {max_epoch: 1}", "trainer.max_epoch", "'max_epochs'"),
            ("data.batchsize", "data: {batchsize: 1}", "data.batchsize", "'batch_size'"),
            ("seed_everythin", "seed_everythin: 1", "seed_everythin", "'seed_everything'"),
        ],
    )
    def test_of_a_group_or_a_setting_names_the_nearest(
        self, project: Path, wrong: str, line: str, what: str, fix: str
    ) -> None:
        """In a file and on the command line alike."""
        (project / "wrong.yaml").write_text(line + "\n")
        for arguments in (["--config", "wrong.yaml"], [f"--{wrong}", "1"]):
            error = mistake("fit", *arguments)
            assert what in error.what
            assert fix in error.fix

    @pytest.mark.parametrize(
        "old, new, what, fix",
        [
            ("patience", "patiense", "EarlyStopping in trainer.callbacks has no argument 'patiense'", "'patience'"),
            ("EarlyStopping", "EarlyStoping", "no class treadle.callbacks.EarlyStoping", "'EarlyStopping'"),
            (
                "treadle.callbacks.Early",
                "Erly",
                "ErlyStopping in trainer.callbacks is not a class",
                "'treadle.callbacks.E",
            ),
            ("treadle.callbacks.", "treadle.callback.", "treadle.callback.EarlyStopping in trainer.callbacks", ""),
            ("treadle.callbacks.", "no_such.", "no_such.EarlyStopping in trainer.callbacks", ""),
            ("treadle.callbacks.EarlyStopping", "json.loads", "is not a class derived from Callback", "class_path"),
        ],
    )
    def test_of_a_callback_names_the_nearest(self, project: Path, old: str, new: str, what: str, fix: str) -> None:
        (project / "train.yaml").write_text(CONFIG.replace(old, new))
        error = mistake("fit", "--config", "train.yaml")
        assert what in error.what
        assert fix in error.fix

    def test_of_a_command_names_the_nearest(self) -> None:
        assert "'fit'" in mistake("fitt").fix


class TestAWrongValue:
    @pytest.mark.parametrize(
        "setting, value, why",
        [
            ("model.hidden", "many", "a whole number"),
            ("model.hidden", "2.5", "a whole number"),
            ("model.learning_rate", "fast", "a number"),
            ("trainer.enable_checkpointing", "perhaps", "true or false"),
            ("seed_everything", "x", "a whole number"),
        ],
    )
    def test_says_what_the_setting_takes(self, setting: str, value: str, why: str) -> None:
        error = mistake("fit", f"--{setting}", value)
        assert f"{setting} = {value}" in error.what
        assert why in error.why

    def test_out_of_range_is_the_trainers_own_message(self) -> None:
        assert "max_epochs=-3" in mistake("fit", "--trainer.max_epochs", "-3").what

    @pytest.mark.parametrize("callback", ["callbacks: {monitor: x}", "callbacks: [3]", "callbacks: hello"])
    def test_where_a_callback_was_meant_is_told_so(self, project: Path, callback: str) -> None:
        (project / "wrong.yaml").write_text(f"trainer:\n  {callback}\n")
        assert "callbacks" in mistake("fit", "--config", "wrong.yaml").what

    def test_that_is_not_given_is_asked_for(self) -> None:
        assert "--config" in mistake("fit", "--config").what


class TestAFile:
    @pytest.mark.parametrize("text", ["trainer: [", "a: b: c", "\tmodel: 1", "trainer: {max_epochs: 1"])
    def test_that_is_not_yaml_is_an_error(self, project: Path, text: str) -> None:
        (project / "broken.yaml").write_text(text)
        assert "YAML" in mistake("fit", "--config", "broken.yaml").why

    @pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words", "5"])
    def test_that_holds_no_settings_is_an_error(self, project: Path, text: str) -> None:
        (project / "list.yaml").write_text(text)
        assert "config" in mistake("fit", "--config", "list.yaml").what

    def test_that_is_not_there_is_an_error_with_the_nearest(self) -> None:
        error = mistake("fit", "--config", "trian.yaml")
        assert "trian.yaml" in error.what
        assert "'train.yaml'" in error.fix

    def test_runs_no_code(self, project: Path) -> None:
        """YAML tags that make objects of any class are not read."""
        (project / "evil.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {project}/executed']\n")
        mistake("fit", "--config", "evil.yaml")
        assert not (project / "executed").exists()


class TestEvaluation:
    @pytest.fixture
    def fitted(self) -> treadle.Trainer:
        return fit()

    def test_takes_the_best_by_default(self, fitted: treadle.Trainer, capsys: pytest.CaptureFixture[str]) -> None:
        expected = fitted.test(datamodule=Points(batch_size=5), ckpt_path="best", verbose=False)
        capsys.readouterr()
        command("test", "--config", "train.yaml")
        table = capsys.readouterr().out.split()
        assert table == ["test", "test_accuracy", f"{expected[0]['test_accuracy']:.6g}"]

    def test_of_validation_prints_a_table(self, fitted: treadle.Trainer, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        command("validate", "--config", "train.yaml", "--ckpt_path", "last")
        assert "val_loss" in capsys.readouterr().out

    def test_saves_predictions(
        self, fitted: treadle.Trainer, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As a file that plain torch reads without executing anything."""
        command("predict", "--config", "train.yaml", "--output", "out/mine.pt")
        batches = torch.load(project / "out/mine.pt", weights_only=True)
        assert [len(batch) for batch in batches] == [5, 5]
        assert "out/mine.pt" in capsys.readouterr().out

    def test_leaves_no_run_behind(self, fitted: treadle.Trainer, project: Path) -> None:
        command("predict", "--config", "train.yaml")
        assert [path.name for path in (project / "runs").iterdir()] == ["version_0"]

    @pytest.mark.parametrize("verb", ["validate", "test", "predict"])
    def test_without_a_run_is_an_error(self, verb: str) -> None:
        with pytest.raises(CheckpointError, match="there is no 'best' checkpoint"):
            command(verb, "--config", "train.yaml")


class TestHelp:
    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
    def test_names_the_commands(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert run(Classifier, Points, arguments) is None
        shown = capsys.readouterr().out
        assert all(verb in shown for verb in ("fit", "validate", "test", "predict", "--print_config"))

    def test_of_a_command_explains_every_setting(self, capsys: pytest.CaptureFixture[str]) -> None:
        """From the docstrings and the signatures."""
        with pytest.raises(SystemExit) as ended:
            command("fit", "--help")
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert "--trainer.accumulate_grad_batches" in shown
        assert "Batches for one optimizer step" in shown
        assert "--model.learning_rate" in shown


class TestTheExitCode:
    def test_of_a_mistake_is_1_with_one_message(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(Classifier, Points, ["fit", "--model.hiden", "3"])
        assert ended.value.code == 1
        shown = capsys.readouterr()
        assert shown.err.startswith("error: model.hiden is not a setting.\n  why: ")
        assert shown.out == ""

    def test_of_success_is_0(self, capsys: pytest.CaptureFixture[str]) -> None:
        """``main`` returns, and the process ends as any that did its work; nothing is called an error."""
        main(Classifier, Points, ["fit", "--config", "train.yaml", "--trainer.fast_dev_run", "true"])
        assert "error" not in capsys.readouterr().err

    def test_of_a_bug_in_the_users_code_is_a_traceback(self) -> None:
        """Ours are one paragraph; the user's own errors keep what is needed to find them."""

        class Breaks(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            main(Breaks, Points, ["fit", "--trainer.fast_dev_run", "true"])

    def test_covers_every_error_of_ours(self) -> None:
        assert issubclass(ConfigError, TreadleError)
        assert issubclass(CheckpointError, TreadleError)


PROGRAM = """\
import os
import time
import treadle
from treadle.cli import main
from treadle.testing import Classifier, Points


class Slow(Classifier):
    def training_step(self, batch, batch_idx):
        if self.global_step == 6:
            print("ready", flush=True)
            time.sleep(float(os.environ["SECONDS"]))
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    main(Slow, Points)
"""


def read_checkpoint(name: str) -> Checkpoint:
    return read(next(Path("runs/version_0/checkpoints").glob(f"{name}.ckpt")))


class TestARealProcess:
    @staticmethod
    def interrupted(project: Path, *, seconds: float, times: int) -> str:
        """What the program says that is interrupted so many times, in the third step of its second epoch."""
        (project / "program.py").write_text(PROGRAM)
        process = subprocess.Popen(
            [sys.executable, "program.py", "fit", "--config", "train.yaml"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "error", "SECONDS": str(seconds)},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        said = ""
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            while "Ctrl-C again ends now" not in said:  # heard, before the next one
                line = process.stderr.readline()
                assert line, said
                said += line
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert rest.endswith(
            "interrupted; fit --ckpt_path auto continues from the newest checkpoint, if there is one\n"
        )
        assert "Traceback" not in said + rest
        return said + rest

    def test_that_is_interrupted_saves_where_it_is(self, project: Path) -> None:
        """Ctrl-C inside a step of the second epoch: it is finished, and the run goes on behind it."""
        self.interrupted(project, seconds=1.0, times=1)
        assert read_checkpoint("last")["global_step"] == 7
        trainer = fit("--ckpt_path", "last")
        assert trainer.global_step == 8

    def test_that_is_interrupted_twice_ends_at_once(self, project: Path) -> None:
        """In a step that would take an hour; the epoch before it is saved."""
        self.interrupted(project, seconds=3600.0, times=2)
        assert read_checkpoint("last")["global_step"] == 4
        trainer = fit("--ckpt_path", "last")
        assert trainer.global_step == 8

    def test_that_was_called_wrongly_ends_with_1(self, project: Path) -> None:
        (project / "program.py").write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, "program.py", "fit", "--trainer.max_epoch", "3"], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "did you mean 'max_epochs'?" in done.stderr
        assert "Traceback" not in done.stderr


class TestAConfigThatIsOddlyShaped:
    @pytest.mark.parametrize("text", ["", "# all of it\n", "\n  # commented out\n\n"])
    def test_says_nothing_when_all_of_it_is_comments(self, project: Path, text: str) -> None:
        (project / "later.yaml").write_text(text)
        trainer = fit("--config", "later.yaml", "--config=later.yaml", "--trainer.max_epochs", "1")
        assert trainer.current_epoch == 1

    @pytest.mark.parametrize("text", ["model:\n", "model: [1, 2]\n", "model:\n  # hidden: 3\n"])
    def test_is_explained_when_a_group_holds_no_settings(self, project: Path, text: str) -> None:
        """As when all lines below a name were commented out."""
        (project / "odd.yaml").write_text(text)
        assert "is not a list of settings" in mistake("fit", "--config", "train.yaml", "--config", "odd.yaml").what

    def test_is_told_to_be_given_by_its_flag(self) -> None:
        assert mistake("fit", "configs/train.yaml").fix == "--config configs/train.yaml"

    def test_has_class_path_and_init_args(self, project: Path) -> None:
        (project / "odd.yaml").write_text("trainer:\n  callbacks:\n  - clas_path: treadle.callbacks.ModelCheckpoint\n")
        assert mistake("fit", "--config", "train.yaml", "--config", "odd.yaml").fix == "did you mean 'class_path'?"


class TestAFitWithoutAnEnd:
    @pytest.mark.parametrize("arguments", [[], ["--model.hidden", "3"]])
    def test_is_a_mistake(self, arguments: list[str]) -> None:
        """A forgotten --config must not train for a thousand epochs."""
        assert mistake("fit", *arguments).what == "nothing says how long to train."


class TestAnEvaluation:
    def test_says_which_checkpoint_it_looks_at(self, capsys: pytest.CaptureFixture[str]) -> None:
        fit()
        capsys.readouterr()
        command("test", "--config", "train.yaml")
        line = capsys.readouterr().err
        assert (
            line
            == f"treadle {treadle.__version__}: test runs/version_0/checkpoints/epoch=1-step=8.ckpt, epoch 1, step 8\n"
        )
