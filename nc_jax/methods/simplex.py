"""Methods with a simplex ETF, and the classifiers that these are compared with. Only the heads differ."""

from nc_jax import heads
from nc_jax.frames import aligned_etf
from nc_jax.heads import Head
from nc_jax.methods.method import Method, Setting


def _learned(setting: Setting) -> Head:
    # Unit class vectors and no bias, as in the fixed and the nearest frame: the heads differ only in who moves them.
    return heads.learned(setting.num_classes, radius=setting.head.radius, normalize_columns=True, use_bias=False)


def _fixed(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, radius=setting.head.radius)


def _nearest(setting: Setting) -> Head:
    return heads.nearest(setting.num_classes, options=setting.head)


METHODS = {
    "learned": Method("learned", _learned),
    "fixed": Method("fixed", _fixed, reference="Zhu et al. (2021), section 3.3"),
    "nearest": Method("nearest", _nearest, reference="Markou, Ajanthan and Gould (2024), section 3"),
    # Not from a paper: a simplex ETF whose orientation the optimiser trains.
    "rotated": Method("rotated", lambda setting: heads.rotated(setting.num_classes, radius=setting.head.radius)),
    "linear": Method("linear", lambda setting: heads.learned(setting.num_classes)),
    # Features that are averages of ReLUs are non-negative. They can align with the frame of "aligned", in which class
    # vector k points along coordinate axis k minus the mean of K axes, but not with the random simplex ETF of "turned".
    "aligned": Method(
        "aligned",
        lambda setting: heads.fixed(setting.num_classes, frame=aligned_etf, use_bias=True),
        reference="Zhu et al. (2021), released program",
    ),
    "turned": Method("turned at random", lambda setting: heads.fixed(setting.num_classes, use_bias=True)),
}
