"""What `tests.slow.fuzz` reads: for each reader sound files, how they are spoiled, and the call that must handle them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medsynth.cohorts import fit_text, index_scans, read_cohort
from medsynth.config import CONFIGS, PIPELINES, IndexOptions, Loading, NetworkOptions
from medsynth.files import folder_label, hash_file, label_folder
from medsynth.generation import generate
from medsynth.pipeline import describe_recipe, load_config, plan_recipe
from medsynth.runs import (
    PATIENTS_FILE,
    TEXT_FILE,
    RunSpec,
    load_denoiser,
    load_run,
    save_run,
    write_patients,
    write_text_encoding,
)
from medsynth.runs.patients import read_patients
from medsynth.scans import Intensity, Scan, list_items, read_header, read_scan, write_scan
from medsynth.training.checkpoints import CHECKSUMS, AtomicCheckpointIO
from tests.slow.fuzz_spoils import (
    Spoil,
    spoil_bytes,
    spoil_json,
    spoil_nifti_header,
    spoil_npz_member,
    spoil_numbers,
    spoil_png_chunk,
    spoil_text,
)

# A few lines whose references unfold to millions of values.
_LAUGHS = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{x: *{last}, y: *{last}, z: *{last}}}\n"
    for last, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader under test: sound `seeds` as (file name, content), how they are spoiled, what reads them, its share of inputs."""

    name: str
    seeds: Sequence[tuple[str, bytes]]
    spoils: Sequence[Spoil]
    read: Callable[[Path], object]
    weight: float
    beside: Callable[[Path], None] = lambda folder: None

    def write(self, chance: random.Random, folder: Path) -> Path:
        """Write one spoiled seed and what must lie beside it into `folder`, and return its path."""
        name, content = chance.choice(self.seeds)
        self.beside(folder)
        path = folder / name
        path.write_bytes(chance.choice(self.spoils)(content, chance))
        return path


def make_targets(folder: Path, *, only: Sequence[str] = ()) -> list[Target]:
    """Return the targets of these names, or all; their sound files are made in `folder`."""
    known: dict[str, Callable[[Path], Target]] = {
        "nifti": _nifti,
        "png": _png,
        "npz": _npz,
        "cohort": _cohort,
        "roots": _roots,
        "labels": _labels,
        "configuration": _configuration,
        "recipe": _recipe,
        "run": _run,
        "weights": _weights,
        "patients": _patients,
        "text": _text,
        "checkpoint": _checkpoint,
        "dicom": _dicom,
    }
    if unknown := set(only) - known.keys():
        raise SystemExit(f"targets: need some of {', '.join(known)}; got {', '.join(sorted(unknown))}")
    return [make(folder) for name, make in known.items() if not only or name in only]


def _read_scan(path: Path) -> None:
    loading = Loading(max_mib=64)
    items = list_items(path)
    for each in [f"{path}#{item}" for item in items[:3]] or [str(path)]:
        header = read_header(each, loading=loading)
        scan = read_scan(each, loading=loading)
        assert scan.array.shape == header.shape, "the header has another shape"
        assert np.isfinite(scan.array).all(), "voxels that are not finite"
        assert np.isfinite(scan.affine).all(), "an affine that is not finite"


def _scans(folder: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    """Write scans of several types by our own writer and return them as seeds."""
    chance = np.random.default_rng(0)
    arrays = [
        chance.integers(0, 255, (1, 9, 7)).astype(np.uint8),
        chance.normal(0, 300, (1, 6, 5)).astype(np.float32),
        chance.integers(-1000, 1000, (1, 5, 6, 4)).astype(np.int16),
    ]
    seeds = []
    for name in names:
        for number, array in enumerate(arrays):
            if array.ndim == 4 and name.endswith(".png"):
                continue
            path = folder / f"{number}-{name}"
            affine = np.array([[0, -0.7, 0, 3], [-0.7, 0, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1]])
            write_scan(Scan(array=array, affine=affine, provenance={"seed": "1"}), path)
            seeds.append((path.name, path.read_bytes()))
    return seeds


def _nifti(folder: Path) -> Target:
    spoils = (spoil_nifti_header, spoil_nifti_header, spoil_bytes)
    return Target(
        name="nifti", seeds=_scans(folder, ("scan.nii", "scan.nii.gz")), spoils=spoils, read=_read_scan, weight=2
    )


def _png(folder: Path) -> Target:
    seeds = _scans(folder, ("scan.png",))
    return Target(name="png", seeds=seeds, spoils=(spoil_png_chunk, spoil_bytes), read=_read_scan, weight=2)


def _npz(folder: Path) -> Target:
    several = folder / "several.npz"
    images = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.savez(several, train_images=images, train_labels=np.array([[0], [1], [0]]), val_images=images)
    seeds = [*_scans(folder, ("scan.npz",)), (several.name, several.read_bytes())]
    return Target(name="npz", seeds=seeds, spoils=(spoil_npz_member, spoil_bytes), read=_read_scan, weight=2)


def _dicom(folder: Path) -> Target:
    seeds = []
    for number, syntax in enumerate((ExplicitVRLittleEndian, ImplicitVRLittleEndian)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3.4"
        meta.TransferSyntaxUID = syntax
        one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID, one.SeriesInstanceUID = CTImageStorage, "1.2.3.4", "1.2.3"
        one.StudyInstanceUID, one.PatientID, one.Modality = "1.2", "P1", "CT"
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = 6, 5, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 1
        one.RescaleSlope, one.RescaleIntercept, one.PixelSpacing, one.SliceThickness = 1, -1024, [0.7, 0.7], 2
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 5]
        one.PixelData = np.arange(30, dtype=np.int16).tobytes()
        path = folder / f"{number}.dcm"
        pydicom.dcmwrite(path, one, enforce_file_format=True)
        seeds.append((path.name, path.read_bytes()))
    return Target(name="dicom", seeds=seeds, spoils=(spoil_bytes,), read=_read_scan, weight=2)


def _table(split: str = "train") -> bytes:
    rows = [f"{number}.png,{'ab'[number % 2]},P{number},{split},{number}.5" for number in range(6)]
    return ("path,label,patient_id,split,age\n" + "\n".join(rows) + "\n").encode()


def _pictures(folder: Path) -> None:
    for number in range(6):
        path = folder / f"{number}.png"
        if not path.exists():
            write_scan(
                Scan(array=np.full((1, 4, 4), number, np.uint8) + np.arange(16, dtype=np.uint8).reshape(4, 4)), path
            )


def _read_cohort(path: Path) -> None:
    cohort = read_cohort(path.parent / "cohort.csv")
    cohort.summary()
    for label in cohort.classes:
        assert folder_label(label_folder(label)) == label, "a label that does not come back"
    for row in cohort.rows:
        below = cohort.base_of(row).resolve()
        assert cohort.file_of(row).resolve().is_relative_to(below), "a path that leaves its root"


def _cohort(folder: Path) -> Target:
    seeds = [("cohort.csv", _table()), ("cohort.csv", _table().replace(b",", b";"))]
    return Target(
        name="cohort",
        seeds=seeds,
        spoils=(spoil_text, spoil_text, spoil_bytes),
        read=_read_cohort,
        weight=2,
        beside=_pictures,
    )


def _roots(folder: Path) -> Target:
    def beside(place: Path) -> None:
        (place / "far").mkdir(exist_ok=True)
        _pictures(place / "far")
        lines = [line + (b",root" if not number else b",far") for number, line in enumerate(_table().splitlines())]
        (place / "cohort.csv").write_bytes(b"\n".join(lines) + b"\n")

    seeds = [("cohort.yaml", b"roots:\n  far: far\n"), ("cohort.yaml", _LAUGHS.encode())]
    return Target(
        name="roots", seeds=seeds, spoils=(spoil_text, spoil_bytes), read=_read_cohort, weight=0.5, beside=beside
    )


def _labels(folder: Path) -> Target:
    def beside(place: Path) -> None:
        (place / "scans").mkdir(exist_ok=True)
        _pictures(place / "scans")

    def read(path: Path) -> None:
        out = path.parent / "out" / "cohort.csv"
        index_scans(IndexOptions(scans=path.parent / "scans", out=out, labels=path, allow_tiny=True, progress=False))
        read_cohort(out)

    seeds = [("labels.csv", _table()), ("labels.csv", _table("").replace(b",split,", b",sex,"))]
    return Target(name="labels", seeds=seeds, spoils=(spoil_text,), read=read, weight=0.5, beside=beside)


def _configuration(folder: Path) -> Target:
    seeds = [("config.yaml", CONFIGS.find(name).read_bytes()) for name in CONFIGS.names()]
    seeds += [
        ("config.yaml", _LAUGHS.encode()),
        ("config.yaml", f"network: {{\n{_LAUGHS.replace(chr(10), ',')}}}".encode()),
    ]
    return Target(
        name="configuration", seeds=seeds, spoils=(spoil_text, spoil_text, spoil_bytes), weight=0.7,
        read=lambda path: load_config(str(path)),
    )  # fmt: skip


def _recipe(folder: Path) -> Target:
    def read(path: Path) -> None:
        describe_recipe(str(path))
        plan_recipe(str(path), out="out", variables={})

    names = sorted(PIPELINES.names(), key=lambda name: name != "quickstart")  # the one that is whole without a variable
    seeds = [("recipe.yaml", PIPELINES.find(name).read_bytes()) for name in names]
    return Target(name="recipe", seeds=seeds, spoils=(spoil_text,), read=read, weight=0.5)


def _made_run(folder: Path) -> Path:
    """Write the run folder of an untrained tiny network."""
    torch.manual_seed(0)
    spec = RunSpec(
        classes=("a", "b"), class_counts=(5, 6), class_patients=(5, 6), shape=(1, 8, 8), dtype="uint8", suffix=".png",
        affine=((0.0, -1.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
        intensity=Intensity(low=(0.0,), high=(255.0,)), augmentation_parameters=0, sigma_data=(0.5,) * 4,
        network=NetworkOptions(channels=(32,), attention=(False,)),
    )  # fmt: skip
    run = folder / "run"
    run.mkdir(exist_ok=True)
    save_run(run, spec, spec.build(), options={"grid": {"fit": "pad"}, "label_dropout": 0.1}, steps=1)
    return run


def _run(folder: Path) -> Target:
    run = _made_run(folder)
    weights = (run / "model.safetensors").read_bytes()

    def read(path: Path) -> None:
        next(iter(generate(path.parent, count=1, accelerator="cpu")))

    return Target(
        name="run", seeds=[("run.json", (run / "run.json").read_bytes())], spoils=(spoil_json, spoil_json, spoil_bytes),
        read=read, weight=0.5, beside=lambda place: (place / "model.safetensors").write_bytes(weights) and None,
    )  # fmt: skip


def _weights(folder: Path) -> Target:
    run = _made_run(folder)
    content = json.loads((run / "run.json").read_text())

    def read(path: Path) -> None:
        """The fingerprint is made to match, as an attacker would."""
        (path.parent / "run.json").write_text(json.dumps(content | {"fingerprint": hash_file(path)}))
        denoiser = load_denoiser(path.parent)
        assert all(bool(tensor.isfinite().all()) for tensor in denoiser.state_dict().values()), (
            "weights that are not finite"
        )

    def beside(place: Path) -> None:
        (place / "run.json").touch()

    seeds = [("model.safetensors", (run / "model.safetensors").read_bytes())]
    spoils = (spoil_bytes, spoil_numbers)
    return Target(name="weights", seeds=seeds, spoils=spoils, read=read, weight=0.3, beside=beside)


def _patients(folder: Path) -> Target:
    run = _made_run(folder)
    names = [f"{number:06d}" for number in range(20)]
    write_patients(run, {"train": names[:15], "val": names[15:]})
    start = read_patients(run, None)

    def read(path: Path) -> None:
        """As evaluation does, and as a training that begins from the run."""
        found = read_patients(path.parent, None)
        found.among(names)
        write_patients(path.parent, {"train": names, "val": []}, before=found)

    assert start.among(names) == names
    seeds = [
        (PATIENTS_FILE, (run / PATIENTS_FILE).read_bytes()),
        (PATIENTS_FILE, b'{"salt": "a", "train": [], "val": []}'),
    ]
    return Target(name="patients", seeds=seeds, spoils=(spoil_json, spoil_bytes), read=read, weight=0.3)


def _text(folder: Path) -> Target:
    run = load_run(_made_run(folder))
    sentences = ["small solid nodule", "large solid nodule", "small subsolid nodule", "large subsolid nodule"] * 3
    encoding = fit_text(sentences, [str(number) for number in range(len(sentences))])
    write_text_encoding(folder, encoding)
    spec = replace(run.spec, text=encoding.dimensions)

    def read(path: Path) -> None:
        """The checksum is made to match, as in `_weights`."""
        spoiled = replace(run, folder=path.parent, spec=spec, checksums={path.name: hash_file(path)})
        spoiled.text_encoding().encode(["small nodule"])

    seeds = [(TEXT_FILE, (folder / TEXT_FILE).read_bytes())]
    return Target(name="text", seeds=seeds, spoils=(spoil_npz_member, spoil_bytes), read=read, weight=0.5)


def _checkpoint(folder: Path) -> Target:
    path = folder / "last.ckpt"
    state = {
        "state_dict": {"a": torch.arange(40.0)},
        "optimizer_states": [],
        "loops": {},
        "callbacks": {},
        "global_step": 1,
    }
    torch.save(state | {"pytorch-lightning_version": "2.6.6"}, path)

    def read(file: Path) -> None:
        """The checksum is made to match, as in `_weights`."""
        (file.parent / CHECKSUMS).write_text(json.dumps({hash_file(file): 1}))
        AtomicCheckpointIO(file.parent).load_checkpoint(file)

    def beside(place: Path) -> None:
        (place / CHECKSUMS).touch()

    seeds = [("last.ckpt", path.read_bytes())]
    return Target(name="checkpoint", seeds=seeds, spoils=(spoil_bytes,), read=read, weight=0.3, beside=beside)
