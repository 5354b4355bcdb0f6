"""Draws the figures of the page on neural collapse, docs/images/nc_*.png: `python docs/draw_neural_collapse.py`.

Each network is a small MLP, trained on scikit-learn's digits with all training images in every step. Beside the
pictures, the program prints the numbers that the page quotes. It takes 66 s of CPU time.
"""

from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from nc_jax.frames import hyperspherical, simplex_etf
from nc_jax.heads import HeadOutput
from nc_jax.losses import cross_entropy
from nc_jax.metrics import (
    ClassStatistics,
    etf_distance,
    nearest_centre_agreement,
    self_duality,
    within_class_collapse,
)
from nc_jax.models import Classifier, LearnedHead

IMAGES = Path(__file__).parent / "images"
DPI = 110
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STEPS, RATE, DECAY = 1500, 0.1, 2e-3  # a decay so large that collapse comes within the steps of a figure


class Network(nn.Module):
    """A small MLP. The normalisation lets all of its layers be trained quickly; its features may have any sign."""

    dim: int

    @nn.compact
    def __call__(self, inputs):
        for _ in range(2):
            inputs = nn.relu(nn.LayerNorm()(nn.Dense(128)(inputs)))
        return nn.Dense(self.dim)(inputs)


class Trained(NamedTuple):
    """What a network gives after some steps, for training and test images."""

    steps: tuple[int, ...]
    train: list[HeadOutput]
    test: list[HeadOutput]
    labels: np.ndarray
    test_labels: np.ndarray


def train(num_classes, dim, steps, *, head=None):
    """Train on the first digits and return what the network gives after each of these numbers of steps."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (part[labels < num_classes] for part in (images / 16.0, labels))
    held_out = np.arange(len(labels)) % 5 == 4
    inputs, targets = jnp.asarray(images[~held_out]), jnp.asarray(labels[~held_out])
    model = Classifier(Network(dim), head or LearnedHead(num_classes))
    params = model.init(jax.random.key(0), inputs[:1])["params"]
    optimizer = optax.chain(
        optax.add_decayed_weights(DECAY), optax.sgd(optax.cosine_decay_schedule(RATE, STEPS), momentum=0.9)
    )

    def loss(params):
        return jnp.mean(cross_entropy(model.apply({"params": params}, inputs).logits, targets))

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    go_on = jax.jit(lambda carry, number: jax.lax.fori_loop(0, number, step, carry))
    look = jax.jit(lambda params, images: model.apply({"params": params}, images))
    carry, done = (params, optimizer.init(params)), 0
    found = Trained(tuple(steps), [], [], labels[~held_out], labels[held_out])
    for end in steps:
        carry, done = go_on(carry, end - done), end
        found.train.append(look(carry[0], inputs))
        found.test.append(look(carry[0], jnp.asarray(images[held_out])))
    return found


def measured(output, labels):
    """Return NC1 to NC4 and the accuracy on one set of images."""
    stats = ClassStatistics.from_batch(output.features, jnp.asarray(labels), output.frame.shape[1])
    agreement = nearest_centre_agreement(output.features, output.frame, output.bias, stats.means)
    found = {
        "NC1": within_class_collapse(stats),
        "NC2 of class means": etf_distance(stats.centred_means()),
        "NC2 of class vectors": etf_distance(output.frame),
        "NC3": self_duality(output.frame, stats),
        "NC4": agreement.compute(),
        "accuracy": jnp.mean(jnp.argmax(output.logits, axis=1) == jnp.asarray(labels)),
    }
    return {name: float(value) for name, value in found.items()}


def say(what, found, place):
    """Print what was measured after some steps."""
    for name, outputs, labels in (("training", found.train, found.labels), ("test", found.test, found.test_labels)):
        values = ", ".join(f"{key} {value:.4f}" for key, value in measured(outputs[place], labels).items())
        print(f"{what}, step {found.steps[place]}, {name}: {values}")


def centres(output, labels):
    """Return the class means as columns and their mean."""
    features = np.asarray(output.features)
    means = np.stack([features[labels == k].mean(axis=0) for k in range(output.frame.shape[1])], axis=1)
    return means, means.mean(axis=1)


def bare(axis, reach=None):
    """Take away ticks; show the square of this half width about the origin."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal")
    if reach is not None:
        axis.set_xlim(-reach, reach)
        axis.set_ylim(-reach, reach)


def scatter(axis, points, labels, alpha=0.5, size=9):
    for k in range(int(labels.max()) + 1):
        axis.scatter(*points[labels == k].T, s=size, color=COLOURS[k], alpha=alpha, linewidths=0)


def arrows(axis, vectors, style="-", colours=COLOURS, width=2.0):
    """Draw the columns as arrows from the origin."""
    for vector, colour in zip(vectors.T, colours, strict=False):
        properties = {
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": width,
            "linestyle": style,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axis.annotate("", vector, (0, 0), arrowprops=properties)


def plane(found):
    """Three digits in the plane: features, class means and class vectors at three times."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    titles = ("before training", f"step {found.steps[1]}: all training images right", f"step {found.steps[2]}")
    for axis, output, title in zip(figure.subplots(1, 3), found.train, titles, strict=True):
        means, middle = centres(output, found.labels)
        points = np.asarray(output.features) - middle
        reach = 1.15 * np.abs(points).max()
        scatter(axis, points, found.labels)
        vectors = np.asarray(output.frame) / np.linalg.norm(output.frame, axis=0).max()
        arrows(axis, 0.8 * reach * vectors)
        axis.scatter(*(means.T - middle).T, s=90, marker="X", color=COLOURS[:3], edgecolor="black", zorder=4)
        bare(axis, reach)
        axis.set_title(title, fontsize=11)
    figure.savefig(IMAGES / "nc_plane.png", dpi=DPI)


def space(found):
    """Four digits in three dimensions at three times; the last class means are joined."""
    figure = Figure(figsize=(10, 3.8))
    titles = ("before training", f"step {found.steps[1]}: all training images right", f"step {found.steps[2]}")
    for place, (output, title) in enumerate(zip(found.train, titles, strict=True)):
        axis = figure.add_subplot(1, 3, place + 1, projection="3d")
        means, middle = centres(output, found.labels)
        points, means = np.asarray(output.features) - middle, (means.T - middle).T
        scatter(axis, points, found.labels, size=7)
        axis.scatter(*means, s=80, marker="X", color=COLOURS[:4], edgecolor="black", depthshade=False)
        for first in range(4):
            for second in range(first):
                axis.plot(*means[:, [first, second]], color="0.35", linewidth=1)
        reach = np.abs(points).max()
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach), xticks=[], yticks=[], zticks=[])
        axis.set_box_aspect((1, 1, 1), zoom=1.05)
        axis.set_title(title, fontsize=11)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.9, wspace=0.02)
    figure.savefig(IMAGES / "nc_space.png", dpi=DPI)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=0)


def properties(found):
    """The four properties, one in a row, early (left) and late (right) in the training of `plane`."""
    figure = Figure(figsize=(7.2, 14), layout="constrained")
    grid = figure.subplots(4, 2)
    for column, place in enumerate((1, 2)):
        output, labels = found.train[place], found.labels
        means, middle = centres(output, labels)
        features = np.asarray(output.features)
        centred, points = (means.T - middle).T, features - middle
        reach = 1.15 * np.abs(points).max()
        axis = grid[0, column]
        for k in range(3):
            for point in points[labels == k]:
                axis.plot(*np.stack([centred[:, k], point], axis=1), color=COLOURS[k], linewidth=0.5, alpha=0.5)
        scatter(axis, points, labels)
        bare(axis, reach)
        axis = grid[1, column]
        arrows(axis, centred)
        angles = np.degrees(np.arctan2(centred[1], centred[0]))
        order = np.argsort(angles)
        for first, second in zip(order, np.roll(order, -1), strict=True):
            gap = (angles[second] - angles[first]) % 360
            middle_angle = np.radians(angles[first] + gap / 2)
            axis.text(
                *(0.33 * reach * np.array([np.cos(middle_angle), np.sin(middle_angle)])),
                f"{gap:.0f}°",
                ha="center",
                va="center",
            )
        axis.plot(*centred[:, [0, 1, 2, 0]], color="0.6", linewidth=1)
        bare(axis, reach)
        axis = grid[2, column]
        arrows(axis, unit(centred), width=4.5)
        arrows(axis, unit(np.asarray(output.frame)), "--", ("black",) * 3, 1.5)
        bare(axis, 1.15)
        axis = grid[3, column]
        axes = [np.linspace(-reach, reach, 400)] * 2
        where = np.stack([part.ravel() for part in np.meshgrid(*axes)], axis=1) + middle
        decided = np.argmax(where @ np.asarray(output.frame) + np.asarray(output.bias), axis=1)
        nearest = np.argmin(((where[:, :, None] - means[None]) ** 2).sum(axis=1), axis=1)
        extent = (-reach, reach, -reach, reach)
        shown = {"extent": extent, "origin": "lower", "cmap": ListedColormap(COLOURS[:3]), "alpha": 0.3, "vmax": 2}
        axis.imshow(decided.reshape(400, 400), **shown)
        for k in range(3):
            axis.contour(
                *axes, (nearest == k).reshape(400, 400), levels=[0.5], colors="black", linewidths=1.2, linestyles="--"
            )
        scatter(axis, points, labels, size=6)
        axis.scatter(*centred, s=70, marker="X", color=COLOURS[:3], edgecolor="black", zorder=4)
        bare(axis, reach)
    for row, text in enumerate(
        (
            "NC1: each class becomes a point",
            "NC2: equal lengths, equal angles",
            "NC3: class vectors (dashed)\nalong class means",
            "NC4: decisions (colours) are those\nof the nearest mean (dashed)",
        )
    ):
        grid[row, 0].set_title(text + f"\nstep {found.steps[1]}", fontsize=11)
        grid[row, 1].set_title(f"step {found.steps[2]}", fontsize=11)
    figure.savefig(IMAGES / "nc_properties.png", dpi=DPI)


def curves(found):
    """NC1 to NC4 of ten digits in 64 dimensions against the steps, on training and test images."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    rows = {
        "training images": [measured(one, found.labels) for one in found.train],
        "test images": [measured(one, found.test_labels) for one in found.test],
    }
    fitted = next(step for step, row in zip(found.steps, rows["training images"], strict=True) if row["accuracy"] == 1)
    panels = {
        "NC1: within classes": ("NC1",),
        "NC2: distance to a simplex": ("NC2 of class means", "NC2 of class vectors"),
        "NC3: class vectors to class means": ("NC3",),
        "NC4: agreement with the nearest mean": ("NC4",),
    }
    for axis, (title, names) in zip(figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True):
        for name in names:
            for set_name, colour in zip(rows, ("#009E73", "#D55E00"), strict=True):
                vectors = name.endswith("vectors")
                if vectors and set_name == "test images":
                    continue  # class vectors belong to no set of images
                values = [row[name] for row in rows[set_name]]
                label = "class vectors" if vectors else set_name
                axis.plot(found.steps, values, color="#0072B2" if vectors else colour, label=label)
        axis.axvline(fitted, color="0.6", linewidth=1)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_yscale("linear" if "NC4" in title else "log")
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
    for axis in figure.axes[2:]:
        axis.set_xlabel("step")
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(IMAGES / "nc_curves.png", dpi=DPI)
    print(f"ten digits: all training images right from step {fitted} on")


def frames():
    """Simplex ETFs of two, three and four vectors; six vectors of least energy in the plane and in space."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    shapes = {
        "K = 2, d = 1": np.array([[1.0, -1.0], [0.0, 0.0]]),
        "K = 3, d = 2": np.asarray(simplex_etf(3, 2)),
        "K = 4, d = 3": np.asarray(simplex_etf(4, 3)),
        "K = 6, d = 2": np.asarray(hyperspherical(6, 2)),
        "K = 6, d = 3": np.asarray(hyperspherical(6, 3)),
    }
    for place, (title, vectors) in enumerate(shapes.items()):
        flat = len(vectors) == 2
        axis = figure.add_subplot(2, 3, place + 1, **({} if flat else {"projection": "3d"}))
        cosines = (vectors.T @ vectors)[np.triu_indices(vectors.shape[1], 1)]
        for first, colour in enumerate(COLOURS[: vectors.shape[1]]):
            for second in range(first):
                if vectors[:, first] @ vectors[:, second] > cosines.max() - 0.01:  # neighbours
                    axis.plot(*vectors[:, [first, second]], color="0.7", linewidth=1)
            axis.plot(*np.stack([0 * vectors[:, first], vectors[:, first]], axis=1), color=colour, linewidth=2.5)
        if flat:
            bare(axis, 1.1)
        else:
            axis.set_box_aspect((1, 1, 1), zoom=1.4)
        axis.axis("off")
        axis.set_title(f"{title}\nlargest cosine {cosines.max() + 0:.3g}", fontsize=12)
    figure.savefig(IMAGES / "nc_frames.png", dpi=DPI)


def crowded(plain, scaled):
    """Six digits in the plane, where no simplex fits: an ordinary last layer, and features of one length."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    shown = (
        (plain.train[0], "before training"),
        (plain.train[-1], "an ordinary last layer"),
        (scaled.train[-1], "features of one length, unit class vectors"),
    )
    for axis, (output, title) in zip(figure.subplots(1, 3), shown, strict=True):
        means, middle = centres(output, plain.labels)
        middle = 0 * middle if output is scaled.train[-1] else middle
        points = np.asarray(output.features) - middle
        reach = 1.15 * np.abs(points).max()
        scatter(axis, points, plain.labels)
        arrows(axis, 0.8 * reach * np.asarray(output.frame) / np.linalg.norm(output.frame, axis=0).max())
        axis.scatter(*(means.T - middle).T, s=90, marker="X", color=COLOURS, edgecolor="black", zorder=4)
        bare(axis, reach)
        axis.set_title(title, fontsize=11)
    figure.savefig(IMAGES / "nc_crowded.png", dpi=DPI)
    for name, found in (("ordinary", plain), ("one length", scaled)):
        means, middle = centres(found.train[-1], found.labels)
        angles = np.sort(np.degrees(np.arctan2(*unit((means.T - middle).T)[::-1])))
        print(
            f"six digits, {name}: angles between neighbours {np.round(np.diff(np.append(angles, angles[0] + 360)), 1)}"
        )


def main():
    frames()
    three = train(3, 2, (0, 50, STEPS))
    for place in range(3):
        say("three digits", three, place)
    plane(three)
    properties(three)
    four = train(4, 3, (0, 100, STEPS))
    for place in range(3):
        say("four digits", four, place)
    space(four)
    # tau = 5, the default of the heads of `nc_jax.heads` that scale features
    one_length = {"radius": 5.0, "normalize_columns": True, "use_bias": False}
    steps = (0, 2, 5, *np.unique(np.geomspace(10, STEPS, 30).astype(int)).tolist())
    ten = train(10, 64, steps, head=LearnedHead(10, **one_length))
    say("ten digits", ten, 0)
    say("ten digits", ten, -1)
    curves(ten)
    plain = train(6, 2, (0, STEPS))
    scaled = train(6, 2, (0, STEPS), head=LearnedHead(6, **one_length))
    say("six digits, ordinary layer", plain, -1)
    say("six digits, features of one length", scaled, -1)
    crowded(plain, scaled)


if __name__ == "__main__":
    main()
