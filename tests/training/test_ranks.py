"""Two processes train what one does, however they were started."""

import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from medsynth.cohorts import read_cohort, write_cohort
from medsynth.runs import load_run
from tests.launching import by_slurm, by_torchrun, finish, start
from tests.training import float64

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def odd_cohort(tiny_cohort):
    """Nine validation scans, which do not divide evenly."""
    cohort, path = read_cohort(tiny_cohort), tiny_cohort.with_name("odd.csv")
    write_cohort(replace(cohort, rows=tuple(row for row in cohort.rows if row != cohort.rows[45])), path)
    return path


@pytest.fixture(scope="module")
def alone(odd_cohort, tiny_config, tmp_path_factory):
    """The run of one process."""
    return float64.train(tiny_config, odd_cohort, tmp_path_factory.mktemp("alone") / "run")


def by_itself(words, *, nodes, devices):
    return finish([start(words)])


@pytest.mark.parametrize(
    ("launch", "nodes", "devices"),
    [(by_itself, 1, 2), (by_torchrun, 2, 1), (by_slurm, 2, 1)],
    ids=["by itself", "torchrun", "SLURM"],
)
def test_two_processes_train_what_one_does(alone, odd_cohort, tiny_config, tmp_path, launch, nodes, devices):
    """By itself on one node; on two nodes that meet by torchrun or in a job of SLURM, both on this machine."""
    out = tmp_path / "run"
    done = launch([float64.__file__, tiny_config, odd_cohort, out, devices, nodes], nodes=nodes, devices=devices)
    assert {code for code, *_ in done} == {0}, done
    left = sum(said.count(float64.LEFT) for _, said, _ in done)
    assert left == 2, "threads of a group that is still there may abort the process at its very end"
    first, second = (load_file(folder / "model.safetensors") for folder in (alone.folder, out))
    assert {tensor.dtype for tensor in first.values()} == {torch.float64}
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-9
    expected, found = alone.read_metrics(), load_run(out).read_metrics()
    # Each process logs the loss of its part of a batch; validation is over the scans of all.
    for name in (name for name in expected if name.startswith("val_loss")):
        assert found[name][1].tolist() == pytest.approx(expected[name][1].tolist(), rel=1e-6), name
    assert not any("sync_dist" in errors for *_, errors in done)
    lines = [line for *_, errors in done for line in errors.splitlines() if "20 steps of" in line]
    assert [line.partition("20 steps of ")[2] for line in lines] == ["8 scans, 4 in each of 2 processes"]
