"""What a step frees is kept for the next one, and given back when training ends."""

import ctypes
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from medsynth.training.fitting import _freed_memory_kept

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone is asked"
)
BLOCKS, MIB = 8, 16


def step():
    """Page faults of taking, filling and freeing 128 MiB, as a training step does with what it computes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(MIB << 18) for _ in range(BLOCKS)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


def measure():
    trainer = types.SimpleNamespace(strategy=types.SimpleNamespace(root_device=torch.device("cpu")))
    step()
    outside = step()
    with _freed_memory_kept(trainer):
        step()
        inside, during = step(), resident()
    print(outside, inside, during, resident())


def test_steps_take_the_same_memory_again():
    """In a process of its own, whose memory nothing else takes."""
    command = [sys.executable, "-c", "from tests.training.test_memory_kept import measure; measure()"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    outside, inside, during, after = map(int, done.stdout.split())
    assert outside > 10_000, "32,768 pages of 4 KiB"
    assert inside < 0.05 * outside
    assert during - after > 0.8 * BLOCKS * MIB, "given back at the end"
