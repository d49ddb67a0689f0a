"""The sentences of a data card: what is a gap, what limits a set, what it must not be used for, and how figures read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_UNTOLD = "cannot tell"
_FEW_PATIENTS = 50  # as many as the privacy gate needs to compare with

# By the key that is null; * stands for any one part of it.
_GAPS = {
    "title": "not stated: a title",
    "contains_real_pixels": "not stated: whether pixels of real scans are in the set",
    "modality": "not stated: imaging modality",
    "licence": "not stated: licence of this data",
    "citation": "not stated: how to cite this data",
    "contact": "not stated: who answers questions",
    "source.name": "not stated: the data set that it comes from",
    "source.origin": "not stated: where the source can be found, and who collected it",
    "source.licence": "not stated: licence of the source",
    "source.citation": "not stated: how to cite the source",
    "source.consent": "not stated: consent of the source's patients, or why none was needed",
    "source.legal_basis": "not stated: legal basis and approval for processing the source",
    "use.intended": "not stated: what it is intended for",
    "limits.stated": "not stated: limits that its makers know of",
    "data.voxel_mm": "not stated: voxel size (the files do not say)",
    "coverage.real_classes": "not stated: how many real scans of each class the generator learnt from",
    "coverage.attributes": "not measured: subgroups (sex, age, scanner, ...), since neither the set nor a real cohort given with "
    "`--real` has such columns",
    "coverage.attributes.*.synthetic": "not measured: the synthetic scans do not say, or too few do",
    "coverage.attributes.*.real": "not measured: no real cohort was given that says, or too few patients do",
    "generator": "not stated: what made the scans (there is no provenance.json of medsynth)",
    "evaluation": "not evaluated: neither likeness to real scans nor privacy nor the gain of a classifier",
    "evaluation.privacy": "not measured: whether the set copies patients",
    "evaluation.fidelity": "not measured: likeness to real scans",
    "evaluation.downstream": "not measured: whether a classifier gains",
    "evaluation.identical": "not measured: whether scans of the set are identical to real ones",
    "evaluation.reader_study": "not measured: whether readers tell the scans from real ones",
    "evaluation.privacy.membership": "not measured: whether the model tells its training patients from others",
    "evaluation.privacy.classes.*.power": "not measured: the power of the gate for this class",
    "evaluation.privacy.classes.*.false_alarms": "not measured: false alarms of the gate for this class",
    "evaluation.downstream.auroc": "not measured: ΔAUROC (no interval could be told)",
    "evaluation.fidelity.*": "not measured: too few real scans of different patients",
}

PROHIBITED = (
    "Diagnosis, or any other decision about a patient.",
    "Re-identification: any attempt to find or recognise the people whose scans the generator learnt from.",
    "Presenting the scans as scans of patients, also by removing the marks that say synthetic.",
    "Proving how well a medical product works: what it does on synthetic scans is not what it does on patients.",
)


def gap_sentence(path: Sequence[str]) -> str:
    """Return a gap in words, by its key's parts."""
    for pattern, sentence in _GAPS.items():
        parts = pattern.split(".")
        if len(parts) == len(path) and all(part in ("*", name) for part, name in zip(parts, path, strict=True)):
            return sentence
    if path[:2] == ("evaluation", "fidelity"):
        return _GAPS["evaluation.fidelity.*"]
    return "not measured: no interval could be told" if path[0] == "evaluation" else "not stated"


def prohibited_uses(front: Mapping[str, Any], stated: Sequence[str]) -> list[str]:
    """Return what a synthetic set must not be used for: always, by what was found of it, and by what people state."""
    uses = list(PROHIBITED)
    reading = _reading(front, "privacy")
    if front["contains_real_pixels"]:
        uses.append("Giving it to anyone who may not see the source's scans: it holds pixels of real ones.")
    elif reading == "fail":
        uses.append("Giving it to anyone who may not see the source's scans: the privacy gate failed.")
    elif reading != "pass":
        uses.append("Giving it to anyone who may not see the source's scans, unless the privacy gate has passed.")
    return [*uses, *(use for use in stated if use not in uses)]


def found_limits(front: Mapping[str, Any], notes: Sequence[str]) -> list[str]:
    """Return the limits of a synthetic set that its files show; `notes` are further ones, as those of the report."""
    limits = []
    learnt = front["coverage"]["real_classes"]
    for label in front["data"]["classes"] if learnt is not None else ():
        scans, patients = (learnt.get(label, {"scans": 0, "patients": 0})[key] for key in ("scans", "patients"))
        if scans == 0:
            limits.append(f"{label}: the generator's training scans hold none of this class.")
        elif scans == 1:
            limits.append(
                f"{label}: the generator learnt it from a single scan; what varies between patients is unknown to it."
            )
        elif patients < _FEW_PATIENTS:
            people = "1 patient" if patients == 1 else f"{patients} patients"
            limits.append(
                f"{label}: the generator learnt it from {scans} scans of {people}, too few to show how much patients vary."
            )
    if front["generator"] is not None and front["generator"]["method"] == "edit":
        limits.append(
            "Each scan resembles the real scan that it was made from, its donor, and may show what that one shows."
        )
    evaluation = front["evaluation"]
    if evaluation is None:
        limits.append("The set was not evaluated: its likeness, its privacy and its worth are unknown.")
    else:
        limits += [f"{title}: not evaluated." for part, title in _PARTS.items() if evaluation[part] is None]
        limits += _readings(evaluation)
    return [
        *limits,
        *notes,
        "One generator and one draw: how other trainings or other draws would turn out was not measured.",
        "What the source's scans do not show (other hospitals, scanners, populations, findings), the set cannot show either.",
    ]


_PARTS = {"privacy": "Privacy", "fidelity": "Likeness to real scans", "downstream": "Gain of a classifier"}


def _readings(evaluation: Mapping[str, Any]) -> list[str]:
    """What was found and is not good, in the report's own sentences."""
    found = []
    privacy, fidelity, downstream = (evaluation[part] for part in _PARTS)
    if privacy is not None:
        found += [
            f"{label}, privacy: {facts['sentence']}"
            for label, facts in privacy["classes"].items()
            if facts["reading"] != "pass"
        ]
        if repeated := privacy.get("repeated"):
            found.append(
                f"{repeated} {'scan is' if repeated == 1 else 'scans are'} identical to another one of the set."
            )
    if fidelity is not None:
        found += [
            f"{label}, likeness: {facts['sentence']}"
            for label, facts in fidelity["classes"].items()
            if facts["reading"] != "as close"
        ]
    if downstream is not None and downstream["reading"] != "gain":
        found.append(f"Gain of a classifier: {downstream['sentence']}")
    return found


def banners(front: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before anything else, the gravest first."""
    said = []
    privacy = None if front["evaluation"] is None else front["evaluation"]["privacy"]
    if privacy is None:
        said.append("**Privacy was not judged.** Treat the set as if it held scans of patients.")
    elif privacy["reading"] == "fail":
        said.append(
            f"**The privacy gate failed.** {privacy['sentence']} Treat the set as if it held scans of patients."
        )
    elif privacy["reading"] == "cannot tell":
        said.append(
            f"**The privacy gate cannot tell, which is not a pass.** {privacy['sentence']} "
            "Treat the set as if it held scans of patients."
        )
    if privacy is not None:
        flagged = sum(facts["flagged"] for facts in privacy["classes"].values())
        if privacy["set_aside"]:
            said.append(
                f"**{privacy['set_aside']} scans of the set were flagged as copies of real ones and set aside** before the rest "
                "was judged. Their files are still there: hand over what `medsynth augment` writes, never this folder."
            )
        if flagged:
            judged = sum(facts["judged"] for facts in privacy["classes"].values())
            are = "is" if flagged == 1 else "are"
            said.append(
                f"**{flagged} of {judged} scans {are} flagged as possible copies of real scans** and still in the set."
            )
    if front["contains_real_pixels"]:
        said.append("**The set holds pixels of real scans** and must not leave the house.")
    if front["generator"] is not None and front["generator"]["method"] == "edit":
        said.append(
            "**Every scan was made from a real one, its donor, and resembles it.** Each row of the manifest has its donor's row "
            "number; whoever holds the real cohort can find the donor."
        )
    if _reading(front, "downstream") == "harm":
        said.append(f"**Training with the set did harm.** {front['evaluation']['downstream']['sentence']}")
    return said


def _reading(front: Mapping[str, Any], part: str) -> str | None:
    evaluation = front["evaluation"]
    found = None if evaluation is None else evaluation[part]
    return None if found is None else found["reading"]


def number(value: float) -> str:
    """Return a figure with three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def signed(figure: Mapping[str, float] | None) -> str:
    """Return a difference with its sign and its interval."""
    if figure is None:
        return _UNTOLD
    value, low, high = (f"{figure[key]:+.3f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def interval(figure: Mapping[str, float] | None) -> str:
    """Return a figure with its 95 % interval."""
    if figure is None:
        return _UNTOLD
    value, low, high = (number(figure[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def real_range(figure: Mapping[str, float] | None) -> str:
    """Return the range that two halves of the real scans span."""
    return _UNTOLD if figure is None else f"{number(figure['real_low'])} to {number(figure['real_high'])}"


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def share(found: Mapping[str, Any] | None) -> str:
    """Return a count with its share and its 95 % interval."""
    if found is None:
        return _UNTOLD
    low, high = percent(found["low"]).removesuffix(" %"), percent(found["high"])
    return f"{found['found']} of {found['of']} ({percent(found['share'])}; 95 % interval {low} to {high})"


def listed(names: Sequence[str]) -> str:
    """Return names as an enumeration."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
