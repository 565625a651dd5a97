"""What counting alone reaches, of any text: the loss over its validation split by order, and a sample.

    python bench/counting.py
    python bench/counting.py --data my_novel.txt --tokenizer bytes

Seconds are of one core, for the counts of that order alone.
"""

import time

import numpy as np
import race
import tyro

from jaxgpt.config import TrainConfig, override
from jaxgpt.counting import Counts
from jaxgpt.data import dataset

SAMPLE = 300  # tokens


def main(data: str = "tinyshakespeare", tokenizer: str = "char", orders: tuple[int, ...] = tuple(range(1, 10))) -> None:
    """Counts a text's n-grams, and judges its validation split by them.

    Args:
        data: What to count, as train.py takes it.
        tokenizer: What a token is.
        orders: Lengths of the n-grams.
    """
    loaded = dataset.load(override(TrainConfig(), data=data, tokenizer=tokenizer))
    train, val = np.asarray(loaded.train), np.asarray(loaded.val)
    models, rows = {}, []
    for order in orders:
        began = time.perf_counter()
        models[order] = Counts(train, order, loaded.tokenizer.vocab_size)
        seconds = time.perf_counter() - began
        loss = models[order].losses(val).mean()
        rows.append((order, f"{loss:.4f}", f"{seconds:.2f}", loss))
    unit = loaded.tokenizer.unit
    headings = ("order", f"loss, nats a {unit}", "seconds to count")
    race.report(f"Counting, {len(train):,} {unit}s", headings, [row[:3] for row in rows], {}, None)
    best = min(rows, key=lambda row: row[3])[0]
    start = loaded.tokenizer.encode(loaded.tokenizer.start)
    text = loaded.tokenizer.decode(models[best].generate(start, SAMPLE, seed=1))
    print(f"\nOrder {best} writes:\n\n{text}")


if __name__ == "__main__":
    tyro.cli(main)
