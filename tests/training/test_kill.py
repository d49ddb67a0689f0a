"""Promise 1 for two processes: `kill -9` of both, the same command again, the same weights to the last bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.timeout(600)
def test_two_killed_processes_resume_to_the_same_weights(tiny_cohort, tiny_config, tmp_path):
    def command(out):
        words = ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--out", out, "--devices", 2]
        words += ["--accelerator", "cpu", "--max_steps", 16, "--monitor.preview_every", 0, "--progress", "false"]
        return [sys.executable, "-m", "medsynth", *map(str, words)]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    # A session of its own, so that the second process, which the first one starts, dies with it.
    process = subprocess.Popen(
        command(killed), env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 200
    while not (killed / "checkpoints" / "last.ckpt").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (killed / "checkpoints" / "last.ckpt").exists()
    assert not (killed / "run.json").exists() or b'"steps": 16' not in (killed / "run.json").read_bytes()
    for out in (killed, tmp_path / "whole"):
        done = subprocess.run(command(out), env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
    first, second = (load_file(out / "model.safetensors") for out in (killed, tmp_path / "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)
