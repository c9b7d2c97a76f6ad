"""A call of the Trainer in processes that are started for it."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import torch
import treadle
from torch.utils.data import DataLoader, TensorDataset

points = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
data = TensorDataset(points, (points.sum(1) > 0).long())


class Model(treadle.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Linear(4, 2)

    def training_step(self, batch):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    validation_step = training_step

    def predict_step(self, batch):
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = treadle.Trainer(devices=2, strategy=sys.argv[1], max_epochs=2, enable_progress_bar=False)
    model = Model()
    loader = DataLoader(data, batch_size=4, shuffle=True)
    trainer.fit(model, loader)
    if trainer.is_global_zero:
        print(trainer.global_step, trainer.last_epoch, repr(float(trainer.callback_metrics["loss_epoch"])))
        print([round(value, 6) for value in model.net.weight.flatten().tolist()])
        print(trainer.checkpoint_callback.best_model_path, trainer.log_dir)
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    found = {}
    for strategy in ("ddp", "ddp_fork", "ddp_spawn"):
        folder = tmp_path_factory.mktemp(strategy)
        (folder / "train.py").write_text(PROGRAM)
        done = subprocess.run(
            [sys.executable, "train.py", strategy], cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        found[strategy] = done.stdout.replace(str(folder), "").splitlines()
    return found


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
class TestAFitOnNewProcesses:
    def test_ends_as_that_of_a_script(self, outputs: dict[str, list[str]], strategy: str) -> None:
        """The same weights, counters and metrics here, though others have trained."""
        assert outputs[strategy][:2] == outputs["ddp"][:2]

    def test_tells_where_its_files_lie(self, outputs: dict[str, list[str]], strategy: str) -> None:
        assert outputs[strategy][2].split()[0].endswith("runs/version_0/checkpoints/epoch=1-step=6.ckpt")
        assert Path(outputs[strategy][2].split()[1]).parts[-2:] == ("runs", "version_0")
