"""Class vectors that are spread over the sphere as evenly as possible, also if there are more of them than dimensions.

The hug methods maximise the hyperspherical uniformity gap (Liu et al., 2023): class vectors repel each other, and
features are drawn to their class vector, both as directions. There is no softmax. They differ in the placement of the
class vectors, which that paper calls proxies:

=====================  =================================================================================================
hug-learned            free parameters that are normalised in the loss only, as in the released program
hug-sphere             free parameters that are renormalised after every step
hug-random             random and fixed ("static random")
hug-optimised          of least energy and fixed ("static optimised")
hug-rotated            of least energy, turned by a rotation that is trained ("partially learnable"); behind the name,
                       the parametrisation of the rotation
hug-nearest            of least energy, turned to be nearest to the class means (ours)
=====================  =================================================================================================

The methods random-fixed, energy-fixed, energy-rotated and energy-nearest have the same class vectors and cross-entropy.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from nc_jax import frames, heads
from nc_jax.checks import PADDING_LABEL
from nc_jax.frames import as_template
from nc_jax.heads import Head
from nc_jax.losses import uniformity
from nc_jax.manifolds import PARAMETRISATIONS
from nc_jax.methods import continual
from nc_jax.methods.method import Method, Setting
from nc_jax.training import Loss

# --- Losses. ---


def hug(setting: Setting, *, learned: bool = False) -> Loss:
    """Energy of the class vectors plus distances within classes: `nc_jax.losses.uniformity.hug` for each example.

    Args:
        setting: gives the weights and the objective.
        learned: the class vectors are free parameters, for which the setting `stop_gradient` counts. A rotation gets
            its gradient from the distances within classes only, because it does not change the energy.
    """
    options, num_classes = setting.uniformity, setting.num_classes
    how: Any = {"objective": options.objective}
    stop = options.stop_gradient and learned

    def loss(output, batch, context):
        labels = jnp.where(batch.mask, batch.labels, PADDING_LABEL)
        if options.objective == "mhs":  # the farthest example of a class is no mean over examples
            terms = uniformity.hug_terms(output.features, labels, output.frame, stop_gradient_proxies=stop, **how)
            between, within = terms.between, jnp.broadcast_to(terms.within, labels.shape)
        else:
            between = uniformity.between_class(output.frame, **how)
            # Evaluation does not know the classes of its whole set, and takes the plain mean over examples.
            counts = context.class_counts(num_classes) if context.train else None
            within = uniformity.within_class(output.features, labels, output.frame, counts, stop_gradient_proxies=stop)
        return options.alpha * between + options.beta * within

    return loss


hug_learned = partial(hug, learned=True)

# --- Heads. The hug methods look at directions; cross-entropy needs features of a longer radius. ---


def least_energy_template(setting: Setting) -> Callable[[int], Any]:
    """Return a function from the feature dimension to the template of a frame of least energy."""
    options = setting.uniformity

    def template(dim: int) -> Any:
        num_classes = setting.num_classes
        rank = min(dim, num_classes - 1)  # a simplex needs no more
        found = frames.hyperspherical_template(num_classes, rank, objective=options.frame, s=options.s)
        # Class vectors of least energy sum to nearly zero, and it is centred class means that collapse to them.
        return as_template(found, centred=True)

    return template


def _frame(setting: Setting) -> Callable[..., Any]:
    options = setting.uniformity
    return partial(frames.hyperspherical, objective=options.frame, s=options.s)


def _learned(setting: Setting) -> Head:
    return heads.learned(setting.num_classes, radius=1.0, normalize_columns=True, use_bias=False)


def _sphere(setting: Setting) -> Head:
    return heads.learned(setting.num_classes, radius=1.0, on_sphere=True, use_bias=False)


def _random(setting: Setting, *, radius: float | None) -> Head:
    return heads.fixed(setting.num_classes, frame=frames.random_unit, radius=radius or setting.head.radius)


def _optimised(setting: Setting, *, radius: float | None) -> Head:
    return heads.fixed(setting.num_classes, frame=_frame(setting), radius=radius or setting.head.radius)


def _rotated(setting: Setting, *, radius: float | None, parametrisation: Any = "manifold") -> Head:
    return heads.rotated(
        setting.num_classes,
        template=least_energy_template(setting),
        parametrisation=parametrisation,
        radius=radius or setting.head.radius,
    )


def _nearest(setting: Setting, *, radius: float | None) -> Head:
    options = setting.head if radius is None else dataclasses.replace(setting.head, radius=radius)
    return heads.nearest(setting.num_classes, template=least_energy_template(setting), options=options)


# --- The table. ---

_LIU = "Liu et al. (2023), Generalizing and decoupling neural collapse via hyperspherical uniformity gap"
HUG = {
    "hug-learned": Method("HUG, learned", _learned, hug_learned, reference=f"{_LIU}, and its released program"),
    "hug-sphere": Method("HUG, learned on the sphere", _sphere, hug_learned),
    "hug-random": Method("HUG, random", partial(_random, radius=1.0), hug, reference=_LIU),
    "hug-optimised": Method("HUG, optimised", partial(_optimised, radius=1.0), hug, reference=_LIU),
    "hug-rotated": Method("HUG, rotated", partial(_rotated, radius=1.0), hug, reference=_LIU),
    **{
        f"hug-rotated-{name}": Method(
            f"HUG, rotated ({name})", partial(_rotated, radius=1.0, parametrisation=name), hug, reference=_LIU
        )
        for name in PARAMETRISATIONS
    },
    "hug-nearest": Method("HUG, nearest", partial(_nearest, radius=1.0), hug),
}
SOFTMAX = {
    "random-fixed": Method("random", partial(_random, radius=None)),
    "energy-fixed": Method("least energy, fixed", partial(_optimised, radius=None)),
    "energy-rotated": Method("least energy, rotated", partial(_rotated, radius=None)),
    "energy-nearest": Method("least energy, nearest", partial(_nearest, radius=None)),
}
# Old and new examples make one batch, whose classes all count alike.
REPLAYED = {
    f"er-{name}": dataclasses.replace(
        HUG[name], title=f"ER, {HUG[name].title}", extensions=continual.told, stream=continual.replayed
    )
    for name in ("hug-learned", "hug-optimised")
}
METHODS = HUG | SOFTMAX | REPLAYED
