"""Draw the pictures of the README from the shipped networks: `python -m tools.pictures`."""

from functools import partial
from pathlib import Path

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.data import signs
from robustviz.explorers import attack_explorer

PICTURES = Path(__file__).parents[1] / "data" / "pictures"
NETWORKS = {"standard": "signs-standard", "adversarially trained": "signs-pgd"}
EPSILON = 8 / 255


def stop_sign(path: Path) -> str:
    """Draw the attack explorer on a stop sign that one network takes for no entry; return what the picture shows."""
    test = signs("test")
    stops = test[(test.labels == test.classes.index("stop")).nonzero().squeeze(1)[:20]]
    networks = {title: checkpoints.load(name)[0] for title, name in NETWORKS.items()}
    strengths = [EPSILON * part / 8 for part in range(11)]
    explorer = attack_explorer(networks, stops, attacks={"PGD": partial(pgd, steps=20)}, strengths=strengths, shown=8)
    strength = next(control for control in explorer.controls if control.name == "strength").values[8]
    state = {"image": 2, "attack": "PGD", "strength": strength}
    explorer.still(path, state)
    return explorer.describe(state)


if __name__ == "__main__":
    print(stop_sign(PICTURES / "stop-sign.png"))
