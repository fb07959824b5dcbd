"""``python -m robustness`` inside the folder ``examples``: accuracy under attack, anisotropy, adversarial training."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from sklearn.neural_network import MLPClassifier

import npkernels.plot
from npkernels import lipschitz, perturb
from robustness.digits import BOUNDS, Array, Digits, accuracy, load, train, train_adversarially

Norm: TypeAlias = Literal["inf", 1, 2]
EPS = (0.05, 0.10, 0.15, 0.20)
DIM, NEIGHBOURS = 10, 30  # of the tangent spaces


def under_attack(model: MLPClassifier, data: Digits, eps: float) -> dict[str, float]:
    """Accuracy on the test digits after each attack of the norm inf."""
    x, y = data.x_test, data.y_test
    gradient = perturb.sklearn_gradient(model)
    signs = np.sign(np.random.default_rng(1).standard_normal(x.shape))
    grad = gradient.loss_and_grad(x, y)[1]
    pgd = perturb.pgd(x, gradient.of(y), eps=eps, steps=20, bounds=BOUNDS, success=gradient.wrong(y))
    return {
        "FGSM": accuracy(model, perturb.sign_step(x, grad, eps, bounds=BOUNDS), y),
        "PGD": 1 - float(np.mean(pgd.success)),
        "random sign": accuracy(model, np.clip(x + eps * signs, *BOUNDS), y),
    }


def by_norm(model: MLPClassifier, data: Digits) -> list[tuple[Norm, float, float, float]]:
    """PGD in the three norms: radius, accuracy, and the median distance at which it succeeded."""
    rows = []
    balls: tuple[tuple[Norm, float], ...] = (("inf", 0.1), (2, 0.5), (1, 3.0))
    gradient = perturb.sklearn_gradient(model)
    for norm, eps in balls:
        result = perturb.pgd(
            data.x_test,
            gradient.of(data.y_test),
            eps=eps,
            steps=100,
            step=eps / 20,
            norm=norm,
            bounds=BOUNDS,
            success=gradient.wrong(data.y_test),
        )
        found = result.distance[result.success & (result.step > 0)]
        rows.append((norm, eps, 1 - float(result.success.mean()), float(np.median(found))))
    return rows


def pools(data: Digits, labels: np.ndarray) -> list[Array]:
    """The training digits of each sample's class."""
    return [data.x_train[data.y_train == y] for y in labels]


def reports(model: MLPClassifier, data: Digits, n: int = 200) -> dict[str, lipschitz.Anisotropy]:
    """How steep logits and loss are, by direction, at the first test digits."""
    x, y = data.x_test[:n], data.y_test[:n]
    gradient = perturb.sklearn_gradient(model)
    functions = {"logits": gradient.logits, "loss": lambda z: gradient.loss_and_grad(z, y)[0]}
    neighbours = pools(data, y)
    return {
        name: lipschitz.anisotropy(
            f, gradient.of(y), x, neighbours, 0.1, k=NEIGHBOURS, dim=DIM, norm="inf", rng=0
        )
        for name, f in functions.items()
    }


def sigma_ratio(model: MLPClassifier, data: Digits, n: int = 50) -> float:
    """The Jacobian's norm across the tangent space over that along it, the median over digits."""
    gradient = perturb.sklearn_gradient(model)
    ratios = []
    for x, pool in zip(data.x_test[:n], pools(data, data.y_test[:n]), strict=True):
        tangent = lipschitz.tangent_basis(x, pool, k=NEIGHBOURS, dim=DIM)
        normal = np.linalg.svd(tangent)[2][DIM:]
        along, across = (
            float(
                lipschitz.jacobian_norm(
                    x,
                    lambda p, d: gradient.jvp(p[None], d[None])[0],
                    lambda p, u: gradient.vjp(p[None], u[None])[0],
                    subspace=basis,
                )
            )
            for basis in (tangent, normal)
        )
        ratios.append(across / along)
    return float(np.median(ratios))


def draw_split(model: MLPClassifier, data: Digits, path: Path) -> None:
    """A digit, its adversarial perturbation, that in its tangent and normal part, and what comes out."""
    plt = importlib.import_module("matplotlib.pyplot")
    gradient = perturb.sklearn_gradient(model)
    x, y = data.x_test, data.y_test
    result = perturb.pgd(x, gradient.of(y), eps=0.15, steps=20, bounds=BOUNDS, success=gradient.wrong(y))
    i = int(np.flatnonzero(result.success & (result.step > 0))[0])
    delta = result.x[i] - x[i]
    basis = lipschitz.tangent_basis(x[i], pools(data, y[i : i + 1])[0], k=NEIGHBOURS, dim=DIM)
    tangent, normal = lipschitz.split(delta, basis)
    share = float((tangent**2).sum() / (delta**2).sum())
    pictures = [
        (x[i], f"a {y[i]}", "gray", 0, 1),
        (delta, "perturbation", "RdBu", -0.15, 0.15),
        (tangent, f"tangent part ({100 * share:.0f} %)", "RdBu", -0.15, 0.15),
        (normal, f"normal part ({100 - 100 * share:.0f} %)", "RdBu", -0.15, 0.15),
        (result.x[i], f"now a {model.predict(result.x[i : i + 1])[0]}", "gray", 0, 1),
    ]
    figure, panels = plt.subplots(1, 5, figsize=(10, 2.4), layout="constrained")
    for ax, (picture, title, colours, low, high) in zip(panels, pictures, strict=True):
        ax.imshow(picture.reshape(8, 8), cmap=colours, vmin=low, vmax=high)
        ax.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_reports(found: dict[str, lipschitz.Anisotropy], path: Path) -> None:
    """The slopes of logits and loss by direction."""
    plt = importlib.import_module("matplotlib.pyplot")
    figure, panels = plt.subplots(1, len(found), figsize=(11, 3.2), layout="constrained")
    for ax, (name, report) in zip(panels, found.items(), strict=True):
        npkernels.plot.anisotropy(report, ax=ax, title=name)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; draw the pictures if a folder is given."""
    parser = argparse.ArgumentParser(prog="python -m robustness", description=__doc__)
    parser.add_argument("--figures", type=Path, help="write the pictures into this folder (needs matplotlib)")
    options = parser.parse_args(arguments)
    data = load()
    model = train(data)
    print(f"accuracy on {len(data.x_test)} clean digits: {accuracy(model, data.x_test, data.y_test):.3f}\n")
    print("accuracy, norm inf      " + "".join(f"eps {eps:.2f}   " for eps in EPS))
    table = {eps: under_attack(model, data, eps) for eps in EPS}
    for attack in table[EPS[0]]:
        print(f"{attack:<24}" + "".join(f"{table[eps][attack]:<11.3f}" for eps in EPS))
    print("\nPGD by norm    eps   accuracy   median distance of a success")
    for norm, eps, left, distance in by_norm(model, data):
        print(f"{norm!s:<12} {eps:>5} {left:>10.3f} {distance:>10.3f}")
    found = reports(model, data)
    for name, report in found.items():
        print(f"\nslopes of the {name} at 200 digits (perturbations of 0.1 an entry)\n{report.table()}")
    share = float(np.median(found["loss"].tangent_share))
    print(
        f"\ntangent share of the adversarial perturbation: {share:.2f} ({DIM} of 64 directions are tangent)"
    )
    print(
        f"norm of the logits' Jacobian across the tangent space over that along it: {sigma_ratio(model, data):.2f}"
    )
    robust = train_adversarially(data)
    print("\nadversarially trained   clean   FGSM 0.10   PGD 0.10")
    for name, net in (("no", model), ("yes", robust)):
        there = under_attack(net, data, 0.1)
        clean = accuracy(net, data.x_test, data.y_test)
        print(f"{name:<24}{clean:<8.3f}{there['FGSM']:<12.3f}{there['PGD']:.3f}")
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
        draw_split(model, data, options.figures / "split.png")
        draw_reports(found, options.figures / "anisotropy.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
