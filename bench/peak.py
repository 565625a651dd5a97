"""The machine's own matrix-product speed, for `race`: one float32 product of two square matrices.

python bench/peak.py numpy|torch
"""

import sys

import race

SIZE = 2048
FLOPS = 2 * SIZE**3


def numpy_product():
    import numpy as np

    a = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    return lambda: a @ a


def torch_product():
    import torch

    a = torch.randn(SIZE, SIZE)
    return lambda: a @ a


if __name__ == "__main__":
    race.serve({"numpy": numpy_product, "torch": torch_product}[sys.argv[1]])
