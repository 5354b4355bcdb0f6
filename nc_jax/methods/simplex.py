"""Methods on the simplex ETF, and the classifiers that they are compared with. They differ in the head alone."""

from nc_jax import heads
from nc_jax.frames import aligned_etf
from nc_jax.heads import Head
from nc_jax.methods.method import Method, Setting


def _learned(setting: Setting) -> Head:
    # Unit class vectors and no bias, as the fixed and the nearest frame have: only who moves them differs.
    return heads.learned(setting.num_classes, radius=setting.head.radius, normalize_columns=True, use_bias=False)


def _fixed(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, radius=setting.head.radius)


def _nearest(setting: Setting) -> Head:
    return heads.nearest(setting.num_classes, options=setting.head)


METHODS = {
    "learned": Method("learned", _learned),
    "fixed": Method("fixed", _fixed, reference="Zhu et al. (2021), section 3.3"),
    "nearest": Method("nearest", _nearest, reference="Markou, Ajanthan and Gould (2024), section 3"),
    # New here: the angles of the simplex, its orientation trained.
    "rotated": Method("rotated", lambda setting: heads.rotated(setting.num_classes, radius=setting.head.radius)),
    "linear": Method("linear", lambda setting: heads.learned(setting.num_classes)),
    # Features that are averages of ReLUs can align with the first of these, and not with the second.
    "aligned": Method(
        "aligned",
        lambda setting: heads.fixed(setting.num_classes, frame=aligned_etf, use_bias=True),
        reference="Zhu et al. (2021), released program",
    ),
    "turned": Method("turned at random", lambda setting: heads.fixed(setting.num_classes, use_bias=True)),
}
