"""``python -m xor`` inside the folder ``examples``: truth table, Lipschitz constants, adversarial directions."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from npkernels import lipschitz, perturb
from xor.network import CORNERS, XOR, Smooth, lipschitz_constant, steepest, step_perceptron, train


def constants(net: Smooth) -> dict[str, float]:
    """The Lipschitz constant and what the tools say about it."""
    exact, far = lipschitz_constant(net)
    near, place = steepest(net)
    product = lipschitz.product_bound([net.w1.T, 1.0, net.w2[None]])  # tanh has slope 1 at most
    secants = lipschitz.local_lipschitz(net, CORNERS, 0.25, n=100)
    climbed = lipschitz.adversarial_lipschitz(net, net.gradient, CORNERS, 0.25)
    clever = lipschitz.clever(net.gradient, CORNERS, 0.25, rng=0)
    return {
        "Lipschitz constant, exact": exact,
        "product of layers, upper": float(product),
        "largest gradient on the picture (grid)": near,
        "random secants at the corners, lower": float(secants),
        "climbing secants at the corners, lower": float(climbed),
        "CLEVER at the corners, estimate": float(clever),
        "x of the largest gradient on the picture": float(place[0]),
        "y of the largest gradient on the picture": float(place[1]),
        "x where the constant is attained": float(far[0]),
        "y where the constant is attained": float(far[1]),
    }


def attack(net: Smooth) -> perturb.AttackResult:
    """How far each corner has to move until its answer is the other one."""
    labels = XOR > 0.5

    def grad_fn(x: np.ndarray) -> np.ndarray:
        return np.where(labels, -1.0, 1.0)[:, None] * net.gradient(x)

    def wrong(x: np.ndarray) -> np.ndarray:
        return (net(x) > 0.5) != labels

    return perturb.pgd(CORNERS, grad_fn, eps=1.0, step=0.005, steps=400, norm=2, success=wrong)


def draw(net: Smooth, result: perturb.AttackResult, path: Path) -> None:
    """The plane that the network sees, its border, and the shortest way over it from each corner."""
    plt = importlib.import_module("matplotlib.pyplot")
    axis = np.linspace(-0.5, 1.5, 301)
    plane = np.stack(np.meshgrid(axis, axis), axis=-1)
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained")
    values = [
        step_perceptron(plane.reshape(-1, 2)).reshape(301, 301),
        net(plane.reshape(-1, 2)).reshape(301, 301),
    ]
    for ax, z, title in zip(panels, values, ("steps, by hand", "smooth twin, trained"), strict=True):
        shown = ax.pcolormesh(
            axis, axis, z, cmap="PRGn", vmin=-0.5, vmax=1.5, shading="auto", rasterized=True
        )
        ax.contour(axis, axis, z, [0.5], colors="black", linewidths=1)
        ax.scatter(*CORNERS.T, c=XOR, cmap="PRGn", vmin=-0.5, vmax=1.5, edgecolors="black", zorder=3)
        ax.set(title=title, aspect="equal", xticks=[0, 1], yticks=[0, 1])
    for start, end in zip(CORNERS, result.x, strict=True):
        panels[1].annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#b5342f", "lw": 2})
    figure.colorbar(shown, ax=panels, shrink=0.8, label="output")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; draw the picture if a file is given."""
    parser = argparse.ArgumentParser(prog="python -m xor", description=__doc__)
    parser.add_argument("--figure", type=Path, help="write the picture there (needs matplotlib)")
    options = parser.parse_args(arguments)
    net = train()
    result = attack(net)
    print("corner   xor   steps   smooth   distance to the other answer   direction")
    for x, want, got, value, end, far in zip(
        CORNERS, XOR, step_perceptron(CORNERS), net(CORNERS), result.x, result.distance, strict=True
    ):
        way = (end - x) / far
        print(
            f"{x[0]:.0f}, {x[1]:.0f}     {want:.0f}     {got:.0f}       {value:5.3f}    {far:26.3f}    "
            f"({way[0]:+.2f}, {way[1]:+.2f})"
        )
    print()
    for name, value in constants(net).items():
        print(f"{name:<42} {value:9.3f}")
    if options.figure:
        draw(net, result, options.figure)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
