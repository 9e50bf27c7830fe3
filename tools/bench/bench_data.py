"""What pictures cost: memory for 500 of 5,000 photographs at 224x224, and CPU time to draw the road signs.

Memory is the maximum of a process of its own, above what it had after `import torch`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from robustviz.data import SIGNS
from robustviz.data.signs import scenes
from robustviz.tensors import seeded
from tools.bench.timing import Ratio, interleaved

CLASSES, PHOTOGRAPHS, DRAWN = 5, 5000, 500

READ = """
import resource, sys, torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from robustviz.data import load
image_set = load(sys.argv[1], resize=256, crop=224, limit=500)
assert image_set.pixels.shape == (500, 3, 224, 224)
unit = 2**30 if sys.platform == "darwin" else 2**20
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit)
"""


def main() -> Iterator[Ratio]:
    with TemporaryDirectory() as place:
        folder = photographs(Path(place) / "photographs")
        environment = os.environ | {"ROBUSTVIZ_CACHE": str(Path(place) / "cache")}
        for name in ("decoded", "cached"):
            answer = subprocess.run(
                [sys.executable, "-c", READ, str(folder)], env=environment, capture_output=True, text=True, check=True
            )
            yield Ratio(f"500 pictures {name}", "GiB", [float(answer.stdout)], 0.4)
    labels = torch.arange(DRAWN) % len(SIGNS)
    seconds = interleaved({"drawn": lambda: scenes(labels, seeded(0))}, 3)["drawn"]
    yield Ratio("7,000 road signs", "5 s", [value * 7000 / DRAWN / 5 for value in seconds], 1)


def photographs(folder: Path) -> Path:
    """A folder of classes; a few pictures of several sizes are linked again and again."""
    sources = []
    for number, size in enumerate([(400, 300), (300, 400), (640, 480), (256, 256), (1024, 768)]):
        low = torch.randint(256, (3, 12, 16), generator=seeded(number)).byte().permute(1, 2, 0).numpy()
        sources.append(folder.parent / f"{number}.jpg")
        Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(sources[-1])
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(PHOTOGRAPHS // CLASSES):
            (folder / f"class{label}" / f"{number:04}.jpg").hardlink_to(sources[(number + label) % len(sources)])
    return folder
