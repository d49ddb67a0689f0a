"""Weights from a file: nothing in it is executed, nothing is fetched, and bytes that changed are refused by name."""

import json
import os
import pickle
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import medsynth
from medsynth.cli import run_command
from medsynth.config import FeatureOptions
from medsynth.errors import ConfigError, DataError
from medsynth.files import hash_file, read_facts, write_facts
from medsynth.measures.extractors import open_extractor
from medsynth.runs import load_run, save_run
from medsynth.training.checkpoints import CHECKSUMS, PREVIOUS, AtomicCheckpointIO, check_checkpoint, read_checksums


@contextmanager
def killed_after(replacements, monkeypatch, *, of):
    """What is inside ends as by a kill once so many files have taken their place; only with all `of` them it finishes."""
    real, left = os.replace, iter(range(replacements))

    def replace(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        try:
            yield
        except KeyboardInterrupt:
            assert replacements < of


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Connections fail the test."""

    def refuse(self, address):
        raise AssertionError(f"medsynth connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run folder that ends after eight of its twelve steps, with the last checkpoint after it."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    change_json(folder / "run.json", steps=8)
    return folder


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def content_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, arguments, code, *words):
    """Run a verb; it must leave with `code` and one line on standard error that holds the words."""
    capsys.readouterr()
    assert run_command([*map(str, arguments), "--progress", "false"]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("medsynth: ")
    for word in words:
        assert word in lines[0]
    return lines[0]


def resume(tiny_config, tiny_cohort, run):
    return ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--out", run]


def damage(path, kind, trap):
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    elif kind == "torch":
        torch.save({"state_dict": Trap(trap)}, path)


def test_the_trap_does_work(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["truncated", "flipped", "pickle", "torch"])
@pytest.mark.parametrize("forged", [False, True], ids=["", "with a forged fingerprint"])
def test_fault_25_weights_of_a_run(run, tmp_path, capsys, kind, forged):
    weights = run / "model.safetensors"
    damage(weights, kind, tmp_path / "executed")
    if forged:
        if kind == "flipped":
            pytest.skip("a changed number under its own hash is what its author wrote")
        change_json(run / "run.json", fingerprint=hash_file(weights))
    out = tmp_path / "set"
    refused(capsys, ["sample", "--run", run, "--count", "1", "--out", out], 3, str(weights))
    assert not out.exists()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["truncated", "flipped", "pickle", "torch"])
@pytest.mark.parametrize("checksums", ["kept", "forged", "removed"])
def test_fault_25_checkpoint_on_resume(run, tmp_path, capsys, tiny_config, tiny_cohort, kind, checksums):
    checkpoint = run / "checkpoints" / "last.ckpt"
    damage(checkpoint, kind, tmp_path / "executed")
    if checksums != "kept":
        if kind == "flipped":
            pytest.skip("only a checksum can tell")
        sums = run / "checkpoints" / CHECKSUMS
        if checksums == "forged":
            change_json(sums, **{hash_file(checkpoint): 12})
        else:
            sums.unlink()
    before = content_of(run)
    line = refused(capsys, resume(tiny_config, tiny_cohort, run), 3, str(checkpoint), "need", "try")
    assert ("previous.ckpt, of step 8" in line) == (checksums != "removed")
    assert content_of(run).keys() == before.keys()
    if checksums == "kept":
        assert content_of(run) == before
    assert not (tmp_path / "executed").exists()


def test_the_previous_checkpoint_continues_to_the_same_weights(run, capsys, tiny_config, tiny_cohort, tiny_run):
    checkpoint = run / "checkpoints" / "last.ckpt"
    damage(checkpoint, "flipped", None)
    line = refused(capsys, resume(tiny_config, tiny_cohort, run), 3, str(checkpoint))
    wanted, place = line.rsplit("mv ", 1)[1].split()
    os.replace(wanted, place)
    assert run_command([*map(str, resume(tiny_config, tiny_cohort, run)), "--progress", "false"]) == 0
    first, second = load_file(tiny_run.folder / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_finished_run_needs_no_checkpoint(tiny_run, tmp_path, tiny_config, tiny_cohort, capsys):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "last.ckpt", "flipped", None)
    before = content_of(tmp_path / "run")
    (tmp_path / "run" / ".partial-x-run.json").touch()  # of a process that was killed while it wrote
    assert run_command([*map(str, resume(tiny_config, tiny_cohort, tmp_path / "run")), "--progress", "false"]) == 0
    assert "trained 12 steps" in capsys.readouterr().out
    assert content_of(tmp_path / "run") == before


def test_a_checkpoint_from_elsewhere_is_not_read(run, tmp_path, capsys, tiny_config, tiny_cohort):
    checkpoint = run / "checkpoints" / "last.ckpt"
    elsewhere = tmp_path / "elsewhere.ckpt"
    checkpoint.rename(elsewhere)
    checkpoint.symlink_to(elsewhere)
    refused(capsys, resume(tiny_config, tiny_cohort, run), 3, str(checkpoint), "from elsewhere")
    with pytest.raises(ConfigError, match="got a URL"):
        check_checkpoint(Path("https://example.org/last.ckpt"), run)


def test_checkpoints_are_known_by_their_checksums_at_any_moment(tmp_path, monkeypatch):
    """Whatever a kill leaves (each replacement of a file may be the last), the checkpoint that is there is known."""
    keeper, path = AtomicCheckpointIO(tmp_path), tmp_path / "last.ckpt"

    def save(step):
        keeper.save_checkpoint({"global_step": step, "callbacks": {}}, path)

    save(1)
    save(2)
    for allowed in range(4):
        with killed_after(allowed, monkeypatch, of=3):
            save(10 + allowed)
        check_checkpoint(path, tmp_path)
        check_checkpoint(tmp_path / PREVIOUS, tmp_path)
    assert torch.load(path, weights_only=True)["global_step"] == 13
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["global_step"] == 2
    assert read_checksums(tmp_path)[hash_file(path)] == 13


def test_a_run_can_be_used_at_any_moment_of_saving(tiny_run, tmp_path, monkeypatch):
    """Whatever a kill leaves, the run says of its weights what they are: those before, or those after."""
    options = dict(tiny_run.options)

    def weights(seed):
        torch.manual_seed(seed)
        return tiny_run.spec.build()

    first = save_run(tmp_path, tiny_run.spec, weights(1), options=options, steps=4)
    for allowed in range(3):
        with killed_after(allowed, monkeypatch, of=2):
            save_run(tmp_path, tiny_run.spec, weights(2), options=options, steps=8)
        found = load_run(tmp_path)
        denoiser = found.load_denoiser()
        expected = weights(2 if allowed == 2 else 1).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in denoiser.state_dict().items())
        assert (found.steps, found.fingerprint == first.fingerprint) == ((8, False) if allowed == 2 else (4, True))
    (tmp_path / "model.safetensors").unlink()
    assert load_run(tmp_path).steps == 0


def test_the_previous_checkpoint_is_kept_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    keeper, path = AtomicCheckpointIO(tmp_path), tmp_path / "last.ckpt"
    for step in (1, 2):
        keeper.save_checkpoint({"global_step": step, "callbacks": {}}, path)
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["global_step"] == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == [CHECKSUMS, "last.ckpt", PREVIOUS]


URL = "https://example.org/weights"


@pytest.mark.parametrize("form", [URL, "s3://bucket/run", "hf://models/run"])
def test_fault_25_a_url_is_no_run(tiny_config, tiny_cohort, tmp_path, capsys, form):
    out = tmp_path / "out"
    verbs = (
        ["sample", "--run", form, "--count", "1"],
        ["edit", "--run", form, "--cohort", tiny_cohort, "--donor_class=dark", "--target_class=bright", "--count=1"],
        ["evaluate", "--run", form, "--real", tiny_cohort, "--synthetic", tiny_cohort],
        ["train", "--config", tiny_config, "--cohort", tiny_cohort, "--start", form],
    )
    for verb in verbs:
        refused(capsys, [*verb, "--out", out], 2, form, "got a URL")
        assert not out.exists()
    with pytest.raises(ConfigError, match="got a URL"):
        load_run(Path(form))


def test_fault_25_a_url_is_no_file_of_features(tiny_cohort, tmp_path, capsys):
    arguments = ["evaluate", "--real", tiny_cohort, "--synthetic", tiny_cohort, "--out", tmp_path / "report"]
    arguments += ["--features.extractor", "radimagenet", "--features.weights", URL]
    refused(capsys, arguments, 2, "features.weights", "got a URL")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["truncated", "flipped", "pickle", "torch"])
def test_fault_25_weights_of_features(tmp_path, kind, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {"conv1.weight": torch.zeros(1000)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    publisher = hash_file(path)
    damage(path, kind, tmp_path / "executed")
    for sha256 in (publisher, ""):
        with pytest.raises(DataError, match="features"):
            open_extractor(FeatureOptions(extractor="radimagenet", weights=str(path), sha256=sha256))
    assert not (tmp_path / "executed").exists()


def test_patients_that_were_exchanged_are_refused(tiny_run, tiny_cohort, run, tmp_path, capsys):
    """Without its own patients a run would say that it saw none of the test split."""
    medsynth.sample(run=tiny_run.folder, count="bright=2,dark=2", out=tmp_path / "set", progress=False)
    change_json(run / "patients.json", train=[], val=[])
    arguments = ["evaluate", "--real", tiny_cohort, "--synthetic", tmp_path / "set", "--run", run]
    refused(capsys, [*arguments, "--out", tmp_path / "report"], 3, str(run / "patients.json"), "other bytes")


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("suffix", "/../../../planted.png"),
        ("suffix", ""),
        ("dtype", "object"),
        ("shape", [1, 10**9, 10**9]),
        ("shape", [1, 16]),
        ("classes", ["bright", "bright"]),
        ("classes", [1, 2]),
        ("class_counts", [1]),
        ("affine", [[float("nan")] * 4] * 4),
        ("sigma_data", []),
        ("sigma_data", [-1.0]),
        ("band_means", [float("nan")]),
        ("augmentation_parameters", -1),
        ("text", 10**9),
        ("network", {"channels": [10**9]}),
        ("network", {"channels": "wide"}),
        ("network", {"residual_blocks": 10**9}),
        ("network", {"stem": "os.system"}),
    ],
)
def test_a_run_that_says_what_no_run_says_is_refused(run, tmp_path, capsys, fact, value):
    content = json.loads((run / "run.json").read_text())
    content["spec"][fact] = content["spec"]["network"] | value if fact == "network" else value
    (run / "run.json").write_text(json.dumps(content))
    out = tmp_path / "a" / "b" / "c" / "set"
    refused(capsys, ["sample", "--run", run, "--count", "1", "--out", out], 3, str(run / "run.json"), "damaged")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "grid",
    [{"fit": "melt"}, {"fit": "pad", "spacing": ["a"]}, {"fit": "pad", "spacing": -1}, {"fit": "pad", "x": 1}, []],
)
def test_a_grid_that_no_run_has_is_refused(run, tmp_path, capsys, grid):
    options = json.loads((run / "run.json").read_text())["options"]
    change_json(run / "run.json", options=options | {"grid": grid})
    refused(capsys, ["sample", "--run", run, "--count", "1", "--out", tmp_path / "set"], 3, str(run / "run.json"))
    assert not (tmp_path / "set").exists()


def test_a_network_larger_than_its_weights_takes_no_memory(run, tmp_path, capsys):
    content = json.loads((run / "run.json").read_text())
    content["spec"]["network"] |= {"channels": [16384]}
    (run / "run.json").write_text(json.dumps(content))
    refused(capsys, ["sample", "--run", run, "--count", "1", "--out", tmp_path / "set"], 3, "too few bytes")


@pytest.mark.parametrize(
    "text",
    [
        "network: {class_path: planted.Network, init_args: {}}",
        "network: planted.Network",
        "network.class_path: planted.Network",
        "seed: !!python/object/apply:planted.run []",
        "config: planted.yaml",
    ],
)
def test_a_configuration_cannot_name_code(text, tmp_path, monkeypatch, capsys, tiny_cohort):
    (tmp_path / "planted.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    (tmp_path / "planted.yaml").write_text("network: planted.Network\n")
    (tmp_path / "mine.yaml").write_text(text + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine.yaml", "./mine.yaml"):
        refused(capsys, ["train", "--config", name, "--cohort", tiny_cohort, "--out", "run"], 2, "mine.yaml")
        with pytest.raises(ConfigError, match=r"mine\.yaml"):
            medsynth.load_config(name)
    (tmp_path / "recipe.yaml").write_text(f"steps: [{{train: {{config: mine.yaml, cohort: {tiny_cohort}, out: run}}}}]")
    assert run_command(["run", "./recipe.yaml", "--out", "all"]) == 2
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run").exists()


def test_no_saved_array_is_unpickled(tiny_cohort, tmp_path):
    """A planted pickle in the cache of prepared scans is written anew."""
    from medsynth.cohorts import prepare_cohort
    from medsynth.config import GridOptions, IntensityOptions, Loading

    cohort = medsynth.read_cohort(tiny_cohort)
    options = {"grid": GridOptions(size=16), "intensity": IntensityOptions(method="range", low=0, high=255)}
    loading = Loading(cache_dir=tmp_path / "cache", progress=False)
    first = np.array(prepare_cohort(cohort, **options, loading=loading).scans)
    (array,) = (tmp_path / "cache").glob("*.npy")
    trap = np.empty(1, dtype=object)
    trap[0] = Trap(tmp_path / "executed")
    array.unlink()
    np.save(array, trap, allow_pickle=True)
    (facts,) = (path for path in (tmp_path / "cache").glob("*.json") if not path.name.startswith("hashes-"))
    write_facts(facts, read_facts(facts) | {"sha256": hash_file(array)})
    again = prepare_cohort(cohort, **options, loading=loading).scans
    np.testing.assert_array_equal(again, first)
    assert not (tmp_path / "executed").exists()
