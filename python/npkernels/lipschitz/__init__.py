"""Lipschitz constants, exact, bounded or estimated, and the geometry of perturbations around data."""

from npkernels.lipschitz._attention import attention_jacobian_norm
from npkernels.lipschitz._bound import Bound
from npkernels.lipschitz._geometry import Anisotropy, anisotropy, off_manifold, split, tangent_basis
from npkernels.lipschitz._local import adversarial_lipschitz, clever, local_lipschitz
from npkernels.lipschitz._norms import operator_norm, product_bound
from npkernels.lipschitz._spectral import jacobian_norm, spectral_norm

__all__ = [
    "Anisotropy",
    "Bound",
    "adversarial_lipschitz",
    "anisotropy",
    "attention_jacobian_norm",
    "clever",
    "jacobian_norm",
    "local_lipschitz",
    "off_manifold",
    "operator_norm",
    "product_bound",
    "spectral_norm",
    "split",
    "tangent_basis",
]
