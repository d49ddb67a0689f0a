"""The report of an evaluation, read back and not believed: its figures are judged anew, its words and its scans must fit them.

`evaluate` seals what it writes: `seal` holds a hash of the whole content, and an HMAC of that hash under the user's own key
(`medsynth.runs.patients`). Anybody can compute a new hash for a changed report, but not its HMAC without the key. Whoever has the
key, and so may run `evaluate`, can seal anything: the seal protects against others, not against its owner.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from medsynth.cohorts import Cohort, hash_cohort
from medsynth.config import Loading
from medsynth.errors import DataError, GateError
from medsynth.evaluation.privacy import PrivacyResult
from medsynth.evaluation.verdict import SCHEMA, privacy_part, privacy_verdict, without_nan
from medsynth.files import read_json
from medsynth.runs.patients import KEY_VARIABLE, PatientsKey, own_key
from medsynth.sets import hash_set

REPORT_FILE = "report.json"
_EARLIER = {"medsynth-report/1": "0.1", "medsynth-report/2": "0.2"}


def seal_report(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a report with its `seal`; errors as `own_key`."""
    key, digest = own_key(), _hash_content(content)
    return {**content, "seal": {"sha256": digest, "key": key.id, "hmac": _stamp(key, digest)}}


def read_report(path: Path) -> Mapping[str, Any]:
    """Return the content of a `report.json`, given as the file or its folder; `DataError` if there is none of our schema."""
    file = path / REPORT_FILE if path.is_dir() else path
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: need the report of an evaluation, got none; try medsynth evaluate --real ... --synthetic ... --out ..."
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if isinstance(schema, str) and schema in _EARLIER:
        raise DataError(f"{file}: written by medsynth {_EARLIER[schema]}; run medsynth evaluate again")
    if schema != SCHEMA:
        raise DataError(f"{file}: need a report of schema {SCHEMA}, got another; try medsynth evaluate again")
    return dict(content)


def check_report(content: Mapping[str, Any], report: Path) -> PrivacyResult | None:
    """Return the result of the privacy gate from the figures of a report, None if the gate was not run.

    Raises `GateError` that says what differs if the words of the report do not follow from its figures, if its content is not
    what `evaluate` sealed with this user's key, and for a report whose figures are damaged.
    """
    found = None
    try:
        if content["privacy"] is not None:
            found = _rebuild(
                PrivacyResult, {**content["privacy"], "settings": content["privacy"]["options"]}, "privacy"
            )
        parts = None if found is None else (privacy_part(found), privacy_verdict(found))
        expected = (None, None) if parts is None else without_nan(parts)
        for where, stated, follows in (
            ("privacy", content["privacy"], expected[0]),
            ("verdict.privacy", content["verdict"]["privacy"], expected[1]),
        ):
            if difference := _difference(stated, follows, where):
                raise GateError(f"{report}: {difference}; try medsynth evaluate again")
        sealed, name, stamp = (str(content["seal"][part]) for part in ("sha256", "key", "hmac"))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise GateError(
            f"{report}: need a whole report, got damaged content ({error}); try medsynth evaluate again"
        ) from error
    if sealed != _hash_content(content):
        raise GateError(
            f"{report}: need the report as medsynth evaluate wrote it, got content that was changed since (its hash differs); "
            "try medsynth evaluate again"
        )
    key = own_key()
    if name != key.id:
        raise GateError(
            f"{report}: need a report sealed with the key {key.id} ({key.path}), got one of {name:.16}, which cannot be checked "
            f"here; try medsynth evaluate here, or bring the key from where it was made ({KEY_VARIABLE}=FILE)"
        )
    if not hmac.compare_digest(stamp.encode(), _stamp(key, sealed).encode()):
        raise GateError(
            f"{report}: need the seal of medsynth evaluate, got one made without the key; try medsynth evaluate again"
        )
    return found


def check_sets(
    content: Mapping[str, Any], report: Path, cohorts: Mapping[str, Cohort], *, loading: Loading = Loading()
) -> None:
    """Raise `DataError` unless the report is about the `cohorts`, named `real` and `synthetic` (with its provenance)."""
    sets = content.get("sets") or {}
    for name, cohort in cohorts.items():
        hash_of = hash_set if name == "synthetic" else hash_cohort
        if sets.get(name) != hash_of(cohort, loading=loading, anew=True):
            raise DataError(
                f"{report}: need a report about these {name} scans, got one about others; try medsynth evaluate again"
            )


def _stamp(key: PatientsKey, digest: str) -> str:
    return hmac.digest(key.derive("report"), digest.encode(), "sha256").hex()


def _hash_content(content: Mapping[str, Any]) -> str:
    """Return a hash of everything in a report but its seal, whatever the layout of the file."""
    rest = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _rebuild(kind: Any, plain: Any, where: str) -> Any:
    """Return the value of type `kind` that was written as `plain` JSON, with NaN for None; `ValueError` names what does not fit.

    Knows dataclasses and named tuples of annotated fields, tuples, lists, dictionaries, unions and plain values.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain
    if origin in (Union, UnionType):
        if plain is None and NoneType in inner:
            return None
        for choice in inner:
            if choice is not NoneType:
                try:
                    return _rebuild(choice, plain, where)
                except ValueError:
                    continue
    elif origin in (tuple, list) and isinstance(plain, list):
        if origin is tuple and inner[-1] is not ... and len(inner) != len(plain):
            raise ValueError(f"{where} has {len(plain)} values, {len(inner)} needed")
        kinds = inner if origin is tuple and inner[-1] is not ... else [inner[0]] * len(plain)
        return origin(
            _rebuild(one, value, f"{where}[{n}]") for n, (one, value) in enumerate(zip(kinds, plain, strict=True))
        )
    elif origin is dict and isinstance(plain, dict):
        return {key: _rebuild(inner[1], value, f"{where}.{key}") for key, value in plain.items()}
    elif isinstance(plain, dict) and (is_dataclass(kind) or hasattr(kind, "_fields")):
        hints = get_type_hints(kind)
        if missing := sorted(hints.keys() - plain.keys()):
            raise ValueError(f"{where} has no {missing[0]}")
        return kind(**{name: _rebuild(hint, plain[name], f"{where}.{name}") for name, hint in hints.items()})
    elif kind is float and (plain is None or (isinstance(plain, int | float) and not isinstance(plain, bool))):
        return math.nan if plain is None else float(plain)
    elif kind in (int, str, bool) and type(plain) is kind:
        return plain
    raise ValueError(f"{where} is {plain!r:.40}")


def _difference(stated: Any, follows: Any, where: str) -> str | None:
    """Return the first place where what a report states differs from what follows from its figures; None if nowhere."""
    if isinstance(stated, dict) and isinstance(follows, dict) and stated.keys() == follows.keys():
        pairs = [(f"{where}.{key}", stated[key], follows[key]) for key in follows]
    elif isinstance(stated, list) and isinstance(follows, list) and len(stated) == len(follows):
        pairs = [(f"{where}[{n}]", *pair) for n, pair in enumerate(zip(stated, follows, strict=True))]
    elif (
        isinstance(stated, float) and isinstance(follows, float) and math.isclose(stated, follows, rel_tol=1e-9)
    ) or stated == follows:
        return None
    else:
        return f"{where}: need {follows!r:.60}, as the figures of the report say, got {stated!r:.60}"
    return next(filter(None, (_difference(one, other, place) for place, one, other in pairs)), None)
