"""Fingerprints of patients: of no use without a key that is not in the run folder."""

import hashlib
import hmac
import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from medsynth.errors import ConfigError, DataError
from medsynth.runs import PATIENTS_FILE, patients, write_patients
from medsynth.runs.patients import KEY_VARIABLE, find_key, own_key, read_patients

IDS = [f"{number:06d}" for number in range(137, 1_000_000, 20_011)]


@pytest.fixture
def key_at(tmp_path, monkeypatch):
    """Puts the key into a file of that name in this test's folder."""

    def put(name):
        monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / name))
        return tmp_path / name

    put("first.key")
    return put


def refused(run, names):
    with pytest.raises(DataError) as caught:
        read_patients(run, None).among(names)
    return str(caught.value)


def test_the_patients_are_found_with_the_key(key_at, tmp_path):
    key = write_patients(tmp_path, {"train": IDS[:40], "val": IDS[40:]})
    content = json.loads((tmp_path / PATIENTS_FILE).read_text())
    assert (len(content["train"]), len(content["val"])) == (40, 10)
    assert content["train"] == sorted(content["train"]), "their order says nothing"
    assert content["key"] == key.id
    assert read_patients(tmp_path, None).among([*IDS, "000001", "nobody"]) == IDS
    assert find_key(key.id, of=tmp_path).secret == key.secret


def test_no_six_digit_id_can_be_tried_out_without_the_key(key_at, tmp_path):
    """All the secrets that the folder offers are tried as salt and as key for each of a million IDs."""
    key = write_patients(tmp_path, {"train": IDS, "val": []})
    content = json.loads((tmp_path / PATIENTS_FILE).read_text())
    seen, salt, name = set(content["train"]), content["salt"], content["key"]
    assert len(seen) == 50
    assert key.secret.hex() not in (tmp_path / PATIENTS_FILE).read_text()
    found = 0
    for number in range(1_000_000):
        patient = f"{salt} {number:06d}".encode()
        found += hashlib.sha256(patient).hexdigest()[:32] in seen
        found += hmac.digest(name.encode(), patient, "sha256").hex()[:32] in seen
    assert found == 0
    assert {key.fingerprint(each, salt) for each in IDS} == seen, "with the key, they are found at once"


def test_two_runs_say_nothing_of_whether_they_share_patients(key_at, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_patients(tmp_path / name, {"train": IDS, "val": []})
    first, second = (read_patients(tmp_path / name, None) for name in ("a", "b"))
    assert not first.splits["train"] & second.splits["train"]
    assert first.among(IDS[:3]) == second.among(IDS[:3]) == IDS[:3]


def test_another_key_or_none_is_refused_by_name(key_at, tmp_path):
    key = write_patients(tmp_path, {"train": IDS, "val": []})
    other = key_at("other.key")
    said = refused(tmp_path, IDS)
    assert not other.exists(), "looking for a key makes none"
    assert all(part in said for part in (key.id, "got none", str(other), KEY_VARIABLE, str(tmp_path / PATIENTS_FILE)))
    assert f"got {own_key().id} in {other}" in refused(tmp_path, IDS)
    other.write_text(key.path.read_text())
    assert read_patients(tmp_path, None).among(IDS[:2]) == IDS[:2], "a copy of the key is as good"


def test_patients_under_another_key_cannot_be_joined(key_at, tmp_path):
    write_patients(tmp_path, {"train": IDS[:3], "val": []})
    before = read_patients(tmp_path, None)
    (tmp_path / "next").mkdir()
    write_patients(tmp_path / "next", {"train": IDS[3:5], "val": IDS[5:6]}, before=before)
    assert read_patients(tmp_path / "next", None).among(IDS) == IDS[:6]
    key_at("other.key")
    with pytest.raises(DataError, match="need the patients' key"):
        write_patients(tmp_path / "next", {"train": IDS, "val": []}, before=before)


def test_only_the_user_may_read_the_key(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    before = os.umask(0)
    try:
        key = own_key()
    finally:
        os.umask(before)
    assert key.path == tmp_path / "data" / "medsynth" / "patients.key"
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in key.path.parent.iterdir()] == ["patients.key"]
    assert own_key().secret == key.secret, "it stays"
    assert repr(key.secret) not in repr(key)


def test_processes_that_need_a_key_at_once_make_one(key_at, monkeypatch):
    """All find none before any has made one; links are exclusive between threads as between processes."""
    together, create = threading.Barrier(8), patients._create

    def wait_and_create(path):
        together.wait(20)
        create(path)

    monkeypatch.setattr(patients, "_create", wait_and_create)
    with ThreadPoolExecutor(8) as pool:
        found = {future.result().id for future in [pool.submit(own_key) for _ in range(8)]}
    assert found == {own_key().id}


def test_a_purpose_has_its_own_secret(key_at):
    key = own_key()
    assert len({key.secret, key.derive("id"), key.derive("patients"), key.derive("report")}) == 4
    assert key.id == key.derive("id").hex()[:16]


@pytest.mark.parametrize("content", [b"", b"0" * 63, b"g" * 64, b"0" * 65, b"\xff" * 64])
def test_a_file_that_is_no_key_is_refused(content, key_at):
    key_at("first.key").write_bytes(content)
    with pytest.raises(DataError, match=r"first\.key: need a patients' key .64 hexadecimal digits., got other content"):
        own_key()


def test_a_pipe_or_folder_is_no_key(key_at, tmp_path):
    os.mkfifo(key_at("pipe"))
    with pytest.raises(DataError, match=r"pipe: need a patients' key .*, got no regular file"):
        own_key()
    key_at("folder").mkdir()
    with pytest.raises(DataError, match="folder: need a patients' key"):
        own_key()


def test_a_key_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "file" / "patients.key"))
    with pytest.raises(ConfigError, match=f"need a place for the patients' key, got .*; try {KEY_VARIABLE}=FILE"):
        own_key()
    monkeypatch.delenv(KEY_VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=f"need a place for the patients' key, got .*; try {KEY_VARIABLE}=FILE"):
        own_key()


def test_runs_of_0_2_are_still_read_but_nothing_joins_them(key_at, tmp_path):
    old = [hashlib.scrypt(name.encode(), salt=b"ab", n=2**10, r=8, p=1, dklen=16).hex() for name in IDS[:3]]
    (tmp_path / PATIENTS_FILE).write_text(json.dumps({"salt": "ab", "train": old[:2], "val": old[2:]}))
    before = read_patients(tmp_path, None)
    assert before.among(IDS) == IDS[:3]
    with pytest.raises(DataError, match=r"got those of medsynth 0\.2; try training that run again"):
        write_patients(tmp_path, {"train": IDS, "val": []}, before=before)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"salt": "", "train": [1], "val": ["a"]}',
        "{}",
        '{"salt": 1, "train": 3, "val": []}',
        '{"train": [[]], "val": [], "salt": ""}',
    ],
)
def test_a_damaged_list_is_refused(content, tmp_path):
    (tmp_path / PATIENTS_FILE).write_text(content)
    with pytest.raises(DataError, match=r"patients\.json: need the fingerprints of the run's patients"):
        read_patients(tmp_path, None)
