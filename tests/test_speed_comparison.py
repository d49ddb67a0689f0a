"""The comparison with peers: its score, its claims, and the peers' loops against oracles. Nothing is trained for long."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.speed import cells, compare, growth, peers, tables
from benchmarks.speed.methods import Medsynth, Setting, Solver
from benchmarks.speed.score import Features, class_counts, score, tolerance
from benchmarks.speed.steps import read_claim
from medsynth.cohorts import read_cohort
from medsynth.evaluation.fidelity import FidelitySettings
from medsynth.evaluation.fidelity.comparison import Group, compare_groups

PACKAGES = {peers.Diffusers: "diffusers", peers.DenoisingDiffusion: "denoising_diffusion_pytorch"}


def made_features(count: int, *, seed: int, shift: float = 0.0) -> Features:
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, 6))
    values[:, 0] += shift
    return Features(values=values, labels=np.arange(count) % 4 // 3, patients=np.arange(count) // 2)


# Score -------------------------------------------------------------------------------------------------------------------


def test_scans_of_one_distribution_score_like_two_real_halves():
    found = score(made_features(400, seed=0), made_features(200, seed=1), 160).frechet
    assert found.verdict == "as close"
    assert found.real_low <= found.value <= found.real_high


def test_a_shift_adds_its_square():
    real = made_features(400, seed=0)
    near, far = (score(real, made_features(200, seed=1, shift=shift), 160).frechet for shift in (0.0, 10.0))
    assert far.value - near.value == pytest.approx(100, rel=0.05)
    assert far.verdict == "further"


def test_the_score_is_that_of_the_fidelity_table():
    """Not the same halves, so the same up to what halves scatter."""
    real, made = made_features(400, seed=0), made_features(200, seed=1, shift=0.5)
    groups = [
        [
            Group(
                features=side.values[rows],
                patients=side.patients[rows],
                intensities=np.full((len(rows), 1, 4), 0.25),
                textures=None,
            )
            for rows in (np.flatnonzero(side.labels == label) for label in (0, 1))
        ]
        for side in (real, Features(values=made.values, labels=made.labels, patients=np.arange(200)))
    ]
    table = compare_groups(*groups, settings=FidelitySettings(repeats=40), generator=np.random.default_rng(0))
    mine = score(real, made, 200)
    assert mine.scans == table.scans_a_side
    assert mine.frechet.value == pytest.approx(table.frechet.value, rel=0.15)
    assert mine.frechet.real_median == pytest.approx(table.frechet.real_median, rel=0.25)


def test_classes_have_the_shares_of_the_real_scans():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    assert class_counts(labels, np.arange(100), 10) == {0: 6, 1: 3, 2: 1}
    assert sum(class_counts(labels, np.arange(100), 33).values()) == 33


def test_no_class_has_more_scans_than_half_of_the_patients():
    labels, patients = np.repeat([0, 1], [60, 40]), np.arange(100)
    patients[60:] = 99 - np.arange(40) % 2
    assert class_counts(labels, patients, 100) == {0: 30, 1: 10}


# Claims ------------------------------------------------------------------------------------------------------------------


def drawn(solver: str, steps: int, seconds: float, value: float) -> dict[str, Any]:
    figure = {
        "value": value,
        "low": value - 1,
        "high": value + 1,
        "real_median": 3.0,
        "real_low": 2.0,
        "real_high": 4.0,
    }
    return {
        "solver": solver,
        "steps": steps,
        "seconds_a_scan": seconds,
        "scores": [{"scans": scans, "dims": 10, **figure} for scans in (128, 32)],
    }


def trained(method: str, budget: float, *draws: dict[str, Any]) -> dict[str, Any]:
    request = {"kind": "quality", "method": method, "size": 32, "rank": 2, "budget": budget}
    return {"request": request, "training_s": float(budget), "steps": 10, "parameters": 1, "draws": list(draws)}


def measured_cells(ours: float) -> list[dict[str, Any]]:
    return [
        trained("medsynth", 30, drawn("dpmpp_2m", 20, 0.04, 20.0)),
        trained("medsynth", 120, drawn("dpmpp_2m", 20, 0.04, ours), drawn("dpmpp_2m", 5, 0.01, ours + 50)),
        trained("monai-ddpm", 30, drawn("DDIM", 50, 0.5, 40.0)),
        trained("monai-ddpm", 120, drawn("DDIM", 50, 0.5, 20.0), drawn("DDPM", 1000, 9.0, 18.0)),
        trained("diffusers", 120, drawn("DPMSolverMultistep", 20, 0.2, 18.5)),
    ]


def test_claims_take_the_cheapest_solver_that_is_as_close():
    slow, best, training = tables.claims(measured_cells(10.0), 32)
    assert slow.ratio == pytest.approx(9.0 / 0.04)
    assert best.ratio == pytest.approx(0.2 / 0.04)
    assert "diffusers" in best.measured
    assert training.ratio == pytest.approx(120 / 30)
    assert slow.held
    assert best.held
    assert training.held


def test_claims_fail_where_ours_never_comes_as_close():
    slow, best, training = tables.claims(measured_cells(25.0), 32)
    assert (slow.ratio, best.ratio, slow.held, best.held) == (None, None, False, False)
    assert training.held, "the curve over time was at the peer's level after 30 s"


def test_equal_means_within_half_the_interval_of_real_scans():
    assert tolerance(drawn("DDPM", 1000, 1.0, 5.0)["scores"][0]) == 1.0
    assert tables.claims(measured_cells(18.9), 32)[0].held
    assert not tables.claims(measured_cells(19.1), 32)[0].held


def test_the_time_to_a_target_lies_between_points_in_logarithmic_time():
    assert tables.time_to([(10, 30.0), (40, 10.0)], 20.0) == pytest.approx(20)
    assert tables.time_to([(10, 30.0)], 40.0) == 10
    assert tables.time_to([(10, 30.0)], 20.0) is None


def test_tables_have_a_row_for_every_method_and_say_what_is_missing():
    missing = {
        "request": {"kind": "quality", "method": "ddpm-pytorch", "size": 32, "budget": 30},
        "missing": "no wheel",
    }
    found = tables.time_table([*measured_cells(10.0), missing], 32).splitlines()
    assert [line.split(" | ")[0] for line in found[2:]] == [
        "| medsynth (Haar stem); dpmpp_2m, 20 steps",
        "| MONAI DDPM / DDIM; DDIM, 50 steps",
        "| diffusers; DPMSolverMultistep, 20 steps",
        "| denoising-diffusion-pytorch",
        "| real against real, 128 scans a side",
    ]
    assert "no wheel" in found[5]
    assert len({line.count("|") for line in found}) == 1
    ladder = tables.drawing_table(measured_cells(10.0), 32).splitlines()
    assert len(ladder) == 2 + 5
    assert "| 1000 | 9000 |" in ladder[5]


# Plan --------------------------------------------------------------------------------------------------------------------


def test_a_budget_becomes_steps_by_the_median_cost_of_one():
    arguments = compare.make_parser().parse_args(["--methods", "medsynth", "--budgets", "16,64", "--batch_size", "8"])
    costs = [
        {"request": {"rank": 2, "size": 32, "method": "medsynth"}, "training_s_a_scan": seconds}
        for seconds in (0.01, 0.02, 9.0)
    ]
    planned = compare.plan_quality(arguments, costs)
    assert [(each["budget"], each["steps"], each["ladder"]) for each in planned] == [(16, 100, False), (64, 400, True)]


def test_a_cell_is_measured_once(tmp_path, monkeypatch):
    """The second call reads the file; another option measures anew; `--table` measures nothing."""
    asked = []

    def measured(command: list[str], **_: Any) -> None:
        asked.append(json.loads(command[3]))
        Path(command[4]).write_text(json.dumps({"request": asked[-1], "training_s_a_scan": 1.0}))

    monkeypatch.setattr(compare.subprocess, "run", measured)
    options = [
        "--cohort",
        "c.csv",
        "--folder",
        str(tmp_path),
        "--methods",
        "medsynth",
        "--sizes",
        "32",
        "--rounds",
        "2",
    ]
    arguments = compare.make_parser().parse_args([*options, "--volume_sizes", ""])
    for _ in range(2):
        assert len(compare.measure(arguments, compare.plan_costs(arguments))) == 2
        assert [each["round"] for each in asked] == [0, 1]
    other = compare.make_parser().parse_args([*options, "--volume_sizes", "", "--batch_size", "4", "--table"])
    assert compare.measure(other, compare.plan_costs(other)) == []
    other.table = False
    assert len(compare.measure(other, compare.plan_costs(other))) == 2
    assert [each["batch_size"] for each in asked] == [16, 16, 4, 4]


def test_a_cell_with_all_solvers_answers_for_the_first_alone():
    """So a longer budget, which takes the ladder from the others, measures nothing anew but itself."""
    every, first = (
        {"budget": 120, "ladder": True, "folder": "here"},
        {"budget": 120, "ladder": False, "folder": "there"},
    )
    assert not compare._differs(every, first)
    assert compare._differs(first, every)
    assert compare._differs(every, {**first, "steps": 3})


# Peers -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def setting(tiny_cohort, tmp_path) -> Setting:
    return Setting(
        config="phantom_2d", cohort=tiny_cohort, size=32, rank=2, batch_size=2, device="cpu", folder=tmp_path / "cell"
    )


class Oracle(nn.Module):
    """Predicts what leads to one known scan, whatever the noise: the noise itself, or the velocity."""

    def __init__(self, target: torch.Tensor, alphas: torch.Tensor | None) -> None:
        super().__init__()
        self._target, self._alphas = target, alphas

    def forward(self, noisy: torch.Tensor, steps: torch.Tensor, **_: Any) -> torch.Tensor:
        if self._alphas is None:
            return (self._target - noisy) / (steps.float() / 1000)[:, None, None, None]
        alpha = self._alphas[steps[0]]
        return (noisy - alpha.sqrt() * self._target) / (1 - alpha).sqrt()


@pytest.mark.parametrize("peer", [peers.MonaiDiffusion, peers.MonaiFlow])
def test_monai_finds_the_scan_that_its_network_knows(peer, setting):
    made = peer(setting)
    target = torch.linspace(-0.9, 0.9, 32 * 32).reshape(1, 1, 32, 32)
    flow = peer is peers.MonaiFlow
    network = Oracle(target, None if flow else made._schedulers["DDIM"].alphas_cumprod)
    for solver in made.solvers:
        found = made.solve(network, torch.zeros(2, dtype=torch.long), solver)
        torch.testing.assert_close(found, target.expand(2, -1, -1, -1), atol=0.02, rtol=0)


@pytest.mark.parametrize("peer", [peers.MonaiDiffusion, peers.MonaiFlow, peers.Diffusers, peers.DenoisingDiffusion])
def test_a_peer_trains_and_draws_scans_of_the_grid(peer, setting):
    """As many weights as ours, up to a tenth; the average of the weights moves; scans lie in the model's range."""
    if peer in PACKAGES and find_spec(PACKAGES[peer]) is None:
        pytest.skip(f"{PACKAGES[peer]} is not installed: pip install the extra benchmarks")
    made = peer(setting)
    wanted = sum(each.numel() for each in peers.pixel_network(setting.options().network, (1, 32, 32), 2).parameters())
    assert made.parameters == pytest.approx(wanted, rel=0.1)
    before = [each.clone() for each in made.network.parameters()]
    made.train(2)
    assert any(not torch.equal(one, other) for one, other in zip(before, made._averaged.parameters(), strict=True))
    scans = made.draw(np.array([0, 1, 1]), Solver(made.solvers[0].name, 2), batch=2)
    assert scans.shape == (3, 1, 32, 32)
    assert np.abs(scans).max() <= 1
    assert np.isfinite(scans).all()
    assert "torchvision" not in sys.modules or find_spec("torchvision")


def test_peers_without_a_network_for_volumes_say_so(setting):
    volumes = Setting(**{**vars(setting), "rank": 3})
    with pytest.raises(ImportError, match="no network for 3D"):
        peers.Diffusers(volumes)


def test_a_missing_peer_is_a_cell_that_says_so(setting, tmp_path, monkeypatch):
    def absent(_: Setting) -> Any:
        raise ImportError("No module named 'diffusers'")

    monkeypatch.setitem(peers.METHODS, "diffusers", absent)
    request = {
        **{key: value for key, value in vars(setting).items() if key not in ("cohort", "folder")},
        "kind": "cost", "method": "diffusers", "threads": 1, "cohort": str(setting.cohort), "folder": str(setting.folder),
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["cells", json.dumps(request), str(tmp_path / "cell.json")])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    cells.main()
    assert json.loads((tmp_path / "cell.json").read_text())["missing"] == "No module named 'diffusers'"


def test_ours_draws_the_classes_that_are_asked_for(setting):
    made = Medsynth(setting)
    made.train(1)
    scans = made.draw(np.array([0, 1, 1]), Solver("dpmpp_2m", 2), batch=2)
    assert scans.shape == (3, 1, 32, 32)
    assert np.abs(scans).max() <= 1
    assert math.isclose(made.parameters, 1.82e6, rel_tol=0.02)


# Growth ------------------------------------------------------------------------------------------------------------------


def test_the_exponent_of_a_power_law():
    assert growth.exponent([1, 10, 100], [3.0, 3e2, 3e4]) == pytest.approx(2)
    assert growth.exponent([1, 10], [4.0, 4.0]) == pytest.approx(0)
    assert growth.exponent([10], [4.0]) is None
    assert growth.exponent([1, 10], [0.0, 1.0]) is None


def test_links_are_a_cohort_that_can_be_read(tmp_path):
    """As many scans as asked for on few files, two of each patient, in the shares 7 : 1 : 2."""
    cohort = read_cohort(growth.write_links(tmp_path / "links", 600))
    assert len(cohort.rows) == 600
    assert len({cohort.file_of(row).stat().st_ino for row in cohort.rows}) == 256
    assert [len(cohort.select(split=split).rows) for split in ("train", "val", "test")] == [420, 60, 120]
    assert len({row.patient_id for row in cohort.rows}) == 300


def test_the_last_row_of_a_growth_table_holds_the_exponents():
    rows = [{"scans": 10, "read_s": 0.1}, {"scans": 1000, "read_s": 10.0}]
    text, exponents = growth.table(rows, "scans", {"read_s": "read_cohort, s"})
    assert exponents == {"read_s": pytest.approx(1)}
    assert text.splitlines()[-1] == "| exponent | 1.00 |"


def test_two_evaluations_against_twenty_steps():
    def row(solver, steps, value, distilled=None):
        return {
            "solver": solver, "steps": steps, "evaluations": steps, "distilled": distilled,
            "fd": {"value": value, "real_low": 2.0, "real_high": 3.0},
        }  # fmt: skip

    twenty = row("dpmpp_2m", 20, 8.0)
    assert read_claim([twenty, row("euler", 1, 7.0, "one")]) is None, "nothing with two evaluations"
    found = read_claim([row("euler", 2, 9.0, "bad"), row("euler", 2, 8.4, "good"), twenty, row("dpmpp_2m", 2, 60.0)])
    assert found == {"two_evaluations": 8.4, "of": "good", "twenty_steps": 8.0, "margin": 0.5, "held": True}
    assert read_claim([row("euler", 2, 8.6, "bad"), twenty])["held"] is False
