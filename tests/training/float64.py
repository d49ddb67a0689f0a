"""Twenty steps in float64: `python tests/training/float64.py CONFIG COHORT OUT DEVICES NODES`."""

import atexit
import sys
from dataclasses import replace

import torch.distributed

import medsynth
from medsynth.config import TrainOptions, build_options
from medsynth.training import train_run

LEFT = "left the group"


def say_left():
    """Say, as the last thing of a process, that it is in no group."""
    if not torch.distributed.is_initialized():
        sys.stdout.write(f"{LEFT}\n")


def train(config, cohort, out, *, devices=1, num_nodes=1):
    """Train without dropout, whose masks are the only draws that differ between processes."""
    options = medsynth.load_config(str(config))
    options["network"] = options["network"] | {"dropout": 0.0}
    options["monitor"] = options["monitor"] | {"preview_every": 0}
    options = build_options(TrainOptions, options | {"cohort": cohort, "out": out})
    changed = replace(
        options,
        max_steps=20,
        precision="64-true",
        accelerator="cpu",
        preflight="off",
        accumulate_grad_batches=devices,  # parts of a batch change no more than processes do
        devices=devices,
        num_nodes=num_nodes,
    )
    return train_run(medsynth.read_cohort(cohort), changed)


if __name__ == "__main__":
    atexit.register(say_left)
    train(*sys.argv[1:4], devices=int(sys.argv[4]), num_nodes=int(sys.argv[5]))
