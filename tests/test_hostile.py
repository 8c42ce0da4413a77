"""Sixty inputs that nobody should give, drawn by seeds: each ends well, or in one line (a list, of images) and exit code 2.

Every one runs in a fork of this process, which has imported everything, within 20 seconds and 2 GiB; and it writes nothing
but the run's folder.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.tiny_text import save_tiny_text_model
from vlm_sdft.cli import main

pytestmark = pytest.mark.slow
SECONDS, BYTES = 20, 2 * 2**30
#: Values that a setting or a column is given in the place of its own.
ODD: list[Any] = [
    None, True, -1, 0, 10**6, 10**11, 10**30, 2**63, -0.5, float("nan"), float("inf"), "", " ", "nan", "word", "[/red]",
    "\u2028", "\x85", "a\nb: c", "../../etc/passwd", "/dev/zero", "/etc/passwd", "x" * 5_000, [], [[]], {}, {"a": 1},
    ["a", None], {"config": "/etc/passwd"}, "{question}{", "%s", "\ud800",
]  # fmt: skip


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file that says to be so large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def spoil_image(draw: random.Random, file: Path, kind: int) -> None:
    whole = file.read_bytes()
    file.unlink()
    if kind == 0:
        file.write_bytes(whole[: draw.randrange(len(whole))])
    elif kind == 1:
        file.write_bytes(draw.randbytes(draw.randrange(2_000)))
    elif kind == 2:
        file.write_bytes(png(draw.choice([10**5, 2**31 - 1]), draw.choice([1, 10**5])))
    elif kind == 3:
        os.mkfifo(file)
    elif kind == 4:
        file.symlink_to(draw.choice(["/dev/zero", "/dev/stdin", file.name, "/etc/passwd"]))
    elif kind == 5:
        with file.open("wb") as sparse:
            sparse.truncate(10 * 2**30)
    elif kind == 6:
        file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile showpage\n")
    elif kind == 7:
        file.mkdir()
    elif kind == 8:
        Image.new("RGB", (1, draw.randrange(20_000, 60_000))).save(file, "PNG")
    elif kind == 9:
        spoilt = bytearray(whole)
        for _ in range(9):
            spoilt[draw.randrange(8, len(spoilt))] = draw.randrange(256)
        file.write_bytes(bytes(spoilt))
    elif kind == 10:
        Path(os.fsdecode(bytes(file.parent) + b"/\xff\xfe[red]\n.png")).write_bytes(whole)
    elif kind == 11:
        Image.new("RGB", (64, 64)).save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")] * 400)
    else:
        file.write_bytes(
            draw.choice([b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"GIF89a", b"RIFF\xff\xff\xff\xffWEBP"])
        )


def images(draw: random.Random, folder: Path, model: str, number: int) -> list[str]:
    """A folder of images, one of which is hostile."""
    for name in ("cat", "dog"):
        for k in range(3):
            (folder / "data" / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (draw.randrange(256), k, 9)).save(folder / "data" / "train" / name / f"{k}.png")
    spoil_image(draw, folder / "data" / "train" / "cat" / "1.png", number % 13)
    return ["init", str(folder / "data")]


def rows(draw: random.Random, folder: Path, model: str, number: int) -> list[str]:
    """Rows of text, one of which is hostile."""
    row: dict[str, Any] = {"prompt": "What is two and two?", "golden_response": "Four.", "reference": "Four."}
    lines = [json.dumps({**row, "id": f"{k}"}) for k in range(4)]
    hostile = [
        lambda: json.dumps({**row, draw.choice([*row, "id", "images", "messages", "tools", "retain"]): draw.choice(ODD)}),
        lambda: "[" * draw.randrange(2_000, 10**6),
        lambda: json.dumps(row)[:-9] + "9" * 5_000 + "}",
        lambda: json.dumps({**row, "prompt": "word " * 10**6}),
        lambda: draw.choice(["null", "3", '"text"', "[]", "{", "\x00", "NaN", "\ufeff{}"]),
        lambda: json.dumps({**row, "messages": [{"role": draw.choice(["tool", "x", None]), "content": draw.choice(ODD)}]}),
    ]
    lines.insert(draw.randrange(4), hostile[number % len(hostile)]())
    file = folder / f"rows.{draw.choice(['jsonl', 'jsonl', 'csv', 'json', 'parquet'])}"
    file.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return ["preview", "--adapter", "text", "--model", model, "--data", str(file), "--train.max_completion_length", "8"]


def configs(draw: random.Random, folder: Path, model: str, number: int) -> list[str]:
    """A config, one setting of which is hostile, or its text."""
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "Two?", "golden_response": "2", "reference": "2"}) + "\n")
    config: dict[str, Any] = {
        "model": model,
        "adapter": "text",
        "data": {"path": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl")},
        "lora": {"enabled": True, "r": 2},
        "eval": {"max_examples": 2, "batch_size": 2},
        "train": {"max_steps": 1, "seed": 1, "max_completion_length": 4, "num_generations": 1, "learning_rate": 1e-3},
    }
    section = draw.choice(["data", "lora", "eval", "train", "train", "demonstrations", ""])
    place = config.setdefault(section, {}) if section else config
    further = {
        "train": ["optim", "lr_scheduler_type", "save_steps", "output_dir", "report_to", "accelerator_config", "fsdp"]
    }
    place[draw.choice([*place, *further.get(section, ["system_prompt", "teacher_prompt_template"])])] = draw.choice(ODD)
    text = yaml.safe_dump(config, allow_unicode=True)
    if number % 3 == 0:
        cut = draw.randrange(len(text))
        text = draw.choice(
            [
                text[:cut],
                text + text,
                f"{text[:cut]}\x00\t]{text[cut:]}",
                f"a: &a [*a]\n{text}",
                f"!!python/object:x {text}",
            ]
        )
    (folder / "config.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    return ["preview", str(folder / "config.yaml")]


def runs(draw: random.Random, folder: Path, model: str, number: int) -> list[str]:
    """A run's folder, a file of which is damaged."""
    run, score = folder / "finished", {"accuracy": 0.5, "n": 4, "low": 0.2, "high": 0.8}
    run.mkdir()
    answer = {"set": "new", "view": "student", "prompt": "?", "answer": "a", "reference": "b", "score": 0.0, "images": []}
    contents: dict[str, Any] = {
        "results.json": {
            "before": {"new": score}, "after": {"new": score}, "trained": "all", "rows": {}, "seconds": 1.0, "tokens": {},
            "settings": {"model": model, "data": {"path": "x"}, "train": {}}, "versions": {"python": "3"},
        },
        "metrics.jsonl": [{"step": k, "loss": 1.0 / k} for k in range(1, 5)],
        "samples.jsonl": [{**answer, "id": f"{k}", "phase": phase} for k in range(4) for phase in ("before", "after")],
        "config.yaml": {"model": model, "adapter": "text", "data": {"path": str(folder / "rows.jsonl")}},
    }  # fmt: skip
    spoilt = draw.choice(list(contents))
    for name, content in contents.items():
        lines = content if isinstance(content, list) else [content]
        if name == spoilt:
            place = draw.choice(lines)
            while (inner := [v for v in place.values() if isinstance(v, dict) and v]) and draw.random() < 0.7:
                place = draw.choice(inner)
            place[draw.choice(list(place))] = draw.choice(ODD)
        text = "\n".join(map(json.dumps, lines)) + "\n"
        if name == spoilt and number % 3 == 0:
            text = draw.choice(
                [text[: draw.randrange(len(text))], "", "[]", "[" * 10**5, '{"a": ' + "9" * 5_000 + "}", "\x00"]
            )
        (run / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return [draw.choice(["report", "report", "eval"]), str(run)]


KINDS: list[Callable[[random.Random, Path, str, int], list[str]]] = [images, rows, configs, runs]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny language model. All that commands import is imported here, once."""
    import vlm_sdft.cli.init
    import vlm_sdft.demos.sets  # noqa: F401

    return save_tiny_text_model(tmp_path_factory.mktemp("model") / "llama")


def ended(argv: list[str], folder: Path) -> tuple[int, str, int]:
    """The exit code of a command in a process of its own, what it wrote to stderr, and its memory at most, in bytes."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.alarm(SECONDS)
            os.chdir(folder / "cwd")
            for name, stream in (("out", 1), ("err", 2)):
                os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), stream)
            sys.stdout, sys.stderr = (open(stream, "w", encoding="utf-8", closefd=False) for stream in (1, 2))  # noqa: SIM115
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = main(argv)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), (folder / "err").read_text(errors="replace"), usage.ru_maxrss * 1024


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """All that lies below, with kind and size."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_size)
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


@pytest.mark.parametrize("number", range(60))
def test_it_ends_well_or_in_one_line(tmp_path, model, number):
    kind, draw = KINDS[number % len(KINDS)], random.Random(number)
    (tmp_path / "inputs").mkdir()
    (tmp_path / "cwd").mkdir()
    argv = kind(draw, tmp_path / "inputs", model, number // len(KINDS))
    before = tree(tmp_path / "inputs")
    code, said, memory = ended(argv, tmp_path)
    _, ours, message = said.rpartition("vlm-sdft: ")
    assert code == 0 or (code == 2 and ours and message.count("\n") <= (9 if kind is images else 1)), (
        f"{code} {argv}\n{said[-3000:]}"
    )
    assert "Traceback" not in said and len(message) < 2_000 and memory < BYTES
    after = tree(tmp_path / "inputs")
    made = {path for path in after.keys() - before.keys() if not path.endswith("report.html")}
    assert (
        not made
        and before.items() <= after.items()
        and not [path for path in tree(tmp_path / "cwd") if "/runs/" not in path]
    )
