import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import medsynth
from benchmarks.control.prompts import HELD_OUT, SEEN, make_sets, wilson
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.cohorts.attributes import Attribute
from medsynth.config import CONFIGS, ConditionOptions
from medsynth.errors import ConfigError
from medsynth.generation.prompt import read_prompt
from medsynth.generation.prompt_words import WORDS, make_vocabulary
from medsynth.generation.where import parse_where
from medsynth.scans import Scan, write_scan
from medsynth.seeds import numpy_generator


def rated(name):
    return Attribute(name=name, mean=3, low=1, high=5, whole=True)


ATTRIBUTES = (
    Attribute(name="diameter_mm", mean=10, std=5, low=3, high=60),
    rated("texture"),
    rated("spiculation"),
    Attribute(name="age_years", mean=60, std=9, low=20, high=90, whole=True),
    Attribute(name="density_hu", mean=-300, std=200, low=-900, high=400),
    Attribute(name="side", categories=("left", "right")),
    Attribute(name="place", categories=("central", "peri_hilar", "subpleural")),
    Attribute(name="calcification", categories=("absent", "central", "popcorn", "solid")),
)
CLASSES = ("ground_glass", "part_solid", "solid")
PLAIN = make_vocabulary(ATTRIBUTES, CLASSES)
NODULE = make_vocabulary(ATTRIBUTES, CLASSES, "lung_nodule")


def read(text, vocabulary=PLAIN):
    return read_prompt(text, vocabulary).describe().split("\n")[0].removeprefix("understood: ")


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("a 6 to 10 mm ground-glass nodule in the right lung", "diameter_mm=6..10, side=right, class ground_glass"),
        ("6-10mm", "diameter_mm=6..10"),
        ("6–10 mm", "diameter_mm=6..10"),
        ("6 mm to 1 cm", "diameter_mm=6..10"),
        ("between 6 and 10 millimetres", "diameter_mm=6..10"),
        ("between 0.6 and 1 centimeter", "diameter_mm=6..10"),
        ("from six to ten mm", "diameter_mm=6..10"),
        ("a six-to-ten-millimetre nodule", "diameter_mm=6..10"),
        ("over 6 and under 10 mm", "diameter_mm=6..10"),
        ("at least 6 mm, at most 10 mm", "diameter_mm=6..10"),
        ("about 8 mm", "diameter_mm=7.2..8.8"),
        ("approximately 20 mm", "diameter_mm=18..22"),
        ("~1 cm", "diameter_mm=9..11"),
        ("8 mm", "diameter_mm=7.6..8.4"),  # a twentieth
        ("an 8-mm nodule", "diameter_mm=7.6..8.4"),
        ("30mm", "diameter_mm=29.5..30.5"),  # half of the last digit
        ("1.2 cm", "diameter_mm=11.5..12.5"),
        ("12.3 mm", "diameter_mm=12.25..12.35"),
        ("nodule measuring eleven mm in diameter", "diameter_mm=10.5..11.5"),
        ("larger than 10 mm", "diameter_mm=10.."),
        ("over 10 mm", "diameter_mm=10.."),
        ("at least 10 mm", "diameter_mm=10.."),
        (">10mm", "diameter_mm=10.."),
        ("≥ 1 cm", "diameter_mm=10.."),
        ("10 mm or more", "diameter_mm=10.."),
        ("10 mm and above", "diameter_mm=10.."),
        ("no smaller than 10 mm", "diameter_mm=10.."),
        ("up to 10 mm", "diameter_mm=..10"),
        ("smaller than 10 mm", "diameter_mm=..10"),
        ("under 10 mm", "diameter_mm=..10"),
        ("< 10 mm", "diameter_mm=..10"),
        ("not more than 10 mm", "diameter_mm=..10"),
        ("10 mm or less across", "diameter_mm=..10"),
        ("65-year-old patient with a 20 mm nodule", "diameter_mm=19.5..20.5, age_years=65"),
        ("a woman over 65 years old", "age_years=66.."),
        ("a man aged 50 to 60 years", "age_years=50..60"),
        ("-600 to -300 HU", "density_hu=-600..-300"),
        ("below −500 Hounsfield units", "density_hu=..-500"),
        ("left-sided", "side=left"),
        ("left or right", "side=left|right"),
        ("not left", "side=right"),
        ("on the left, not the right", "side=left"),
        ("perihilar or subpleural nodules", None),
        ("peri-hilar or subpleural nodules", "place=peri_hilar|subpleural"),
        ("neither peri-hilar nor subpleural", "place=central"),
        ("not peri-hilar or subpleural", "place=central"),
        ("place central", "place=central"),
        ("central calcification", "calcification=central"),
        ("calcification: absent", "calcification=absent"),
        ("with calcification", "calcification=central|popcorn|solid"),
        ("without any calcification", "calcification=absent"),
        ("solid calcification, ground glass", "calcification=solid, class ground_glass"),
        ("solid nodules", "class solid"),
        ("Part solid nodule.", "class part_solid"),
        ("ground-glass, part-solid or solid", "class ground_glass or part_solid or solid"),
        ("not a solid nodule", "class ground_glass or part_solid"),
        ("texture 5", "texture=5"),
        ("texture of 1 or 2 and spiculation at least 4", "texture=1..2, spiculation=4.."),
        ("spiculation score 2-3", "spiculation=2..3"),
        ("spiculation over 3", "spiculation=4.."),
    ],
)
def test_sentences_are_read_as_they_are_meant(text, understood):
    if understood is None:
        with pytest.raises(ConfigError):
            read(text)
    else:
        assert read(text) == understood


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("ground-glass", "texture=1..2, class ground_glass"),
        ("subsolid", "texture=1..4, class ground_glass or part_solid"),
        ("partly solid", "texture=3..4, class part_solid"),
        ("non-solid", "texture=1..2, class ground_glass"),
        ("not solid", "texture=..4, class ground_glass or part_solid"),
        ("ground-glass or part-solid", "texture=1..4, class ground_glass or part_solid"),
        ("smooth solid nodule", "texture=5, spiculation=1..2, class solid"),
        ("without spiculation or calcification", "spiculation=..2, calcification=absent"),
        ("no evidence of spiculation, 30 mm", "diameter_mm=29.5..30.5, spiculation=..2"),
        ("a non-calcified, markedly spiculated nodule", "spiculation=4..5, calcification=absent"),
        ("spiculation 4", "spiculation=4"),
    ],
)
def test_the_words_of_lung_nodules(text, understood):
    assert read(text, NODULE) == understood


@pytest.mark.parametrize(
    "text",
    [
        "1,2 cm",  # a decimal comma
        "6 x 8 mm",
        "6 and 8 mm",
        "8 mm ± 2",
        "6 mm or 8 mm",
        "between 10 and 6 mm",
        "twenty-five mm",
        "over 6 to 10 mm",
        "-8 mm",
        "8 kg",
        "diameter of 8",
        "three solid nodules",
        "solid, segment 6",
        "half a centimetre",
        "½ cm",
        "8 mm in 2019",
        "8 mm lymph node",
        "solid nodule 5 mm from the pleura",
        "slice thickness 1 mm",
        "1 mm slices",
        "previously 5 mm",
        "increased from 5 to 8 mm",
        "a 12 mm nodule with a 4 mm cavity",
        "effusion which measures 8 mm",
        "predominantly solid",
        "a solid component",
        "possibly left",
        "unlike the solid one",
        "left and right",
        "solid, ground-glass",
        "solid or left",
        "left or elsewhere",
        "with or without calcification",
        "not left or right",
        "not clearly left",
        "not a solid nodule in the left lung",
        "the left is not seen",
        "not 8 mm",
        "non-subpleural",
        "solid nodule, right pleural effusion",
        "nodule abutting the left ventricle",
        "central",  # of calcification, or of place
        "a nodule",
        "",
    ],
)
def test_what_could_be_misread_is_refused(text):
    with pytest.raises(ConfigError, match=r"^prompt: need "):
        read(text)


@pytest.mark.parametrize("label", ["subsolid", "part-solid", "semi-solid", "nonsolid", "solidified", "solid-like"])
def test_a_word_is_never_read_out_of_a_longer_one(label):
    vocabulary = make_vocabulary(ATTRIBUTES, ("solid", "other"))
    reading = read_prompt(f"a {label} nodule on the left", vocabulary)
    assert reading.classes == ()
    assert reading.unread == (label,)


def test_words_that_were_not_read_are_named():
    reading = read_prompt("An indeterminate 30 mm nodule in the right upper lobe, no effusion", PLAIN)
    assert reading.describe() == (
        "understood: diameter_mm=29.5..30.5, side=right\nnot read: indeterminate, upper, lobe, no, effusion"
    )
    assert read_prompt("well-defined solid nodule", NODULE).unread == (
        "well defined (of margin, which the run was not told)",
    )


_SOUP = """
6 8mm 10 mm - cm 1.2 over under about between and to or not no without with left right solid part ground-glass nodule texture
spiculation age 65-year-old , . ( ) > ≥ % 5 two vessel in the of calcification absent central is non-solid -3 hu ½ é
"""


@given(st.lists(st.sampled_from(_SOUP.split()), max_size=14), st.text(max_size=12))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_into_values_that_where_takes_or_refused(words, other):
    for vocabulary in (PLAIN, NODULE):
        for text in (" ".join(words), f"{' '.join(words)} {other}"):
            try:
                reading = read_prompt(text, vocabulary)
            except ConfigError:
                continue
            assert reading.where or reading.classes
            assert parse_where(reading.where_text, ATTRIBUTES) == dict(reading.where)
            assert {*reading.classes} <= {*CLASSES}


def test_what_was_understood_is_what_where_says():
    reading = read_prompt("a 6 to 10 mm nodule, left or right, spiculation over 3", PLAIN)
    assert reading.where_text == "diameter_mm=6..10,spiculation=4..,side=left|right"
    assert parse_where(reading.where_text, ATTRIBUTES) == reading.where


def test_several_in_millimetres_are_told_apart_by_their_names():
    wall = Attribute(name="wall_mm", mean=2, low=1, high=5)
    vocabulary = make_vocabulary((ATTRIBUTES[0], wall), ())
    assert read("30 mm nodule", vocabulary) == "diameter_mm=29.5..30.5"
    assert read("a diameter of 30 mm and a wall of 2 to 3 mm", vocabulary) == "diameter_mm=29.5..30.5, wall_mm=2..3"
    other = make_vocabulary((Attribute(name="base_mm", low=1, high=5), wall), ())
    with pytest.raises(ConfigError, match="need one of base_mm, wall_mm named"):
        read("2 mm nodule", other)
    assert read("the wall 2 to 3 mm", other) == "wall_mm=2..3"


def test_units_of_an_attribute_are_its_own():
    litres = make_vocabulary(
        (Attribute(name="volume_ml", low=0, high=900), Attribute(name="extent_cm", low=1, high=9)), ()
    )
    assert read("between 0.5 and 1 litre", litres) == "volume_ml=500..1000"
    assert read("at least 250 mm³", litres) == "volume_ml=0.25.."
    assert read("30 to 45 mm", litres) == "extent_cm=3..4.5"


def test_categories_that_are_small_words_need_the_name_of_their_attribute():
    vocabulary = make_vocabulary(
        (Attribute(name="site", categories=("A", "B")), Attribute(name="contrast", categories=("no", "yes"))),
        ("normal",),
    )
    assert read_prompt("a normal scan", vocabulary).where == {}
    assert read("site A, no contrast", vocabulary) == "site=A, contrast=no"
    assert read("site: B with contrast", vocabulary) == "site=B, contrast=yes"


def test_a_file_of_words(tmp_path):
    path = tmp_path / "words.yaml"
    path.write_text(
        "diameter_mm: {tiny: ..5, huge: 30..}\nside: {sinister: left}\nclass: {mixed: part_solid|ground_glass}\n"
    )
    vocabulary = make_vocabulary(ATTRIBUTES, CLASSES, str(path))
    assert read("a huge sinister nodule", vocabulary) == "diameter_mm=30.., side=left"
    assert read_prompt("tiny mixed nodules", vocabulary).classes == ("ground_glass", "part_solid")
    for text, message in [
        ("diameter_mm: {huge: big}", "huge: need a number or a range"),
        ("side: {up: upper}", r"up: need values of side \(left, right\)"),
        ("side: left", "side: need attribute: phrase: value"),
        ("side: {up: [left]}", "need a phrase with a value"),
        ("[1", "need readable YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            make_vocabulary(ATTRIBUTES, CLASSES, str(path))
    with pytest.raises(ConfigError, match="need one of lung_nodule"):
        make_vocabulary(ATTRIBUTES, CLASSES, "lungs")


def test_files_of_words_are_no_configurations():
    assert "lung_nodule" in WORDS.names()
    assert not {*WORDS.names()} & {*CONFIGS.names()}


@pytest.fixture(scope="module")
def told(tmp_path_factory, tiny_config):
    """A run that was told a diameter and a side, with two classes."""
    folder = tmp_path_factory.mktemp("prompted")
    rows = []
    for number in range(32):
        random = numpy_generator(0, "prompted", number)
        size = float(np_round(random.uniform(4, 20)))
        write_scan(
            Scan(array=random.normal(9 * size, 5, (1, 16, 16)).clip(0, 255).astype("uint8")), folder / f"{number}.png"
        )
        rows.append(
            Row(
                path=f"{number}.png",
                label="hazy_spot" if number % 4 == 0 else "solid",
                patient_id=f"secret-{number}",
                split="train" if number < 26 else "val",
                attributes={"diameter_mm": str(size), "side": ("left", "right")[number % 2]},
            )
        )
    write_cohort(Cohort(folder=folder, rows=tuple(rows)), folder / "cohort.csv")
    options = medsynth.load_config(str(tiny_config)) | {"max_steps": 2}
    condition = ConditionOptions(attributes="diameter_mm,side")
    medsynth.train(**options, cohort=folder / "cohort.csv", out=folder / "run", condition=condition, progress=False)
    return folder / "run"


def np_round(value):
    return round(float(value), 2)


def test_a_prompt_makes_the_set_that_where_makes(told, tmp_path, capsys):
    prompt = "solid, round nodules of 6 to 15 mm on the right"
    medsynth.sample(run=told, count=3, prompt=prompt, out=tmp_path / "prompt")
    errors = capsys.readouterr().err
    assert "understood: diameter_mm=6..15, side=right, class solid\nnot read: round\n" in errors
    medsynth.sample(
        run=told, count="solid=3", where="diameter_mm=6..15,side=right", out=tmp_path / "where", progress=False
    )
    for name in ["cohort.csv", "solid/000002.png"]:
        assert (tmp_path / "prompt" / name).read_bytes() == (tmp_path / "where" / name).read_bytes(), name
    provenance = json.loads((tmp_path / "prompt" / "provenance.json").read_text())
    assert provenance["prompt"] == prompt
    assert provenance["prompt_read"] == ["understood: diameter_mm=6..15, side=right, class solid", "not read: round"]
    assert (provenance["where"], provenance["counts"]) == ("diameter_mm=6..15,side=right", {"solid": 3})
    made = list(medsynth.generate(told, count=3, prompt=prompt))
    assert [scan.scan.attributes["side"] for scan in made] == ["right"] * 3
    with pytest.raises(ConfigError, match="need the settings this set was begun with"):
        medsynth.sample(run=told, count=3, prompt="solid", out=tmp_path / "prompt", progress=False)


def test_what_else_is_said_must_agree(told, tmp_path):
    def sample(**options):
        medsynth.sample(run=told, out=tmp_path / "set", progress=False, **options)

    with pytest.raises(ConfigError, match=r"count: need classes of the prompt \(solid\), got 'hazy_spot'"):
        sample(count="hazy_spot=3", prompt="solid nodules")
    with pytest.raises(ConfigError, match="where: need attributes that the prompt does not name, got side"):
        sample(count=1, prompt="left", where="side=right")
    with pytest.raises(ConfigError, match="prompt_words: need a prompt"):
        sample(count=1, prompt_words="lung_nodule")
    with pytest.raises(ConfigError, match="prompt: need a number of an attribute of the run"):
        sample(count=1, prompt="60 years")
    assert not (tmp_path / "set").exists()
    sample(count=1, prompt="hazy spots, left", where="diameter_mm=4..20")
    provenance = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert provenance["where"] == "diameter_mm=4..20,side=left"
    assert provenance["counts"] == {"hazy_spot": 1}


def test_the_benchmark_makes_the_same_scans_by_prompt_and_by_where(told, tmp_path):
    make_sets(str(told), tmp_path, count=2)
    for label in ("hazy_spot", "solid"):
        first, second = ((tmp_path / f"{name}_{label}" / "cohort.csv").read_text() for name in ("prompt", "where"))
        assert first == second
        assert first.count("sample") == 2
    assert not {*SEEN} & {*HELD_OUT}
    assert len({*HELD_OUT}) >= 40
    half = wilson(5, 10)
    assert (round(half["low"], 4), round(half["high"], 4)) == (0.2366, 0.7634)
