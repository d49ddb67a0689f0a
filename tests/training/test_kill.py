"""Promise 1 for two processes: `kill -9` of one ends both, and the same command again ends in the same weights."""

import os
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from medsynth.runs import load_run
from tests.launching import SECONDS, finish, ranks_of, start

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def trained(tiny_cohort, tiny_config, tmp_path_factory):
    """A call that trains 16 steps with dropout in two processes, and the weights of one that nobody disturbed."""

    def call(out):
        words = ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--out", out, "--devices", 2]
        words += ["--accelerator", "cpu", "--max_steps", 16, "--monitor.preview_every", 0, "--progress", "false"]
        return start(["-m", "medsynth", *words])

    out = tmp_path_factory.mktemp("whole") / "run"
    ((code, said, errors),) = finish([call(out)])
    assert code == 0, errors
    assert said.count("trained 16 steps") == 1, "only the first process speaks"
    return call, load_file(out / "model.safetensors")


@pytest.mark.parametrize("number", [0, 1])
def test_the_death_of_a_process_ends_the_other_and_the_same_command_goes_on(trained, tmp_path, number):
    """Number 0 started number 1. The other one leaves, and the weights are the same to the last bit."""
    call, whole = trained
    out = tmp_path / "run"
    process = call(out)
    until = time.time() + SECONDS
    while not (out / "checkpoints" / "last.ckpt").exists() and process.poll() is None and time.time() < until:
        time.sleep(0.002)
    began = time.time()
    os.kill(ranks_of(process, 2)[number], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)  # the pipes close when both have ended
    assert time.time() - began < 60
    assert process.returncode in (2, -signal.SIGKILL)
    # On a busy machine Lightning, which looks every five seconds, may be the first to notice and end the parent.
    lost = "processes: need all 2 until the end, but another process ended; run the same command again"
    # The system ends the child at once when its parent dies.
    assert number == 0 or lost in errors or "terminated with code -9" in errors
    assert "Traceback" not in errors
    assert not (out / "run.json").exists() or load_run(out).steps < 16
    ((code, _, errors),) = finish([call(out)])
    assert code == 0, errors
    weights = load_file(out / "model.safetensors")
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
