"""`medsynth card`: what a card says of a set, what it refuses, and what it never holds."""

import json
import re
import shutil
from dataclasses import replace

import mlcroissant
import pytest
import yaml

import medsynth
from medsynth.cli import run_command
from medsynth.cohorts import read_cohort, write_cohort
from medsynth.errors import ConfigError, DataError, GateError
from medsynth.evaluation.privacy.result import Share
from medsynth.evaluation.reports import check_report
from medsynth.reporting import check_card
from tests.made_report import passed_report, write_sealed

STATEMENTS = {
    "title": "Bright blobs",
    "modality": "Photography of blobs",
    "licence": "CC-BY-4.0",
    "citation": "Anonymous et al., Blobs, 2026",
    "contact": "Department of Blobs",
    "version": "1.0.0",
    "published": "2026-11-23",
    "source": {
        "name": "Real blobs",
        "origin": "Blob archive",
        "licence": "CC0-1.0",
        "citation": "Blob et al., 2025",
        "consent": "Broad consent",
        "legal_basis": "Ethics vote 1/2026",
    },
    "use": {"intended": ["Training of blob finders"], "prohibited": "Selling blobs"},
    "limits": ["Blobs of one camera"],
}
STATED_KEYS = {
    "modality",
    "licence",
    "citation",
    "contact",
    "source.name",
    "source.origin",
    "source.licence",
    "source.citation",
    "source.consent",
    "source.legal_basis",
    "use.intended",
    "limits.stated",
}


@pytest.fixture(scope="module")
def edited(tiny_run, tiny_cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("edited") / "set"
    medsynth.edit(
        run=tiny_run.folder,
        cohort=tiny_cohort,
        donor_class="dark",
        target_class="bright",
        count=3,
        strength=0.5,
        out=out,
        progress=False,
    )
    return out


@pytest.fixture
def statements(tmp_path):
    path = tmp_path / "source.yaml"
    path.write_text(yaml.safe_dump(STATEMENTS))
    return path


def written(files):
    return files.card.read_text(), json.loads(files.croissant.read_text())


def changed_report(report, target, change):
    content = json.loads((report / "report.json").read_text())
    change(content)
    return write_sealed(content, target)


def test_without_a_report_the_card_says_that_nothing_was_evaluated(judged, tiny_run, tmp_path):
    files = medsynth.card(synthetic=judged / "set", out=tmp_path)
    text, croissant = written(files)
    front = check_card(files.card).front
    assert set(front["gaps"]) == STATED_KEYS | {"coverage.attributes", "data.voxel_mm", "evaluation"}
    assert front["data"]["classes"] == {"bright": 4, "dark": 3}
    assert front["data"]["grid"] == "16 x 16"
    assert front["contains_real_pixels"] is False
    assert front["generator"]["run"] == tiny_run.fingerprint
    assert front["generator"]["steps"] == 12
    spec = tiny_run.spec
    learnt = zip(spec.class_counts, spec.class_patients, strict=True)
    assert front["coverage"]["real_classes"] == {
        label: {"scans": scans, "patients": patients}
        for label, (scans, patients) in zip(spec.classes, learnt, strict=True)
    }
    assert "Privacy was not evaluated" in text.split("## At a glance")[0]
    assert "the generator was trained on 8 scans of 8 patients" in text
    assert "*not stated: licence of the source*" in text
    assert "license" not in croissant
    assert "citeAs" not in croissant


def test_with_a_report_figures_stand_with_their_intervals(judged, tiny_cohort, tmp_path, capsys):
    arguments = ["--synthetic", judged / "set", "--report", judged / "report", "--real", tiny_cohort, "--out", tmp_path]
    assert run_command(["card", *map(str, arguments), "--progress", "false"]) == 0
    said = capsys.readouterr().out
    card = tmp_path / "data_card.md"
    assert str(card) in said
    text, front = card.read_text(), check_card(card).front
    report = json.loads((judged / "report" / "report.json").read_text())
    assert front["evaluation"]["sets"] == report["sets"]
    assert front["evaluation"]["privacy"]["verdict"] == report["verdict"]["privacy"]["verdict"]
    for row in report["privacy"]["rows"]:
        power = front["evaluation"]["privacy"]["classes"][row["label"]]["power"]
        assert (power["found"], power["of"]) == (row["power"]["found"], row["power"]["of"])
        assert power["low"] == pytest.approx(row["power"]["low"], rel=1e-3)
        assert f"{power['found']} of {power['of']} ({100 * power['share']:.1f} %; 95 % interval" in text
    for verdict in report["verdict"]["fidelity"]:
        if verdict["label"] is not None:
            assert front["evaluation"]["fidelity"]["classes"][verdict["label"]]["verdict"] == verdict["verdict"]
    assert "evaluation.downstream" in front["gaps"]
    assert all(f"`{gap}`" in text.split("## Gaps")[1] for gap in front["gaps"])


def test_the_gain_stands_with_its_interval(judged, tmp_path):
    figure = {"value": -0.05803, "adjusted_low": -0.08469, "adjusted_high": -0.03138}
    subgroup = {"value": 0.1, "low": -0.2, "high": 0.3}

    def change(content):
        content["verdict"]["downstream"] = {"verdict": "harm", "sentence": "Harm: it does worse."}
        content["downstream"] = {
            "task": {"rare_class": "bright", "test": {"rare_patients": 30}},
            "tiers": [
                {
                    "name": "probe",
                    "baseline": "oversample",
                    "synthetic": "synthetic 0.25",
                    "differences": [{"figures": dict.fromkeys(("auroc", "auprc", "sensitivity"), figure)}],
                }
            ],
            "subgroups": {
                "groups": [
                    {
                        "column": "sex",
                        "value": "f",
                        "verdict": "harm",
                        "rare_patients": 9,
                        "figures": {"auroc": subgroup},
                    }
                ],
                "too_small": 1,
            },
        }

    report = changed_report(judged / "report", tmp_path / "report", change)
    files = medsynth.card(synthetic=judged / "set", report=report, out=tmp_path, progress=False)
    text = files.card.read_text()
    assert "| ΔAUROC | −0.058 (−0.085 to −0.031) |" in text
    assert "| sex = f | harm | 9 | +0.100 (−0.200 to +0.300) |" in text
    assert "**Training with the set did harm.**" in text.split("## At a glance")[0]
    assert files.front["evaluation"]["downstream"]["auroc"] == {"value": -0.05803, "low": -0.08469, "high": -0.03138}


def test_what_people_state_fills_the_gaps(judged, statements, tmp_path):
    files = medsynth.card(synthetic=judged / "set", source=statements, out=tmp_path / "out")
    text, croissant = written(files)
    front = check_card(files.card).front
    assert set(front["gaps"]) == {"coverage.attributes", "data.voxel_mm", "evaluation"}
    assert front["source"] == STATEMENTS["source"]
    assert front["use"]["prohibited"][-1] == "Selling blobs"
    uses = " ".join(front["use"]["prohibited"])
    assert "Diagnosis" in uses
    assert "Re-identification" in uses
    assert "not stated" not in text.split("## Privacy")[0]
    for key, value in {"license": "CC-BY-4.0", "version": "1.0.0", "datePublished": "2026-11-23"}.items():
        assert croissant[key] == value
    assert croissant["rai:dataUseCases"][0] == "Intended: Training of blob finders"


def test_the_card_of_the_source_cohort_serves_as_statements(judged, tmp_path):
    named = medsynth.card(synthetic=judged / "set", source="chest_xray", out=tmp_path)
    cohort = check_card(medsynth_cards() / "chest_xray.md").front
    source = named.front["source"]
    assert source["name"] == cohort["title"]
    assert source["licence"] == "CC BY 4.0"
    assert source["consent"] is None
    assert "source.consent" in named.front["gaps"]
    assert "licence" in named.front["gaps"], "the licence of the source is not that of the set"
    (tmp_path / "own.yaml").write_text("source: chest_xray\ntitle: Mine\n")
    own = medsynth.card(synthetic=judged / "set", source=tmp_path / "own.yaml", out=tmp_path)
    assert (own.front["title"], own.front["source"]) == ("Mine", source)
    with pytest.raises(ConfigError, match="this is the card of a synthetic set"):
        medsynth.card(synthetic=judged / "set", source=named.card, out=tmp_path)


def test_a_copy_of_the_template_serves_as_statements(judged, tmp_path):
    text = (medsynth_cards() / "template.md").read_text()
    text = text.replace("consent: null", "consent: Broad consent").replace("- source.consent\n", "")
    for name in ("our_scans.yaml", "our_scans.md"):
        (tmp_path / name).write_text(text)
        front = medsynth.card(synthetic=judged / "set", source=tmp_path / name, out=tmp_path).front
        assert front["source"]["consent"] == "Broad consent"
        assert "source.consent" not in front["gaps"]
        assert "source.name" in front["gaps"]


def medsynth_cards():
    from medsynth.reporting.card_schema import CARDS

    return CARDS.directory()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "license: MIT",
            r"Additional properties are not allowed \('license' was unexpected\); known are title, modality",
        ),
        ("source: {consents: yes}", r"source: .*'consents' was unexpected\); known are name, origin"),
        ("use: [training]", r"use: \['training'\] is not of type 'object', 'null'"),
        ("title: [a]", r"title: \['a'\] is not of type 'string', 'number', 'null'"),
        ("limits: the scans are anonymised", r"limits: 'anonymised' promises more"),
        ("published: last year", r"published: 'last year' does not match"),
        ("title: {", r"need readable YAML"),
        ("7", r"front matter: 7 is not of type 'object'"),
        ("kind: source_cohort", r"front matter: 'schema' is a required property"),
    ],
)
def test_statements_that_cannot_be_used_are_refused(judged, tmp_path, text, message):
    path = tmp_path / "source.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        medsynth.card(synthetic=judged / "set", source=path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_about_other_scans_is_refused(tiny_run, tiny_cohort, judged, tmp_path, capsys):
    medsynth.sample(run=tiny_run.folder, count="bright=2,dark=2", seed=1, out=tmp_path / "other", progress=False)
    arguments = ["--synthetic", str(tmp_path / "other"), "--report", str(judged / "report"), "--progress", "false"]
    assert run_command(["card", *arguments]) == 3
    assert "about these synthetic scans" in capsys.readouterr().err
    assert not (tmp_path / "other" / "data_card.md").exists()
    real = read_cohort(tiny_cohort)
    fewer = tiny_cohort.parent / "fewer_for_card.csv"
    write_cohort(real.select(split=("train", "test")), fewer)
    with pytest.raises(DataError, match="about these real scans"):
        medsynth.card(synthetic=judged / "set", report=judged / "report", real=fewer, out=tmp_path, progress=False)


def test_damaged_or_missing_reports_are_refused(judged, tmp_path):
    report = changed_report(judged / "report", tmp_path / "report", lambda content: content.pop("privacy"))
    with pytest.raises(GateError, match=r"need a whole report, got damaged content \('privacy'\)"):
        medsynth.card(synthetic=judged / "set", report=report, out=tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="need the report of an evaluation, got none"):
        medsynth.card(synthetic=judged / "set", report=tmp_path / "nothing", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "banner", "prohibited"),
    [
        ({"flagged": 3}, "**The privacy gate failed.**", "the privacy gate failed"),
        (
            {"power": Share(9, 96)},
            "**The privacy gate cannot tell, which is not a pass.**",
            "unless the privacy gate has passed",
        ),
    ],
)
def test_a_set_that_did_not_pass_says_so_on_top(judged, tmp_path, change, banner, prohibited):
    rows = check_report(json.loads((judged / "report" / "report.json").read_text()), judged).rows
    rows = tuple(replace(row, **change) for row in rows)
    report = passed_report(judged / "report", tmp_path / "report", rows=rows)
    files = medsynth.card(synthetic=judged / "set", report=report, out=tmp_path, progress=False)
    assert banner in files.card.read_text().split("## At a glance")[0]
    assert banner.strip("*") in json.loads(files.croissant.read_text())["description"]
    assert banner.strip("*") in files.summary()
    assert any(prohibited in use for use in files.front["use"]["prohibited"])


def test_flagged_and_dropped_scans_are_named(judged, tmp_path):
    rows = check_report(json.loads((judged / "report" / "report.json").read_text()), judged).rows
    rows = (replace(rows[0], flagged=1), replace(rows[1], dropped=2))
    report = passed_report(judged / "report", tmp_path / "report", rows=rows, repeated=((0, 1, 2),))
    text = medsynth.card(synthetic=judged / "set", report=report, out=tmp_path, progress=False).card.read_text()
    top = text.split("## At a glance")[0]
    assert "2 scans of the set were flagged as copies of real ones and set aside" in top
    assert "**Possible copies of real scans: 1 of 5 scans are flagged** and still in the set." in top
    assert "Identical to another scan of the set: 2 scans." in text


def test_a_planted_copy_counts_as_real_pixels_and_names_nobody(tiny_run, tiny_cohort, tmp_path):
    made = medsynth.sample(run=tiny_run.folder, count="bright=4,dark=3", out=tmp_path / "set", progress=False)
    real = read_cohort(tiny_cohort)
    donor = next(row for row in real.rows if row.split == "train" and row.label == "dark")
    planted = next(row for row in made.rows if row.label == "dark")
    made.file_of(planted).write_bytes(real.file_of(donor).read_bytes())
    medsynth.evaluate(
        real=tiny_cohort, synthetic=tmp_path / "set", out=tmp_path / "report", parts=["privacy"], progress=False
    )
    files = medsynth.card(
        synthetic=tmp_path / "set", report=tmp_path / "report", real=tiny_cohort, out=tmp_path / "out", progress=False
    )
    text, croissant = written(files)
    assert files.front["contains_real_pixels"] is True
    assert "**The privacy gate failed.**" in text
    assert "contains pixels of real scans" in text.split("## At a glance")[0]
    for said in (text, json.dumps(croissant), files.summary().replace(str(tmp_path), "")):
        assert "secret" not in said
        assert str(tiny_cohort.parent) not in said
        assert "anonym" not in said.lower()


def test_an_edited_set_says_that_it_resembles_its_donors(edited, tmp_path):
    files = medsynth.card(synthetic=edited, out=tmp_path)
    text = files.card.read_text()
    assert "made from a real one, its donor, and resembles it" in text.split("## At a glance")[0]
    assert files.front["contains_real_pixels"] is False
    edits = files.front["generator"]["edits"]
    assert (edits["donor_class"], edits["target_class"], edits["strength"]) == ("dark", "bright", 0.5)
    assert edits["donor_patients"] == 32
    assert "turned into bright at strength 0.5" in text


def test_real_pixels_are_found_in_the_rows(edited, tmp_path):
    shutil.copytree(edited, tmp_path / "set")
    manifest = tmp_path / "set" / "cohort.csv"
    manifest.write_text(re.sub(r",0$", ",1", manifest.read_text(), flags=re.MULTILINE))
    files = medsynth.card(synthetic=tmp_path / "set")
    assert files.card.parent == tmp_path / "set"
    assert files.front["contains_real_pixels"] is True
    assert "**The set contains pixels of real scans** and must stay within your institution." in files.card.read_text()


def test_rows_that_were_removed_are_noticed(judged, tmp_path):
    shutil.copytree(judged / "set", tmp_path / "set")
    manifest = tmp_path / "set" / "cohort.csv"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:-1]) + "\n")
    assert "rows were removed, added or relabelled" in medsynth.card(synthetic=tmp_path / "set").card.read_text()


@pytest.mark.parametrize(
    ("scans", "sentence"),
    [
        (0, "bright: the generator's training scans contain none of this class."),
        (1, "bright: the generator was trained on 1 scan of 1 patient, too few to show how much patients vary."),
    ],
)
def test_fault_23_a_class_of_no_scan_or_one_is_told(judged, tmp_path, scans, sentence):
    shutil.copytree(judged / "set", tmp_path / "set")
    path = tmp_path / "set" / "provenance.json"
    content = json.loads(path.read_text())
    content["training_scans"]["bright"] = content["training_patients"]["bright"] = scans
    path.write_text(json.dumps(content))
    files = medsynth.card(synthetic=tmp_path / "set")
    assert sentence in files.front["limits"]["found"]
    assert sentence in files.card.read_text()


def test_a_set_that_medsynth_did_not_make(tiny_cohort, tmp_path):
    """Nothing is known of its generator, and nothing is made up."""
    made = tmp_path / "made"
    shutil.copytree(tiny_cohort.parent / "scans", made / "scans")
    names = sorted(path.name for path in (made / "scans").iterdir())[:6]
    (made / "theirs.csv").write_text("path,label\n" + "".join(f"scans/{name},<b>blob</b>\n" for name in names))
    files = medsynth.card(synthetic=made / "theirs.csv")
    front = check_card(files.card).front
    assert {"generator", "contains_real_pixels", "coverage.real_classes"} <= set(front["gaps"])
    assert front["data"]["manifest"] == "theirs.csv"
    assert "<b>" not in files.card.read_text().split("\n---\n", 1)[1]
    assert "secret" not in files.card.read_text()
    assert [record["scans/path"].decode() for record in records(files)] == [f"scans/{name}" for name in names]


def test_real_rows_are_refused(tiny_cohort, judged, tmp_path):
    shutil.copytree(judged / "set", tmp_path / "set")
    manifest = tmp_path / "set" / "cohort.csv"
    manifest.write_text(manifest.read_text().replace(",train,1,", ",train,0,", 1))
    with pytest.raises(DataError, match="synthetic=0"):
        medsynth.card(synthetic=tmp_path / "set")
    with pytest.raises(ConfigError, match="need a synthetic set, or a card"):
        medsynth.card()
    with pytest.raises(ConfigError, match="check: checks a card and takes no other file"):
        medsynth.card(synthetic=tmp_path / "set", check=tmp_path / "data_card.md")


def records(files):
    return list(mlcroissant.Dataset(files.croissant).records("scans"))


def test_croissant_validates_and_gives_the_rows_back(judged, edited, statements, tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise AssertionError("validation needs no network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    for name, folder in (("sampled", judged / "set"), ("edited", edited)):
        shutil.copytree(folder, tmp_path / name)
        files = medsynth.card(synthetic=tmp_path / name, source=statements)
        dataset = mlcroissant.Dataset(files.croissant)
        issues = dataset.metadata.ctx.issues
        assert not issues.errors
        assert not issues.warnings
        lines = (tmp_path / name / "cohort.csv").read_text().splitlines()
        columns = lines[0].split(",")
        expected = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
        got = [{key.removeprefix("scans/"): value.decode() for key, value in row.items()} for row in records(files)]
        assert got == expected
        described = json.loads(files.croissant.read_text())["distribution"]
        found = {
            path for each in described[1:] for pattern in each["includes"] for path in files.card.parent.glob(pattern)
        }
        assert found == {files.card.parent / row["path"] for row in expected}


def test_croissant_says_what_the_card_says(judged, tmp_path):
    files = medsynth.card(synthetic=judged / "set", report=judged / "report", out=tmp_path, progress=False)
    metadata = mlcroissant.Dataset(files.croissant).metadata
    assert metadata.data_limitations == files.front["limits"]["found"]
    assert metadata.data_use_cases == [f"Prohibited: {use}" for use in files.front["use"]["prohibited"]]
    assert files.front["evaluation"]["privacy"]["sentence"] in metadata.personal_sensitive_information[0]
    assert metadata.data_biases[0].startswith("bright: 57.1 % of this set, 20.0 %")


def test_what_a_provenance_says_is_text_in_the_card(judged, tmp_path):
    shutil.copytree(judged / "set", tmp_path / "set")
    file = tmp_path / "set" / "provenance.json"
    hostile = "<script>alert(1)</script>"
    content = json.loads(file.read_text())
    session = {"device": hostile, "threads": hostile, "versions": {hostile: hostile}}
    content |= {"solver": {hostile: hostile}, "guidance": {hostile: hostile}, "sessions": [session]}
    file.write_text(json.dumps(content))
    card = medsynth.card(synthetic=tmp_path / "set", progress=False).card.read_text()
    assert "<script" not in card.split("\n---\n", 1)[1]
    assert card.count("&lt;script>") >= 8


def test_a_set_that_says_it_holds_no_real_pixels_is_not_taken_at_its_word(judged, tmp_path):
    shutil.copytree(judged / "set", tmp_path / "set")
    text = medsynth.card(synthetic=tmp_path / "set", progress=False).card.read_text()
    assert "none were copied in, as the set itself says" in text
    # Inpainting always keeps pixels, whatever else the provenance says.
    file = tmp_path / "set" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"edit": "inpaint", "contains_real_pixels": False}))
    assert medsynth.card(synthetic=tmp_path / "set", progress=False).front["contains_real_pixels"] is True
