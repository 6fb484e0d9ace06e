"""The operators that activate a feed-forward network."""

from __future__ import annotations

GELUS = frozenset({"BiasGelu", "Erf", "FastGelu", "Gelu", "QuickGelu", "Tanh"})
"""GELU, and what exporters write it with."""
ACTIVATIONS = GELUS | {
    "Celu",
    "Elu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Silu",
    "Softplus",
    "Swish",
    "ThresholdedRelu",
}
