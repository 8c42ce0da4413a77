"""Where pictures come from: emoji, characters by hand, clothes; each writes the folder that vlm-sdft reads.

A source knows kinds, and draws a kind: *shown* pictures for training, *held out* ones (another vendor, another hand, other
photographs) for testing. Every kind belongs to one split: "making" (a broader model may be made of them), "validation"
(settings are chosen there) or "test". `write_folder` gives kinds the invented names that the builtin model can say; what
the model knows already is the builtin data's.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from vlm_sdft.zoo import resolve_data
from vlm_sdft.zoo.drawing import light_and_noise, wall
from vlm_sdft.zoo.few_shot import FewShot
from vlm_sdft.zoo.vocabulary import invented_names

DATA = Path("data/unseen_types")
#: The broader model, as `build_model.py` makes it.
BROADER_MODEL = DATA / "model"
SIZE = 64
SPLITS = ("validation", "test", "making")
VENDORS, HELD_OUT_VENDOR = ("noto", "fluent-emoji", "fluent-emoji-flat", "emojione", "openmoji"), "twemoji"
HANDS, HELD_OUT_HAND = ("seto", "yusei", "yoz", "soseki", "kouzan", "dejima", "takao"), "kiloji"
#: Code points of Chinese characters.
CHARACTERS = range(0x4E00, 0x9FB0)


@dataclass(frozen=True)
class Source:
    """Kinds by split, and a function that draws one: (kind, random state, held out) -> RGBA on transparent ground."""

    kinds: dict[str, list[str]]
    sticker: Callable[[str, np.random.Generator, bool], Image.Image]

    def picture(self, kind: str, rng: np.random.Generator, held_out: bool, noise: float = 0.0) -> Image.Image:
        """A new picture: turned, moved and scaled a little, in front of a wall, under changing light."""
        sticker = self.sticker(kind, rng, held_out)
        ground = wall(rng, SIZE).convert("RGBA")
        side = round(0.8 * SIZE * rng.uniform(0.9, 1.1))
        turned = sticker.rotate(math.degrees(rng.normal(0, math.radians(8))), Image.Resampling.BICUBIC)
        x, y = (round((SIZE - side) / 2 + offset) for offset in rng.uniform(-0.05, 0.05, 2) * SIZE)
        small = turned.resize((side, side), Image.Resampling.LANCZOS)
        ground.paste(small, (x, y), small)
        return light_and_noise(ground.convert("RGB"), rng, noise)


def emoji() -> Source:
    """Concrete things in the styles of vendors; one vendor is held out."""
    files = {v: DATA / "emoji" / v for v in (*VENDORS, HELD_OUT_VENDOR)}
    load = cache(lambda vendor, kind: Image.open(files[vendor] / f"{kind}.png").convert("RGBA"))

    def sticker(kind: str, rng: np.random.Generator, held_out: bool) -> Image.Image:
        return load(HELD_OUT_VENDOR if held_out else str(rng.choice(VENDORS)), kind)

    return Source(split(sorted(p.stem for p in files[HELD_OUT_VENDOR].glob("*.png")), 90), sticker)


def handwriting() -> Source:
    """Japanese characters in the hands of fonts, in inks of any dark colour; one hand is held out."""
    files = {hand: DATA / "fonts" / f"{hand}.ttf" for hand in (*HANDS, HELD_OUT_HAND)}
    fonts = cache(lambda hand: ImageFont.truetype(files[hand], SIZE))
    known = [set(TTFont(file, lazy=True).getBestCmap()) for file in files.values()]
    kinds = [chr(code) for code in CHARACTERS if all(code in codes for codes in known)]

    def sticker(kind: str, rng: np.random.Generator, held_out: bool) -> Image.Image:
        font = fonts(HELD_OUT_HAND if held_out else str(rng.choice(HANDS)))
        left, top, right, bottom = font.getbbox(kind)
        side = int(max(right - left, bottom - top)) + 4
        image = Image.new("RGBA", (side, side))
        ink = (*(int(v) for v in rng.integers(0, 60, 3)), 255)
        place = ((side - left - right) / 2, (side - top - bottom) / 2)
        ImageDraw.Draw(image).text(place, kind, ink, font)
        return image

    return Source(split(kinds, 300), sticker)


def fashion() -> Source:
    """Ten kinds of clothes, photographed; five for validation, five for testing. Held out: other photographs."""
    folder = DATA / "fashion"
    pixels = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = pixels.reshape(-1, 28, 28)
    by_kind = {str(kind): np.flatnonzero(labels == kind) for kind in range(10)}

    def sticker(kind: str, rng: np.random.Generator, held_out: bool) -> Image.Image:
        half = len(by_kind[kind]) // 2
        grey = images[by_kind[kind][int(rng.integers(half)) + half * held_out]]
        opaque = np.minimum(grey.astype(int) * 4, 255).astype(np.uint8)
        return Image.fromarray(np.stack([grey, grey, grey, opaque], -1)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)

    return Source(split(list(by_kind), 5), sticker)


SOURCES: dict[str, Callable[[], Source]] = {
    "emoji": cache(emoji),
    "handwriting": cache(handwriting),
    "fashion": cache(fashion),
}


def split(kinds: list[str], count: int) -> dict[str, list[str]]:
    """``count`` kinds each for validation and test, the rest for making; drawn once for all."""
    mixed = [kinds[i] for i in np.random.default_rng(20_260_102).permutation(len(kinds))]
    return {"validation": mixed[:count], "test": mixed[count : 2 * count], "making": mixed[2 * count :]}


def new_kinds(source: Source, split_name: str, seed: int) -> list[str]:
    """The split's kinds in the seed's order: the first are new types, those after them serve other questions."""
    kinds = source.kinds[split_name]
    return [kinds[i] for i in np.random.default_rng([SPLITS.index(split_name), seed]).permutation(len(kinds))]


def write_folder(name: str, cache_dir: Path, spec: FewShot, noise: float = 0.0, as_tested: bool = False) -> Path:
    """A folder of new types in the layout of `vlm_sdft.zoo.novel_objects`, complete or made anew.

    Args:
        name: of a source in `SOURCES`.
        cache_dir: folders are kept there, one for each set of options.
        spec: what it holds.
        noise: as in `NovelObjects`, on all pictures. What the model knows already is drawn, and linked.
        as_tested: unlabelled images are held-out pictures too, as those of a user who takes them where the model will be
            used; labelled ones are not.

    Returns:
        The folder.
    """
    key = hashlib.sha256(json.dumps({**asdict(spec), "noise": noise, "as_tested": as_tested}).encode()).hexdigest()[:8]
    folder = cache_dir / f"{name}-{spec.split}-{spec.seed}-{key}"
    if (folder / "types.yaml").exists():  # written last
        return folder
    source, which, seed = SOURCES[name](), SPLITS.index(spec.split), spec.seed
    kinds = new_kinds(source, spec.split, seed)[spec.first :][: spec.n_types]
    names = invented_names(spec.first + len(kinds), np.random.default_rng([2027, which, seed]))[spec.first :]
    counts = {"train": spec.shots, "test": spec.n_test, "unlabelled": spec.n_unlabelled}
    for purpose, (part, count) in enumerate(counts.items()):
        for t, (kind, word) in enumerate(zip(kinds, names, strict=True), start=spec.first):
            for i in range(count):
                # Unlabelled files lie mixed: no name of theirs tells their type.
                order = np.random.default_rng([2027, seed, t, i]).integers(10**9)
                file = (
                    folder / part / (f"{order:09}.png" if part == "unlabelled" else f"{word.replace(' ', '-')}/{i:03}.png")
                )
                file.parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng([2027, which, seed, purpose, t, i])
                held_out = part == "test" or (as_tested and part == "unlabelled")
                source.picture(kind, rng, held_out, noise).save(file)
    old = {"n_types": 1, "seed": seed, "split": spec.split, "n_retain": spec.n_retain, "n_old": spec.n_old, "noise": noise}
    known = resolve_data("builtin:novel-objects", cache_dir, **old)
    for part in ("old", "retain"):
        if not (folder / part).exists():
            (folder / part).symlink_to(Path("..") / known.name / part)  # both lie in the cache, which may be moved
    words = {p.name for p in (folder / "old").iterdir() if p.is_dir()} | {word.replace(" ", "-") for word in names}
    types = {word: {"answer": word.replace("-", " ")} for word in sorted(words)}
    (folder / "kinds.json").write_text(json.dumps(dict(zip(names, kinds, strict=True)), indent=1) + "\n", "utf-8")
    (folder / "types.yaml").write_text(yaml.safe_dump(types), "utf-8")
    return folder
