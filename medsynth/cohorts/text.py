"""Sentences as vectors, for `condition.text`.

By default a sentence becomes the TF-IDF weights of its words, word pairs, groups of characters and numbers, reduced by a
truncated singular value decomposition (latent semantic analysis, Deerwester et al. 1990). Terms in texts of fewer than three
patients are dropped before anything is fitted, so that no patient's name reaches a run. The result is plain arrays.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsynth.errors import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_FEWEST_PATIENTS = 3
_MOST_DIMENSIONS, _MOST_TERMS = 64, 20_000
_SMALLEST_SPREAD = 0.05  # of the largest; standardising less would blow up what a new sentence has of it
_ROUNDING = 1e-6
_LARGEST = 5.0  # standard deviations
_NUMBER = r"\d+(?:[.,]\d+)?"
_LADDER = [1.12**step for step in range(61)]  # 1 to 900; a year has no rung


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """How a sentence becomes a vector of D numbers, in plain text and float32.

    `terms` have the weights `idf` and the `components` `(D, terms)`; all three are empty where `encoder` names a user's
    `module:function`. `mean` and `std`, both `(D,)`, standardise the vectors, which are clipped to 5 standard deviations.
    """

    encoder: str
    terms: np.ndarray
    idf: np.ndarray
    components: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def dimensions(self) -> int:
        """Length D of the vectors."""
        return len(self.mean)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return `(N, D)` float32, NaN for texts that are empty or have no known term.

        A user's function is imported only now, and not from the working directory: a run folder cannot bring code along.
        """
        vectors = np.full((len(texts), self.dimensions), np.nan, dtype=np.float32)
        written = [number for number, text in enumerate(texts) if text.strip()]
        if written:
            raw = self._raw([texts[number] for number in written])
            vectors[written] = ((raw - self.mean) / self.std).clip(-_LARGEST, _LARGEST)
        return vectors

    @property
    def words(self) -> np.ndarray:
        """The single words that it knows, sorted, in lower case; empty where a user's function encodes."""
        return np.array(
            [term for term in self.terms.tolist() if not term.startswith(("~", ">=")) and " " not in term], np.str_
        )

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as plain arrays."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TextEncoding:
        """Return the encoding that `as_arrays` described; `ValueError` for arrays that do not fit together."""
        numbers = {name: arrays[name] for name in ("idf", "components", "mean", "std")}
        encoding = cls(encoder=str(arrays["encoder"]), terms=arrays["terms"], **numbers)
        terms, dimensions = encoding.terms.size, encoding.mean.size
        shapes = [(terms,), (0 if encoding.encoder else dimensions, terms), (dimensions,), (dimensions,)]
        if (
            not dimensions
            or [each.shape for each in numbers.values()] != shapes
            or not all(each.dtype == np.float32 and np.isfinite(each).all() for each in numbers.values())
            or not (encoding.std > 0).all()
            or encoding.terms.dtype.kind != "U"
            or len(set(encoding.terms.tolist())) != terms
        ):
            raise ValueError("arrays that do not fit together")
        return encoding

    def _raw(self, texts: list[str]) -> np.ndarray:
        """Return the vectors before standardisation, `(N, D)`."""
        if not self.encoder:
            weights = _weigh(texts, self.terms, self.idf)
            raw: np.ndarray = weights @ self.components.T.astype(np.float64)
            raw[np.diff(weights.indptr) == 0] = np.nan
            return raw
        raw = _call(_import_function(self.encoder), self.encoder, texts)
        if raw.shape[1] != self.dimensions:
            need = f"{self.dimensions} numbers for each sentence from {self.encoder}, as in training"
            hint = "the version that the run was trained with"
            raise ConfigError(f"condition.text_encoder: need {need}, got {raw.shape[1]}; try {hint}")
        return raw


def fit_text(texts: Sequence[str], patients: Sequence[str], *, encoder: str = "") -> TextEncoding:
    """Return the encoding for the texts of the training split; `patients` are the IDs of their patients.

    `encoder` is a user's `module:function` from a list of N sentences to an array `(N, D)`; it may lie in the working directory.
    Raises `ConfigError` if the texts teach nothing or the function does not work.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    written = [(text, patient) for text, patient in zip(texts, patients, strict=True) if text.strip()]
    if not written:
        raise ConfigError("condition.text: need training scans with a text, got none; try another column")
    known, owners = [text for text, _ in written], [patient for _, patient in written]
    if encoder:
        raw = _call(_import_function(encoder, here=True), encoder, known)
        terms, idf, components = np.zeros(0, np.str_), np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    else:
        terms = _shared_terms(known, owners)
        idf = TfidfVectorizer(vocabulary=terms, analyzer=_analyse).fit(known).idf_.astype(np.float32)
        weights = _weigh(known, terms, idf)
        _, _, directions = randomized_svd(weights, min(_MOST_DIMENSIONS, *weights.shape), random_state=0)
        components = directions.astype(np.float32)
        raw = weights @ components.T.astype(np.float64)
    mean, std = raw.mean(0).astype(np.float32), raw.std(0).astype(np.float32)
    varies = std > _ROUNDING * np.abs(raw).max(0 if encoder else None)
    if not varies.any():
        raise ConfigError("condition.text: need texts that differ between training scans; try another column")
    if encoder:
        std[~varies] = 1
    else:
        kept = varies & (std > _SMALLEST_SPREAD * std.max())
        components, mean, std = components[kept], mean[kept], std[kept]
    return TextEncoding(encoder=encoder, terms=terms, idf=idf, components=components, mean=mean, std=std)


@cache
def _analysers() -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    """Return what finds words and word pairs, and groups of characters; scikit-learn loads slowly, and few runs have a text."""
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(ngram_range=(1, 2), token_pattern=rf"{_NUMBER}|\w\w+").build_analyzer()
    return words, CountVectorizer(analyzer="char_wb", ngram_range=(3, 4)).build_analyzer()


def _analyse(text: str) -> list[str]:
    """Return the terms of a text: words, pairs of words, and, after `~`, groups of characters, which survive typing errors.

    A number also has a term for every rung of a ladder below it, so that 8 mm and 9 mm share more than 8 mm and 30 mm.
    """
    numbers = [float(number.replace(",", ".")) for number in re.findall(_NUMBER, text)]
    rungs = [f">={rung:.3g}" for number in numbers for rung in _LADDER if rung <= number < 1000]
    words, groups = _analysers()
    return [*words(text), *(f"~{group}" for group in groups(text)), *rungs]


def _shared_terms(texts: Sequence[str], owners: Sequence[str]) -> np.ndarray:
    """Return the terms in texts of enough patients, the most widespread ones, sorted."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=_analyse, binary=True)
    present = counter.fit_transform(texts)
    _, owner = np.unique(owners, return_inverse=True)
    of_patients = csr_matrix((np.ones(len(texts)), (owner, np.arange(len(texts))))) @ present
    patients = np.bincount(of_patients.tocoo().col, minlength=present.shape[1])
    order = np.argsort(-patients, kind="stable")[:_MOST_TERMS]
    kept = np.sort(order[patients[order] >= _FEWEST_PATIENTS])
    if not len(kept):
        got = f"none in {len(texts)} training texts of {owner.max() + 1} patients"
        need = f"terms that occur in texts of at least {_FEWEST_PATIENTS} patients"
        raise ConfigError(f"condition.text: need {need}, got {got}; try a column with texts of more patients")
    return np.array(counter.get_feature_names_out()[kept], dtype=np.str_)


def _weigh(texts: Sequence[str], terms: np.ndarray, idf: np.ndarray) -> csr_matrix:
    """Return the TF-IDF weights `(N, terms)` of texts, each row of norm 1, or 0 without a known term."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(vocabulary=terms, analyzer=_analyse)
    vectoriser.idf_ = idf.astype(np.float64)
    return csr_matrix(vectoriser.transform(texts))


def _call(function: Callable[[list[str]], Any], name: str, texts: list[str]) -> np.ndarray:
    """Return what a user's function makes of texts, `(N, D)`; `ConfigError` for anything else."""
    result = function(texts)
    try:
        found = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        found = np.zeros(0)
    if found.ndim != 2 or len(found) != len(texts) or not found.size or not np.isfinite(found).all():
        got = f"shape {found.shape}" if found.size else type(result).__name__
        need = f"finite numbers of shape ({len(texts)}, D) from {name} for {len(texts)} sentences"
        raise ConfigError(f"condition.text_encoder: need {need}, got {got}")
    return found


def _import_function(name: str, *, here: bool = False) -> Callable[[list[str]], Any]:
    """Return the function that `module:function` names; with `here`, the module may lie in the working directory."""
    module_name, _, function_name = name.partition(":")
    places = [str(Path.cwd())] if here else []
    sys.path.extend(places)
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except (ImportError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"condition.text_encoder: cannot import the module of {name!r} ({error}); try adding its folder to PYTHONPATH"
        ) from error
    finally:
        del sys.path[len(sys.path) - len(places) :]
    if not callable(function):
        raise ConfigError(f"condition.text_encoder: need module:function, got {name!r}, which names no function")
    return function
