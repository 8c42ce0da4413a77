"""Files of runs are whole, damage is named, and one run owns a folder."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import pytest

from text_sdft.core import UserError
from text_sdft.core.files import (
    LOCK_FILE,
    append_json_lines,
    claimed,
    disk_errors_explained,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
)

HOLDER = """
import sys, time
from pathlib import Path
from text_sdft.core.files import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(600)
"""


def test_a_folder_belongs_to_one_run_until_it_ends_however_that_is(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "claimed\n"
    used = r"is in use by a run that began at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: .*output_dir"
    with pytest.raises(UserError, match=used), claimed(folder):
        pass
    with claimed(folder, main=False):
        pass  # another process of the same run
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with claimed(folder):
        (folder / "config.yaml").touch()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_claim_under_which_nothing_was_written_leaves_nothing(tmp_path):
    with claimed(tmp_path / "runs" / "one"):
        assert (tmp_path / "runs" / "one" / LOCK_FILE).exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder, said in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "run", "Nothing can be written into")):
        with pytest.raises(UserError, match=f"{said}.*output_dir"), claimed(folder):
            pass


def test_names_that_are_no_utf8_are_kept(tmp_path):
    write_json(tmp_path / "a.json", {"name": "caf\udce9.png"})
    append_json_lines(tmp_path / "a.jsonl", [{"name": "caf\udce9.png"}])
    assert read_json(tmp_path / "a.json") == {"name": "caf\udce9.png"}
    assert read_json_lines(tmp_path / "a.jsonl", {"name": str}) == [{"name": "caf\udce9.png"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n', "line 2 is not whole JSON"),
        ('{"step": 1}\n[2]\n', "line 2: the content is no mapping"),
        ('{"step": 1}\n\n{"loss": 1.0}\n', "line 3: 'step' is missing"),
        ('{"step": "1"}\n', "line 1: 'step' is '1'"),
        ("[" * 100_000 + "\n", "line 1 is not whole JSON"),
        ('{"step": ' + "1" * 5000 + "}\n", "line 1 is not whole JSON"),
        ('{"step": 1, "loss": "caf\udce9"}\n', "cannot be read"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, text, said):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as raised:
        read_json_lines(file, {"step": int})
    assert str(file) in str(raised.value) and said in str(raised.value) and "another folder" in str(raised.value)


def test_half_a_last_line_is_that_of_a_killed_run(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}')
    assert read_json_lines(file, {"step": int}) == [{"step": 1}]
    assert read_json_lines(tmp_path / "none.jsonl", dict) == []


def test_a_folder_in_a_files_place_is_named(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(UserError, match=r"results.json cannot be read"):
        read_json(tmp_path / "results.json")


def test_a_full_disk_leaves_what_was_written_before(tmp_path):
    file = tmp_path / "samples.jsonl"
    write_json_lines(file, [{"id": "a"}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written \(.*--resume"), disk_errors_explained(tmp_path):
            write_json_lines(file, [{"id": "b" * 2000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_json_lines(file, {"id": str}) == [{"id": "a"}] and [f.name for f in tmp_path.iterdir()] == [file.name]


def test_a_mistake_of_ours_is_not_taken_for_the_disks(tmp_path):
    for error in (FileNotFoundError(2, "none"), RuntimeError("shapes differ"), KeyError("x")):
        with pytest.raises(type(error)), disk_errors_explained(tmp_path):
            raise error
