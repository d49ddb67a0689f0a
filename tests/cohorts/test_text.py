"""Sentences as vectors: equal texts, missing texts, no patient's name, and a user's own encoder."""

import numpy as np
import pytest

from medsynth.cohorts.text import TextEncoding, fit_text
from medsynth.errors import ConfigError

SIZES, SIDES, LOBES = ("small", "large"), ("left", "right"), ("upper", "lower")


def reports(names=()):
    """Reports of 40 patients, two of each, and their patients; the reports of the first patients end with these names."""
    texts, patients = [], []
    for number in range(80):
        size, side, lobe = SIZES[number % 2], SIDES[number // 2 % 2], LOBES[number // 4 % 2]
        patient = number // 2
        name = f" Seen with {names[patient]}." if patient < len(names) else ""
        texts.append(f"A {size} nodule in the {lobe} lobe of the {side} lung.{name}")
        patients.append(f"patient {patient}")
    return texts, patients


@pytest.fixture(scope="module")
def encoding():
    return fit_text(*reports())


def test_equal_texts_have_equal_vectors_and_missing_ones_none(encoding):
    texts, _ = reports()
    vectors = encoding.encode([texts[0], "", texts[3], "  ", texts[0], "xyzzy qqqq"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (6, encoding.dimensions)
    assert np.array_equal(vectors[0], vectors[4])
    assert not np.array_equal(vectors[0], vectors[2])
    assert np.isnan(vectors).all(1).tolist() == [False, True, False, True, False, True]
    assert np.isfinite(vectors[[0, 2, 4]]).all()
    assert encoding.encode([]).shape == (0, encoding.dimensions)


def test_vectors_of_the_training_texts_are_standardised(encoding):
    vectors = encoding.encode(reports()[0]).astype(np.float64)
    assert 2 <= encoding.dimensions <= 32
    np.testing.assert_allclose(vectors.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(vectors.std(0), 1, atol=1e-5)


def test_similar_sentences_are_nearer_than_different_ones(encoding):
    """Also with other words around it, upper case, and a typing error."""
    left, again, misspelt, right = encoding.encode(
        [
            "small nodule in the upper lobe of the left lung",
            "There is a SMALL nodule in the upper lobe of the left lung, unchanged",
            "small nodul in the uppr lobe of the left lung",
            "large nodule in the lower lobe of the right lung",
        ]
    )
    far = np.linalg.norm(left - right)
    assert np.linalg.norm(left - again) < 0.5 * far
    assert np.linalg.norm(left - misspelt) < 0.5 * far


def test_what_fewer_than_three_patients_share_is_not_kept():
    """A name in two reports of one patient, and a physician's in those of two, is in no term; one in those of three is."""
    texts, patients = reports(["Zyqvarius", "Xuoplimmer", "Xuoplimmer", "Wextonbray", "Wextonbray", "Wextonbray"])
    arrays = fit_text(texts, patients).as_arrays()
    kept = "\n".join(arrays["terms"].tolist())
    assert not any(part in kept for part in ("zyq", "qvar", "rius", "xuop", "plim", "mmer"))
    assert "wextonbray" in kept
    stored = b"".join(array.tobytes() for array in arrays.values()).lower()
    assert not any(name.encode("utf-32-le") in stored for name in ("zyqvarius", "xuoplimmer", "patient 1"))


def test_a_name_of_one_patient_changes_no_vector(encoding):
    text = reports()[0][0]
    plain, named = encoding.encode([text, f"{text} Qvzxw"])
    assert np.array_equal(plain, named)


def test_the_same_texts_give_the_same_encoding_in_any_process_and_after_a_round_trip(encoding, tmp_path):
    again = fit_text(*reports())
    arrays = encoding.as_arrays()
    assert all(np.array_equal(array, again.as_arrays()[name]) for name, array in arrays.items())
    np.savez(tmp_path / "text.npz", **arrays)
    with np.load(tmp_path / "text.npz", allow_pickle=False) as found:
        read = TextEncoding.from_arrays(dict(found))
    texts = [*reports()[0], "", "right lung"]
    assert np.array_equal(read.encode(texts), encoding.encode(texts), equal_nan=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("std", lambda std: -std),
        ("std", lambda std: std[:-1]),
        ("mean", lambda mean: mean * np.nan),
        ("mean", lambda mean: mean.astype(np.float64)),
        ("components", lambda components: components[:, :-1]),
        ("terms", lambda terms: np.repeat(terms[:1], len(terms))),
        ("terms", lambda terms: np.arange(len(terms))),
        ("idf", lambda idf: idf[:-1]),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(encoding, name, change):
    arrays = encoding.as_arrays()
    with pytest.raises(ValueError, match="arrays"):
        TextEncoding.from_arrays(arrays | {name: change(arrays[name])})


def test_it_lists_the_words_that_it_knows(encoding):
    assert encoding.words.tolist() == sorted([*SIZES, *SIDES, *LOBES, "nodule", "lobe", "lung", "in", "of", "the"])


@pytest.mark.parametrize(
    ("texts", "patients", "message"),
    [
        (["", " "], ["a", "b"], "need training scans with a text, got none"),
        (
            ["one lung"] * 4,
            ["a", "a", "b", "b"],
            r"texts of at least 3 patients, got none in 4 training texts of 2 patients",
        ),
        (["one lung"] * 4, ["a", "b", "c", "d"], "need texts that differ"),
    ],
)
def test_texts_that_teach_nothing_are_refused(texts, patients, message):
    with pytest.raises(ConfigError, match=rf"^condition\.text: .*{message}"):
        fit_text(texts, patients)


MODULE = """
import numpy as np

def lengths(texts):
    return [[len(text), text.count("l"), 7] for text in texts]

def flat(texts):
    return [len(text) for text in texts]

def few(texts):
    return np.zeros((1, 4))

def missing(texts):
    return np.full((len(texts), 2), np.nan)

def words(texts):
    return texts
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "own_encoder"
    import sys

    sys.modules.pop("own_encoder", None)


def test_a_function_of_the_user_is_stored_by_name_alone(own_module):
    texts, patients = reports()
    encoding = fit_text(texts, patients, encoder=f"{own_module}:lengths")
    assert encoding.dimensions == 3
    vectors = encoding.encode([*texts, ""])
    np.testing.assert_allclose(vectors[:-1, :2].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(vectors[:-1, :2].std(0), 1, atol=1e-5)
    assert not vectors[:-1, 2].any(), "what never changes is 0"
    assert np.isnan(vectors[-1]).all()
    arrays = encoding.as_arrays()
    assert str(arrays["encoder"]) == "own_encoder:lengths"
    assert not arrays["terms"].size + arrays["idf"].size + arrays["components"].size
    read = TextEncoding.from_arrays(arrays)
    assert np.array_equal(read.encode(texts), vectors[:-1])


def test_code_that_lies_around_is_not_run_for_a_run_from_elsewhere(own_module, monkeypatch):
    """What was trained with a function names it, but only the user's own Python path has it."""
    texts, patients = reports()
    arrays = fit_text(texts, patients, encoder=f"{own_module}:lengths").as_arrays()
    import sys

    del sys.modules["own_encoder"]
    read = TextEncoding.from_arrays(arrays)
    with pytest.raises(ConfigError, match=r"cannot import the module of 'own_encoder:lengths'.*PYTHONPATH"):
        read.encode(texts[:1])
    assert "own_encoder" not in sys.modules
    monkeypatch.syspath_prepend(".")
    assert np.isfinite(read.encode(texts[:1])).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("flat", r"need finite numbers of shape \(80, D\) from own_encoder:flat for 80 sentences, got shape \(80,\)"),
        ("few", r"got shape \(1, 4\)"),
        ("missing", r"need finite numbers of shape"),
        ("words", r"got list"),
        ("nothing", r"need module:function, got 'own_encoder:nothing'"),
    ],
)
def test_a_function_that_does_not_work_is_named(own_module, function, message):
    with pytest.raises(ConfigError, match=rf"^condition\.text_encoder: .*{message}"):
        fit_text(*reports(), encoder=f"{own_module}:{function}")


def test_a_function_that_changed_since_training_is_named(own_module):
    texts, patients = reports()
    arrays = fit_text(texts, patients, encoder=f"{own_module}:lengths").as_arrays()
    other = TextEncoding.from_arrays(arrays | {name: arrays[name][:2] for name in ("mean", "std")})
    with pytest.raises(ConfigError, match=r"need 2 numbers for each sentence from own_encoder:lengths.*got 3"):
        other.encode(texts)
