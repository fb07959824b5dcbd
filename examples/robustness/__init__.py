"""How robust a small network is: attacks, anisotropy and adversarial training on scikit-learn's digits."""
