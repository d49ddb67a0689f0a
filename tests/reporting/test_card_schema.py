"""`medsynth card --check`: what a valid card is, and that every fault is named."""

import copy
import csv
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from medsynth.cli import run_command
from medsynth.cohorts.phantom import cohort_plan
from medsynth.errors import DataError
from medsynth.reporting.card_schema import CARDS, card_problems, check_card, escape_markdown, find_gaps, read_card

CHEST_XRAY = read_card(CARDS.find("chest_xray"))
REAL = Path(__file__).parents[3] / "shared" / "data"


def problems_of(change, body=CHEST_XRAY[1]):
    front = copy.deepcopy(CHEST_XRAY[0])
    change(front)
    return card_problems(front, body)


@pytest.mark.parametrize("name", CARDS.names())
def test_every_shipped_card_is_valid(name):
    card = check_card(CARDS.find(name))
    headings = re.findall(r"^## (.+)$", card.body, flags=re.MULTILINE)
    assert len(set(headings)) == len(headings)
    assert {"template", "phantom", "chest_xray", "lung_nodules"} <= set(CARDS.names())


def test_the_schema_is_one():
    Draft202012Validator.check_schema(json.loads(files("medsynth.reporting").joinpath("card_schema.json").read_text()))


def test_the_template_is_valid_once_it_is_filled_in():
    front, body = read_card(CARDS.find("template"))
    assert card_problems(front, body) == []
    assert set(front["gaps"]) == {".".join(path) for path in find_gaps(front)}
    filled = copy.deepcopy(front)
    for path in find_gaps(front):
        *parents, last = path
        target = filled
        for parent in parents:
            target = target[parent]
        target[last] = {
            "intended": ["x"],
            "stated": ["x"],
            "scans": 5,
            "patients": 2,
            "classes": {"a": {"train": 1, "val": 1, "test": 1}, "b": 2},
        }.get(last, "x")
    assert "gaps: 'title' is not null; take it off the list" in card_problems(filled, body)
    assert card_problems(filled | {"gaps": []}, body) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda front: front.pop("licence"), "front matter: 'licence' is a required property"),
        (lambda front: front["source"].pop("consent"), "source: 'consent' is a required property"),
        (
            lambda front: front.update(license="MIT"),
            "front matter: Additional properties are not allowed ('license' was",
        ),
        (
            lambda front: front["data"].update(scan=1),
            "data: Additional properties are not allowed ('scan' was unexpected); known are",
        ),
        (lambda front: front.update(schema="medsynth-card/1"), "schema: 'medsynth-card/2' was expected"),
        (lambda front: front.update(kind="cohort"), "kind: 'cohort' is not one of ['synthetic_set', 'source_cohort']"),
        (lambda front: front.update(title=" "), "title: is blank"),
        (lambda front: front.update(title=7), "title: 7 is not of type 'string', 'null'"),
        (lambda front: front.update(synthetic="yes"), "synthetic: 'yes' is not of type 'boolean'"),
        (lambda front: front.update(published="soon"), "published: 'soon' does not match"),
        (lambda front: front["data"].update(scans=-1), "data.scans: -1 is less than the minimum of 0"),
        (lambda front: front["data"].update(scans=5201), "data.scans: 5201 is not the sum of data.classes, 5200"),
        (lambda front: front["use"].update(intended=[]), "use.intended: is empty"),
        (lambda front: front["use"]["prohibited"].pop(0), "use.prohibited: has no entry on diagnosis"),
        (lambda front: front["use"]["prohibited"].pop(1), "use.prohibited: has no entry on re-identification"),
        (lambda front: front.update(licence=None), "licence: is null; fill it in, or list it under gaps"),
        (lambda front: front["gaps"].append("title"), "gaps: 'title' is not null; take it off the list"),
        (lambda front: front["limits"]["stated"].append("Anonymous."), "limits.stated.5: 'Anonymous' promises more"),
        (lambda front: front.update(kind="synthetic_set", synthetic=True), "front matter: 'evaluation' is a required"),
    ],
)
def test_a_fault_is_named_by_its_key(change, problem):
    found = problems_of(change)
    assert any(text.startswith(problem) for text in found), found


def test_the_text_needs_its_sections_and_its_words():
    body = CHEST_XRAY[1]
    assert problems_of(lambda front: None, body.replace("## Limits", "## Bounds")) == [
        "text: the section 'Limits' is missing"
    ]
    found = problems_of(lambda front: None, body + "\nThe scans are fully anonymized.\n")
    assert found == [
        "text: 'anonymized' promises more than anyone can keep; say what was done instead, such as 'de-identified'"
    ]
    assert problems_of(lambda front: None, body + "\nPatients have pseudonyms.\n") == []


def test_the_titles_of_others_may_use_any_word():
    def change(front):
        front["citation"] = "Doe. Anonymised [X-rays]. 2020"

    for cited in ("Doe. Anonymised [X-rays]. 2020", escape_markdown("Doe. Anonymised [X-rays]. 2020")):
        assert problems_of(change, CHEST_XRAY[1] + cited) == []
    assert problems_of(change, CHEST_XRAY[1] + "Anonymised")


@pytest.mark.parametrize("value", [None, 3, "text", [], [1], {"gaps": 1}, {"schema": []}])
def test_whatever_stands_on_top_is_answered(value):
    assert card_problems(value, "")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*CHEST_XRAY[0], "x", "classes", "stated"]), inner, max_size=4)
        ),
        max_leaves=8,
    ),
    st.sampled_from(sorted(CHEST_XRAY[0])),
)
def test_any_value_of_any_key_is_answered_or_valid(value, key):
    """No exception, and every message is one line that begins with a key."""
    found = problems_of(lambda front: front.update({key: value}))
    assert all(isinstance(text, str) and ": " in text and "\n" not in text for text in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no front matter", "need YAML between two lines of ---"),
        (b"---\ntitle: [\n---\n", "need readable YAML"),
        (b"---\ntitle: \xff\n---\n", "need a data card in UTF-8, got invalid start byte"),
        (b"---\n" + b"[" * 5000 + b"\n---\n", "need readable YAML"),
    ],
)
def test_files_that_are_no_cards(tmp_path, content, message):
    path = tmp_path / "card.md"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        check_card(path)
    with pytest.raises(DataError, match="need a data card in UTF-8, got nothing there"):
        check_card(tmp_path / "missing.md")


def test_the_command_says_what_is_wrong_in_one_line_and_leaves_3(tmp_path, capsys):
    text = CARDS.find("chest_xray").read_text()
    path = tmp_path / "card.md"
    path.write_text("\ufeff" + text.replace("\n", "\r\n"))  # as some editors save it
    assert run_command(["card", "--check", str(path)]) == 0
    assert "gaps: contact, source.consent, source.legal_basis, data.voxel_mm" in capsys.readouterr().out
    path.write_text(text.replace("scans: 5200", "scans: many").replace("kind: source_cohort", "kind: x"))
    assert run_command(["card", "--check", str(path)]) == 3
    said = capsys.readouterr().err.strip()
    assert (
        "not a valid card (medsynth-card/2): data.scans: 'many' is not of type 'integer', 'null'; kind: 'x' is not one of"
        in said
    )
    assert "\n" not in said


def test_dates_and_numbers_as_keys_are_texts(tmp_path):
    front = CHEST_XRAY[0] | {"published": "2018-06-02"}
    path = tmp_path / "card.md"
    dumped = yaml.safe_dump(front).replace("'2018-06-02'", "2018-06-02").replace("    normal:", "    7:")
    path.write_text(f"---\n{dumped}---\n{CHEST_XRAY[1]}")
    found = check_card(path).front
    assert found["published"] == "2018-06-02"
    assert "7" in found["data"]["classes"]


def test_markdown_in_texts_is_no_markup():
    assert escape_markdown("<b>|*x*\n[y]") == "&lt;b>\\|\\*x\\* \\[y\\]"
    assert escape_markdown("# ground_glass") == "\\# ground_glass"


def test_the_card_of_the_phantom_counts_what_demo_writes():
    plan = list(cohort_plan(scans=400))
    data = check_card(CARDS.find("phantom")).front["data"]
    assert data["patients"] == len({patient for patient, *_ in plan})
    for label, by_split in data["classes"].items():
        for split, count in by_split.items():
            assert count == sum((made, part) == (label, split) for _, _, made, part in plan)


@pytest.mark.parametrize("name", ["chest_xray", "lung_nodules"])
def test_cards_of_real_cohorts_count_what_is_there(name):
    labels = REAL / name / "labels.csv"
    if not labels.is_file():
        pytest.skip(f"{labels} is not here")
    with labels.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    data = check_card(CARDS.find(name)).front["data"]
    assert data["scans"] == len(rows)
    assert data["patients"] == len({row["patient_id"] for row in rows})
    for label, by_split in data["classes"].items():
        for split, count in by_split.items():
            assert count == sum(row["label"] == label and row["split"] == split for row in rows)
