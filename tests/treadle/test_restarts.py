"""A job that its scheduler starts again goes on by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.testing import Classifier, Points

Start = Callable[..., treadle.Trainer]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A fit to step ``to`` as torchrun's only rank, in its ``number``-th start of ``job``."""

    def run(
        number: int, *, to: int, job: str = "job-1", ckpt_path: Any = None, saving: Any = None, **settings: Any
    ) -> treadle.Trainer:
        variables = {
            "RANK": 0,
            "WORLD_SIZE": 1,
            "LOCAL_RANK": 0,
            "LOCAL_WORLD_SIZE": 1,
            "GROUP_RANK": 0,
            "GROUP_WORLD_SIZE": 1,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": 29400,
            "TORCHELASTIC_RUN_ID": job,
            "TORCHELASTIC_RESTART_COUNT": number,
            "TORCHELASTIC_MAX_RESTARTS": 9,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        torch.manual_seed(0)
        trainer = treadle.Trainer(
            max_epochs=-1,
            max_steps=to,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            callbacks=[ModelCheckpoint(**(saving or {}))],
            **settings,
        )
        trainer.fit(Classifier(), datamodule=Points(), ckpt_path=ckpt_path)
        return trainer

    return run


def began_at(trainer: treadle.Trainer) -> int | None:
    """The step of the checkpoint that it loaded."""
    if trainer.ckpt_path is None:
        return None
    step: int = torch.load(trainer.ckpt_path, weights_only=True)["global_step"]
    return step


class TestARestartedJob:
    def test_goes_on_from_its_newest_state(self, start: Start, tmp_path: Path) -> None:
        start(0, to=4)
        again = start(1, to=7)
        assert again.log_dir == tmp_path / "runs" / "version_0"
        assert again.global_step == 7

    @pytest.mark.parametrize(
        "settings",
        [{"saving": {"dirpath": "own"}}, {"logger": False}, {"logger": False, "saving": {"dirpath": "own"}}],
        ids=["own folder", "no logger", "neither"],
    )
    def test_finds_it_wherever_it_was_saved(
        self, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        start(0, to=4, **settings)
        again = start(1, to=7, **settings)
        assert again.ckpt_path is not None
        assert again.global_step == 7

    def test_does_not_go_back_to_where_its_command_says(self, start: Start, tmp_path: Path) -> None:
        """The command is the same each time: what was trained since is not trained again."""
        first = start(0, to=3, job="another")
        path = Path(first.checkpoint_callbacks[0].last_model_path)
        start(0, to=5, ckpt_path=path)
        again = start(1, to=8, ckpt_path=path)
        assert again.ckpt_path is not None
        assert (again.ckpt_path.samefile(path), again.global_step) == (True, 8)  # which it has continued in its folder

    def test_starts_where_its_command_says_before_its_first_checkpoint(self, start: Start) -> None:
        first = start(0, to=3, job="another")
        path = first.checkpoint_callbacks[0].last_model_path
        assert began_at(start(1, to=3, ckpt_path=path)) == 3

    def test_of_another_name_is_nobodys(self, start: Start) -> None:
        start(0, to=4, job="another")
        assert start(1, to=4).ckpt_path is None
