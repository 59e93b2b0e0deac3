"""Estimators of gradients where draws have no pathwise derivative: score function, baselines and control variates."""
