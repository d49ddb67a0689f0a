"""The report of an evaluation: its figures, and what they mean in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from medsynth.evaluation.downstream import DownstreamResult
from medsynth.evaluation.fidelity.comparison import TOO_FEW, Comparison, Verdict
from medsynth.evaluation.fidelity.table import FidelityResult, FidelityRow
from medsynth.evaluation.privacy import GateSettings, PrivacyResult
from medsynth.versions import installed_versions

SCHEMA = "medsynth-report/3"


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
    identical: int = 0,
) -> dict[str, Any]:
    """Return the content of `report.json`: figures, verdicts, versions and settings, without any path, file name or ID.

    Parts that were not evaluated are None, and so are figures that are not known. `sets` are the hashes of the real and the
    synthetic scans; `settings` are further facts about them (a run's fingerprint, its steps) and `notes` sentences on all
    figures, in which the caller names no file and no patient. `cost` says how long what took, and on which machine;
    `reader_study` what readers answered. `identical` synthetic scans are real ones, whatever parts were evaluated.
    """
    # Privacy and downstream keep their options with their figures.
    options = {} if fidelity is None else {"fidelity": asdict(fidelity.settings)}
    verdict: dict[str, Any] = {
        "fidelity": None if fidelity is None else [fidelity_verdict(row, fidelity) for row in fidelity.rows],
        "privacy": None if privacy is None else privacy_verdict(privacy),
        "downstream": None if downstream is None else downstream.verdict(),
    }
    absent = () if fidelity is None else fidelity.absent
    if len(absent) == 1:
        notes = [f"The real class {absent[0]} has no synthetic scans, so it was not evaluated.", *notes]
    elif absent:
        classes = ", ".join(absent)
        notes = [f"The real classes {classes} have no synthetic scans, so they were not evaluated.", *notes]
    rare = None if downstream is None else downstream.as_dict()["task"]["rare_class"]
    only_pixels = (
        privacy is not None
        and privacy.real_pixels > 0
        and replace(privacy, real_pixels=0).verdict()["verdict"] != "fail"
    )
    first = headline(verdict, rare, identical, only_pixels=only_pixels)
    if privacy is not None and (changed := other_thresholds(privacy.settings)):
        sentence = f"Not judged at the thresholds that ship ({changed}): do not hand this set over. {first['sentence']}"
        first = {"tone": "bad", "sentence": sentence}
    if privacy is not None and privacy.edits:
        near = edits_sentence(privacy.edits)
        first["sentence"] += f" {near[0].upper()}{near[1:]}."
    report: dict[str, Any] = without_nan(
        {
            "schema": SCHEMA,
            "fidelity": None if fidelity is None else fidelity.as_dict(),
            "privacy": None if privacy is None else privacy_part(privacy),
            "downstream": None if downstream is None else downstream.as_dict(),
            "identical": identical,
            "verdict": {"headline": first, **verdict},
            "notes": list(notes),
            "versions": installed_versions(),
            "cost": dict(cost or {}),
            "reader_study": reader_study,
            "sets": dict(sets or {}),
            "settings": {**(settings or {}), **options},
        }
    )
    return report


def without_nan(content: Any) -> Any:
    """Return nested dicts and lists of plain values, with None in the place of NaN and infinities."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def other_thresholds(settings: GateSettings) -> str:
    """Return the settings of the gate that differ from those that ship, as `min_patients 30 instead of 50`; empty if none."""
    shipped = asdict(GateSettings())
    changed = [(name, value) for name, value in asdict(settings).items() if value != shipped[name]]
    return ", ".join(f"{name} {value} instead of {shipped[name]}" for name, value in changed)


def privacy_verdict(privacy: PrivacyResult) -> dict[str, str]:
    """Return the gate's verdict on the set; at other thresholds than those that ship, which it names, nothing passes."""
    found = privacy.verdict()
    if not (changed := other_thresholds(privacy.settings)):
        return found
    verdict = "cannot tell" if found["verdict"] == "pass" else found["verdict"]
    return {
        "verdict": verdict,
        "sentence": f"Judged at other thresholds than those that ship ({changed}). {found['sentence']}",
    }


def privacy_part(privacy: PrivacyResult) -> dict[str, Any]:
    """Return the part `privacy` of a report."""
    return privacy.as_dict() | privacy_verdict(privacy)


def edits_sentence(edits: Mapping[str, float | int]) -> str:
    """Return how near edits are to the real scans that they were made from."""
    near = f"half of the {edits['scans']} edits lie nearer than {edits['median']:.2f} to their donors, 1 in 20 nearer than "
    sentence = f"{near}{edits['low']:.2f} (0 is a copy; scans without likeness lie at 1.41)"
    nearer = edits.get("nearer_than_limit")
    return (
        sentence if nearer is None else f"{sentence}; {nearer} lie nearer than the limit below which a scan is a copy"
    )


def headline(
    verdict: Mapping[str, Any], rare: str | None, identical: int = 0, *, only_pixels: bool = False
) -> dict[str, str]:
    """Return the result in one sentence, and its `tone`: `good`, `bad` or `plain`.

    `verdict` has the verdicts of the parts, None where one was not judged; `rare` names the class of the downstream gain.
    `only_pixels`: the gate fails only because the set says that it holds pixels of real scans.
    """
    copying, gain = (None if verdict[part] is None else verdict[part]["verdict"] for part in ("privacy", "downstream"))
    if identical:
        these = "1 synthetic scan is" if identical == 1 else f"{identical} synthetic scans are"
        return {"tone": "bad", "sentence": f"Do not use this set: {these} identical to scans of real patients."}
    if copying == "fail" and only_pixels:
        return {"tone": "bad", "sentence": "This set holds pixels of real scans: it must stay within your institution."}
    if copying == "fail":
        return {"tone": "bad", "sentence": "Do not use this set: it reveals scans of real patients."}
    if gain == "harm":
        return {"tone": "bad", "sentence": f"Do not train with this set: classifiers find {rare} less well with it."}
    safe = {
        "pass": "there is no sign that it copies patients",
        "cannot tell": "whether it copies patients could not be judged",
        None: "whether it copies patients was not checked",
    }[copying]
    if gain == "gain" and copying == "pass":
        use = "use it for training within your institution"
        return {"tone": "good", "sentence": f"Classifiers find {rare} better with this set, and {safe}: {use}."}
    text = {
        "gain": f"Classifiers find {rare} better with this set, but {safe}: do not hand it over.",
        "no gain": f"There is no reason to use this set: classifiers find {rare} no better with it; {safe}.",
        "cannot tell": f"Too little data: whether classifiers find {rare} better with this set could not be judged; {safe}.",
        None: f"The gain of a classifier was not measured; {_likeness(verdict['fidelity'])}{safe}.",
    }[gain]
    return {"tone": "plain", "sentence": text}


def _likeness(rows: Sequence[Mapping[str, Any]] | None) -> str:
    verdicts = {row["verdict"] for row in rows or () if row["label"] is not None}
    if not verdicts:
        return ""
    if "further" in verdicts:
        return "the synthetic scans differ from real ones more than real ones differ among themselves; "
    if verdicts == {"as close"}:
        return "the synthetic scans are as close to real ones as real ones are to each other; "
    return "some classes have too few scans to judge how close they are to real ones; "


def fidelity_verdict(row: FidelityRow, fidelity: FidelityResult) -> dict[str, str | None]:
    """Return what the figures of one class say against the held-out scans.

    `verdict` is `as close`, `further` or `cannot tell`; `sentence` states it with the figures behind it, and how
    many synthetic scans are identical to real ones; `label` is None for all classes together.
    """
    if row.held_out is None or row.held_out.too_few:
        verdict: Verdict = "cannot tell"
        sentence = f"Too few scans to judge: {_shortage(row, fidelity.settings.max_scans)}."
    else:
        verdict, sentence = _judge(row, row.held_out, fidelity.extractor.name)
    if identical := row.counts.identical:
        are = "is" if identical == 1 else "are"
        sentence += f" {identical} of {row.counts.synthetic} synthetic scans {are} identical to real scans."
    return {"label": row.label, "verdict": verdict, "sentence": sentence}


def _shortage(row: FidelityRow, max_scans: int) -> str:
    """Return which side has too few scans, and how many it needs."""
    counts, halves = row.counts, row.counts.held_out_halves
    if row.label is None:
        if row.held_out is None:
            return "no class has held-out real scans of different patients"
        return f"{_counted(row.held_out.scans_a_side, 'scan')} per side over all classes, {TOO_FEW} needed"
    real, needed = f"{_counted(counts.held_out, 'held-out real scan')} of {row.label}", f"{2 * TOO_FEW} needed"
    reasons = []
    if halves < TOO_FEW:
        if counts.held_out > 1 and counts.held_out_patients == 1:
            reasons.append(f"{real}, all of one patient, {needed}, of many patients")
        elif counts.held_out_patients == counts.held_out:
            reasons.append(f"{real}, {needed}")
        else:
            reasons.append(
                f"{real} from {counts.held_out_patients} patients, who can be split into halves of {halves}, "
                f"halves of {TOO_FEW} needed"
            )
    if counts.synthetic < TOO_FEW:
        reasons.append(f"{_counted(counts.synthetic, 'synthetic scan')} of {row.label}, {TOO_FEW} needed")
    if not reasons:
        reasons.append(f"the {max_scans} scans drawn include too many of one patient; try a larger --fidelity_scans")
    return "; ".join(reasons)


def _judge(row: FidelityRow, found: Comparison, extractor: str) -> tuple[Verdict, str]:
    verdict: Verdict = "as close"
    text = "As close to held-out real scans as two halves of these are to each other."
    apart = {name: figure for name, figure in found.deciding(extractor).items() if figure.verdict == "further"}
    if apart:
        verdict = "further"
        shown = "; ".join(
            f"{name} {figure.value:.3g}, real against real at most {figure.real_high:.3g}"
            for name, figure in apart.items()
        )
        text = f"Further from held-out real scans than two halves of these are from each other ({shown})."
        if row.real_seen is not None and "further" in (row.real_seen.kid.verdict, row.real_seen.frechet.verdict):
            text += " So are the real scans that the generator saw: the real splits themselves differ."
    if found.ssim is not None and found.ssim.verdict in ("less varied", "more varied"):
        alike = "more" if found.ssim.verdict == "less varied" else "less"
        text += f" They are {alike} similar to each other than real scans are (SSIM)."
    if found.recall.verdict == "less varied":
        text += (
            f" They cover {found.recall.value:.0%} of the real scans (recall); real scans cover at least "
            f"{found.recall.real_low:.0%}."
        )
    if row.seen is not None and not row.seen.too_few and "closer" in (row.seen.kid.verdict, row.seen.frechet.verdict):
        text += (
            " They are closer to the real scans that the generator saw than two halves of these are: look for copies."
        )
    return verdict, text


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
