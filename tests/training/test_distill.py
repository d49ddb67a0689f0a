"""`medsynth distill`: trajectories, the student that follows them, its resume, and its use."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import medsynth
from medsynth.cli import run_command
from medsynth.cohorts import prepare_cohort, read_cohort, write_cohort
from medsynth.config import (
    ConditionOptions,
    DistillOptions,
    GuidanceOptions,
    InpaintOptions,
    Loading,
    MonitorOptions,
    OptimiserOptions,
    SolverOptions,
)
from medsynth.diffusion import Solver, dpmpp_2m, noise_levels
from medsynth.errors import ConfigError, DataError
from medsynth.networks import sample_scans
from medsynth.runs import load_run
from medsynth.training.distill import TrajectoryDataset, TrajectoryModule, TrajectorySet, plan_trajectories
from tests.launching import kill_when_there

MONITOR = MonitorOptions(log_every=2, validate_every=4, preview_every=6, checkpoint_every=2)
OPTIONS = {
    "max_steps": 8, "batch_size": 8, "trajectories": 300, "teacher_steps": 5,
    "optimiser": OptimiserOptions(learning_rate=2e-3, ema_decay=0.9, warmup_steps=2),
}  # fmt: skip


def distill(run, cohort, out, **options):
    return medsynth.distill(
        run=run.folder, cohort=cohort, out=out, progress=False, **OPTIONS | {"monitor": MONITOR} | options
    )


@pytest.fixture(scope="module")
def student(tiny_run, tiny_cohort, tmp_path_factory):
    return distill(tiny_run, tiny_cohort, tmp_path_factory.mktemp("student") / "run")


def test_the_result_is_a_run_with_one_solver(student, tiny_run):
    assert student.spec == tiny_run.spec
    assert student.distilled
    assert not tiny_run.distilled
    assert student.solver == Solver(name="euler", steps=2, sigma_min=0.05, sigma_max=0.6 * 16)
    assert student.options["distilled"] == {
        "run": tiny_run.fingerprint[:16], "steps": 12, "solver": {"steps": 2, "sigma_min": 0.05, "sigma_max": 0.6 * 16},
    }  # fmt: skip
    assert (student.options["evaluations"], student.options["trajectories"]) == (2, 300)
    assert student.options["label_dropout"] == 0
    assert {path.name for path in student.folder.iterdir()} == {
        "run.json", "model.safetensors", "config.yaml", "patients.json", "metrics.csv", "previews", "checkpoints",
    }, "trajectories are gone"  # fmt: skip
    names = set(student.read_metrics())
    assert {"train_loss", "val_loss", "val_loss/bright/sigma_0.05", "val_loss/bright/end"} <= names
    assert "memorisation/bright/sample_median" in names
    config = yaml.safe_load((student.folder / "config.yaml").read_text())
    assert (config["max_steps"], config["trajectories"]) == (8, 300)
    before, after = (load_file(run.folder / "model.safetensors") for run in (tiny_run, student))
    assert before.keys() == after.keys()
    assert 0 < max(float((after[name] - before[name]).abs().max()) for name in before) < 0.1, "tuned, not trained anew"


def test_the_patients_of_the_teacher_are_known_and_nothing_names_them(student, tiny_run, tiny_cohort):
    assert student.shared_patients(["secret-patient-0", "secret-patient-45", "secret-patient-55"]) == [
        "secret-patient-0",
        "secret-patient-45",
    ]
    assert student.patients().splits == tiny_run.patients().splits
    for path in student.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in content, path
        assert str(tiny_cohort.parent).encode() not in content, path
        assert str(tiny_run.folder).encode() not in content, path


def test_a_student_comes_nearer_to_where_its_teacher_goes(tiny_run, tiny_cohort, tmp_path):
    """From new noise, beside the teacher in as few steps; both have the same weights before."""
    run = distill(
        tiny_run, tiny_cohort, tmp_path / "run", max_steps=150,
        monitor=replace(MONITOR, preview_every=0, validate_every=50),
    )  # fmt: skip
    labels, seeds = torch.arange(32) % 2, list(range(32))
    fixed = {"shape": run.spec.shape, "guidance": GuidanceOptions()}
    ends = {"sigma_min": 0.05, "sigma_max": 0.6 * 16}
    long = sample_scans(
        tiny_run.load_denoiser(), labels, seeds, solver=Solver(name="dpmpp_2m", steps=5, **ends), **fixed
    )
    few = Solver(name="euler", steps=2, **ends)
    before = (sample_scans(tiny_run.load_denoiser(), labels, seeds, solver=few, **fixed) - long).abs().mean()
    after = (sample_scans(run.load_denoiser(), labels, seeds, solver=few, **fixed) - long).abs().mean()
    assert after < 0.6 * before
    losses = run.read_metrics()["val_loss"][1]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("evaluations", [1, 4])
def test_students_of_other_lengths(tiny_run, tiny_cohort, tmp_path, evaluations):
    run = distill(
        tiny_run, tiny_cohort, tmp_path / "run", max_steps=2, evaluations=evaluations, trajectories=16
    )  # fmt: skip
    cohort = medsynth.sample(run=run.folder, count="bright=2,dark=1", out=tmp_path / "set", progress=False)
    assert json.loads((cohort.folder / "provenance.json").read_text())["solver"]["steps"] == evaluations
    with pytest.raises(ConfigError, match=rf"solver\.steps: .*{evaluations}.*distilled"):
        medsynth.sample(run=run.folder, count=1, out=tmp_path / "other", solver=SolverOptions(steps=2), progress=False)


def test_what_a_student_makes_and_what_it_cannot(student, tiny_cohort, tmp_path):
    cohort = medsynth.sample(run=student.folder, count="bright=3,dark=2", out=tmp_path / "set", progress=False)
    solver = json.loads((cohort.folder / "provenance.json").read_text())["solver"]
    assert (solver["name"], solver["steps"], solver["sigma_min"]) == ("euler", 2, 0.05)
    made = next(iter(medsynth.generate(student, count="dark=1"))).scan
    assert "euler, 2 steps, sigma 9.6 to 0.05" in made.provenance["solver"]
    edits = {"run": student.folder, "cohort": tiny_cohort, "donor_class": "dark", "target_class": "bright", "count": 1}
    for more in ({"strength": 0.5}, {"method": "inpaint", "inpaint": InpaintOptions()}):
        with pytest.raises(ConfigError, match="need a run of medsynth train to change real scans"):
            medsynth.edit(**edits, out=tmp_path / "edits", progress=False, **more)
    with pytest.raises(ConfigError, match=r"guidance\.scale: need a run trained with label_dropout above 0"):
        medsynth.sample(
            run=student.folder, count=1, out=tmp_path / "guided", guidance=GuidanceOptions(scale=2.0), progress=False
        )
    assert {path.name for path in tmp_path.iterdir()} == {"set"}


def test_trajectories_are_the_teachers(tiny_run, tiny_cohort, student, tmp_path):
    """The files during training, which a kill leaves, agree with the solver."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        stop_after_drawing(tiny_run, tiny_cohort, out)
    files = sorted((out / "trajectories").glob("part_*.npy"))
    points = np.concatenate([np.load(file) for file in files])
    assert [len(np.load(file)) for file in files] == [256, 256, 44], "300 and 256 for validation"
    assert points.shape == (556, 2, 16, 16)
    prepared = prepare_cohort(
        read_cohort(tiny_cohort),
        grid=tiny_run.grid,
        intensity=tiny_run.spec.intensity,
        loading=Loading(progress=False),
    )
    options = DistillOptions(run=tiny_run.folder, cohort=tiny_cohort, out=out, **OPTIONS)
    planned = plan_trajectories(prepared, options, student.solver, (1, 16, 16))
    assert np.bincount(planned.labels).tolist() == [278, 278]
    rows = [0, 1, 300]
    noise = planned.noise(rows)
    denoiser = tiny_run.load_denoiser()
    solver = Solver(name="dpmpp_2m", steps=5, sigma_min=0.05, sigma_max=0.6 * 16)
    condition = denoiser.embedding.make(torch.from_numpy(planned.labels[rows]))
    with torch.inference_mode():
        levels = noise_levels(solver)
        ends = dpmpp_2m(
            lambda noisy, sigma: denoiser(noisy, sigma, condition),
            denoiser.initial_noise(noise, float(levels[0])),
            levels,
        )
    # Half precision on the disk.
    np.testing.assert_allclose(points[rows, 1:], ends.numpy(), atol=2e-3)
    item = TrajectoryDataset(planned)[300]
    torch.testing.assert_close(item["noise"], noise[2])
    np.testing.assert_array_equal(item["scan"].numpy(), points[300].astype(np.float32))


def stop_after_drawing(run, cohort, out, **options):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrajectoryModule, "training_step", interrupt)
        distill(run, cohort, out, **options)


def test_an_interrupted_distillation_ends_in_the_same_weights(student, tiny_run, tiny_cohort, tmp_path):
    """`kill -9` while trajectories are drawn, then between two checkpoints, then the same command."""
    out = tmp_path / "run"
    words = ["distill", "--run", tiny_run.folder, "--cohort", tiny_cohort, "--out", out, "--progress", "false"]
    words += ["--max_steps", 8, "--batch_size", 8, "--trajectories", 300, "--teacher_steps", 5]
    words += ["--optimiser.learning_rate", 2e-3, "--optimiser.ema_decay", 0.9, "--optimiser.warmup_steps", 2]
    for name in ("log_every", "validate_every", "preview_every", "checkpoint_every"):
        words += [f"--monitor.{name}", getattr(MONITOR, name)]
    command = [sys.executable, "-m", "medsynth", *map(str, words)]
    first = out / "trajectories" / "part_00000000_00000256.npy"
    kill_when_there(command, first)
    stamp = first.stat().st_mtime_ns
    kill_when_there(command, out / "checkpoints" / "last.ckpt")
    assert load_run(out).steps < 8
    assert first.stat().st_mtime_ns == stamp, "drawn once"
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 0, done.stderr
    whole, resumed = (load_file(run / "model.safetensors") for run in (student.folder, out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (out / "trajectories").exists()
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert distill(tiny_run, tiny_cohort, out).fingerprint == student.fingerprint
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp, "a finished one is left alone"
    with pytest.raises(ConfigError, match=r"trajectories 300 -> 200"):
        distill(tiny_run, tiny_cohort, out, trajectories=200)


def test_two_processes_draw_and_follow_what_one_does(student, tiny_run, tiny_cohort, tmp_path):
    """Noise and batches are the same, sums are taken in another order."""
    words = ["distill", "--run", tiny_run.folder, "--cohort", tiny_cohort, "--out", tmp_path / "run"]
    words += ["--max_steps", 8, "--batch_size", 8, "--trajectories", 300, "--teacher_steps", 5]
    words += ["--optimiser.learning_rate", 2e-3, "--optimiser.ema_decay", 0.9, "--optimiser.warmup_steps", 2]
    words += ["--monitor.validate_every", 4, "--monitor.preview_every", 0]
    words += ["--devices", 2, "--accelerator", "cpu", "--progress", "false"]
    done = subprocess.run(
        [sys.executable, "-m", "medsynth", *map(str, words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second = (load_file(folder / "model.safetensors") for folder in (student.folder, tmp_path / "run"))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 2e-3
    losses = [run.read_metrics()["val_loss"][1] for run in (student, load_run(tmp_path / "run"))]
    assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=0.02)


def test_volumes_are_kept_in_small_files(student):
    options = DistillOptions(run="", cohort="", out=student.folder)
    planned = TrajectorySet(
        options=options, solver=student.solver, shape=(1, 128, 128, 128), labels=np.zeros(1000, int)
    )
    assert planned.part_size * planned.bytes_each == 64 << 20
    assert sum(len(planned.rows(part)) for part in range(planned.parts)) == 1000


def test_attributes_of_the_teacher_are_those_of_the_student(tiny_cohort, tiny_config, tmp_path):
    cohort = read_cohort(tiny_cohort)
    rows = tuple(
        replace(row, attributes={"level": str(number % 7)}, root="scans") for number, row in enumerate(cohort.rows)
    )
    write_cohort(replace(cohort, folder=tmp_path, rows=rows, roots={"scans": cohort.folder}), tmp_path / "cohort.csv")
    config = medsynth.load_config(str(tiny_config)) | {"max_steps": 2, "monitor": replace(MONITOR, preview_every=0)}
    teacher = medsynth.train(
        **config, cohort=tmp_path / "cohort.csv", out=tmp_path / "teacher", progress=False,
        condition=ConditionOptions(attributes="level"),
    )  # fmt: skip
    run = distill(teacher, tmp_path / "cohort.csv", tmp_path / "run", max_steps=2, trajectories=16)
    assert run.spec == teacher.spec
    assert run.attribute_table() == teacher.attribute_table()
    made = medsynth.sample(run=run.folder, count="dark=2", where="level=2..3", out=tmp_path / "set", progress=False)
    assert {row.attributes["level"] for row in made.rows} <= {"2", "3"}
    other = tuple(replace(row, attributes={"level": str(number % 9)}) for number, row in enumerate(rows))
    write_cohort(replace(cohort, folder=tmp_path, rows=other, roots={"scans": cohort.folder}), tmp_path / "other.csv")
    with pytest.raises(ConfigError, match="need the attributes that the run was trained with"):
        distill(teacher, tmp_path / "other.csv", tmp_path / "other", max_steps=2)


@pytest.mark.parametrize(
    ("changed", "code", "named"),
    [
        (["--evaluations", "0"], 2, "evaluations: need a whole number from 1 to 4"),
        (["--max_steps", "0"], 2, "max_steps: need a whole number from 1"),
        (["--run", "{student}"], 2, "need a diffusion run of medsynth train to distill"),
        (["--run", "nowhere"], 3, "nowhere: need a run folder"),
        (["--out", "{run}"], 2, "holds a run with other options or data"),
    ],
)
def test_nonsense_is_refused_in_one_line(student, tiny_run, tiny_cohort, tmp_path, capsys, changed, code, named):
    given = {"--run": tiny_run.folder, "--cohort": tiny_cohort, "--out": tmp_path / "out", "--progress": "false"}
    given |= {changed[0]: changed[1].format(student=student.folder, run=tiny_run.folder)}
    words = [str(word) for pair in given.items() for word in pair]
    assert run_command(["distill", *words]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medsynth:")]
    assert len(lines) == 1
    assert named in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_cohort_without_one_of_the_classes_is_refused(tiny_run, tiny_cohort, tmp_path):
    cohort = read_cohort(tiny_cohort)
    rows = tuple(replace(row, root="scans") for row in cohort.rows if row.label == "dark")
    write_cohort(replace(cohort, folder=tmp_path, rows=rows, roots={"scans": cohort.folder}), tmp_path / "cohort.csv")
    with pytest.raises(DataError, match="got none of bright"):
        distill(tiny_run, tmp_path / "cohort.csv", tmp_path / "run")


def test_damaged_options_of_the_teacher_are_refused(tiny_run, tiny_cohort, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_run.folder, folder)
    content = json.loads((folder / "run.json").read_text())
    content["options"]["condition"] = {"attribute": 1}
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"run\.json: need the options of its training"):
        distill(load_run(folder), tiny_cohort, tmp_path / "run")


def test_guidance_is_in_the_trajectories(tiny_run, tiny_cohort, student, tmp_path):
    """By what the teacher was early in its training; a run without is refused."""
    some = {"trajectories": 16, "max_steps": 4}
    plain = distill(tiny_run, tiny_cohort, tmp_path / "plain", **some)
    run = distill(tiny_run, tiny_cohort, tmp_path / "run", teacher_guidance=3.0, **some)
    first, second = (load_file(each.folder / "model.safetensors") for each in (plain, run))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_run.folder, folder)
    content = json.loads((folder / "run.json").read_text())
    del content["checksums"]["early.safetensors"]
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="teacher_guidance: the run kept no early weights"):
        distill(load_run(folder), tiny_cohort, tmp_path / "none", teacher_guidance=3.0)
    assert not (tmp_path / "none").exists()


def test_a_run_that_forgot_its_levels_is_refused(student, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(student.folder, folder)
    content = json.loads((folder / "run.json").read_text())
    content["options"]["distilled"]["solver"]["steps"] = "two"
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"run\.json: need the steps and noise levels"):
        medsynth.sample(run=folder, count=1, out=tmp_path / "set", progress=False)
