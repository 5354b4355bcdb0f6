"""All entries of a report in plain NumPy: class by class and pair by pair, by their definitions."""

import math

import numpy as np
from scipy.optimize import nnls


def unit(columns):
    return columns / np.linalg.norm(columns, axis=0)


def of_vectors(vectors, dim):
    """The entries of class vectors, from all pairs of columns."""
    number = vectors.shape[1]
    norms, gram = np.linalg.norm(vectors, axis=0), vectors.T @ vectors
    first, second = np.triu_indices(number, 1)
    cosines = (unit(vectors).T @ unit(vectors))[first, second]
    distances = np.linalg.norm(unit(vectors)[:, first] - unit(vectors)[:, second], axis=0)
    simplex = np.eye(number) - 1 / number
    singular = np.linalg.svd(vectors, compute_uv=False)
    shares = singular[singular > 1e-12 * singular[0]]
    shares = shares / shares.sum()
    energy = np.mean(distances**-2.0)
    least = (number - 1) / (2 * number) if number <= dim + 1 else (4 / 2 + 1 / 4) / 5  # the second: an octahedron's
    floor = math.sqrt(2 - 2 * math.sqrt(min(dim / (number - 1), 1)))
    etf = np.linalg.norm(gram / np.linalg.norm(gram) - simplex / np.linalg.norm(simplex))
    found = {
        "nc2_equinorm": norms.std() / norms.mean(),
        "nc2_equiangle": cosines.std(),
        "nc2_maximal_angle": np.mean(np.abs(cosines + 1 / (number - 1))),
        "nc2_etf": etf,
        "nc2_gap": etf - floor,
        "energy_gap": (energy - least) / least,
        "separation": distances.min(),
        "log_variance": np.log(distances).var(),
        "one_vs_rest": min(hull_distance(unit(vectors), k) for k in range(number)),
        "rank": np.linalg.matrix_rank(vectors, tol=1e-9),
        "effective_rank": math.exp(-np.sum(shares * np.log(shares))),
        "stable_rank": np.sum(singular**2) / singular[0] ** 2,
        "nuclear_rank": singular.sum() ** 2 / np.sum(singular**2),
    }
    if number <= dim + 1:
        template = np.linalg.svd(simplex)[0][:, : number - 1].T  # simplex = template^T template
        nuclear = np.linalg.svd(vectors @ template.T, compute_uv=False).sum()
        found["nc2_nearest_etf"] = math.sqrt(2 - 2 * nuclear / np.linalg.norm(vectors) / np.linalg.norm(template))
    return found


def hull_distance(units, k):
    """Distance of one column from the hull of the others, by a heavy penalty on the sum of the weights."""
    others, heavy = np.delete(units, k, axis=1), 1e5
    rows = np.vstack([others, heavy * np.ones(others.shape[1])])
    return nnls(rows, np.append(units[:, k], heavy))[1]


def oracle(features, labels, frame, bias):
    """All entries, class by class and pair by pair."""
    present = np.unique(labels)
    dim, number = features.shape[1], len(labels)
    mean = {k: features[labels == k].mean(axis=0) for k in present}
    variance = {k: np.mean(np.sum((features[labels == k] - mean[k]) ** 2, axis=1)) for k in present}
    means = np.stack([mean[k] for k in present], axis=1)
    within = sum(np.outer(h - mean[y], h - mean[y]) for h, y in zip(features, labels, strict=True)) / number
    balanced, overall = means.mean(axis=1, keepdims=True), features.mean(axis=0)[:, None]
    found = {}
    for name, centre in (("", balanced), ("_sample", overall)):
        between = (means - centre) @ (means - centre).T / len(present)
        found[f"nc1_pinv{name}"] = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(present)
        found[f"nc1_quotient{name}"] = np.trace(within) / np.trace(between)
    pairs = [(i, j) for i in present for j in present if i < j]
    found["nc1_cdnv"] = np.mean([(variance[i] + variance[j]) / 2 / np.sum((mean[i] - mean[j]) ** 2) for i, j in pairs])
    counts = np.array([np.sum(labels == k) for k in present])
    between = (means - overall) * counts @ (means - overall).T / number
    found["vci"] = 1 - np.trace(np.linalg.pinv(within + between, rcond=1e-10) @ between) / np.linalg.matrix_rank(
        between
    )
    nearest = present[np.argmin([[np.sum((h - mean[k]) ** 2) for k in present] for h in features], axis=1)]
    found["nearest_centre_accuracy"] = np.mean(nearest == labels)
    centred = means - balanced
    found |= {f"{name}_means": value for name, value in of_vectors(centred, dim).items()}
    found |= {f"{name}_classifier": value for name, value in of_vectors(frame, dim).items()}
    if len(present) > frame.shape[0] + 1 or frame.shape[1] > dim + 1:
        found = {name: value for name, value in found.items() if "nearest_etf" not in name}

    own = frame[:, present]
    product, simplex = own.T @ centred, np.eye(len(present)) - 1 / len(present)
    angles = np.degrees(np.arccos(np.sum(unit(own) * unit(centred), axis=0)))
    found |= {
        "nc3_difference": np.linalg.norm(own / np.linalg.norm(own) - centred / np.linalg.norm(centred)),
        "nc3_product": np.linalg.norm(product / np.linalg.norm(product) - simplex / np.linalg.norm(simplex)),
        "nc3_directions": np.mean(np.linalg.norm(unit(own) - unit(centred), axis=0)),
        "nc3_cosine": np.mean(1 - np.cos(np.radians(angles))),
        "nc3_angle": np.mean(angles),
        "nc3_uniform": np.var(np.sum(own * centred, axis=0)),
    }
    logits = features @ frame + bias
    decided = present[np.argmax(logits[:, present], axis=1)]
    scores = unit((features - overall.T).T).T @ unit(frame - frame.mean(axis=1, keepdims=True))
    found |= {
        "nc4": np.mean(decided == nearest),
        "accuracy": np.mean(np.argmax(logits, axis=1) == labels),
        "bias_collapse": np.linalg.norm(frame.T @ overall[:, 0] + bias),
        "error_exponent_ratio": exponent(mean, frame, bias) / (np.sum(centred**2) / 4 / (len(present) - 1)),
    }
    for name, values in (("cosine", scores), ("logit", logits)):
        margins = [row[y] - np.delete(row, y).max() for row, y in zip(values, labels, strict=True)]
        found |= {f"margin_{name}_mean": np.mean(margins), f"margin_{name}_sd": np.std(margins)}
        found[f"margin_{name}_min"] = np.min(margins)
    first, second = np.triu_indices(len(present), 1)
    found["zero_mean_angle_means"] = np.mean(np.abs((unit(means).T @ unit(means))[first, second]))
    first, second = np.triu_indices(frame.shape[1], 1)
    found["zero_mean_angle_classifier"] = np.mean(np.abs((unit(frame).T @ unit(frame))[first, second]))
    found["zero_mean_convergence"] = np.linalg.norm(own / np.linalg.norm(own) - means / np.linalg.norm(means))
    second_moment = means @ means.T / len(present)
    found["zero_mean_variation"] = np.trace(within @ np.linalg.pinv(second_moment, rcond=1e-10)) / len(present)
    return found


def exponent(mean, frame, bias):
    """The smallest error exponent, pair by pair of the classes with a mean."""
    found = []
    for k in mean:
        for j in mean:
            if j != k:
                normal = frame[:, k] - frame[:, j]
                lead = normal @ mean[k] + bias[k] - bias[j]
                found.append(max(lead / np.linalg.norm(normal), 0) ** 2 / 2)
    return min(found)
