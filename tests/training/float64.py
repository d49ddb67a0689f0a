"""Twenty steps in float64: `python tests/training/float64.py CONFIG COHORT OUT DEVICES NODES`."""

import atexit
import sys
from dataclasses import replace

import torch.distributed

import medsynth

LEFT = "left the group"


def say_left():
    """Say, as the last thing of a process, that it is in no group."""
    if not torch.distributed.is_initialized():
        sys.stdout.write(f"{LEFT}\n")


def train(config, cohort, out, *, devices=1, num_nodes=1):
    """Train without dropout, whose masks are the one thing that processes draw each for itself."""
    options = medsynth.load_config(str(config))
    options |= {"max_steps": 20, "precision": "64-true", "accelerator": "cpu", "preflight": "off"}
    options["accumulate"] = devices  # parts of a batch change no more than processes do
    options["network"] = replace(options["network"], dropout=0.0)
    options["monitor"] = replace(options["monitor"], preview_every=0)
    return medsynth.train(**options, cohort=cohort, out=out, devices=devices, num_nodes=num_nodes)


if __name__ == "__main__":
    atexit.register(say_left)
    train(*sys.argv[1:4], devices=int(sys.argv[4]), num_nodes=int(sys.argv[5]))
