"""The project's training on two workers of a Ray cluster that runs in this process's hands: what ``points`` is asked to do
on the command line comes after the folder that Ray may write in.

    python ray_job.py FOLDER fit --config configs/train.yaml
"""

from __future__ import annotations

import sys

import ray
from points import Classifier, Rings
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from treadle.cli import run


def train(settings: dict[str, list[str]]) -> None:
    run(Classifier, Rings, settings["arguments"])


if __name__ == "__main__":
    folder, *arguments = sys.argv[1:]
    ray.init(address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, _temp_dir=folder)
    try:
        TorchTrainer(
            train,
            train_loop_config={"arguments": arguments},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="points", storage_path=f"{folder}/results"),
        ).fit()
    finally:
        ray.shutdown()
