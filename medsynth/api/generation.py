"""The verbs that make a synthetic set. `medsynth.api` says why annotations are not postponed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medsynth.config import GivenOptions, GuidanceOptions, InpaintOptions, ReadingOptions, SolverOptions, TrialOptions
from medsynth.files import PathLike

if TYPE_CHECKING:
    from medsynth.cohorts import Cohort
    from medsynth.generation.sets import SetPlan


def sample(
    *,
    run: PathLike,
    count: str | int | dict[str, int],
    out: PathLike,
    where: str = "",
    where_from: Literal["scans", "ranges"] = "scans",
    prompt: str = "",
    prompt_words: str = "",
    given: GivenOptions = GivenOptions(),
    seed: int = 0,
    format: Literal["auto", "nifti", "dicom", "png", "npz"] = "auto",
    modality: Literal["auto", "CT", "MR", "CR", "OT"] = "auto",
    batch_size: int = 16,
    solver: SolverOptions = SolverOptions(),
    guidance: GuidanceOptions = GuidanceOptions(),
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    cache_dir: PathLike | None = None,
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "Cohort":
    """Generate a synthetic set: new scans of chosen classes, with provenance and a cohort of their own.

    Every file says that it is synthetic. An interrupted call is completed by the same command. The same seed gives the same
    set.

    Args:
        run: Run folder of `medsynth train`.
        count: Scans of each class, such as `viral_pneumonia=400,normal=100`; one number means as many of every class.
        out: Folder of the synthetic set.
        where: Attributes of the scans, for a run trained with `condition.attributes`: `diameter_mm=6..10,side=left|right` wants a
            range or some categories of each that it names. Without it attributes occur as often as in training scans.
        where_from: `scans` takes the attributes of training scans that have what is wanted, so that what belongs together stays
            together; `ranges` draws them evenly from what is wanted, also beyond training scans, and the others from the nearest.
        prompt: The scans in words, in place of `where`: `a 6 to 10 mm nodule in the right lung`. Numbers with units, categories
            and class names are read; what was understood is printed and kept in `provenance.json`, other words are named, and
            what could turn the meaning round is refused. A plain `count` is then for the classes that it names.
        prompt_words: Further words for `prompt`: `lung_nodule`, or the path of a YAML file such as
            `texture: {hazy: 1..2, solid: 5}`.
        given: Channels that come from real scans and are not generated. The attributes of these scans, moved a little, are
            told, too, unless `where` wants some; the column `given_from` holds their row numbers. A set with real images says
            `contains_real_pixels` and must not leave the house.
        seed: Seed of the set; every scan has its own, derived from it.
        format: File format; `auto` writes what the training scans were. DICOM volumes are folders of slices.
        modality: What DICOM is written as: `CT` (values in HU), `MR`, `CR` (X-ray) or `OT` (other pictures, as Secondary
            Capture); `auto` is what DICOM training scans said.
        batch_size: Scans that go through the network together.
        solver: How noise becomes scans.
        guidance: Classifier-free guidance, or autoguidance by a weaker model.
        device: `auto`, `cpu` or `cuda`.
        devices: Processes (GPUs) on each node; the set is the same for any number.
        num_nodes: Nodes, on each of which `torchrun` or SLURM starts the processes.
        cache_dir: Folder for the prepared scans that give channels, by default `.medsynth_cache` beside their cohort.
        reading: Limits on what a scan file that gives channels may be.
        progress: Show a progress bar.
    """
    from medsynth.generation import parse_counts, plan_prompt, plan_set, sample_set
    from medsynth.runs import load_run

    loaded = load_run(run)
    where, asked = plan_prompt(loaded, prompt, prompt_words, where)
    plan = plan_set(
        loaded,
        Path(out),
        parse_counts(count, loaded.spec.classes, named=asked.classes if asked else ()),
        seed=seed,
        file_format=format,
        modality=modality,
        batch_size=batch_size,
        solver=solver,
        guidance=guidance,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        progress=progress,
    )
    cache = Path(cache_dir) if cache_dir is not None else None
    return sample_set(
        plan, where=where, where_from=where_from, asked=asked, given=given, reading=reading, cache_dir=cache
    )


def edit(
    *,
    run: PathLike,
    cohort: PathLike,
    donor_class: str,
    target_class: str,
    count: int,
    out: PathLike,
    method: Literal["counterfactual", "inpaint"] = "counterfactual",
    strength: float | Literal["auto"] = 1.0,
    where: str = "",
    where_from: Literal["scans", "ranges"] = "scans",
    seed: int = 0,
    format: Literal["auto", "nifti", "dicom", "png", "npz"] = "auto",
    modality: Literal["auto", "CT", "MR", "CR", "OT"] = "auto",
    batch_size: int = 16,
    solver: SolverOptions = SolverOptions(),
    guidance: GuidanceOptions = GuidanceOptions(),
    inpaint: InpaintOptions = InpaintOptions(),
    trial: TrialOptions = TrialOptions(),
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    cache_dir: PathLike | None = None,
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "Cohort":
    """Turn training scans of one class into another: counterfactuals, or lesions painted into them.

    A counterfactual is its donor noised to a chosen strength and denoised as the other class (SDEdit). Every pixel is computed
    anew, but a scan resembles its donor. Inpainting paints one region anew and leaves all else as it is, to the last bit: such
    a set holds real pixels, says so, and must not leave the house; its masks are the regions. Either way a row in `cohort.csv`
    holds its donor's row number, and `medsynth evaluate` says how near they are. An interrupted call is completed by the same
    command. The same seed gives the same set.

    Args:
        run: Run folder of `medsynth train`.
        cohort: The real cohort CSV; donors come from its training split only.
        donor_class: Class of the donors.
        target_class: Class that the donors are turned into.
        count: Scans to make; each donor is used once, in random order, before any is used again.
        out: Folder of the synthetic set.
        method: `counterfactual`, or `inpaint` for a part of each donor alone.
        strength: Noise level (sigma, where scans lie in [-1, 1]) that donors are brought to for a counterfactual: above 0, where
            they stay as they are, and below `solver.sigma_max`, where they are forgotten. `auto` edits validation scans first,
            and takes the smallest of `trial.strengths` at which a classifier finds the target class in the edits as much as in
            real scans of it; the curve is in `provenance.json`.
        where: Attributes of the target, for a run trained with `condition.attributes`, as in `medsynth sample`; without it they
            stay unknown.
        where_from: As in `medsynth sample`.
        seed: Seed of the set; every scan has its own, derived from it.
        format: File format; `auto` writes what the training scans were. DICOM volumes are folders of slices.
        modality: What DICOM is written as: `CT` (values in HU), `MR`, `CR` (X-ray) or `OT` (other pictures, as Secondary
            Capture); `auto` is what DICOM training scans said.
        batch_size: Scans that go through the network together.
        solver: How noise becomes scans; a counterfactual takes the steps below the strength.
        guidance: Classifier-free guidance, or autoguidance by a weaker model.
        inpaint: Where donors are painted anew, and how.
        trial: How `--strength auto` chooses.
        device: `auto`, `cpu` or `cuda`.
        devices: Processes (GPUs) on each node; the set is the same for any number.
        num_nodes: Nodes, on each of which `torchrun` or SLURM starts the processes.
        cache_dir: Folder for the prepared donors, by default `.medsynth_cache` beside the cohort.
        reading: Limits on what a scan file may be.
        progress: Show progress bars.
    """
    from medsynth.cohorts import read_cohort
    from medsynth.errors import ConfigError
    from medsynth.generation import edit_counts, edit_set, inpaint_set, plan_set
    from medsynth.runs import load_run

    if method == "inpaint" and strength != 1.0:
        raise ConfigError(
            f"strength: need method counterfactual for a strength, got inpaint and {strength}; try without"
        )
    loaded = load_run(run)
    loaded.check_editable()
    plan = plan_set(
        loaded,
        Path(out),
        edit_counts(target_class, count, loaded.spec.classes),
        seed=seed,
        file_format=format,
        modality=modality,
        batch_size=batch_size,
        solver=solver,
        guidance=guidance,
        device=device,
        devices=devices,
        num_nodes=num_nodes,
        progress=progress,
    )
    real = read_cohort(cohort)
    cache = Path(cache_dir) if cache_dir is not None else None
    files: dict[str, Any] = {"where": where, "where_from": where_from, "reading": reading, "cache_dir": cache}
    if method == "inpaint":
        return inpaint_set(plan, real, donor_class=donor_class, options=inpaint, **files)
    chosen, facts = strength, None
    if strength == "auto":
        chosen, facts = _choose_strength(
            plan, real, donor_class, target_class, trial=trial, reading=reading, cache_dir=cache
        )
    return edit_set(plan, real, donor_class=donor_class, strength=float(chosen), trial=facts, **files)


def _choose_strength(
    plan: "SetPlan",
    cohort: "Cohort",
    donor_class: str,
    target_class: str,
    *,
    trial: TrialOptions,
    reading: ReadingOptions,
    cache_dir: Path | None,
) -> tuple[float, dict[str, Any]]:
    """Return the strength that validation scans speak for, or that of the set which is there, and what provenance says of it."""
    from medsynth.errors import ConfigError
    from medsynth.evaluation.edits import ProbeClassifier, choose_strength
    from medsynth.generation.edit import chosen_before, try_edits
    from medsynth.processes import is_launched

    if before := chosen_before(plan):
        return before
    if trial.donors < 1:
        raise ConfigError(f"trial.donors: need a number from 1, got {trial.donors}; try 32")
    if is_launched() and plan.devices * plan.num_nodes > 1:
        raise ConfigError(
            "strength: need one process to choose it, got several; try it with one, then its number with all"
        )
    common: dict[str, Any] = {"donor_class": donor_class, "reading": reading, "cache_dir": cache_dir}
    scans, edit_at = try_edits(plan, cohort, donors=trial.donors, **common)
    classifier = ProbeClassifier(
        plan.run, cohort, target_class=target_class, seed=plan.seed, progress=plan.progress, **common
    )
    choice = choose_strength(classifier, scans, edit_at, trial.strengths)
    if plan.progress:
        print(choice.summary(), file=sys.stderr, flush=True)
    return choice.strength, choice.facts()
