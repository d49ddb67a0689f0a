"""The report of an evaluation: its figures, and what they mean in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from medsynth.evaluation.downstream import DownstreamResult
from medsynth.evaluation.fidelity.comparison import TOO_FEW, Comparison, Reading, deciding
from medsynth.evaluation.fidelity.table import Counts, FidelityResult, FidelityRow
from medsynth.evaluation.privacy import PrivacyResult
from medsynth.versions import installed_versions

SCHEMA = "medsynth-report/1"


def build_report(
    fidelity: FidelityResult | None = None,
    *,
    privacy: PrivacyResult | None = None,
    downstream: DownstreamResult | None = None,
    sets: Mapping[str, str] | None = None,
    settings: Mapping[str, str | int | float | None] | None = None,
    notes: Sequence[str] = (),
    cost: Mapping[str, Any] | None = None,
    reader_study: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `report.json`: figures, verdicts, versions and settings, without any path, file name or ID.

    Parts that were not evaluated are None. `sets` are the hashes of the real and the synthetic scans that were evaluated;
    `settings` are further facts about them (a run's fingerprint, solver, steps); the caller answers for them
    naming no file and no patient, and likewise for further `notes`, sentences on what bears on all figures. `cost` says how
    long what took, and on which machine; `reader_study` what readers answered.
    """
    # Privacy and downstream keep their options with their figures.
    options = {} if fidelity is None else {"fidelity": asdict(fidelity.options)}
    verdict: dict[str, Any] = {
        "fidelity": None if fidelity is None else [fidelity_verdict(row, fidelity) for row in fidelity.rows],
        "privacy": None if privacy is None else privacy.verdict(),
        "downstream": None if downstream is None else downstream.verdict(),
    }
    rare = None if downstream is None else downstream.as_dict()["task"]["rare_class"]
    return {
        "schema": SCHEMA,
        "fidelity": None if fidelity is None else fidelity.as_dict(),
        "privacy": None if privacy is None else privacy.as_dict(),
        "downstream": None if downstream is None else downstream.as_dict(),
        "verdict": {"headline": headline(verdict, rare), **verdict},
        "notes": [*([] if fidelity is None else _absent_notes(fidelity.absent)), *notes],
        "versions": installed_versions(),
        "cost": dict(cost or {}),
        "reader_study": reader_study,
        "sets": dict(sets or {}),
        "settings": {**(settings or {}), **options},
    }


def headline(verdict: Mapping[str, Any], rare: str | None) -> dict[str, str]:
    """Return the verdicts as one sentence for who has no time for more, and its `tone`: `good`, `bad` or `plain`.

    `verdict` has the verdicts of the parts, None where one was not judged; `rare` names the class of the downstream gain.
    """
    copying, gain = (None if verdict[part] is None else verdict[part]["reading"] for part in ("privacy", "downstream"))
    if copying == "fail":
        return {"tone": "bad", "sentence": "Do not use this set: it gives away real patients' scans."}
    if gain == "harm":
        return {"tone": "bad", "sentence": f"Do not train with this set: classifiers find {rare} less well with it."}
    safe = {
        "pass": "there is no sign that it copies patients",
        "cannot tell": "whether it copies patients cannot be told",
        None: "whether it copies patients was not judged",
    }[copying]
    if gain == "gain":
        text = f"Classifiers find {rare} better with this set"
        if copying == "pass":
            return {"tone": "good", "sentence": f"{text}, and {safe}: it may be used for training in the house."}
        return {"tone": "plain", "sentence": f"{text}, but {safe}: do not hand it over."}
    if gain == "no gain":
        return {
            "tone": "plain",
            "sentence": f"There is no reason to use this set: classifiers find {rare} no better with it; {safe}.",
        }
    if gain == "cannot tell":
        return {
            "tone": "plain",
            "sentence": f"Whether classifiers find {rare} better with this set cannot be told; {safe}.",
        }
    likeness = ""
    if verdict["fidelity"]:
        readings = {row["reading"] for row in verdict["fidelity"] if row["label"] is not None}
        further = "further" in readings
        likeness = (
            "its scans differ from real ones more than these do among themselves; "
            if further
            else "its scans are as close to real ones as these are among themselves; "
            if readings == {"as close"}
            else "whether its scans are lifelike cannot be told for every class; "
        )
    text = f"What this set is worth for training was not judged; {likeness}{safe}."
    return {"tone": "plain", "sentence": text}


def fidelity_verdict(row: FidelityRow, fidelity: FidelityResult) -> dict[str, str | None]:
    """Return what the figures of one class say against the held-out scans.

    `reading` is `as close`, `further` or `cannot tell`; `sentence` says it plainly, with the figures behind it, and how
    many synthetic scans are identical to real ones; `label` is None for all classes together.
    """
    if row.held_out is None or row.held_out.too_few:
        reading: Reading = "cannot tell"
        sentence = f"Cannot tell: {_shortage(row, fidelity.options.max_scans)}."
    else:
        reading, sentence = _reading(row, row.held_out, fidelity.extractor)
    return {"label": row.label, "reading": reading, "sentence": sentence + _copies(row.counts)}


def _shortage(row: FidelityRow, max_scans: int) -> str:
    """Return which side has too few scans, and how many it needs."""
    counts, halves = row.counts, row.counts.held_out_halves
    if row.label is None:
        if row.held_out is None:
            return "no class has held-out real scans of different patients"
        stand = _counted(row.held_out.scans_a_side, "scan")
        return f"all classes together have {stand} on either side; at least {TOO_FEW} are needed"
    real = f"{_counted(counts.held_out, 'held-out real scan')} of {row.label}"
    needed = f"at least {2 * TOO_FEW} held-out scans are needed"
    reasons = []
    if halves < TOO_FEW:
        if counts.held_out == 0:
            reasons.append(f"there are {real}; {needed}")
        elif counts.held_out == 1:
            reasons.append(f"{real} makes no halves; {needed}")
        elif counts.held_out_patients == 1:
            reasons.append(f"{real} are all of one patient; {needed}, of many patients")
        elif counts.held_out_patients == counts.held_out:
            reasons.append(f"{real} make halves of {halves}; {needed}")
        else:
            reasons.append(
                f"{real} and {counts.held_out_patients} patients make halves of {halves} without a common patient; "
                f"at least {TOO_FEW} in each are needed"
            )
    if counts.synthetic < TOO_FEW:
        made = _counted(counts.synthetic, "synthetic scan")
        verb = "is" if counts.synthetic == 1 else "are"
        reasons.append(f"{made} of {row.label} {verb} too few; at least {TOO_FEW} are needed")
    if not reasons:
        reasons.append(f"the {max_scans} scans drawn have too many of one patient; try a larger fidelity.max_scans")
    return "; and ".join(reasons)


def _copies(counts: Counts) -> str:
    identical, made = counts.identical, counts.synthetic
    if identical == 0:
        return ""
    if made == 1:
        return " The synthetic scan is identical to a real scan."
    if identical == made:
        return f" All {made} synthetic scans are identical to real scans."
    return f" {identical} of {made} synthetic scans " + (
        "is identical to a real scan." if identical == 1 else "are identical to real scans."
    )


def _reading(row: FidelityRow, found: Comparison, extractor: str) -> tuple[Reading, str]:
    reading: Reading = "as close"
    text = "As close to held-out real scans as two halves of these are to each other."
    apart = {measure: figure for measure, figure in deciding(found, extractor).items() if figure.reading == "further"}
    if apart:
        reading = "further"
        shown = "; ".join(
            f"{measure} {figure.value:.3g}, real against real at most {figure.real_high:.3g}"
            for measure, figure in apart.items()
        )
        text = f"Further from held-out real scans than two halves of these are from each other ({shown})."
        if row.real_seen is not None and "further" in (row.real_seen.kid.reading, row.real_seen.frechet.reading):
            text += " So are the real scans that the generator saw: the real splits themselves differ."
    if found.ssim is not None and found.ssim.reading in ("less varied", "more varied"):
        alike = "more" if found.ssim.reading == "less varied" else "less"
        text += f" They are {alike} alike among themselves than real scans are (SSIM)."
    if found.recall.reading == "less varied":
        text += (
            f" They reach {found.recall.value:.0%} of the real scans (recall); real scans reach {found.recall.real_low:.0%} "
            "at least."
        )
    if row.seen is not None and not row.seen.too_few and "closer" in (row.seen.kid.reading, row.seen.frechet.reading):
        text += (
            " They are closer to the real scans that the generator saw than two halves of these are: look for copies."
        )
    return reading, text


def _absent_notes(absent: Sequence[str]) -> list[str]:
    if not absent:
        return []
    if len(absent) == 1:
        return [f"The real class {absent[0]} has no synthetic scans, so nothing is said about it."]
    return [f"The real classes {', '.join(absent)} have no synthetic scans, so nothing is said about them."]


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
