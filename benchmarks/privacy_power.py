"""How many copies of each of 66 kinds the privacy gate finds, and how many new patients it accuses, on real cohorts.

    OMP_NUM_THREADS=1 python -m benchmarks.privacy_power --data ../shared/data

Half of the test patients leave the cohort and stand for new patients; copies are made of training scans of all classes.
Thresholds are those of the gate. A cohort takes 5 to 15 minutes on one core; finished ones are kept in --out. The part
`before` of the results is this measurement at commit 4b10c5c, on the same copies.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import exposure

import medsynth
from benchmarks.machine import describe_machine
from benchmarks.markdown import head_of, row_of
from benchmarks.privacy_calibration import keep
from medsynth.cohorts import prepare_cohort, read_cohort
from medsynth.config import GridOptions, IntensityOptions, Loading
from medsynth.evaluation.arrays import SEEN, ScanArrays
from medsynth.evaluation.features import cached_features
from medsynth.evaluation.privacy import GateSettings
from medsynth.evaluation.privacy.controls import draw_held_out
from medsynth.evaluation.privacy.nearness import References, calibrate, find_alike
from medsynth.files import write_json
from medsynth.measures.features import EfficientNetLite0, extract_features
from medsynth.seeds import numpy_generator

Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

GREY = IntensityOptions(method="range", low=0, high=255)
COHORTS = {
    "chest_xray": (GridOptions(size=64), GREY),
    "brain_tumours": (GridOptions(size=64), GREY),
    "lung_nodules": (
        GridOptions(size=32, fit="pad", spacing=(0.5, 0.8, 0.8), centre="mask", padding="edge"),
        IntensityOptions(method="range", low=-1000, high=500),
    ),
}


def mapped(scan: np.ndarray, matrix: np.ndarray, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Return a scan after an affine map about its centre, with the edges continued."""
    centre = (np.array(scan.shape[1:]) - 1) / 2
    start = centre - matrix @ centre + offset
    return np.stack([ndimage.affine_transform(each, matrix, start, order=1, mode="nearest") for each in scan])


def place_of(scan: np.ndarray, share: float, generator: np.random.Generator) -> tuple[slice, ...]:
    """Return a box of `share` of each side at a random place."""
    place = [slice(None)]
    for length in scan.shape[1:]:
        side = round(length * share)
        start = int(generator.integers(0, length - side + 1))
        place.append(slice(start, start + side))
    return tuple(place)


def rotated(degrees: float) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        angle, matrix = np.deg2rad(degrees) * generator.choice([-1, 1]), np.eye(scan.ndim - 1)
        matrix[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return mapped(scan, matrix)

    return change


def sheared(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    matrix = np.eye(scan.ndim - 1)
    matrix[-2, -1] = 0.05 * generator.choice([-1, 1])
    return mapped(scan, matrix)


def zoomed(factor: float) -> Change:
    return lambda scan, other, generator: mapped(scan, np.eye(scan.ndim - 1) / factor)


def enlarged(share: float) -> Change:
    """Cut off `share` of each axis, at a random place, and enlarge the rest."""

    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        room = np.array(scan.shape[1:]) * share / 2
        return mapped(scan, np.eye(scan.ndim - 1) * (1 - share), generator.uniform(-room, room))

    return change


def alone(share: float) -> Change:
    """Keep a box of `share` of each side; the rest is black."""

    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        place, result = place_of(scan, share, generator), np.full_like(scan, -1)
        result[place] = scan[place]
        return result

    return change


def pasted(share: float) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        place, result = place_of(scan, share, generator), other.copy()
        result[place] = scan[place]
        return result

    return change


def boxes(share: float, count: int = 1, value: float = -1) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        result = scan.copy()
        for _ in range(count):
            result[place_of(scan, share, generator)] = value
        return result

    return change


def framed(pixels: int, value: float = -1) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        widths = [max(1, round(pixels * length / 64)) for length in scan.shape[1:]]
        inside = (slice(None), *[slice(w, n - w) for w, n in zip(widths, scan.shape[1:], strict=True)])
        result = np.full_like(scan, value)
        result[inside] = scan[inside]
        return result

    return change


def half_gone(axis: int, first: bool, value: float = -1) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        result, middle = scan.copy(), scan.shape[axis] // 2
        result.swapaxes(0, axis)[slice(None, middle) if first else slice(middle, None)] = value
        return result

    return change


def half_of_other(axis: int) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        result, middle = scan.copy(), scan.shape[axis] // 2
        result.swapaxes(0, axis)[middle:] = other.swapaxes(0, axis)[middle:]
        return result

    return change


def quadrants(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    result, (height, width) = scan.copy(), scan.shape[-2:]
    result[..., : height // 2, : width // 2] = other[..., : height // 2, : width // 2]
    result[..., height // 2 :, width // 2 :] = other[..., height // 2 :, width // 2 :]
    return result


def shifted(pixels: int) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        steps = [int(generator.choice([-1, 1])) * max(1, round(pixels * length / 64)) for length in scan.shape[1:]]
        return ndimage.shift(scan, [0, *steps], order=0, mode="nearest")

    return change


def elastic(pixels: float) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        shape = scan.shape[1:]
        fields = [
            ndimage.gaussian_filter(generator.normal(0, 1, shape), 6 * shape[0] / 64) for _ in range(scan.ndim - 1)
        ]
        moved = np.stack([field / np.abs(field).max() * pixels * np.mean(shape) / 64 for field in fields])
        return np.stack(
            [ndimage.map_coordinates(each, np.indices(shape) + moved, order=1, mode="nearest") for each in scan]
        )

    return change


def compressed(quality: int) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        pixels = ((scan.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.reshape(-1, pixels.shape[-1])).save(file, "JPEG", quality=quality)
        return (np.asarray(Image.open(file)).reshape(pixels.shape) / 127.5 - 1).astype(np.float32)

    return change


def half_resolution(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    small = ndimage.zoom(scan, (1, *[0.5] * (scan.ndim - 1)), order=1)
    return ndimage.zoom(small, [a / b for a, b in zip(scan.shape, small.shape, strict=True)], order=1)


def in_a_circle(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    shape = scan.shape[1:]
    far = sum(((x - (n - 1) / 2) / (n / 2)) ** 2 for x, n in zip(np.indices(shape), shape, strict=True))
    return np.where(far > 1, np.float32(-1), scan)


def smooth(scan: np.ndarray, width: float) -> np.ndarray:
    return ndimage.gaussian_filter(scan, (0, *[width] * (scan.ndim - 1)))


def contrast(factor: float, brightness: float = 0.0) -> Change:
    return lambda scan, other, generator: ((scan + 1) * factor - 1 + brightness).clip(-1, 1)


def gamma(power: float) -> Change:
    return lambda scan, other, generator: 2 * ((scan.clip(-1, 1) + 1) / 2) ** power - 1


def noise(deviation: float) -> Change:
    return lambda scan, other, generator: (scan + generator.normal(0, deviation, scan.shape)).clip(-1, 1)


def mirrored(*axes: int) -> Change:
    return lambda scan, other, generator: np.flip(scan, axes)


def turned(times: int) -> Change:
    return lambda scan, other, generator: np.rot90(scan, times, (-2, -1))


def one_after_the_other(*changes: Change) -> Change:
    def change(scan: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        for each in changes:
            scan = each(scan, other, generator)
        return scan

    return change


KINDS: dict[str, Change] = {
    "exact": lambda scan, other, generator: scan,
    "mirrored left-right": mirrored(-1),
    "mirrored up-down": mirrored(-2),
    "mirrored both ways": mirrored(-1, -2),
    "quarter turn": turned(1),
    "quarter turn back": turned(3),
    "transposed": one_after_the_other(turned(1), mirrored(-1)),
    "shifted by 2 of 64": shifted(2),
    "shifted by 4 of 64": shifted(4),
    "shifted by 8 of 64": shifted(8),
    "contrast and brightness +10 %": contrast(1.1, 0.1),
    "contrast -30 %": contrast(0.7),
    "contrast +30 %": contrast(1.3),
    "gamma 0.7": gamma(0.7),
    "gamma 1.5": gamma(1.5),
    "inverted": lambda scan, other, generator: -scan,
    "histogram equalised": lambda scan, other, generator: 2 * exposure.equalize_hist(scan) - 1,
    "locally equalised": lambda scan, other, generator: 2 * exposure.equalize_adapthist((scan.clip(-1, 1) + 1) / 2) - 1,
    "noise 0.05": noise(0.05),
    "noise 0.1": noise(0.1),
    "noise 0.2": noise(0.2),
    "blurred by 1 pixel": lambda scan, other, generator: smooth(scan, 1),
    "blurred by 2 pixels": lambda scan, other, generator: smooth(scan, 2),
    "sharpened": lambda scan, other, generator: (scan + 1.5 * (scan - smooth(scan, 1))).clip(-1, 1),
    "JPEG of quality 30": compressed(30),
    "half the resolution": half_resolution,
    "16 grey levels": lambda scan, other, generator: np.round((scan + 1) / 2 * 15) / 15 * 2 - 1,
    "rotated by 2 degrees": rotated(2),
    "rotated by 5 degrees": rotated(5),
    "rotated by 10 degrees": rotated(10),
    "enlarged by 5 %": zoomed(1.05),
    "shrunk by 5 %": zoomed(0.95),
    "enlarged by 10 %": zoomed(1.1),
    "sheared by 5 %": sheared,
    "elastic, 2 of 64": elastic(2),
    "elastic, 4 of 64": elastic(4),
    "black frame, 6 of 64": framed(6),
    "black frame, 10 of 64": framed(10),
    "white frame, 6 of 64": framed(6, 1),
    "grey frame, 6 of 64": framed(6, 0),
    "black outside a circle": in_a_circle,
    "10 % cut off, enlarged": enlarged(0.1),
    "20 % cut off, enlarged": enlarged(0.2),
    "30 % cut off, enlarged": enlarged(0.3),
    "20 % cut off, on black": alone(0.8),
    "40 % cut off, on black": alone(0.6),
    "left half black": half_gone(-1, True),
    "right half black": half_gone(-1, False),
    "top half black": half_gone(-2, True),
    "bottom half black": half_gone(-2, False),
    "left half grey": half_gone(-1, True, 0),
    "black box of half the side": boxes(0.5),
    "4 black boxes of a quarter of the side": boxes(0.25, 4),
    "3 white markers": boxes(0.125, 3, 1),
    "right half of another patient": half_of_other(-1),
    "lower half of another patient": half_of_other(-2),
    "two quadrants of another patient": quadrants,
    "box of half the side in another patient": pasted(0.5),
    "box of 3/4 of the side in another patient": pasted(0.75),
    "blend, 80 %": lambda scan, other, generator: 0.8 * scan + 0.2 * other,
    "blend, 60 %": lambda scan, other, generator: 0.6 * scan + 0.4 * other,
    "10 % cut off, mirrored, noise": one_after_the_other(enlarged(0.1), mirrored(-1), noise(0.05)),
    "black frame, mirrored, contrast": one_after_the_other(mirrored(-1), contrast(0.9), framed(6)),
    "half black, shifted by 4, noise": one_after_the_other(shifted(4), noise(0.05), half_gone(-1, True)),
    "rotated by 5, enlarged by 5 %, noise": one_after_the_other(rotated(5), zoomed(1.05), noise(0.05)),
    "quarter turn, half black": one_after_the_other(turned(1), half_gone(-1, True)),
}


def copies_of(real: ScanArrays, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` copies of every kind, and their labels."""
    seen, generator = np.flatnonzero(np.isin(real.splits, SEEN)), np.random.default_rng(5)
    copies, labels = [], []
    for change in KINDS.values():
        for donor in generator.permutation(seen)[:count]:
            alike = (real.labels[seen] == real.labels[donor]) & (real.patients[seen] != real.patients[donor])
            other = generator.choice(seen[alike])
            pair = [np.asarray(real.scans[row], dtype=np.float32) for row in (donor, other)]
            copies.append(np.asarray(change(*pair, generator)).clip(-1, 1).astype(np.float16))
            labels.append(real.labels[donor])
    return np.stack(copies), np.array(labels)


def measure(everything: ScanArrays, count: int) -> dict[str, Any]:
    """Return the copies found by kind, and the new patients accused."""
    test = everything.splits == "test"
    patients = numpy_generator(0, "fresh").permutation(np.unique(everything.patients[test]))
    leaves = np.isin(everything.patients, patients[: len(patients) // 2])
    fresh, real = keep(everything, np.flatnonzero(leaves & test)), keep(everything, np.flatnonzero(~leaves))
    settings, seen = GateSettings(), np.flatnonzero(np.isin(real.splits, SEEN))
    copies, labels = copies_of(real, count)
    features = extract_features(EfficientNetLite0(), copies)
    start = time.process_time()
    references = References(real, seen, settings)
    held = draw_held_out(real, tuple(range(len(real.classes))), settings, 0)
    near = references.measure(real.scans, title="held out", features=real.features, rows=held.rows, barred=held.barred)
    alike = find_alike(near, held.labels, len(real.classes))
    sets, checks = held.calibrates & ~alike, ~held.calibrates & ~alike
    thresholds = calibrate(near.values()[sets], held.labels[sets], len(real.classes), settings.max_false_alarms / 3)
    accused = thresholds.flagged(near, held.labels)[checks]
    new = thresholds.flagged(references.measure(fresh.scans, title="new", features=fresh.features), fresh.labels)
    found = thresholds.flagged(references.measure(copies, title="copies", features=features), labels)
    return {
        "kinds": dict(zip(KINDS, found.reshape(len(KINDS), count).sum(1).tolist(), strict=True)),
        "n": count,
        "held": [int(accused.sum()), len(accused)],
        "fresh": [int(new.sum()), len(new)],
        "processor_seconds": round(time.process_time() - start, 1),
    }


def arrays_of(folder: Path, name: str) -> ScanArrays:
    """Return a cohort of `folder` on the grid of `name`, with features."""
    csv = Path("work") / "power" / f"{name}.csv"
    if not csv.exists():
        medsynth.index(scans=folder, labels=folder / "labels.csv", out=csv)
    grid, intensity = COHORTS[name]
    prepared = prepare_cohort(read_cohort(csv), grid=grid, intensity=intensity)
    fields = {each: getattr(prepared, each) for each in ("scans", "labels", "classes", "splits", "patients")}
    features = cached_features(prepared, EfficientNetLite0(), folder=Loading().cache_folder())
    return ScanArrays(features=features, **fields)


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown, with those before in brackets."""
    after, before = content["results"], content.get("before", {}).get("results", {})
    names = list(after)

    def cells(value: Callable[[dict[str, Any]], str]) -> list[str]:
        return [value(after[name]) + (f" ({value(before[name])})" if name in before else "") for name in names]

    lines = [head_of(["kind of copy", *names])]
    lines += [row_of([kind, *cells(partial(_found, kind))]) for kind in KINDS]
    for key, title in (("held", "held-out scans accused"), ("fresh", "scans of new patients accused")):
        lines.append(row_of([title, *cells(partial(_accused, key))]))
    return "\n".join(lines)


def _found(kind: str, result: dict[str, Any]) -> str:
    return str(result["kinds"][kind])


def _accused(key: str, result: dict[str, Any]) -> str:
    return "{} of {}".format(*result[key])


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24, help="copies of each kind")
    parser.add_argument("--cohorts", nargs="+", default=list(COHORTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/privacy_power.json"))
    args = parser.parse_args()
    content: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    content.setdefault("results", {})
    for name in args.cohorts:
        if name not in content["results"]:
            content["results"][name] = measure(arrays_of(args.data / name, name), args.count)
            content |= {"machine": describe_machine()}
            write_json(args.out, content)
    print(table(content))


if __name__ == "__main__":
    main()
