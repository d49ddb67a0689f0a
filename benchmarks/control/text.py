"""Do scans show what a sentence asks for? Lung nodules with sentences made from their attributes, `--text` beside `--where`.

    python -m benchmarks.control.text --scans lung_nodules --out runs/text --result benchmarks/results/control_text.json

Every training nodule gets a sentence from its diameter and texture, in one of 30 wordings. One class holds all nodules, so that
what a scan shows is controlled by the condition alone. One run learns diameter and texture as attributes and the sentence as
text, each hidden at random, and then makes scans three ways: from attributes, from sentences in wordings of the training, and
from sentences in 20 wordings that no training scan had. The networks of `benchmarks.control.attributes`, which see real scans
only, read diameter and kind (solid or subsolid) from them.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

import medsynth
from benchmarks.control.attributes import accuracy, find_lesions, fit_class, fit_value, interval, mean_error, r_squared
from benchmarks.control.networks import read_scans, train_network, with_lesion
from benchmarks.machine import describe_machine
from medsynth.files import write_json
from medsynth.seeds import numpy_generator

# `{size}` is a word, `{mm}` the diameter in whole millimetres, `{kind}` the texture in words.
SEEN = (
    "{size} {kind} nodule, {mm} mm",
    "{kind} nodule of {mm} mm",
    "A {mm} mm {kind} nodule is seen.",
    "There is a {size} {kind} nodule measuring {mm} mm.",
    "{mm} mm nodule, {kind}",
    "{size} nodule, {kind}, {mm} mm in diameter",
    "Pulmonary nodule, {kind}, diameter {mm} mm.",
    "{kind} pulmonary nodule measuring {mm} mm",
    "Nodule with {kind} attenuation, {mm} mm.",
    "Solitary {size} {kind} nodule ({mm} mm)",
    "Impression: {kind} nodule, {mm} mm, {size}.",
    "{size} {kind} opacity of {mm} mm",
    "Lung nodule {mm} mm, {size}, {kind}.",
    "Finding: {mm} mm {kind} pulmonary nodule.",
    "A {size} nodule of {mm} mm with {kind} texture.",
    "Single {kind} nodule; it measures {mm} mm.",
    "{kind}, {size}: nodule of {mm} mm",
    "CT shows a {kind} nodule with a diameter of {mm} mm.",
    "Nodule measures {mm} mm and is {kind}.",
    "{size} lesion, {kind} nodule, {mm} mm",
    "{mm} mm {size} {kind} nodule in the lung",
    "The nodule is {kind} and {size}, {mm} mm.",
    "Nodular {kind} lesion, {mm} mm",
    "Parenchymal nodule: {kind}, {mm} mm.",
    "One {kind} nodule, {size}, measuring {mm} mm in diameter.",
    "Follow-up of a {mm} mm {kind} nodule",
    "Indeterminate {kind} nodule, {mm} mm.",
    "{kind} nodule, {size}",
    "{size} {kind} nodule",
    "Nodule, {mm} mm",
)
UNSEEN = (
    "In the lung lies a nodule of {mm} mm that looks {kind}.",
    "We note one {kind} lesion measuring about {mm} mm.",
    "Known {kind} nodule, now {mm} mm",
    "{mm} mm, {kind}: pulmonary nodule",
    "Diameter {mm} mm, {size} nodule, appearance {kind}",
    "Stable {size} {kind} nodule of {mm} mm.",
    "Incidental {kind} nodule with a size of {mm} mm",
    "Please see the {kind} nodule ({mm} mm) described before.",
    "Conclusion: single pulmonary nodule, {kind}, {size}, {mm} mm.",
    "The largest diameter of the {kind} nodule is {mm} mm.",
    "{kind} lesion in keeping with a nodule, {mm} mm, {size}",
    "New {mm} mm nodule which is {kind}",
    "Well seen {size} nodule, {kind}, measured at {mm} mm",
    "Nodule ({kind}), approximately {mm} mm",
    "Chest CT: {size} {kind} nodule, {mm} mm, no effusion",
    "Suspicious nodule, {kind}, {mm} mm",
    "There are no masses; one {kind} nodule of {mm} mm.",
    "{size} and {kind}, the nodule measures {mm} mm across.",
    "A nodule of {mm} mm, mostly {kind}, is present.",
    "Measured today: {mm} mm {kind} nodule",
)
KINDS = {"solid": "solid", "part_solid": "part-solid", "ground_glass": "ground-glass"}
SETTINGS = {"condition": {"attributes": "diameter_mm,texture", "text": "impression"}}


def say(wording: str, diameter: float, label: str) -> str:
    """Return a sentence in a wording."""
    size = "tiny" if diameter < 6 else "small" if diameter < 10 else "medium-sized" if diameter < 16 else "large"
    return wording.format(size=size, mm=round(diameter), kind=KINDS[label])


def write_labels(source: Path, target: Path) -> list[dict[str, str]]:
    """Write a labels CSV with one class and a sentence for each scan; return its rows."""
    with source.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        wording = SEEN[int(numpy_generator(0, "wording", number).integers(len(SEEN)))]
        row["kind"] = "solid" if row["label"] == "solid" else "subsolid"
        row["impression"] = say(wording, float(row["diameter_mm"]), row["label"])
        row["label"] = "nodule"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return rows


def draw_wishes(rows: list[dict[str, str]], count: int) -> list[tuple[float, str]]:
    """Return diameters and labels to ask for: those of training scans, half of them subsolid."""
    random = numpy_generator(0, "wishes")
    train = [row for row in rows if row["split"] == "train"]
    groups = [[row for row in train if (row["kind"] == "solid") == solid] for solid in (True, False)]
    chosen = [groups[number % 2][int(random.integers(len(groups[number % 2])))] for number in range(count)]
    label_of = {"5": "solid", "4": "part_solid", "3": "part_solid", "2": "ground_glass", "1": "ground_glass"}
    return [(round(float(row["diameter_mm"])), label_of[row["texture"]]) for row in chosen]


def make_scans(
    run: Any, wishes: list[tuple[float, str]], wordings: tuple[str, ...] | None, *, steps: int, scale: float
) -> np.ndarray:
    """Return one scan for each wish, `(N, 1, *spatial)` in [-1, 1], from sentences or, without wordings, from attributes."""
    textures = {"solid": "5..5", "part_solid": "3..4", "ground_glass": "1..2"}
    made = []
    for number, (diameter, label) in enumerate(wishes):
        asked: dict[str, Any] = (
            {
                "where": f"diameter_mm={diameter - 0.5}..{diameter + 0.5},texture={textures[label]}",
                "where_from": "ranges",
            }
            if wordings is None
            else {"text": say(wordings[number % len(wordings)], diameter, label)}
        )
        guidance = {"scale": scale}
        (one,) = medsynth.generate(run, count=1, seed=number, solver={"steps": steps}, guidance=guidance, **asked)
        made.append(run.spec.image_intensity.to_model(one.scan.array.astype(np.float32)))
    return np.stack(made)


def main() -> None:
    """Train, sample, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=Path, required=True, help="folder of the lung nodules with labels.csv")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for cohort and run; an interrupted call goes on there"
    )
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--count", type=int, default=120, help="scans of each way of asking")
    parser.add_argument("--solver_steps", type=int, default=10)
    parser.add_argument("--scale", type=float, default=1.0, help="classifier-free guidance")
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    rows = write_labels(arguments.scans / "labels.csv", arguments.out / "labels.csv")
    cohort_file, cache = arguments.out / "cohort.csv", arguments.out / "cache"
    medsynth.index(scans=arguments.scans, labels=arguments.out / "labels.csv", out=cohort_file, cache_dir=cache)
    run = medsynth.train(
        **medsynth.load_config("lung_nodule_3d") | SETTINGS | {"max_steps": arguments.max_steps},
        cohort=cohort_file,
        out=arguments.out / "run",
        cache_dir=cache,
    )
    real = medsynth.read_cohort(cohort_file)
    prepared = read_scans(cohort_file, run, cache)
    splits = np.array([row.split for row in real.rows])
    patients = np.array([row.patient_id for row in real.rows])
    diameters = np.array([float(row.attributes["diameter_mm"]) for row in real.rows])
    kinds = np.array([row.attributes["kind"] for row in real.rows])
    network = train_network(
        [(prepared.scans, with_lesion(prepared.scans, np.flatnonzero(splits == "train")))], steps=600, batch=8, seed=0
    )
    fit, test = splits == "val", splits == "test"
    found = {name: find_lesions(network, prepared.scans[chosen]) for name, chosen in (("val", fit), ("test", test))}
    reader, judge = fit_value(found["val"], diameters[fit]), fit_class(found["val"], kinds[fit])

    def measure(lesions: np.ndarray, truth: np.ndarray, kind: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
        read = np.exp(reader.predict(lesions))
        return {
            "scans": len(lesions),
            "r_squared": interval(r_squared, groups, truth, read),
            "mean_absolute_error": interval(mean_error, groups, truth, read),
            "balanced_accuracy": interval(accuracy, groups, kind, judge.predict(lesions)),
        }

    wishes = draw_wishes(rows, arguments.count)
    wanted = np.array([diameter for diameter, _ in wishes])
    wanted_kinds = np.array(["solid" if label == "solid" else "subsolid" for _, label in wishes])
    ways = {"--where": None, "--text, wordings of the training": SEEN[:27], "--text, 20 other wordings": UNSEEN}
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "run": {"fingerprint": run.fingerprint[:16], "steps": run.steps, "shape": run.spec.shape},
        "guidance": arguments.scale,
        "real test scans": measure(found["test"], diameters[test], kinds[test], patients[test]),
    }
    for name, wordings in ways.items():
        scans = make_scans(run, wishes, wordings, steps=arguments.solver_steps, scale=arguments.scale)
        # The network that finds lesions expects a mask as the last channel and does not look at it.
        lesions = find_lesions(network, np.concatenate([scans, np.full_like(scans, -1)], axis=1))
        result[name] = measure(lesions, wanted, wanted_kinds, np.arange(len(wishes)))
    write_json(arguments.result, result)
    for name in ("real test scans", *ways):
        shown = {key: one for key, one in result[name].items() if key != "scans"}
        figures = ", ".join(
            f"{key} {one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for key, one in shown.items()
        )
        print(f"{name} (n = {result[name]['scans']}): {figures}")


if __name__ == "__main__":
    main()
