"""`medsynth sample`: a synthetic set of new scans."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from medsynth.cohorts import Cohort
from medsynth.config import GivenOptions, ReadingOptions
from medsynth.generation.generate import generate_chunk, name_values, scan_seed, told_attributes
from medsynth.generation.given import GivenScans, check_given, find_given
from medsynth.generation.prompt import Reading
from medsynth.generation.sets import Method, SetPlan, write_set
from medsynth.generation.where import AttributeDraw, WhereFrom, plan_attributes

_NOTICE = "Every scan in this folder is synthetic. It shows no patient and must not be used for diagnosis."
_NOTICE_OF_MASKS = (
    "Every scan in this folder is synthetic and must not be used for diagnosis. Masks are those of real scans, or made from "
    "them; no pixel of an image is."
)
_NOTICE_OF_IMAGES = (
    "Every scan in this folder has images of a real scan beside those that were generated to fit them, and must not be used for "
    "diagnosis. The real images show a patient: this set must not leave the house."
)


def sample_set(
    plan: SetPlan,
    *,
    where: str = "",
    where_from: WhereFrom = "scans",
    asked: Reading | None = None,
    given: GivenOptions = GivenOptions(),
    reading: ReadingOptions = ReadingOptions(),
    cache_dir: Path | None = None,
) -> Cohort:
    """Write a set of new scans and return its cohort; restarts and errors as in `write_set`.

    `where` says which attributes are wanted, as `parse_where` reads it, and `where_from` how they are drawn; `asked` is the
    prompt that said so, if one did, for the provenance. What the network was told of a scan are columns of the set's cohort.
    Channels that are `given` come from real scans, whose row numbers in that cohort the attribute `given_from` holds, and whose
    attributes are told unless some are wanted; errors as in `find_given`.
    """
    check_given(plan.run, given)
    if plan.progress and asked is not None:
        print(asked.describe(), file=sys.stderr, flush=True)
    attributes = plan_attributes(plan.run, where, where_from)
    if attributes is not None:
        notes = attributes.notes(list(plan.counts))
        if plan.progress and notes:
            print("\n".join(notes), file=sys.stderr, flush=True)
    find = partial(find_given, plan.run, given, list(plan.counts), seed=plan.seed, reading=reading, cache_dir=cache_dir)
    return write_set(plan, partial(_method, attributes=attributes, where=where, asked=asked, find=find))


def _method(
    plan: SetPlan,
    *,
    attributes: AttributeDraw | None,
    where: str,
    asked: Reading | None,
    find: Callable[..., GivenScans | None],
) -> Method:
    given = find(progress=plan.progress)
    facts = {} if asked is None else asked.facts()
    facts |= {} if attributes is None else {"where": where.strip(), "where_from": attributes.source}
    notice = _NOTICE if given is None else _NOTICE_OF_IMAGES if given.real_pixels else _NOTICE_OF_MASKS
    return Method(
        name="sample",
        notice=notice,
        make=partial(
            generate_chunk,
            plan.run,
            seed=plan.seed,
            solver=plan.solver,
            guidance=plan.guidance,
            weak=plan.weak,
            attributes=attributes,
            given=given,
        ),
        seed_of=partial(scan_seed, plan.seed),
        columns_of=partial(_columns, plan, attributes, given),
        facts=facts if given is None else facts | given.facts(),
        # Nothing of a held-out patient may become a training scan.
        split="train" if given is None else given.options.split,
    )


def _columns(
    plan: SetPlan, attributes: AttributeDraw | None, given: GivenScans | None, label: str, number: int
) -> Mapping[str, str]:
    """Return what the network was told of a scan, and from where it was given channels."""
    origin = {} if given is None else given.columns(label, number)
    if attributes is None:
        return origin
    names = [attribute.name for attribute in attributes.attributes]
    return origin | name_values(names, told_attributes(attributes, given, label, number, plan.seed))
