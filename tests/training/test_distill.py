"""`medsynth distill --method consistency`: the run that comes out, its resume, and the sets that it makes."""

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
from medsynth.cohorts import read_cohort, write_cohort
from medsynth.config import (
    ConditionOptions,
    ConsistencyOptions,
    GuidanceOptions,
    MonitorOptions,
    OptimiserOptions,
    SolverOptions,
)
from medsynth.errors import ConfigError, DataError
from medsynth.networks import sample_scans
from medsynth.runs import load_run
from medsynth.scans import Scan, read_scan, write_scan
from medsynth.training.distillation import DistillationModule
from tests.launching import kill_when_there

MONITOR = MonitorOptions(
    log_every=2, validate_every=4, preview_every=6, checkpoint_every=2, preview_scans=2, memorisation_scans=4
)
OPTIONS = {
    "method": "consistency",
    "max_steps": 6,
    "batch_size": 8,
    "optimiser": OptimiserOptions(learning_rate=3e-4, warmup_steps=2),
}


def distill(run, cohort, out, **options):
    return medsynth.distill(
        run=run.folder, cohort=cohort, out=out, progress=False, **OPTIONS | {"monitor": MONITOR} | options
    )


@pytest.fixture(scope="module")
def quick_run(tiny_run, tiny_cohort, tmp_path_factory):
    return distill(tiny_run, tiny_cohort, tmp_path_factory.mktemp("distilled") / "run")


def test_the_result_is_a_run_like_its_teacher(quick_run, tiny_run):
    assert quick_run.spec == tiny_run.spec
    assert quick_run.distilled
    assert not tiny_run.distilled
    assert quick_run.options["distilled"] | {"consistency": None} == {
        "run": tiny_run.fingerprint[:16], "steps": 12, "consistency": None
    }  # fmt: skip
    assert {path.name for path in quick_run.folder.iterdir()} == {
        "run.json", "model.safetensors", "config.yaml", "patients.json", "metrics.csv", "previews", "checkpoints",
    }  # fmt: skip
    before, after = (load_file(run.folder / "model.safetensors") for run in (tiny_run, quick_run))
    assert before.keys() == after.keys()
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(moved) < 0.1, "tuned, not trained anew"
    names = set(quick_run.read_metrics())
    assert {"train_loss", "val_loss", "memorisation/bright/sample_median"} <= names
    assert (quick_run.folder / "previews" / "step_0000006.png").is_file()
    config = yaml.safe_load((quick_run.folder / "config.yaml").read_text())
    assert config["max_steps"] == 6
    assert config["consistency"]["stages"] == 8


def test_checkpoints_hold_no_teacher(quick_run, tiny_run):
    teacher = tiny_run.load_denoiser()
    module = DistillationModule(tiny_run.load_denoiser(), classes=tiny_run.spec.classes, total_steps=4, teacher=teacher)
    plain = DistillationModule(tiny_run.load_denoiser(), classes=tiny_run.spec.classes, total_steps=4)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert len(list(module.parameters())) == len(list(plain.parameters()))
    assert quick_run.options["distilled"]["consistency"]["teacher"] is False


def test_trajectories_of_the_teacher_lead_elsewhere(tiny_run, tiny_cohort, tmp_path):
    found = [
        distill(
            tiny_run,
            tiny_cohort,
            tmp_path / f"{teacher}",
            max_steps=4,
            consistency=ConsistencyOptions(teacher=teacher, stages=1, base=16.0),
        )
        for teacher in (False, True)
    ]
    alone, taught = (load_file(run.folder / "model.safetensors") for run in found)
    assert any(not torch.equal(alone[name], taught[name]) for name in alone)


def test_the_patients_of_the_teacher_are_known_and_nothing_names_them(quick_run, tiny_run, tiny_cohort, tmp_path):
    """Also those whom the cohort of the distillation leaves out."""
    assert quick_run.shared_patients(["secret-patient-0", "secret-patient-45", "secret-patient-55"]) == [
        "secret-patient-0",
        "secret-patient-45",
    ]
    assert quick_run.patient_fingerprints() == tiny_run.patient_fingerprints()
    for path in quick_run.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"secret" not in content, path
        assert str(tiny_cohort.parent).encode() not in content, path
        assert str(tiny_run.folder).encode() not in content, path


def test_an_interrupted_distillation_ends_in_the_same_weights(quick_run, tiny_run, tiny_cohort, tmp_path):
    """`kill -9` between two checkpoints, with dropout, then the same command."""
    out = tmp_path / "run"
    words = ["distill", "--run", tiny_run.folder, "--cohort", tiny_cohort, "--out", out, "--method", "consistency"]
    words += ["--max_steps", 6, "--batch_size", 8, "--progress", "false"]
    words += ["--optimiser.learning_rate", 3e-4, "--optimiser.ema_decay", 0.999, "--optimiser.warmup_steps", 2]
    for name in (
        "log_every",
        "validate_every",
        "preview_every",
        "checkpoint_every",
        "preview_scans",
        "memorisation_scans",
    ):
        words += [f"--monitor.{name}", getattr(MONITOR, name)]
    command = [sys.executable, "-m", "medsynth", *map(str, words)]
    kill_when_there(command, out / "checkpoints" / "last.ckpt")
    assert load_run(out).steps < 6
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 0, done.stderr
    whole, resumed = (load_file(run / "model.safetensors") for run in (quick_run.folder, out))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    # A finished one is left alone, one with other options is named.
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert distill(tiny_run, tiny_cohort, out).fingerprint == quick_run.fingerprint
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r"distilled\.consistency\.stages 8 -> 4"):
        distill(tiny_run, tiny_cohort, out, consistency=ConsistencyOptions(stages=4))


def test_student_and_target_draw_the_same_dropout(tiny_run):
    """With a gap of 2^-20 they differ by that alone; with masks of their own they would differ by far more."""
    denoiser = tiny_run.spec.build()
    denoiser.load_state_dict(tiny_run.load_denoiser().state_dict())
    for module in denoiser.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    options = ConsistencyOptions(stages=1, base=2.0**20, widening=0.0)
    module = DistillationModule(denoiser, classes=tiny_run.spec.classes, total_steps=1, consistency=options)
    clean, noise = torch.randn(2, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma, condition = torch.ones(4), denoiser.embedding.make(torch.tensor([0, 1, 0, 1]))
    module.train()
    first = denoiser(clean, sigma, condition)
    assert (denoiser(clean, sigma, condition) - first).abs().max() > 1e-3, "dropout acts"
    losses = module._losses(denoiser, clean, noise, sigma, condition)
    assert (losses * 2.0**-20).max() < 1e-5


def test_a_distilled_run_is_sampled_by_the_consistency_solver(quick_run, tmp_path):
    cohort = medsynth.sample(run=quick_run.folder, count="bright=3,dark=2", out=tmp_path / "set", progress=False)
    provenance = json.loads((cohort.folder / "provenance.json").read_text())
    assert provenance["solver"]["name"] == "consistency"
    assert provenance["solver"]["steps"] == 2
    assert len(cohort.rows) == 5
    for steps in (1, 4):
        made = [scan.scan for scan in medsynth.generate(quick_run, count="dark=1", solver=SolverOptions(steps=steps))]
        assert f"consistency, {steps} steps" in made[0].provenance["solver"]
        assert made[0].array.std() > 0


def test_its_sets_do_not_depend_on_batches_or_processes(quick_run, tmp_path):
    """Four steps, so noise is drawn anew three times; each scan's follows from its own seed."""
    options = {"solver": SolverOptions(steps=4), "count": "bright=3,dark=4"}
    whole = medsynth.sample(run=quick_run.folder, out=tmp_path / "whole", batch_size=2, progress=False, **options)
    shared = medsynth.sample(
        run=quick_run.folder, out=tmp_path / "shared", batch_size=2, devices=2, device="cpu", progress=False, **options
    )
    for row in whole.rows:
        assert (whole.folder / row.path).read_bytes() == (shared.folder / row.path).read_bytes()

    denoiser = quick_run.load_denoiser()
    seeds, labels = [5, 6, 7], torch.tensor([0, 1, 1])
    fixed = {
        "shape": quick_run.spec.shape,
        "solver": SolverOptions(name="consistency", steps=4),
        "guidance": GuidanceOptions(scale=2.0),
    }
    together = sample_scans(denoiser, labels, seeds, **fixed)
    for place in range(3):
        alone = sample_scans(denoiser, labels[place : place + 1], seeds[place : place + 1], **fixed)
        torch.testing.assert_close(alone[0], together[place], rtol=0, atol=1e-4)
    others = sample_scans(denoiser, labels, [8, 9, 10], **fixed)
    assert (others - together).abs().max() > 0.1


def test_edits_by_a_distilled_run(quick_run, tiny_cohort, tmp_path):
    cohort = medsynth.edit(
        run=quick_run.folder, cohort=tiny_cohort, donor_class="dark", target_class="bright", count=2,
        out=tmp_path / "edits", strength=0.5, progress=False,
    )  # fmt: skip
    assert len(cohort.rows) == 2
    assert json.loads((cohort.folder / "provenance.json").read_text())["solver"]["name"] == "consistency"


@pytest.mark.parametrize(
    ("changed", "code", "named"),
    [
        (["--max_steps", "0"], 2, "max_steps: need a number above 0"),
        (["--consistency.base", "1"], 2, "consistency.base: need a number above 1"),
        (["--consistency.stages", "0"], 2, "consistency.stages: need at least 1"),
        (["--run", "{quick}"], 2, "need a run of medsynth train to distill"),
        (["--run", "nowhere"], 3, "nowhere: need a run folder"),
        (["--out", "{run}"], 2, "need the options that this run was started with"),
    ],
)
def test_nonsense_is_refused_in_one_line(quick_run, tiny_run, tiny_cohort, tmp_path, capsys, changed, code, named):
    places = {"quick": quick_run.folder, "run": tiny_run.folder}
    given = {"--run": tiny_run.folder, "--cohort": tiny_cohort, "--out": tmp_path / "out", "--progress": "false"}
    given["--method"] = "consistency"
    given |= {changed[0]: changed[1].format(**places)}
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


def test_what_the_teacher_was_told_the_student_is_told(tiny_cohort, tiny_config, tmp_path):
    """Attributes, with the same values, and masks as a channel that can be given."""
    cohort = read_cohort(tiny_cohort)
    rows = []
    for number, row in enumerate(cohort.rows):
        scan = read_scan(cohort.file_of(row))
        write_scan(scan, tmp_path / f"{number}.png")
        write_scan(Scan(array=(scan.array > 60).astype(np.uint8)), tmp_path / f"{number}-mask.png")
        attributes = {"level": str(number % 7)}
        rows.append(replace(row, path=f"{number}.png", mask=f"{number}-mask.png", attributes=attributes))
    write_cohort(replace(cohort, folder=tmp_path, rows=tuple(rows)), tmp_path / "cohort.csv")
    config = medsynth.load_config(str(tiny_config)) | {"max_steps": 2, "monitor": replace(MONITOR, preview_every=0)}
    teacher = medsynth.train(
        **config, cohort=tmp_path / "cohort.csv", out=tmp_path / "teacher", progress=False,
        condition=ConditionOptions(attributes="level", mask=True, given=0.5),
    )  # fmt: skip
    run = distill(teacher, tmp_path / "cohort.csv", tmp_path / "run", max_steps=2)
    assert run.spec == teacher.spec
    assert run.attribute_table() == teacher.attribute_table()
    made = medsynth.sample(run=run.folder, count="dark=2", where="level=2..3", out=tmp_path / "set", progress=False)
    assert {row.attributes["level"] for row in made.rows} <= {"2", "3"}
    assert all(row.mask for row in made.rows)
    for number, row in enumerate(rows):
        rows[number] = replace(row, attributes={"level": str(number % 9)})
    write_cohort(replace(cohort, folder=tmp_path, rows=tuple(rows)), tmp_path / "other.csv")
    with pytest.raises(ConfigError, match="need the attributes that the run was trained with"):
        distill(teacher, tmp_path / "other.csv", tmp_path / "other", max_steps=2)


def test_solvers_and_runs_that_do_not_belong_together(quick_run, tiny_run, tmp_path):
    for run, solver in ((quick_run, "dpmpp_2m"), (tiny_run, "consistency")):
        with pytest.raises(ConfigError, match=r"solver\.name: need"):
            medsynth.sample(
                run=run.folder, count=1, out=tmp_path / "set", solver=SolverOptions(name=solver), progress=False
            )
    assert not (tmp_path / "set").exists()


def test_damaged_options_of_the_teacher_are_refused(tiny_run, tiny_cohort, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_run.folder, folder)
    content = json.loads((folder / "run.json").read_text())
    content["options"]["balance"] = {"exponents": 1}
    (folder / "run.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"run\.json: need the options of its training"):
        distill(load_run(folder), tiny_cohort, tmp_path / "run")
    assert np.isfinite(load_run(folder).steps)
