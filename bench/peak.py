"""What the machine itself can do, for `race`: one float32 product of two square matrices, or reading weights.

python bench/peak.py numpy|torch
python bench/peak.py weights NUMBER TIMES
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


def reading_weights(number: str, times: str):
    """A product with a single row, which takes as long as its matrix takes to come from memory."""
    import numpy as np

    weights, row = np.ones((int(number) // 256, 256), np.float32), np.ones(256, np.float32)

    def run():
        for _ in range(int(times)):
            weights @ row

    return run


if __name__ == "__main__":
    kinds = {"numpy": numpy_product, "torch": torch_product, "weights": reading_weights}
    race.serve(lambda: race.one_by_one(kinds[sys.argv[1]](*sys.argv[2:])))
