"""The verbs that judge a synthetic set and hand it over. `medsynth.api` says why annotations are not postponed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medsynth.config import (
    DownstreamOptions,
    FeatureOptions,
    FidelityOptions,
    GridOptions,
    IntensityOptions,
    PrivacyOptions,
    ReadingOptions,
)
from medsynth.files import PathLike

if TYPE_CHECKING:
    from medsynth.evaluation import Handover, Selection
    from medsynth.reporting import CardFiles, CheckedCard, ReportFiles


def evaluate(
    *,
    real: PathLike,
    synthetic: PathLike,
    out: PathLike,
    parts: Sequence[Literal["fidelity", "privacy", "downstream"]] = ("fidelity", "privacy", "downstream"),
    run: PathLike | None = None,
    drop_copies: bool = False,
    ceiling: PathLike | None = None,
    real_pictures: bool = True,
    reader_study: int = 0,
    reader_answers: Sequence[PathLike] = (),
    devices: int = 1,
    seed: int = 0,
    cache_dir: PathLike | None = None,
    grid: GridOptions | None = None,
    intensity: IntensityOptions | None = None,
    features: FeatureOptions = FeatureOptions(),
    fidelity: FidelityOptions = FidelityOptions(),
    privacy: PrivacyOptions = PrivacyOptions(),
    downstream: DownstreamOptions = DownstreamOptions(),
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "ReportFiles":
    """Score a synthetic set against the real cohort, and write `report.json` and `report.html`.

    Works for any synthetic cohort, whoever made it: how faithful it is, whether it copies patients, and what a classifier
    gains from it, or that it gains nothing. Exit code 4 where the privacy gate fails. A call that was interrupted goes on where
    it stopped.

    Args:
        real: The real cohort CSV.
        synthetic: The synthetic set: its folder, or a cohort CSV, of which `path` and `label` are enough.
        out: Report folder.
        parts: What to evaluate.
        run: Run folder that made the set; gives the intensity range, compares its patients with the test split, adds membership
            inference, and its training curves to the report.
        drop_copies: Set aside the scans that the privacy gate finds to be copies, and judge the rest.
        ceiling: Cohort CSV with more real scans of the rare class than `real` has, for the figures that these would reach.
        real_pictures: Show real scans in the report, beside synthetic ones. They are patient data; without them the report shows
            figures and synthetic scans only.
        reader_study: Number of scans, half of them real, to show to readers: writes `reader_study.html`, a page that they
            answer offline, and `reader_study_key.json`, which they must not see. Both belong in the house.
        reader_answers: CSV files that readers exported from the page of the study in `out`, comma-separated; their accuracy
            joins the report. Give the other options as before: what was prepared and trained is not done again, the other
            figures are computed anew.
        devices: Processes that extract features; they are the same for any number. One call starts them all.
        seed: Decides random halves, pairs, pictures and trainings.
        cache_dir: Folder for prepared scans and features, by default `.medsynth_cache` beside each cohort.
        grid: Pixel grid for the comparison (`--grid.size 64`), by default that of the run, or else that of the synthetic scans.
        intensity: Conversion to [-1, 1] for both sides (`--intensity.method range --intensity.low 0 --intensity.high 255`), by
            default that of the run, or else percentiles of the real training split.
        features: What turns scans into features.
        fidelity: Options of the fidelity table.
        privacy: Options of the privacy gate.
        downstream: Options of the downstream gain.
        reading: Limits on what a scan file may be.
        progress: Show progress bars.
    """
    from medsynth.evaluation import evaluate_cohorts
    from medsynth.evaluation.reader import find_key, score_files
    from medsynth.reporting import check_report_folder, training_figures, write_report
    from medsynth.reporting.reader_page import write_reader_study
    from medsynth.runs import load_run

    check_report_folder(out)
    answers = [reader_answers] if isinstance(reader_answers, str | Path) else reader_answers
    readers = score_files([Path(file) for file in answers], Path(out), seed=seed) if answers else None
    made_by = load_run(run) if run is not None else None
    evaluation = evaluate_cohorts(
        Path(real),
        Path(synthetic),
        work=Path(out) / "trainings",
        parts=parts,
        run=made_by,
        drop_copies=drop_copies,
        ceiling=Path(ceiling) if ceiling is not None else None,
        grid=grid,
        intensity=intensity,
        features=features,
        fidelity=fidelity,
        privacy=privacy,
        downstream=downstream,
        reading=reading,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        reader_study=reader_study,
        known_study=find_key(Path(out)) if reader_study else None,
        readers=readers,
        devices=devices,
        seed=seed,
        progress=progress,
    )
    if evaluation.study is not None:
        write_reader_study(out, evaluation.study)
    figures = training_figures(made_by) if made_by is not None else []
    return write_report(
        out,
        evaluation.report,
        sheets=evaluation.sheets,
        pairs=evaluation.pairs,
        figures=figures,
        real_pictures=real_pictures,
    )


def select(
    *,
    real: PathLike,
    synthetic: PathLike,
    out: PathLike,
    share: float = 0.5,
    by: Literal["both", "classifier", "distance"] = "both",
    min_distance: float = 0.05,
    run: PathLike | None = None,
    seed: int = 0,
    cache_dir: PathLike | None = None,
    grid: GridOptions | None = None,
    intensity: IntensityOptions | None = None,
    features: FeatureOptions = FeatureOptions(),
    reading: ReadingOptions = ReadingOptions(),
    progress: bool = True,
) -> "Selection":
    """Select the scans of a synthetic set that are clearly of their class and not too near to a training scan.

    A classifier of real training scans says how likely each scan is of its own class, and the least likely go. Of val scans only
    their distances to training scans are used, of test scans nothing. Scans stay where they are: the new cohort names their
    folder, and its provenance says by what rule how many were kept of each class. Selection makes a set less varied; whether it
    helps, `medsynth evaluate` tells. It replaces no privacy gate.

    Args:
        real: The real cohort CSV.
        synthetic: The synthetic set: its folder or a cohort CSV.
        out: Folder of the selected set.
        share: Share of each class to keep; the scans least likely of their class by the classifier go.
        by: `classifier`, `distance`, or `both`: first scans too near to a training scan go, then the least likely of their class
            until the share is left.
        min_distance: Scans go that are nearer to a training scan than this share of the val scans of their class are: a quantile,
            at which a set without copies loses about as many.
        run: Run folder that made the set; gives the grid and the intensity range, as in the evaluation.
        seed: Decides the order in which the classifier sees scans.
        cache_dir: Folder for prepared scans and features, by default `.medsynth_cache` beside each cohort.
        grid: Pixel grid for the comparison, by default that of the run, or else that of the synthetic scans.
        intensity: Conversion to [-1, 1] for both sides, by default that of the run, or else percentiles of the real training
            split.
        features: What turns scans into features for the classifier.
        reading: Limits on what a scan file may be.
        progress: Show progress bars.
    """
    from medsynth.evaluation import select_scans
    from medsynth.runs import load_run

    return select_scans(
        Path(real),
        Path(synthetic),
        Path(out),
        share=share,
        by=by,
        min_distance=min_distance,
        run=load_run(run) if run is not None else None,
        grid=grid,
        intensity=intensity,
        features=features,
        reading=reading,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        seed=seed,
        progress=progress,
    )


def augment(
    *,
    real: PathLike,
    synthetic: PathLike,
    report: PathLike,
    out: PathLike,
    run: PathLike | None = None,
    splits: Sequence[Literal["train", "val", "test"]] = ("train",),
    cache_dir: PathLike | None = None,
    progress: bool = True,
) -> "Handover":
    """Write the cohort to train a classifier on: real training scans and the accepted synthetic ones.

    Refuses (exit code 4) a set whose privacy gate failed, could not tell, or was not judged, and (exit code 3) a report about
    other scans, or a generator that saw patients of the test split. Scans stay where they are: the CSV names their folders.

    Args:
        real: The real cohort CSV.
        synthetic: The synthetic set: its folder or a cohort CSV.
        report: Folder of `medsynth evaluate`, or its `report.json`.
        out: CSV to write.
        run: Run folder that made the set, needed where the evaluation was not given it.
        splits: Splits of the real cohort to write; synthetic scans are always `train`.
        cache_dir: Folder of the prepared scans, as in the evaluation.
        progress: Show progress bars.
    """
    from medsynth.evaluation import augment_cohort
    from medsynth.runs import load_run

    return augment_cohort(
        Path(real),
        Path(synthetic),
        Path(report),
        Path(out),
        run=load_run(run) if run is not None else None,
        splits=splits,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        progress=progress,
    )


def card(
    *,
    synthetic: PathLike | None = None,
    report: PathLike | None = None,
    source: PathLike | None = None,
    real: PathLike | None = None,
    out: PathLike | None = None,
    check: PathLike | None = None,
    cache_dir: PathLike | None = None,
    progress: bool = True,
) -> "CardFiles | CheckedCard":
    """Write the data card of a synthetic set (Markdown with YAML front matter) and `croissant.json`, or check a card.

    The card says what the set is, where it comes from, what it may not be used for, and what the evaluation found. What
    nobody stated or measured is marked as a gap; nothing is made up. A report about other scans, and a card that is not valid,
    are refused (exit code 3).

    Args:
        synthetic: The synthetic set: its folder or a cohort CSV.
        report: Folder of `medsynth evaluate`, or its `report.json`; without it the card says that nothing was evaluated.
        source: What only people know (source, licence, consent, intended use, ...): a YAML file, or the card of the source
            cohort, by path or by the name of one that ships with medsynth.
        real: The real cohort CSV, for its shares of subgroups; only counts of it are written.
        out: Folder for `data_card.md` and `croissant.json`, by default that of the set, where the latter finds the scans.
        check: A card to validate; nothing is written then.
        cache_dir: Folder of the prepared scans, as in the evaluation.
        progress: Show progress bars.
    """
    from medsynth.errors import ConfigError
    from medsynth.reporting import check_card, write_card

    others = {"synthetic": synthetic, "report": report, "source": source, "real": real, "out": out}
    if check is not None:
        if given := [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"check: need no other file beside it, got --{given[0]}; try one of the two")
        return check_card(Path(check))
    if synthetic is None:
        raise ConfigError("synthetic: need a synthetic set, or a card to --check, got neither; try --synthetic FOLDER")
    return write_card(
        Path(synthetic),
        report=Path(report) if report is not None else None,
        real=Path(real) if real is not None else None,
        source=source,
        out=Path(out) if out is not None else None,
        cache_dir=Path(cache_dir) if cache_dir is not None else None,
        progress=progress,
    )
