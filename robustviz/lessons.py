"""What every lesson uses: data and networks by one name, predictions, checks, and figures with a description."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import robustviz
from robustviz import checkpoints
from robustviz.data import DOWNLOADS, ImageSet, Part, load
from robustviz.evaluation.comparison import RESULTS, Comparison
from robustviz.geometry import template_source
from robustviz.models import Classifier
from robustviz.presets import stem, usual_device

CHECKOUT = Path(robustviz.__file__).parents[1]
"""Where data and recorded results lie beside the package, in a checkout of the repository."""

DOTS_PER_INCH = 80


def load_images(data: str, part: Part = "test", size: int | None = None) -> ImageSet:
    """Load the images of a lesson, on the device where its networks are.

    Args:
        data: `digits`, or what `robustviz.data.load` takes; fetched sets are looked for here and in the checkout.
        part: Part of the set.
        size: How many digits, every class in proportion; of larger pictures a quarter as many. None takes all.

    Raises:
        FileNotFoundError: If the set is not there; the message says how to fetch it.
    """
    here = DOWNLOADS if DOWNLOADS.is_dir() else CHECKOUT / DOWNLOADS
    images = load(data, part, root=here)
    if size is not None:
        images = images.subset(size if data == "digits" else max(size // 4, len(images.classes)))
    return images.to(_device(data))


def load_networks(data: str, names: Mapping[str, str]) -> dict[str, Classifier]:
    """Load trained networks of one data set, on the device of its images.

    Args:
        data: Name of the data set, as `load_images` takes it.
        names: What the lesson calls each network, and the end of its checkpoint's name: `{"standard": "standard"}`
            loads `digits-standard` or `cifar10-standard`.

    Raises:
        FileNotFoundError: If there is no such checkpoint; the known names are listed.
    """
    return {name: checkpoints.load(f"{stem(data)}-{ending}")[0].to(_device(data)) for name, ending in names.items()}


def load_template_source(data: str, ending: str) -> ImageSet:
    """Load the images that the template of a WNLL network was drawn from; `WNLLHead.votes` answers with their numbers.

    Args:
        data: Name of the data set, as `load_images` takes it.
        ending: The end of the checkpoint's name, such as `pgd-wnll`.

    Raises:
        ValueError: If the network has no template, or was trained on other images than those of this set.
    """
    return template_source(f"{stem(data)}-{ending}", load_images(data, "train"))


def recorded(name: str) -> Comparison:
    """Read what `robustviz compare` found for `cas`, `tvm` or `wnll`; on digits, over several seeds.

    Raises:
        FileNotFoundError: If it has not been recorded; the message says how to do it.
    """
    path = CHECKOUT / RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `robustviz compare {name}` writes it, in half an hour")
    return Comparison.load(path)


def _device(data: str) -> Any:
    """Small digits are fastest on the CPU, larger pictures on the best device there is."""
    return usual_device("cpu" if data == "digits" else "auto")


@dataclass(frozen=True)
class Prediction:
    """What a student expects, committed before the result is seen.

    Attributes:
        options: Possible answers by their letters.
        choice: Letter of the one that the student expects; None if there is no choice yet.
    """

    options: Mapping[str, str]
    choice: str | None

    def explain(self, answer: str) -> None:
        """Print the answer beside the prediction.

        Args:
            answer: Letter of the option that came true.

        Raises:
            ValueError: If it is not one of the letters.
        """
        if answer not in self.options:
            raise ValueError(f"answer must be one of {', '.join(self.options)}, got {answer!r}")
        expected = {None: "you made no prediction", answer: "as you predicted"}.get(
            self.choice, f"you predicted {self.choice}"
        )
        print(f"{answer}) {self.options[answer]} - {expected}")


def predict(question: str, *, choice: str | None = None, **options: str) -> Prediction:
    """Ask a question whose answer the next cells will show.

    Args:
        question: In one sentence.
        choice: Letter of an option; the student writes it. None leaves the question open.
        **options: Possible answers by their letters.

    Raises:
        ValueError: If the choice is not one of the letters.
    """
    if choice is not None and choice not in options:
        raise ValueError(f"choice must be one of {', '.join(options)}, got {choice!r}")
    print(question, *(f"{letter}) {text}" for letter, text in options.items()), sep="\n  ")
    print("not chosen yet: set choice, then go on" if choice is None else f"you predict {choice}")
    return Prediction(options, choice)


def check(answer: Any, rules: Mapping[str, Callable[[Any], Any]]) -> None:
    """Print `right`, or the first thing that is wrong with a student's answer.

    Args:
        answer: None stands for an exercise that has not been done.
        rules: What to say if the answer breaks the rule, and the rule: a function of the answer that is true of right
            ones. They are tried in order, and one that raises counts as broken.
    """
    if answer is None:
        print("not done yet")
        return
    for remark, rule in rules.items():
        try:
            kept, reason = bool(rule(answer)), ""
        except Exception as error:
            kept, reason = False, f" ({type(error).__name__}: {error})"
        if not kept:
            print(f"not yet: {remark}{reason}")
            return
    print("right")


@dataclass(frozen=True, repr=False)
class Described:
    """A figure as a picture with alternative text; the last line of a cell shows it.

    Notebooks keep the text beside the picture, and exported pages have it as `alt`.

    Attributes:
        png: The picture.
        text: What a reader who cannot see it should know.
    """

    png: bytes
    text: str

    def __repr__(self) -> str:
        return f"Figure: {self.text}"

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return self.png, {"alt": self.text}


def described(figure: Any, text: str, *, small: bool = False) -> Described:
    """Render a matplotlib figure, or that of Axes, and give it a description.

    Args:
        figure: Figure or Axes.
        text: What a reader who cannot see it should know, in a sentence or two; no number that another computer
            could round differently.
        small: Keep 256 colors. A map with pale regions then takes a third of the room, and looks the same.

    Raises:
        ValueError: If the text is shorter than a sentence.
    """
    if len(text) < 40:
        raise ValueError(f"text must be a sentence that says what the figure shows, got {text!r}")
    buffer = io.BytesIO()
    getattr(figure, "figure", figure).savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    if small:
        picture = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        picture.save(buffer, format="png", optimize=True)
    return Described(buffer.getvalue(), text)
