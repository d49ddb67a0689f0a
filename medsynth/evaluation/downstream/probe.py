"""The probe tier: logistic heads on cached features, one a training, all trained alike."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from medsynth.config import ClassicalOptions, DownstreamOptions
from medsynth.evaluation.downstream.arms import Arm, Table, draw_training
from medsynth.evaluation.downstream.perturbation import apply_perturbations, draw_perturbations
from medsynth.evaluation.downstream.task import Task
from medsynth.files import atomic_path
from medsynth.measures.distances import Projection
from medsynth.measures.features import Extractor
from medsynth.seeds import numpy_generator, torch_generator

_BATCH = 16  # scans whose augmented copies are extracted at once
_WARMUP = 0.1  # part of the steps over which the learning rate rises
_START = 0.01  # standard deviation of the initial weights


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeData:
    """Projected features: `training` `(entries, variants, K)`, of `validation` and `test` `(N, K)`, all float32.

    Variant 0 is the scan itself, the others are its augmented copies; a scan without copies repeats itself.
    """

    training: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor

    @classmethod
    def of(
        cls,
        task: Task,
        table: Table,
        real: np.ndarray,
        synthetic: np.ndarray,
        further: np.ndarray | None,
        *,
        components: int,
        copies: np.ndarray | None = None,
    ) -> ProbeData:
        """Return features along the principal axes of the real training scans, scaled to a mean square of 1.

        The axes know neither labels nor any scan that is not trained on. `copies` `(entries, K, D)` are features of
        augmented copies; NaN where a scan has none.
        """
        own = real[table.real]
        axes = Projection.fit(own, min(components, *own.shape))
        scale = float(np.sqrt(np.mean(np.square(axes.project(own))))) or 1.0

        def project(features: np.ndarray) -> np.ndarray:
            return (axes.project(np.asarray(features, dtype=np.float32)) / scale).astype(np.float32)

        parts = [project(own)]
        if len(table.synthetic):
            parts.append(project(synthetic[table.synthetic]))
        if len(table.further) and further is not None:
            parts.append(project(further[table.further]))
        plain = np.concatenate(parts)
        variants = [plain]
        for copy in range(0 if copies is None else copies.shape[1]):
            assert copies is not None
            known = ~np.isnan(copies[:, copy, 0])
            variant = plain.copy()
            if known.any():
                variant[known] = project(copies[known, copy])
            variants.append(variant)
        return cls(
            training=torch.from_numpy(np.stack(variants, axis=1)),
            validation=torch.from_numpy(project(real[task.validation.rows])),
            test=torch.from_numpy(project(real[task.test.rows])),
        )


def train_probe(
    task: Task, table: Table, data: ProbeData, arm: Arm, *, options: DownstreamOptions, seed: int, repeats: range
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (logits) of validation and test scans, float32 `(repeats, N)` each, one training a repeat.

    Each training minimises the cross entropy of a linear head over `options.probe.steps` minibatches with AdamW. The
    trainings of an arm run side by side; what one finds does not depend on the others.
    """
    probe = options.probe
    draws = [
        draw_training(task, arm, steps=probe.steps, batch=probe.batch_size, seed=seed, repeat=repeat)
        for repeat in repeats
    ]
    entries = torch.from_numpy(np.stack([each.entries for each in draws], axis=1))
    generators = [numpy_generator(seed, "downstream", "probe", repeat) for repeat in repeats]
    truth = torch.from_numpy(table.rare.astype(np.float32))
    flat, variants = data.training.flatten(0, 1), data.training.shape[1]
    shape = (probe.steps, len(repeats), probe.batch_size)
    # Drawn whether used or not, so that arms share their random numbers; mixup has its own.
    start = np.stack([each.normal(0, _START, flat.shape[1]) for each in generators]).astype(np.float32)
    chosen = np.stack([each.random((shape[0], shape[2])) for each in generators], axis=1)
    positions = entries * variants
    if arm.recipe.augment:
        positions = positions + torch.from_numpy((chosen * variants).astype(np.int64))
    biases = np.array([[start_bias(arm, each.rare_rate)] for each in draws], dtype=np.float32)
    weights = torch.from_numpy(np.concatenate([start, biases], axis=1)).requires_grad_()
    optimiser = torch.optim.AdamW([weights], lr=probe.learning_rate, weight_decay=probe.weight_decay, fused=True)
    rates = torch.tensor([each.rare_rate for each in draws])[:, None]
    labels = truth[entries]
    mixing = _mixing(options, shape, seed, repeats) if arm.recipe.mixup else None
    for step in range(probe.steps):
        inputs, targets = flat[positions[step]], labels[step]
        if mixing is not None:
            # Scans of a batch are drawn independently, so the neighbour is a random partner.
            share = mixing[step]
            inputs = torch.lerp(inputs.roll(1, dims=1), inputs, share[:, :, None])
            targets = torch.lerp(targets.roll(1, dims=1), targets, share)
        logits = torch.baddbmm(weights.detach()[:, None, -1:], inputs, weights.detach()[:, :-1, None])[:, :, 0]
        # The gradient of the cross entropy by hand: autograd would take longer than the step.
        slope = loss_slope(arm, logits, targets, rates) / probe.batch_size
        gradient = torch.bmm(slope[:, None], inputs)[:, 0]
        weights.grad = torch.cat([gradient, slope.sum(dim=1, keepdim=True)], dim=1)
        optimiser.param_groups[0]["lr"] = probe.learning_rate * rate_factor(step, probe.steps)
        optimiser.step()
    head = weights.detach().numpy()
    scored = [head[:, :-1] @ part.numpy().T + head[:, -1:] for part in (data.validation, data.test)]
    return scored[0].astype(np.float32), scored[1].astype(np.float32)


def _mixing(options: DownstreamOptions, shape: tuple[int, int, int], seed: int, repeats: range) -> torch.Tensor:
    """Return the larger share of each mixed scan `(steps, repeats, batch)`: mixup does not mind which scan it is of."""
    generators = [numpy_generator(seed, "downstream", "mixing", repeat) for repeat in repeats]
    shares = np.stack([each.beta(options.mixup, options.mixup, (shape[0], shape[2])) for each in generators], axis=1)
    return torch.from_numpy(np.maximum(shares, 1 - shares).astype(np.float32))


def loss_slope(arm: Arm, logits: torch.Tensor, targets: torch.Tensor, rare_rate: torch.Tensor) -> torch.Tensor:
    """Return the derivative of each scan's loss by its logit, for targets in [0, 1] and the recipe's balancing."""
    if arm.recipe.balance == "logit_adjusted":
        logits = logits + torch.logit(rare_rate)
    slope = torch.sigmoid(logits) - targets
    if arm.recipe.balance == "weighted":
        slope = slope * (targets / (2 * rare_rate) + (1 - targets) / (2 * (1 - rare_rate)))
    return slope


def start_bias(arm: Arm, rare_rate: float) -> float:
    """Return the bias with which a classifier begins: the log odds of the rare class among what its loss sees.

    From zero, the few steps of a training without balancing would go into making everything unlikely, along whatever tells
    augmented, duplicated or synthetic scans from the others.
    """
    return math.log(rare_rate / (1 - rare_rate)) if arm.recipe.balance == "none" else 0.0


def rate_factor(step: int, steps: int) -> float:
    """Return the part of the peak learning rate at a step: a linear rise, then a cosine to zero."""
    rise = max(1, round(_WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def augmented_features(
    task: Task,
    table: Table,
    real: np.ndarray,
    synthetic: np.ndarray,
    extractor: Extractor,
    *,
    options: DownstreamOptions,
    folder: Path,
    key: str,
    seed: int,
    progress: bool,
) -> np.ndarray:
    """Return features of augmented copies `(entries, copies, D)` float32, NaN for scans without copies.

    `real` and `synthetic` are the scans. All rare training scans have copies, then others at random, up to
    `options.probe.augmented_scans`. Each copy is written into `folder` when done, so a second call continues.
    """
    probe = options.probe
    sources = [(real, row) for row in table.real] + [(synthetic, row) for row in table.synthetic]
    generator = numpy_generator(seed, "downstream", "copies")
    count = len(sources)
    order = generator.permutation(count)
    order = order[np.argsort(~table.rare[:count][order], kind="stable")]
    chosen = np.sort(order[: probe.augmented_scans])
    name = hashlib.sha256(f"{key} {options.classical} {probe.augmented_scans} {seed}".encode()).hexdigest()[:24]
    files = [folder / f"copies-{name}-{copy}.npy" for copy in range(probe.copies)]
    parts: list[np.ndarray] = []
    with tqdm(
        total=len(chosen) * probe.copies, desc="features of augmented copies", unit="scan", disable=not progress
    ) as bar:
        for copy, file in enumerate(files):
            found = _read_array(file, len(chosen))
            if found is None:
                found = _extract_copy(
                    sources, chosen, extractor, classical=options.classical, seed=seed, copy=copy, bar=bar
                )
                with atomic_path(file) as temporary, temporary.open("wb") as out:
                    np.save(out, found)
            else:
                bar.update(len(chosen))
            parts.append(found)
    result = np.full((len(table), probe.copies, parts[0].shape[1]), np.nan, dtype=np.float32)
    for copy, part in enumerate(parts):
        result[chosen, copy] = part
    return result


def _extract_copy(
    sources: list[tuple[np.ndarray, int]],
    chosen: np.ndarray,
    extractor: Extractor,
    *,
    classical: ClassicalOptions,
    seed: int,
    copy: int,
    bar: tqdm,
) -> np.ndarray:
    parts = []
    for start in range(0, len(chosen), _BATCH):
        batch = [sources[entry] for entry in chosen[start : start + _BATCH]]
        scans = torch.from_numpy(np.stack([np.asarray(array[row], dtype=np.float32) for array, row in batch]))
        generator = torch_generator(seed, "downstream", "copy", copy, start)
        changes = draw_perturbations(classical, len(scans), tuple(scans.shape[2:]), generator)
        parts.append(extractor(apply_perturbations(scans, changes, generator)).numpy().astype(np.float32))
        bar.update(len(scans))
    return np.concatenate(parts)


def _read_array(file: Path, count: int) -> np.ndarray | None:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.ndim == 2 and len(found) == count else None
