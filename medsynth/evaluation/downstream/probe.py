"""The probe tier: logistic regressions on cached features, one a training, all trained alike."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from medsynth.evaluation.downstream.arms import Arm, Table, draw_training
from medsynth.evaluation.downstream.experiment import Experiment, ProbeSettings, Settings, read_arrays, write_arrays
from medsynth.evaluation.downstream.task import Task
from medsynth.evaluation.downstream.training import gather, loss_slope, perturb, rate_factor, start_bias
from medsynth.measures.distances import Projection
from medsynth.measures.features import Extractor
from medsynth.seeds import numpy_generator, torch_generator

_BATCH = 16  # scans whose augmented copies are extracted at once
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
        features: Sequence[np.ndarray],
        *,
        components: int = ProbeSettings.components,
        copies: np.ndarray | None = None,
    ) -> ProbeData:
        """Return features along the principal axes of the real training scans, scaled to a mean square of 1.

        `features` are those of the real, the synthetic and (if there are any) the further scans, one row a scan. The axes depend
        on no label and on no scan outside training. `copies` `(entries, K, D)` are features of augmented copies; NaN where
        a scan has none.
        """
        real = features[0]
        own = real[table.real]
        axes = Projection.fit(own, min(components, *own.shape))
        scale = float(np.sqrt(np.mean(np.square(axes.project(own))))) or 1.0

        def project(rows: np.ndarray) -> np.ndarray:
            return (axes.project(np.asarray(rows, dtype=np.float32)) / scale).astype(np.float32)

        parts = [project(own)]
        for side, rows in zip(features[1:], (table.synthetic, table.further), strict=False):
            if len(rows):
                parts.append(project(side[rows]))
        plain = np.concatenate(parts)
        variants = [plain]
        for copy in [] if copies is None else np.moveaxis(copies, 1, 0):
            known = ~np.isnan(copy[:, 0])
            variant = plain.copy()
            if known.any():
                variant[known] = project(copy[known])
            variants.append(variant)
        return cls(
            training=torch.from_numpy(np.stack(variants, axis=1)),
            validation=torch.from_numpy(project(real[task.validation.rows])),
            test=torch.from_numpy(project(real[task.test.rows])),
        )


def train_probe(
    task: Task, table: Table, data: ProbeData, arm: Arm, *, seed: int, repeats: range, settings: Settings = Settings()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (logits) of validation and test scans, float32 `(repeats, N)` each, one training a repeat.

    Each training minimises the cross entropy of a linear head over minibatches with AdamW. The trainings of an arm run side by
    side; none depends on the others.
    """
    probe = settings.probe
    draws = [
        draw_training(task, arm, steps=probe.steps, batch=probe.batch_size, seed=seed, repeat=repeat)
        for repeat in repeats
    ]
    entries = torch.from_numpy(np.stack([each for each, _ in draws], axis=1))
    generators = [numpy_generator(seed, "downstream", "probe", repeat) for repeat in repeats]
    flat, variants = data.training.flatten(0, 1), data.training.shape[1]
    size = (probe.steps, probe.batch_size)
    # Drawn whether used or not, so that arms share their random numbers; mixup has its own.
    start = np.stack([each.normal(0, _START, flat.shape[1]) for each in generators]).astype(np.float32)
    chosen = np.stack([each.random(size) for each in generators], axis=1)
    positions = entries * variants
    if arm.recipe.augment:
        positions = positions + torch.from_numpy((chosen * variants).astype(np.int64))
    biases = np.array([[start_bias(arm, rate)] for _, rate in draws], dtype=np.float32)
    weights = torch.from_numpy(np.concatenate([start, biases], axis=1)).requires_grad_()
    optimiser = torch.optim.AdamW([weights], lr=probe.learning_rate, weight_decay=probe.weight_decay, fused=True)
    rates = torch.tensor([rate for _, rate in draws])[:, None]
    labels = torch.from_numpy(table.rare.astype(np.float32))[entries]
    if arm.recipe.mixup:
        generators = [numpy_generator(seed, "downstream", "mixing", repeat) for repeat in repeats]
        drawn = np.stack([each.beta(settings.mixup, settings.mixup, size) for each in generators], axis=1)
        # The larger share: it does not matter which of the two scans is called the first.
        shares = torch.from_numpy(np.maximum(drawn, 1 - drawn).astype(np.float32))
    for step in range(probe.steps):
        inputs, targets = flat[positions[step]], labels[step]
        if arm.recipe.mixup:
            # Scans of a batch are drawn independently, so the neighbour is a random partner.
            inputs = torch.lerp(inputs.roll(1, dims=1), inputs, shares[step][:, :, None])
            targets = torch.lerp(targets.roll(1, dims=1), targets, shares[step])
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


def augmented_features(experiment: Experiment, extractor: Extractor, key: str) -> np.ndarray:
    """Return features of augmented copies `(entries, copies, D)` float32, NaN for scans without copies.

    All rare training scans have copies, then others at random, up to `augmented_scans`; further scans have none. Each copy
    is written when done, under a name that depends on `key`, so that a second call continues.
    """
    table, probe, classical, seed = (
        experiment.table, experiment.settings.probe, experiment.settings.classical, experiment.seed
    )  # fmt: skip
    count = len(table.real) + len(table.synthetic)
    order = numpy_generator(seed, "downstream", "copies").permutation(count)
    order = order[np.argsort(~table.rare[:count][order], kind="stable")]
    chosen = np.sort(order[: probe.augmented_scans])
    name = hashlib.sha256(f"{key} {classical} {probe.augmented_scans} {seed}".encode()).hexdigest()[:24]
    scans = experiment.training_scans()
    sources = [scans[entry] for entry in chosen]
    parts: list[np.ndarray] = []
    for copy in range(probe.copies):
        file = experiment.folder / f"copies-{name}-{copy}.npz"
        if (stored := read_arrays(file, "features")) is None:
            stored = [_extract_copy(sources, extractor, experiment, copy)]
            write_arrays(file, features=stored[0])
        parts += stored
    result = np.full((len(table), probe.copies, parts[0].shape[1]), np.nan, dtype=np.float32)
    result[chosen] = np.stack(parts, axis=1)
    return result


def _extract_copy(
    sources: Sequence[tuple[np.ndarray, int]], extractor: Extractor, experiment: Experiment, copy: int
) -> np.ndarray:
    starts, title = range(0, len(sources), _BATCH), f"features of augmented copy {copy + 1}"
    parts = []
    for start in tqdm(starts, desc=title, unit="batch", disable=not experiment.progress):
        generator = torch_generator(experiment.seed, "downstream", "copy", copy, start)
        changed = perturb(gather(sources[start : start + _BATCH]), experiment.settings.classical, generator)
        parts.append(extractor(changed).numpy().astype(np.float32))
    return np.concatenate(parts)
