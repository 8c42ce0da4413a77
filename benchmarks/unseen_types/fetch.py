"""Pictures that the builtin model was not made from, from package registries: `python benchmarks/unseen_types/fetch.py`.

Downloads by name with npm, apt and pip, prints each licence, and writes below the ignored `data/unseen_types/`:

    emoji/<vendor>/<name>.png    641 concrete things in six vendors' drawings, on transparent ground
    fonts/<hand>.ttf             Japanese fonts in eight hands, for characters
    fashion/*.gz                 Fashion-MNIST's training images and labels

SVG is drawn by resvg-py, out of a wheel that is downloaded too: nothing is installed. npm, and Debian's apt-get and
dpkg-deb, must be there.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from packages import fetch

#: vendor -> version of the npm package @iconify-json/<vendor>
VENDORS = {
    "noto": "1.2.9",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
    "openmoji": "1.2.29",
}
#: Noto's categories of things; faces, people, flags and symbols are left out.
CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
RESVG = "resvg-py==0.5.0"
SIDE = 96
FONTS = "usr/share/fonts/truetype"
#: hand -> (Debian package, its file)
HANDS = {
    "kiloji": ("fonts-kiloji", f"{FONTS}/kiloji/kiloji.ttf"),
    "seto": ("fonts-seto", f"{FONTS}/seto/setofont.ttf"),
    "yusei": ("fonts-yusei-magic", f"{FONTS}/yusei-magic/YuseiMagic-Regular.ttf"),
    "yoz": ("fonts-yozvox-yozfont-standard-kana", f"{FONTS}/yozvox-yozfont/YOzBS_.ttf"),
    "soseki": ("fonts-aoyagi-soseki", f"{FONTS}/aoyagi-soseki/aoyagi-soseki.ttf"),
    "kouzan": ("fonts-kouzan-mouhitsu", f"{FONTS}/kouzan-mouhitsu/kouzan-mouhitsu.ttf"),
    "dejima": ("fonts-dejima-mincho", f"{FONTS}/dejima-mincho/dejima-mincho-r227.ttf"),
    "takao": ("fonts-takao-gothic", f"{FONTS}/takao-gothic/TakaoGothic.ttf"),
}
FASHION = "dataset-fashion-mnist"
FASHION_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


def main() -> None:
    """Fetch everything; what is there is not fetched again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/unseen_types"))
    parser.add_argument("--downloads", type=Path, default=Path("data/wheels"), help="where archives are kept")
    args = parser.parse_args()
    args.downloads.mkdir(parents=True, exist_ok=True)
    emoji(args.out / "emoji", args.downloads)
    for hand, (package, member) in HANDS.items():
        debian(package, {member: args.out / "fonts" / f"{hand}.ttf"}, args.downloads)
    members = {f"usr/share/datasets/fashion-mnist/{name}": args.out / "fashion" / name for name in FASHION_FILES}
    debian(FASHION, members, args.downloads)


def emoji(out: Path, downloads: Path) -> None:
    """Every vendor's drawing of what all vendors draw, as PNG with transparent ground."""
    packs: dict[str, dict[str, Any]] = {}
    for vendor, version in VENDORS.items():
        archive = downloads / f"iconify-json-{vendor}-{version}.tgz"
        if not archive.exists():
            run(["npm", "pack", "--silent", f"@iconify-json/{vendor}@{version}", "--pack-destination", str(downloads)])
        with tarfile.open(archive) as tar:
            packs[vendor] = {n: json.load(tar.extractfile(f"package/{n}.json")) for n in ("icons", "info", "metadata")}  # type: ignore[arg-type]
        print(f"@iconify-json/{vendor} {version}: licence {packs[vendor]['info']['license']['spdx']}")
    categories = packs["noto"]["metadata"]["categories"]
    things = {name for category in CATEGORIES for name in categories[category]}
    shared = sorted(things.intersection(*(pack["icons"]["icons"] for pack in packs.values())))
    # The hands of a clock are too small for pictures of this size.
    shared = [name for name in shared if not name.endswith(("-oclock", "-thirty"))]
    with fetch(RESVG, downloads) as wheel:
        wheel.extractall(downloads / "resvg-py")
    sys.path.insert(0, str(downloads / "resvg-py"))
    from resvg_py import svg_to_bytes

    for vendor, pack in packs.items():
        folder, icons = out / vendor, pack["icons"]
        folder.mkdir(parents=True, exist_ok=True)
        for name in shared:
            file, icon = folder / f"{name}.png", icons["icons"][name]
            if not file.exists():
                width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
                svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
                file.write_bytes(bytes(svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)))
        print(f"{folder}: {len(shared)} pictures")


def debian(package: str, members: dict[str, Path], downloads: Path) -> None:
    """Members of a Debian package, taken out without installing it; prints the licences that it states."""
    if not list(downloads.glob(f"{package}_*.deb")):
        run(["apt-get", "download", package], cwd=downloads)
    archive = next(downloads.glob(f"{package}_*.deb"))
    packed = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        stated = tar.extractfile(f"./usr/share/doc/{package}/copyright").read().decode("utf-8", "replace")  # type: ignore[union-attr]
        for member, file in members.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tar.extractfile(f"./{member}").read())  # type: ignore[union-attr]
    names = dict.fromkeys(line.partition(":")[2].strip() for line in stated.splitlines() if line.startswith("License:"))
    print(f"{archive.name.removesuffix('.deb')}: licence {', '.join(names) or 'see ' + stated.strip().splitlines()[0]}")


def run(command: list[str], cwd: Path | None = None) -> None:
    """Run a download. Raises SystemExit where the program is missing or fails."""
    try:
        subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"{' '.join(command)} failed: {error}. It needs npm, or Debian's apt-get, and their registries."
        ) from error


if __name__ == "__main__":
    main()
