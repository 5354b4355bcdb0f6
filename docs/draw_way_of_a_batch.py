"""Draws the figure of the architecture page, docs/images/way_of_a_batch.png: `python docs/draw_way_of_a_batch.py`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

DATA, MODEL, METHOD, STATE = "#DCEBF7", "#E9E4F5", "#DDF1E4", "#FBE9D7"
WIDTH, HEIGHT = 2.35, 0.95
# Name, what it does, where it is in the code, colour, and place (column, row).
BOXES = {
    "stream": ("which examples make\nup step s", "nc_jax.streams", DATA, (0, 2)),
    "batch": ("inputs, labels, mask", "nc_jax.data", DATA, (1, 2)),
    "backbone": ("features (N, d)", "nc_jax.models", MODEL, (2, 2)),
    "head": ("class vectors (d, K)\nand logits (N, K)", "nc_jax.heads", METHOD, (3, 2)),
    "loss": ("a number per example", "nc_jax.losses", METHOD, (4, 2)),
    "extensions": ("change batch, features or logits; add penalties", "nc_jax.training.extensions", METHOD, (2, 1)),
    "optimiser": ("moves the parameters", "nc_jax.training", STATE, (4, 1)),
    "state": (
        "parameters, class means, rotation, extensions' state, key, step",
        "nc_jax.training.state",
        STATE,
        (2, 0),
    ),
}
WIDE = {"extensions": 5.0, "state": 7.6}


def main() -> None:
    figure = Figure(figsize=(13, 5.1), layout="constrained")
    axis = figure.add_subplot()
    centres = {}
    for name, (does, home, colour, (column, row)) in BOXES.items():
        x, y, width = 2.9 * column, 1.75 * row, WIDE.get(name, WIDTH)
        centres[name] = x, y, width
        box = FancyBboxPatch(
            (x - width / 2, y - HEIGHT / 2),
            width,
            HEIGHT,
            boxstyle="round,pad=0.06",
            facecolor=colour,
            edgecolor="0.35",
        )
        axis.add_patch(box)
        axis.text(x, y + 0.28, name, ha="center", va="center", fontsize=12, weight="bold")
        axis.text(x, y - 0.06, does, ha="center", va="center", fontsize=8.5)
        axis.text(x, y - 0.4, home, ha="center", va="center", fontsize=7.5, color="0.35", family="monospace")

    def arrow(start, end, *, label="", at=(0.0, 0.0), style="-", bend=0.0):
        patch = FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=14, linestyle=style, color="0.25",
            connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0,
        )  # fmt: skip
        axis.add_patch(patch)
        axis.text((start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1], label, fontsize=8, ha="center")

    edge = WIDTH / 2 + 0.07
    for left, right in (("stream", "batch"), ("batch", "backbone"), ("backbone", "head"), ("head", "loss")):
        (x, y, _), (to, _, _) = centres[left], centres[right]
        arrow((x + edge, y), (to - edge, y))
    (x, top, _), (_, middle, _), (_, bottom, _) = centres["loss"], centres["optimiser"], centres["state"]
    down = HEIGHT / 2 + 0.07
    arrow((x, top - down), (x, middle + down), label="gradient, summed\nover devices", at=(0.85, -0.1))
    arrow((x, middle - down), (x - 2.0, bottom + 0.2), label="new parameters", at=(0.45, -0.28))
    for column, text in ((1, "on_batch"), (2, "on_features"), (3, "on_output,\npenalties")):
        place = 2.9 * column
        inside = min(max(place, 2.9 * 2 - 2.3), 2.9 * 2 + 2.3)
        arrow((inside, middle + down), (place, top - down), style="--", label=text, at=(0.55, -0.1))
    arrow((2.9 * 2, middle - down), (2.9 * 2, bottom + down), style="--", label="update", at=(0.4, -0.05))
    start, words = (2.9 * 2 - 3.9, bottom), "seed and step decide\nthe next batch"
    arrow(start, (0, top - down), label=words, at=(-1.55, -0.75), bend=-0.2)
    axis.set_xlim(-1.6, 13.4)
    axis.set_ylim(-0.7, 4.1)
    axis.axis("off")
    figure.savefig(Path(__file__).parent / "images" / "way_of_a_batch.png", dpi=110)


if __name__ == "__main__":
    main()
