"""Run folders without a training: what they say of themselves comes back, and is checked before it is used."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch

from medsynth.cohorts.attributes import Attribute
from medsynth.cohorts.text import TextEncoding, fit_text
from medsynth.config import AutoencoderOptions, GridOptions, NetworkOptions
from medsynth.diffusion import Solver
from medsynth.errors import ConfigError, DataError
from medsynth.runs import TEXT_FILE, RunSpec, load_run, save_run, write_text_encoding
from medsynth.scans import Intensity

TEXTS = ["small nodule left", "large nodule right", "small nodule right", "no nodule"] * 3
GRID = {"size": 16, "fit": "pad", "spacing": None, "centre": "scan", "padding": "background"}


def make_spec(**changes):
    facts = {
        "classes": ("bright", "dark"),
        "class_counts": (8, 32),
        "class_patients": (8, 30),
        "shape": (1, 16, 16),
        "affine": tuple(tuple(map(float, row)) for row in np.eye(4)),
        "intensity": Intensity(low=(0.0,), high=(255.0,)),
        "dtype": "uint8",
        "suffix": ".png",
        "network": NetworkOptions(channels=(32,), attention=(False,)),
        "augmentation_parameters": 6,
        "sigma_data": (0.5, 0.25, 0.25, 0.125),
        "band_means": (-0.5, 0.0, 0.0, 0.0),
    }
    return RunSpec(**facts | changes)


def save(folder, *, options=None, encoding=None, **changes):
    folder.mkdir(exist_ok=True)
    spec = make_spec(**changes)
    if encoding is not None:
        write_text_encoding(folder, encoding)
    torch.manual_seed(0)
    return save_run(folder, spec, spec.build(), options={"grid": GRID} | (options or {}), steps=4)


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modality": "CT", "suffix": ".dcm", "observed": True, "shape": (2, 16, 16), "sigma_data": (0.5,) * 8,
         "band_means": (), "channels": ("path", "mask"), "dtypes": ("int16",)},
        {"attributes": (Attribute(name="side", categories=("left", "right")), Attribute(name="size", mean=3.0, std=2.0))},
        {"network": NetworkOptions(stem="latent", channels=(32,), attention=(False,)), "sigma_data": (1.0,) * 4,
         "band_means": (), "autoencoder": AutoencoderOptions(channels=(8, 16), run="0123456789abcdef")},
    ],
    ids=["plain", "observed", "attributes", "latent"],
)  # fmt: skip
def test_a_spec_and_its_weights_come_back(tmp_path, changes):
    saved = save(tmp_path / "run", **changes)
    found = load_run(tmp_path / "run")
    assert found == saved
    assert found.spec == make_spec(**changes)
    assert found.classes == ("bright", "dark")
    assert found.grid == GridOptions(size=(16, 16))
    torch.manual_seed(0)
    built = make_spec(**changes).build()
    loaded = found.load_denoiser()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in built.state_dict().items())
    assert torch.equal(loaded.band_means, built.band_means)


def test_a_text_encoding_comes_back(tmp_path):
    encoding = fit_text(TEXTS, [str(number) for number in range(12)])
    run = save(tmp_path / "run", encoding=encoding, text=encoding.dimensions)
    found = load_run(run.folder).text_encoding()
    assert np.array_equal(found.encode(TEXTS), encoding.encode(TEXTS))
    assert run.load_denoiser().embedding.text_dimensions == encoding.dimensions
    first = (run.folder / TEXT_FILE).read_bytes()
    write_text_encoding(tmp_path, encoding)
    assert (tmp_path / TEXT_FILE).read_bytes() == first, "equal encodings are equal files"


@pytest.mark.parametrize("kind", ["changed", "none", "other", "objects", "compressed", "no zip"])
def test_a_text_encoding_that_is_not_the_runs_is_refused(tmp_path, kind):
    encoding = fit_text(TEXTS, [str(number) for number in range(12)])
    folder = tmp_path / "run"
    folder.mkdir()
    arrays = encoding.as_arrays()
    if kind == "objects":
        np.savez(folder / TEXT_FILE, **arrays | {"terms": arrays["terms"].astype(object)})
    elif kind == "compressed":
        np.savez_compressed(folder / TEXT_FILE, **arrays)
    elif kind == "no zip":
        (folder / TEXT_FILE).write_bytes(b"PK but no more")
    else:
        write_text_encoding(folder, encoding)
    text = {"none": 0, "other": encoding.dimensions + 1}.get(kind, encoding.dimensions)
    run = save(folder, text=text)
    if kind == "changed":
        arrays["mean"] = arrays["mean"] + 1
        write_text_encoding(folder, TextEncoding.from_arrays(arrays))
    with pytest.raises(DataError, match=r"text\.npz: need the text encoding of this run"):
        load_run(run.folder).text_encoding()


def test_a_run_folder_chooses_no_code(tmp_path, monkeypatch):
    """A user's function is imported again for a run trained with this user's key, or when the user names it."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef encode(texts): return np.array([[len(t), 1] for t in texts])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    encoding = fit_text(TEXTS, [str(number) for number in range(12)], encoder="mine:encode")
    run = save(tmp_path / "run", encoding=encoding, text=2)
    assert load_run(run.folder).text_encoding().encode(TEXTS[:2]).shape == (2, 2)
    monkeypatch.setenv("MEDSYNTH_PATIENTS_KEY", str(tmp_path / "other.key"))
    with pytest.raises(
        DataError, match=r"text\.npz: need a run trained with the key in .*other\.key to import the 'mine:encode'"
    ):
        load_run(run.folder).text_encoding()
    assert load_run(run.folder).text_encoding("mine:encode").encoder == "mine:encode"
    with pytest.raises(DataError, match="need a run trained with the key"):
        load_run(run.folder).text_encoding("mine:another")
    monkeypatch.delenv("MEDSYNTH_PATIENTS_KEY")
    forged = dataclasses.replace(encoding, encoder="os:system")
    np.savez(run.folder / TEXT_FILE, **forged.as_arrays(), seal=np.load(run.folder / TEXT_FILE)["seal"])
    again = save(run.folder, text=2)
    with pytest.raises(DataError, match="to import the 'os:system'"):
        again.text_encoding()


def test_a_text_encoding_with_a_huge_header_takes_no_memory(tmp_path):
    encoding = fit_text(TEXTS, [str(number) for number in range(12)])
    folder = tmp_path / "run"
    folder.mkdir()
    write_text_encoding(folder, encoding)
    with zipfile.ZipFile(folder / TEXT_FILE) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": (encoding.dimensions, 10**13)}
    np.lib.format.write_array_header_1_0(header, facts)
    members["components.npy"] = header.getvalue() + bytes(64)
    with zipfile.ZipFile(folder / TEXT_FILE, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    run = save(folder, text=encoding.dimensions)
    with pytest.raises(DataError, match=r"text\.npz: need the text encoding"):
        run.text_encoding()


def test_runs_of_the_first_format_are_refused_in_one_line(tmp_path):
    run = save(tmp_path / "run")
    change_json(run.folder / "run.json", lambda content: content.update(format="medsynth-run/1"))
    with pytest.raises(DataError, match=r"run: .*medsynth 0\.1.*medsynth-diffusion==0\.1\.0") as refused:
        load_run(run.folder)
    assert "\n" not in str(refused.value)


def test_a_distilled_run_has_one_solver(tmp_path):
    described = {"steps": 2, "sigma_min": 0.05, "sigma_max": 9.6}
    run = save(tmp_path / "run", options={"distilled": {"teacher": "0123", "solver": described}})
    assert run.solver == Solver(name="euler", steps=2, sigma_min=0.05, sigma_max=9.6)
    with pytest.raises(ConfigError, match="need a run of medsynth train to change real scans"):
        run.check_editable()
    plain = save(tmp_path / "plain")
    assert plain.solver is None
    plain.check_editable()


@pytest.mark.parametrize(
    "solver", [None, {}, {"steps": 0}, {"steps": 2.0}, {"sigma_min": 100.0}, {"sigma_max": "9"}, {"name": "heun"}]
)
def test_a_distilled_run_with_an_impossible_solver_is_refused(tmp_path, solver):
    described = {"steps": 2, "sigma_min": 0.05, "sigma_max": 9.6}
    wrong = described | solver if solver else solver
    run = save(tmp_path / "run", options={"distilled": {"teacher": "0123", "solver": wrong}})
    with pytest.raises(DataError, match=r"run\.json: need the steps and noise levels that it was distilled for"):
        _ = run.solver


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shape", []),
        ("class_counts", [8, -1]),
        ("class_counts", [8, True]),
        ("sigma_data", [1e400, 0.25, 0.25, 0.125]),
        ("sigma_data", [10**400, 0.25, 0.25, 0.125]),
        ("intensity", {"low": [1.0], "high": [0.0]}),
        ("autoencoder", {"channels": [8]}),
        ("autoencoder", {"latent_channels": "3"}),
        ("autoencoder", {"run": 1}),
        ("attributes", [{"name": "side", "categories": ["left"]}]),
        ("attributes", [{"name": "size", "std": 0.0}]),
        ("text", -1),
        ("observed", 1),
        ("modality", "../x"),
        ("parents", [0, 1]),
    ],
)
def test_impossible_values_are_refused(tmp_path, name, value):
    run = save(tmp_path / "run")
    change_json(run.folder / "run.json", lambda content: content["spec"].update({name: value}))
    with pytest.raises(DataError, match=r"run\.json: need a run description, got damaged content|intensity: need"):
        load_run(run.folder)
