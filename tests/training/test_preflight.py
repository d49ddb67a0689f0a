"""What a training needs, as estimated before it begins, and what it refuses."""

import copy
import dataclasses
import gc

import pytest
import torch

import medsynth
from medsynth.cli import run_command
from medsynth.config import NetworkOptions, TrainOptions
from medsynth.errors import ConfigError
from medsynth.networks import build_denoiser
from medsynth.training import Memory, Preflight, preflight
from medsynth.training.augmentation import Augmentation
from medsynth.training.preflight import PeakBytes, TrialStep, free_memory

GIB = 1 << 30
CPU = torch.device("cpu")


def make_options(**options):
    network = NetworkOptions(channels=(32, 64), attention=(False, True))
    defaults = {"cohort": "", "out": "", "network": network, "accelerator": "cpu", "batch_size": 8}
    return TrainOptions(**defaults | options)


def make_denoiser(options, shape):
    torch.manual_seed(0)
    denoiser = build_denoiser(
        options.network,
        channels=shape[0],
        size=shape[1:],
        classes=2,
        augmentation_parameters=Augmentation(options.augment, len(shape) - 1).parameters,
    )
    return denoiser, sum(parameter.numel() for parameter in denoiser.parameters())


def estimate(options, shape=(1, 16, 16)):
    denoiser, parameters = make_denoiser(options, shape)
    return TrialStep(denoiser, shape, options).memory(), parameters


# Counting ----------------------------------------------------------------------------------------------------------------


def test_peak_is_what_was_alive_at_a_time():
    base = torch.zeros(1000)  # from before: does not count
    with PeakBytes() as counted:
        first = base + 1  # 4000
        second = first * 2  # 8000
        view = second[:10]  # no memory of its own
        del first
        third = second.double()  # 4000 + 8000, the peak
        del third
        second.add_(1)
        _ = view + 1
    assert counted.peak == 12000


def test_peak_of_a_network_by_hand():
    """Of sin(sin(x)) two activations are kept, or one and the result; the gradient adds one at a time."""
    inputs = torch.zeros(1000, requires_grad=True)
    with PeakBytes() as counted:
        inputs.sin().sin().sum().backward()
        gc.collect()
    # sin(x); sin(sin(x)), of which the sum keeps nothing; then cos of the first and its product with the gradient.
    assert 12000 <= counted.peak <= 16100


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"activation_checkpointing": True}]
)
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 16, 16, 16)])
def test_a_pass_counted_without_computing_is_that_of_one_computed(shape, options, monkeypatch):
    computed, _ = estimate(make_options(**options), shape)
    monkeypatch.setattr(preflight, "_SMALL", 0)
    counted, _ = estimate(make_options(**options), shape)
    assert counted.scan == pytest.approx(computed.scan, rel=0.01)
    assert counted.fixed == pytest.approx(computed.fixed, rel=0.02, abs=2**17)


def test_memory_grows_as_it_should():
    shape = (1, 32, 32)
    memory, parameters = estimate(make_options(), shape)
    states = 4 * 4 * parameters  # weights, their average, two moments
    assert states < memory.fixed
    frugal, _ = estimate(make_options(activation_checkpointing=True), shape)
    assert frugal.scan < 0.75 * memory.scan
    double, _ = estimate(make_options(), (1, 64, 64))
    # Attention keeps no score of every pair, which would take 16 times as much: memory follows the area.
    assert double.scan == pytest.approx(4 * memory.scan, rel=0.3)
    parts, _ = estimate(make_options(accumulate_grad_batches=4), shape)
    assert parts.of(2) < memory.of(8)


def test_measuring_changes_no_random_number_and_no_weight():
    torch.manual_seed(3)
    expected = torch.rand(3)
    options = make_options()
    denoiser, _ = make_denoiser(options, (1, 16, 16))
    before = copy.deepcopy(denoiser.state_dict())
    torch.manual_seed(3)
    found = preflight.estimate_needs(denoiser, (1, 16, 16), options, quick=False)
    assert torch.equal(torch.rand(3), expected)
    assert found.seconds > 0
    assert all(torch.equal(value, before[name]) for name, value in denoiser.state_dict().items())
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_several_passes_before_the_gradient_multiply_the_memory_of_a_scan():
    options = make_options()
    denoiser, _ = make_denoiser(options, (1, 16, 16))
    one, two = (
        preflight.estimate_needs(denoiser, (1, 16, 16), options, quick=True, passes=passes) for passes in (1, 2)
    )
    assert two.memory.scan == 2 * one.memory.scan


# Free memory -------------------------------------------------------------------------------------------------------------


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_free_memory_of_a_machine_and_its_control_groups(tmp_path):
    assert free_memory(CPU, root=tmp_path) is None
    write(tmp_path, "proc/meminfo", f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    assert free_memory(CPU, root=tmp_path) == 8 * GIB
    # Version 2, a job within a slice: the slice leaves least; half of what it uses is cache.
    write(tmp_path, "proc/self/cgroup", "0::/slice/job\n")
    for group, most, used in (("slice/job", "max", GIB), ("slice", 4 * GIB, 2 * GIB)):
        write(tmp_path, f"sys/fs/cgroup/{group}/memory.max", f"{most}\n")
        write(tmp_path, f"sys/fs/cgroup/{group}/memory.current", f"{used}\n")
        write(tmp_path, f"sys/fs/cgroup/{group}/memory.stat", f"anon 5\ninactive_file {GIB}\nactive_file 0\n")
    assert free_memory(CPU, root=tmp_path) == 3 * GIB
    # Version 1, in a container that sees only its own group, at the top.
    write(tmp_path, "proc/self/cgroup", "4:memory:/docker/0123\n3:cpuset:/\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB}\n")
    assert free_memory(CPU, root=tmp_path) == GIB
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{3 * GIB}\n")
    assert free_memory(CPU, root=tmp_path) == 0


# What is said and refused ------------------------------------------------------------------------------------------------


def figures(**options):
    known = {
        "parameters": 3_000_000, "shape": (1, 64, 64, 64), "batch_size": 8, "part": 8, "max_steps": 1000, "device": "CPU",
        "free": 10 * GIB, "memory": Memory(fixed=GIB, scan=GIB // 2),
    }  # fmt: skip
    return Preflight(**known | options)


def test_figures_by_hand():
    found = figures()
    assert found.memory.of(8) == 5 * GIB
    assert found.largest == 18
    assert "about 5.0 GiB on the CPU for 8 scans at a time (0.5 GiB per scan, 1.0 GiB fixed)" in found.line()
    assert "10.0 GiB free, enough for about 18 scans at a time" in found.line()
    found.check()
    table = dataclasses.replace(found, seconds=7.2, frugal=Memory(fixed=GIB, scan=GIB // 8)).summary()
    assert "2 h for 1000 steps" in table
    assert "about 72 scans at a time" in table
    assert dataclasses.replace(found, free=None).largest is None
    assert "free" not in dataclasses.replace(found, free=None).line()


def test_what_surely_does_not_fit_is_refused_and_what_may_not_is_said():
    close = figures(free=4 * GIB)
    close.check()
    assert "may not fit" in close.line()
    with pytest.raises(
        ConfigError,
        match=r"need about 5\.0 GiB.* 3\.0 GiB are free .* --accumulate_grad_batches with at most 4 scans at a time, ",
    ):
        figures(free=3 * GIB).check()
    with pytest.raises(ConfigError, match=r"0\.5 GiB are free on the CPU; try --activation_checkpointing true, "):
        figures(free=GIB // 2).check()


def test_a_training_without_room_is_refused_before_anything_is_prepared(
    tiny_config, tiny_cohort, tmp_path, monkeypatch
):
    options = medsynth.load_config(str(tiny_config))
    monkeypatch.setattr(preflight, "free_memory", lambda device: 1 << 20)
    places = {"cohort": tiny_cohort, "out": tmp_path / "run", "cache_dir": tmp_path / "cache", "progress": False}
    with pytest.raises(
        ConfigError, match=r"batch_size: 8 scans at a time need about .* MiB of memory, and 1\.0 MiB are free"
    ):
        medsynth.train(**options, **places)
    assert list(tmp_path.iterdir()) == []
    run = medsynth.train(**options | {"max_steps": 1}, **places, preflight="off")
    assert run.steps == 1


def test_no_estimate_is_no_reason_to_fail(tiny_config, tiny_cohort, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(TrialStep, "memory", broken)
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 1}
    medsynth.train(**options, cohort=tiny_cohort, out=tmp_path / "run")
    assert "memory: no estimate (RuntimeError: no kernel)" in capsys.readouterr().err


def test_the_command_only_says_what_a_training_would_take(tiny_config, tiny_cohort, tmp_path, capsys):
    arguments = ["train", "--config", str(tiny_config), "--cohort", str(tiny_cohort), "--out", str(tmp_path / "run")]
    assert run_command([*arguments, "--cache_dir", str(tmp_path / "cache"), "--preflight", "only"]) == 0
    table = capsys.readouterr().out
    for name in ("parameters", "memory of a step", "free memory", "largest part", "checkpointing", "total time"):
        assert name in table
    assert "8 of 16 x 16 in each process, 8 per step" in table
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_on_a_cpu_is_refused_where_its_gradients_are_wrong():
    """Volumes of 8 voxels are 2 thick behind the Haar transform and one halving."""
    thin = make_options(precision="bf16-mixed")
    denoiser, _ = make_denoiser(thin, (1, 8, 8, 8))
    with pytest.raises(ConfigError, match=r"precision: bf16-mixed is not reliable .* 2 x 2 x 4"):
        preflight.check_precision(denoiser, (1, 8, 8, 16), thin)
    for shape, plan in (((1, 8, 8), thin), ((1, 16, 8, 8), thin), ((1, 8, 8, 8), make_options())):
        preflight.check_precision(denoiser, shape, plan)
