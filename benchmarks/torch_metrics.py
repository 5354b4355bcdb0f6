"""The figures of the package rhubarbwu/neural-collapse: by the package itself, and by its formulas in PyTorch.

The package is on GitHub and not on PyPI. `package` runs the program that its README shows, line for line: three passes
over the examples (means; scatter and variances; decisions) and then the metrics, whose pairs are formed in tiles of 64,
as in its example. The variant "svd" of NC1 is left out: it asks for K - 1 singular vectors of a d x d matrix and raises
an error for K - 1 >= d. So is its Riesz kernel, whose exponent d - 2 underflows.

`formulas` is written from the definitions, without streaming, in the dtype of the features. In float64 it is the answer
that both programs are compared with.
"""

# PyTorch and the package may not be installed where the linter runs.
# pyright: reportMissingImports=false

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = (
    "nc1_pinv",
    "nc1_quot",
    "nc1_cdnv",
    "nc2_etf_err",
    "nc2g_dist",
    "nc2g_log",
    "nc3_dual_err",
    "nc3u_uni_dual",
    "nc4_agree",
    "nc5_ood_dev",
)  # the names of the package's README
TILE = 64  # the package's example; without tiles it needs several arrays of K x K x d


def find_package(folder: Path | None) -> bool:
    """Return whether the package can be imported, from a folder if one is given."""
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.util.find_spec("neural_collapse") is not None


def package(data: Any, batch: int) -> dict[str, float]:
    """Compute all figures with the package, on batches of the given size."""
    import torch

    accumulate, kernels, measure = (
        importlib.import_module(f"neural_collapse.{name}") for name in ("accumulate", "kernels", "measure")
    )
    num_classes, dim = data.weight.shape
    weight = torch.from_numpy(data.weight)
    with torch.no_grad():
        mean_sums = accumulate.MeanAccumulator(num_classes, dim)
        for features, labels in _batches(data.features, data.labels, batch):
            mean_sums.accumulate(features, labels)
        means, centre = mean_sums.compute()
        scatter_sums = accumulate.CovarAccumulator(num_classes, dim, M=means)
        variance_sums = accumulate.VarNormAccumulator(num_classes, dim, M=means)
        for features, labels in _batches(data.features, data.labels, batch):
            scatter_sums.accumulate(features, labels, means)
            variance_sums.accumulate(features, labels, means)
        scatter, (variances, _) = scatter_sums.compute(), variance_sums.compute()
        decisions = accumulate.DecAccumulator(num_classes, dim, M=means, W=weight)
        for features, labels in _batches(data.features, data.labels, batch):
            decisions.accumulate(features, labels, means, weight)
        foreign_sums = accumulate.MeanAccumulator(num_classes, dim)
        for features, labels in _batches(data.foreign, data.foreign_labels, batch):
            foreign_sums.accumulate(features, labels)
        foreign_centre = foreign_sums.compute()[1]
        return {
            "nc1_pinv": measure.covariance_ratio(scatter, means, centre),
            "nc1_quot": measure.covariance_ratio(scatter, means, centre, "quotient"),
            "nc1_cdnv": measure.variability_cdnv(variances, means, tile_size=TILE),
            "nc2_etf_err": measure.simplex_etf_error(means, centre),
            "nc2g_dist": kernels.kernel_stats(means, centre, tile_size=TILE)[1],
            "nc2g_log": kernels.kernel_stats(means, centre, kernel=kernels.log_kernel, tile_size=TILE)[1],
            "nc3_dual_err": measure.self_duality_error(weight, means, centre),
            "nc3u_uni_dual": measure.similarities(weight, means, centre).var().item(),
            "nc4_agree": measure.clf_ncc_agreement(decisions),
            "nc5_ood_dev": measure.orthogonality_deviation(means, foreign_centre),
        }


def _batches(features: np.ndarray, labels: np.ndarray, batch: int) -> Any:
    import torch

    for start in range(0, len(features), batch):
        rows = slice(start, start + batch)
        yield torch.from_numpy(features[rows]), torch.from_numpy(labels[rows])


def formulas(data: Any, dtype: str = "float64") -> dict[str, float]:
    """Compute all figures from their definitions, from all features at once; every class must be present."""
    import torch

    features, foreign, weight = (
        torch.from_numpy(array).to(getattr(torch, dtype)) for array in (data.features, data.foreign, data.weight)
    )
    labels = torch.from_numpy(data.labels)
    number, (num_classes, dim) = len(features), weight.shape

    def class_means(rows: Any, of: Any) -> Any:
        sums = torch.zeros(num_classes, dim, dtype=rows.dtype).index_add_(0, of, rows)
        return sums / torch.bincount(of, minlength=num_classes)[:, None].to(rows.dtype)

    means = class_means(features, labels)  # (K, d)
    centred = means - means.mean(0)
    residuals = features - means[labels]
    scatter = residuals.T @ residuals / number  # Sigma_W
    between = centred.T @ centred / num_classes  # Sigma_B
    squares = torch.zeros(num_classes, dtype=features.dtype).index_add_(0, labels, (residuals**2).sum(1))
    variances = squares / torch.bincount(labels, minlength=num_classes)
    above = torch.triu(torch.ones(num_classes, num_classes, dtype=torch.bool), 1)  # the pairs i < j

    def distances(rows: Any) -> Any:
        # The entries of the pairs; from differences, without a product that cancels.
        return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")[above]

    def from_simplex(product: Any) -> Any:
        simplex = (torch.eye(num_classes, dtype=product.dtype) - 1 / num_classes) / (num_classes - 1) ** 0.5
        return torch.linalg.norm(product / torch.linalg.norm(product) - simplex)

    apart = distances(centred / centred.norm(dim=1, keepdim=True))
    nearest = (features @ means.T - (means**2).sum(1) / 2).argmax(1)
    foreign_centre = class_means(foreign, torch.from_numpy(data.foreign_labels)).mean(0)
    cosines = means @ foreign_centre / (means.norm(dim=1) * foreign_centre.norm())
    found = {
        "nc1_pinv": torch.trace(torch.linalg.pinv(between, hermitian=True) @ scatter) / num_classes,
        "nc1_quot": torch.trace(scatter) / torch.trace(between),
        "nc1_cdnv": ((variances[:, None] + variances)[above] / 2 / distances(means) ** 2).mean(),
        "nc2_etf_err": from_simplex(centred @ centred.T),
        "nc2g_dist": apart.var(correction=0),
        "nc2g_log": apart.log().var(correction=0),
        "nc3_dual_err": from_simplex(weight @ centred.T),
        "nc3u_uni_dual": (weight * centred).sum(1).var(correction=1),
        "nc4_agree": ((features @ weight.T).argmax(1) == nearest).to(features.dtype).mean(),
        "nc5_ood_dev": cosines.abs().mean(),
    }
    return {name: value.item() for name, value in found.items()}
