"""Methods of federated learning: FedGELA, and those that it is compared with.

The heads have features of the length `setting.head.radius`, the inverse of a temperature, so that all methods can be
compared at a temperature of their own. FedGELA's paper normalises features by their batch instead.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optax

from nc_jax import heads
from nc_jax.federated import Federation, alternating, proximal
from nc_jax.federated.round import HEAD
from nc_jax.heads import Head
from nc_jax.methods.method import Method, Setting
from nc_jax.streams import Clients, Stream
from nc_jax.training.extensions import LocalLengths, ModelContrast

ALL = ("backbone", HEAD)


def _in_rounds(head: Callable[[Setting], Head]) -> Callable[[Setting], Head]:
    """Return a function setting -> head that refuses settings without clients: these methods are rounds."""

    def checked(setting: Setting) -> Head:
        if setting.federated.clients is None:
            raise ValueError("methods of federated learning need clients (--federated.clients 10); got none")
        return head(setting)

    return checked


@_in_rounds
def _learned(setting: Setting) -> Head:
    return heads.learned(setting.num_classes, radius=setting.head.radius, use_bias=False)


@_in_rounds
def _fixed(setting: Setting) -> Head:
    return heads.fixed(setting.num_classes, radius=setting.head.radius)


@_in_rounds
def _pooled(setting: Setting) -> Head:
    return heads.pooled(setting.num_classes, options=setting.head)


def _method(title: str, reference: str, head: Callable[[Setting], Head] = _learned, **parts: Any) -> Method:
    return Method(title, head, reference=reference, **parts)


def _serving(server: Callable[[Setting], optax.GradientTransformation]) -> Callable[[Setting], Federation]:
    return lambda setting: Federation(server=server(setting))


def _always(federation: Federation) -> Callable[[Setting], Federation]:
    return lambda setting: federation


def _lengths(mask_missing: bool) -> Callable[[Setting], tuple[LocalLengths]]:
    return lambda setting: (LocalLengths(mask_missing),)


def _contrast(setting: Setting) -> tuple[ModelContrast]:
    return (ModelContrast(setting.federated.contrast, setting.federated.contrast_temperature),)


def _head_first(setting: Setting, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Train the head in the first steps of a round, and then the rest, which needs a step at least."""
    steps = setting.federated.head_steps
    if steps >= setting.epoch_steps:
        raise ValueError(
            f"fedrep needs more local steps in a round than its head_steps, {steps}; got {setting.epoch_steps} (the "
            "client with the most steps), so nothing but heads would be trained"
        )
    return alternating(optimizer, HEAD, steps)


def _together(setting: Setting, stream: Stream) -> Stream:
    """One client has all examples. Without clients, the stream is that of training in one place already."""
    return replace(stream, together=True) if isinstance(stream, Clients) else stream


METHODS = {
    "fedavg": _method("FedAvg", "McMahan et al. (2017), algorithm 1"),
    "fedprox": _method(
        "FedProx",
        "Li et al. (2020), algorithm 2",
        optimizer=lambda setting, optimizer: proximal(optimizer, setting.federated.mu),
    ),
    "fedavgm": _method(
        "FedAvgM",
        "Hsu, Qi and Brown (2019), section 4.3",
        federation=_serving(lambda setting: optax.sgd(1.0, setting.federated.server_momentum)),
    ),
    "fedadam": _method(
        "FedAdam",
        "Reddi et al. (2021), algorithm 2",
        # The moments and the adaptivity are those of section 5. (Their algorithm does not correct the moments' bias.)
        federation=_serving(lambda setting: optax.adam(setting.federated.server_rate, 0.9, 0.99, eps=1e-3)),
    ),
    "scaffold": _method(
        "SCAFFOLD", "Karimireddy et al. (2020), algorithm 1", federation=_always(Federation(controlled=True))
    ),
    "moon": _method(
        "MOON",
        "Li, He and Song (2021), equation 3",
        extensions=_contrast,
        federation=_always(Federation(remembers=True)),
    ),
    "fed-etf": _method("FedAvg + fixed ETF", "Fan et al. (2023), the global adaptation alone", _fixed),
    "fedgela": _method("FedGELA", "Fan et al. (2023), section 4", _fixed, extensions=_lengths(False)),
    "fedgela-masked": _method(
        "FedGELA, masked", "FedGELA with a softmax over the existing classes", _fixed, extensions=_lengths(True)
    ),
    "fedper": _method("FedPer", "Arivazhagan et al. (2019)", federation=_always(Federation(personal=(HEAD,)))),
    "fedrep": _method(
        "FedRep",
        "Collins et al. (2021), algorithm 1",
        optimizer=_head_first,
        federation=_always(Federation(personal=(HEAD,))),
    ),
    # Not from a paper: the server finds the nearest frame from class sums, which are additive over clients.
    "fed-nearest": _method("FedAvg + nearest ETF", "Markou, Ajanthan and Gould (2024), section 3", _pooled),
    "local": _method("local only", "", federation=_always(Federation(personal=ALL))),
    "centralised": _method("centralised", "", stream=_together),
}
