"""The operators that activate a feed-forward network."""

from __future__ import annotations

ACTIVATIONS = frozenset(
    {
        "BiasGelu",
        "Celu",
        "Elu",
        "Erf",
        "FastGelu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "QuickGelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Silu",
        "Softplus",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    }
)
"""With Erf and Tanh, of which exporters build GELU."""
