"""The training explorer: accuracies of trained networks become rows, words and controls."""

from collections.abc import Callable, Sequence
from functools import partial

from robustviz.data import ImageSet, load
from robustviz.evaluation import wilson
from robustviz.explorers.control import Control, State, in_levels, strength_control, strength_presets
from robustviz.explorers.explorer import Explorer, Row
from robustviz.explorers.frames import BUDGET, Frames
from robustviz.explorers.networks import usual_images
from robustviz.explorers.pictures import rounded
from robustviz.explorers.training import EPOCHS, training_frames
from robustviz.explorers.training_chart import draw_training
from robustviz.models import Classifier


def training_explorer(
    training: ImageSet | None = None,
    images: ImageSet | None = None,
    *,
    radii: Sequence[float] | None = None,
    epochs: Sequence[int] = EPOCHS,
    strengths: Sequence[float] | None = None,
    build: Callable[[], Classifier] | None = None,
    budget: int = BUDGET,
) -> Explorer:
    """Train small networks against growing radii and return the explorer that compares them.

    Args:
        training: None takes all training images of digits.
        images: None takes 100 test images of digits.
        radii: That are trained against, growing; None takes five, up to twice the usual radius.
        epochs: Numbers of epochs, growing.
        strengths: Radii of the attack that measures; None takes nine, up to twice the usual radius.
        build: Makes an untrained network for the images; None takes `small_cnn`.
        budget: Most frames: radii x epochs x strengths.

    Raises:
        ValueError: If only one of `training` and `images` is given, or `training_frames` refuses a setting.
    """
    if (training is None) != (images is None):
        raise ValueError("training and images must be given together, because they must be of one data set")
    training = load("digits", "train") if training is None else training
    images = usual_images(100, "digits") if images is None else images
    frames = training_frames(
        training, images, radii=radii, epochs=epochs, strengths=strengths, build=build, budget=budget
    )
    return show_training(frames)


def show_training(frames: Frames) -> Explorer:
    """Make the training explorer of frames that were measured, or loaded."""
    count = len(frames.grid["radius"])
    both, unit = in_levels((*frames.grid["radius"], *frames.grid["strength"]), "linf")
    radii, strengths, epochs = both[:count], both[count:], frames.grid["epochs"]
    grid = {"radius": radii, "epochs": epochs, "strength": strengths}
    frames = Frames(frames.kind, grid, frames.arrays, frames.about)
    names = tuple(f"{radius}{unit}" if radius else "0 (clean)" for radius in radii)
    how = [f"against {radius}{unit}" if radius else "on clean images" for radius in radii]
    controls = (
        Control("radius", "Trained against", radii, radii[len(radii) // 2], names),
        Control("epochs", "Epochs", epochs, epochs[(len(epochs) - 1) // 2]),
        strength_control(strengths, unit),
    )
    trained: dict[str, State] = {
        f"trained {how[place]}": {"radius": radii[place]} for place in sorted({0, count // 2, count - 1})
    }
    rows = _rows(frames, names)
    return Explorer(
        title=f"Adversarial training on {frames.about['data']}",
        lead="What does robustness cost? Choose the radius that networks are trained against, and for how long.",
        frames=frames,
        controls=controls,
        presets=trained | strength_presets(strengths),
        captions=[_caption(rows, row, how, unit) for row in rows],
        tables={"rows": rows},
        draw=partial(draw_training, frames, names, unit),
        signals={f"{control.name}_place": control.place for control in controls},
    )


def _rows(frames: Frames, names: Sequence[str]) -> list[Row]:
    """Return a row for every frame, with its place among radii, epochs and strengths; all accuracies in percent."""
    accuracy, count = frames.arrays["accuracy"], frames.about["images"]
    _, many, strong = accuracy.shape
    rows: list[Row] = []
    for k in range(len(frames)):
        i, j, s = k // (many * strong), k // strong % many, k % strong
        row: Row = {"k": k, "i": i, "j": j, "s": s, "n": names[i]}
        row |= {"e": frames.grid["epochs"][j], "x": frames.grid["strength"][s]}
        for end, share in (("", accuracy[i, j, s].item()), ("c", accuracy[i, j, 0].item())):
            low, high = wilson(share, count)
            row |= {
                end or "y": rounded(100 * share),
                f"low{end}": rounded(100 * low),
                f"high{end}": rounded(100 * high),
            }
        rows.append(row)
    return rows


def _caption(rows: list[Row], row: Row, how: Sequence[str], unit: str) -> str:
    """Say what a network can do, and which of those trained as long do best."""
    others = [one for one in rows if (one["j"], one["s"]) == (row["j"], row["s"])]

    def best(column: str) -> str:
        top = max(one[column] for one in others)
        *some, last = (one["n"] for one in others if one[column] == top)
        return f"{', '.join(some)} and {last} ({top:.0f}%)" if some else f"{last} ({top:.0f}%)"

    epochs = f"{row['e']} epoch" + ("" if row["e"] == 1 else "s")
    told = f"Trained {how[row['i']]} for {epochs}: {row['c']:.0f}% of clean images are right"
    most = f"After as many epochs, clean accuracy is highest with training against {best('c')}"
    if not row["s"]:
        return f"{told}. {most}."
    attacked = f"{row['y']:.0f}% ({row['low']:.0f} to {row['high']:.0f}%) under PGD-10 of strength {row['x']}{unit}"
    return f"{told}, and {attacked}. {most}, attacked accuracy with training against {best('y')}."
