"""What a comparison found, in words: which row is sooner, which more accurate, and where no difference shows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nc_jax.study.statistics import LEAST_SEEDS, paired_p
from nc_jax.study.tables import Column

LEVEL = 0.01  # p below which a difference is called one; README and findings use the same
Values = Mapping[str, Sequence[float]]


class _Judged(NamedTuple):
    title: str
    kind: str  # "different", "same" or "untested"
    text: str
    word: str = ""


def verdicts(
    results: Mapping[str, Values], columns: Sequence[Column], baseline: str, rivals: Sequence[str]
) -> list[str]:
    """Compare a row with others in the metrics that have words.

    Args:
        results: a number per seed, by row and metric.
        columns: the metrics.
        baseline: the row that is spoken of.
        rivals: the rows that it is compared with.

    Returns:
        A sentence for each rival that differs significantly in some metric, or that cannot be tested; then one sentence
        for all the others together.

    Example:
        >>> column = Column("epochs", "epochs to 95 %", 1, words=("sooner", "later"))
        >>> found = {"nearest": {"epochs": [2.0, 3.0, 2.0]}, "learned": {"epochs": [4.0, 5.5, 4.2]}}
        >>> print(verdicts(found, [column], "nearest", ["learned"])[0])
        nearest against learned: sooner (epochs to 95 %: 2.3 against 4.6, p = 0.0042).
    """
    spoken = [column for column in columns if column.words is not None]
    found, alike = [], {}
    for rival in rivals:
        judged = [one for c in spoken if (one := _judge(c, results[baseline], results[rival])) is not None]
        if judged and all(one.kind == "same" for one in judged):
            alike[rival] = judged
        elif judged:
            found.append(f"{baseline} against {rival}: {_said(judged)}.")
    if len(alike) == 1:
        found += [f"{baseline} against {rival}: {_said(judged)}." for rival, judged in alike.items()]
    elif alike:
        titles = dict.fromkeys(one.title for judged in alike.values() for one in judged)
        found.append(f"{baseline}: no significant difference in {', '.join(titles)} from {'; '.join(alike)}.")
    return found


def _judge(column: Column, ours: Values, theirs: Values) -> _Judged | None:
    if column.key not in ours or column.key not in theirs or column.words is None:
        return None
    pair = np.array([ours[column.key], theirs[column.key]], float)
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    if not pair.size:
        return None
    mean, other = pair.mean(axis=1)
    numbers = f"{mean:.{column.digits}f} against {other:.{column.digits}f}"
    # A row that is there at step 0 has no ratio, and its difference still says who was sooner.
    p = paired_p(*pair.tolist(), ratio=column.test == "ratio" and bool((pair > 0).all()))
    if p is None:
        return _Judged(column.title, "untested", f"{column.title} ({numbers})")
    if p >= LEVEL:
        return _Judged(column.title, "same", f"{column.title} ({numbers}, p = {p:.2g})")
    word = column.words[0] if mean < other else column.words[1]
    return _Judged(column.title, "different", f"{column.title}: {numbers}, p = {p:.2g}", word)


def _said(judged: Sequence[_Judged]) -> str:
    words: dict[str, list[str]] = {}
    for one in judged:
        if one.kind == "different":
            words.setdefault(one.word, []).append(one.text)
    parts = [", ".join(f"{word} ({'; '.join(texts)})" for word, texts in words.items())]
    same, untested = (", ".join(one.text for one in judged if one.kind == kind) for kind in ("same", "untested"))
    parts += [f"no significant difference in {same}"] if same else []
    parts += [f"not tested (fewer than {LEAST_SEEDS} seeds, or no spread): {untested}"] if untested else []
    return "; ".join(filter(None, parts))
