"""Labels that count as one class: `subsolid=ground_glass+part_solid`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from medsynth.errors import ConfigError

SUBLABEL = "sublabel"  # the attribute that keeps the label as it was


def parse_merges(texts: Sequence[str]) -> dict[str, str]:
    """Return the class that each merged label counts as, from texts like `subsolid=ground_glass+part_solid`.

    Raises `ConfigError` that names the part it cannot read, and for a label that is to count as two classes.
    """
    merges: dict[str, str] = {}
    for text in texts:
        target, equals, rest = text.rpartition("=")
        target, sources = target.strip(), [part.strip() for part in rest.split("+")]
        if not equals or not target or not all(sources):
            raise ConfigError(
                f"merge: need CLASS=LABEL+LABEL, got {text.strip()!r}; try subsolid=ground_glass+part_solid"
            )
        for source in sources:
            if source in merges:
                raise ConfigError(f"merge: need each label in one class, got {source!r} twice; try one of them")
            merges[source] = target
    return merges


def check_merge_labels(merges: Mapping[str, str], labels: Collection[str]) -> None:
    """Raise `ConfigError` for a label to merge that is none of `labels`."""
    for label in merges:
        if label not in labels:
            known = ", ".join(sorted(set(labels)))
            raise ConfigError(f"merge: need labels of the cohort, got {label!r}; try one of {known}")
