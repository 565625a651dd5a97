"""A run from start to end: `train` begins one, `resume` goes on with one, both return a `Run`.

The loop and what it does beside training: evaluate, sample, log, save, stop when asked to.
"""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgpt import sampling
from jaxgpt.config import TrainConfig, override, validate
from jaxgpt.data import batches, corpus
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.device import backend, precision, sharding
from jaxgpt.errors import UserError
from jaxgpt.runs import report, run
from jaxgpt.runs.checkpoints import Checkpoints
from jaxgpt.runs.report import duration
from jaxgpt.runs.run import Run
from jaxgpt.training import step as trainer
from jaxgpt.training.signals import StopRequest

MAX_SKIPPED = 25  # updates in a row with a gradient that is not finite, before a run gives up
CALL_SECONDS = 0.1  # that one call may take: less than Ctrl-C may wait, more than Python needs for it
TIMED_STEPS = 3  # before a run can say how long it will take
LONG_RUN_SECONDS = 30 * 60  # on a CPU, worth a word


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM), has saved itself, and can be resumed."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Diverged(RuntimeError):
    """The gradients stopped being finite numbers; the last good checkpoint is kept."""


def train(config: TrainConfig, *, out: str | Path | None = None, quiet: bool = False) -> Run:
    """Trains a model from scratch, in a new folder.

    Args:
        config: the recipe, as from `jaxgpt.preset`.
        out: the folder to make; None makes `runs/PRESET`, or the next free name after it.
        quiet: print nothing.

    Raises:
        UserError: for a config that cannot be run, data that cannot be read, a folder that exists.
        Interrupted: after Ctrl-C or SIGTERM, when the run is saved.
        Diverged: when the gradient is not finite `MAX_SKIPPED` times in a row.
    """
    backend.setup()
    validate(config)
    out = None if out is None else Path(out)
    if out is not None and out.exists():  # said before the text is fetched
        raise UserError(f"{out} exists and is not overwritten: choose another --out, or --resume it")
    text = corpus.load(config.data)
    tokenizer = CharTokenizer.train(text)
    if config.model.vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(f"vocab_size is {config.model.vocab_size}, but the text has {tokenizer.vocab_size} characters")
    config = override(config, vocab_size=tokenizer.vocab_size)
    tokens = tokenizer.encode(text)
    _check_length(tokens, config)
    return _Fit(run.create(out, config, tokenizer), config, tokenizer, tokens, quiet).from_scratch()


def resume(path: str | Path, *, max_steps: int | None = None, quiet: bool = False) -> Run:
    """Goes on with an interrupted run, bit for bit as if it had never stopped.

    Args:
        path: the run's folder.
        max_steps: a new end, to train a finished run for longer; None keeps the run's own. Under the
            cosine schedule the step size follows the new curve from here on.
        quiet: print nothing.

    Raises:
        UserError, Interrupted, Diverged: as `train`; and UserError when the run has reached its end or
            its text has changed.
    """
    backend.setup()
    path = Path(path)
    config, tokenizer = run.read(path)
    config = validate(config if max_steps is None else override(config, max_steps=max_steps))
    text = corpus.load(config.data)
    try:
        tokens = tokenizer.encode(text)
    except UserError as error:  # a character that the run has never seen
        raise UserError(_changed(config, path)) from error
    _check_length(tokens, config)
    return _Fit(path, config, tokenizer, tokens, quiet).from_checkpoint()


def _changed(config: TrainConfig, path: Path) -> str:
    return f"{config.data} is no longer the text that {path} was trained on"


def _check_length(tokens: np.ndarray, config: TrainConfig) -> None:
    """The validation split, the smaller one, must hold a window and the target of its last token."""
    shortest, block_size = min(map(len, batches.split(tokens))), config.model.block_size
    if shortest <= block_size:
        raise UserError(
            f"the text is too short: of its {len(tokens)} characters {shortest} are for validation, and a window "
            f"of block_size {block_size} needs {block_size + 1}; take more text or a smaller --block-size"
        )


class Progress(NamedTuple):
    """What a checkpoint tells of its run, beside the state."""

    data_sha256: str
    seconds: float = 0.0
    best_val_loss: float = float("inf")
    best_step: int = 0


class _Fit:
    """One run in the making: its compiled functions, its files, and what is said of it."""

    def __init__(self, path: Path, config: TrainConfig, tokenizer: CharTokenizer, tokens: np.ndarray, quiet: bool):
        self.path, self.config, self.tokenizer = path, config, tokenizer
        self.device = jax.devices()[0]
        self.dtype, self.dtype_reason = precision.choose(config.dtype, self.device)
        self.mesh = trainer.make_mesh(config)
        self.everywhere = sharding.replicated(self.mesh)
        # Both splits are parts of one array in an evaluation, which is compiled once then.
        self.sizes = {name: len(part) for name, part in zip(("train", "val"), batches.split(tokens), strict=True)}
        self.tokens, self.train_tokens = jax.device_put((tokens, tokens[: self.sizes["train"]]), self.everywhere)
        # While weights are drawn and the first evaluation is compiled and run.
        self.train_steps = ThreadPoolExecutor(1).submit(
            trainer.compile_train_steps, config, self.dtype, self.mesh, self.train_tokens
        )
        self.evaluate = trainer.make_evaluate(config, self.dtype, self.mesh)
        self.report = report.Report(quiet)
        self.progress = Progress(hashlib.sha256(tokens.tobytes()).hexdigest())
        self.rows: list[dict[str, Any]] = []
        self.began = time.monotonic()

    def init_state(self) -> trainer.TrainState:
        return trainer.init_state(self.config, self.dtype)

    def from_scratch(self) -> Run:
        with Checkpoints(self.path / "checkpoints") as checkpoints:
            quickly = {"xla_backend_optimization_level": 0}  # compiled, for it runs but once
            state = jax.jit(self.init_state, out_shardings=self.everywhere, compiler_options=quickly)()
            self.banner(state)
            return self.run(state, checkpoints)

    def from_checkpoint(self) -> Run:
        with Checkpoints(self.path / "checkpoints") as checkpoints:
            state, progress = checkpoints.restore(jax.eval_shape(self.init_state))
            state = jax.device_put(state, self.everywhere)
            progress, step = Progress(**progress), int(state.step)
            if progress.data_sha256 != self.progress.data_sha256:
                raise UserError(_changed(self.config, self.path))
            if step >= self.config.max_steps:
                raise UserError(f"{self.path} has done its {step} steps; to go on, give a larger --max-steps")
            self.progress = progress
            self.began -= progress.seconds
            self.rows = [row for row in run.read_metrics(self.path) if row["step"] <= step]
            self.banner(state)
            self.report.note(f"going on after step {step}\n")
            return self.run(state, checkpoints)

    def run(self, state: trainer.TrainState, checkpoints: Checkpoints) -> Run:
        report.write_rows(self.path, self.rows)
        run.write_config(self.path, self.config)  # max_steps may be new
        with self.report, StopRequest() as stop:
            state = self.loop(state, checkpoints, stop)
        self.farewell()
        return Run(self.path, self.config, self.tokenizer, self.model(state), int(state.step))

    def loop(self, state: trainer.TrainState, checkpoints: Checkpoints, stop: StopRequest) -> trainer.TrainState:
        step, last = int(state.step), self.config.max_steps
        self.first, self.at_once, self.warned = step, 1, False
        if step == 0:
            self.add_row({"step": 0}, self.evaluation(state, 0))
        train_steps = self.train_steps.result()
        fresh, pending = True, None
        while step < last:
            n = self.steps_to_go(step)
            state, metrics = train_steps(state, self.train_tokens, np.int32(n))
            if fresh:  # the first call after a pause is slower, and its time is no step's
                self.clock, fresh = Clock(step), False
            if pending is not None:  # a call late, so that the device never waits for Python
                self.add_row(self.row(*pending), {})
            step, pending = step + n, (step + n, metrics)
            evaluate = step % self.config.eval_interval == 0 or step == last
            if not (evaluate or stop.signal_number):
                continue
            row = self.row(*pending)
            losses = self.evaluation(state, step) if evaluate else {}
            self.add_row(row, losses)
            self.save(checkpoints, state, losses)
            fresh, pending = True, None
            if stop.signal_number and step < last:
                self.interrupted(step, stop.signal_number)
        return state

    def steps_to_go(self, step: int) -> int:
        """How many updates the next call makes: up to the next row, evaluation, or end, but none that takes long."""
        c = self.config
        intervals = (c.log_interval, c.eval_interval)
        return min(self.at_once, c.max_steps - step, *(interval - step % interval for interval in intervals))

    def save(self, checkpoints: Checkpoints, state: trainer.TrainState, losses: dict[str, float]) -> None:
        self.progress = self.progress._replace(seconds=time.monotonic() - self.began)
        checkpoints.save(state, self.progress._asdict(), losses.get("val_loss", float("inf")))
        report.plot(self.rows, f"{self.path.name}: {self.config.data}", self.path / "loss.png")

    def row(self, step: int, metrics: trainer.Metrics) -> dict[str, Any]:
        """The row of metrics.jsonl for an update; waits until the device has done it."""
        loss, grad_norm, learning_rate, loss_scale, skipped, in_all = (x.item() for x in jax.device_get(metrics))
        if skipped >= MAX_SKIPPED:
            raise Diverged(
                f"the gradient was not finite {skipped} times in a row, up to step {step}; the last good "
                f"checkpoint is in {self.path}. Try a lower --learning-rate, a --grad-clip, or --dtype float32"
            )
        step_seconds = self.clock.step_seconds(step)
        self.at_once = max(1, int(CALL_SECONDS / step_seconds))
        if step >= self.first + TIMED_STEPS and not self.warned:
            self.warned = True
            self.warn_if_long(step, step_seconds)
        row = {
            "step": step,
            "train_loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "step_seconds": step_seconds,
            "tokens_per_second": self.config.batch_size * self.config.model.block_size / step_seconds,
            "skipped": in_all,
        }
        return row | ({"loss_scale": loss_scale} if self.dtype == jnp.float16 else {})

    def evaluation(self, state: trainer.TrainState, step: int) -> dict[str, float]:
        """Both losses on the fixed windows, and of the whole validation split after the last step."""
        count = self.config.eval_windows
        losses = {
            "eval_train_loss": self.loss(state, "train", count),
            "val_loss": self.loss(state, "val", count),
        }
        if step == self.config.max_steps:
            losses["final_val_loss"] = self.loss(state, "val", None)
        best = losses["val_loss"] < self.progress.best_val_loss
        if best:
            self.progress = self.progress._replace(best_val_loss=losses["val_loss"], best_step=step)
        self.report.evaluation(step, losses["eval_train_loss"], losses["val_loss"], best, self.sample(state))
        return losses

    def loss(self, state: trainer.TrainState, split: str, count: int | None) -> float:
        starts, skips = trainer.eval_windows(self.config, self.sizes[split], count)
        first = 0 if split == "train" else self.sizes["train"]
        return self.evaluate(state.weights, self.tokens, first + starts, skips).item()

    def sample(self, state: trainer.TrainState) -> str:
        if self.config.sample_tokens == 0 or int(state.step) == 0:  # before the first update it is noise
            return ""
        prompt = self.tokenizer.encode(self.tokenizer.start)
        return self.tokenizer.decode(sampling.generate(self.model(state), prompt, self.config.sample_tokens)[0])

    def model(self, state: trainer.TrainState) -> nnx.Module:
        """The model with the state's weights, on one device."""
        return nnx.merge(trainer.graph(self.config.model), sharding.on_one(state.weights))

    def add_row(self, row: dict[str, Any], losses: dict[str, float]) -> None:
        """To metrics.jsonl, if it is this step's turn, and to the progress line."""
        if losses or row["step"] % self.config.log_interval == 0:
            self.rows.append(row | losses)
            report.append_row(self.path, self.rows[-1])
            self.clock = Clock(row["step"])
        if not losses:
            self.report.step(row, self.config.max_steps)

    def warn_if_long(self, step: int, step_seconds: float) -> None:
        """Once, where a CPU would take long: how long, and what else there is."""
        seconds = (self.config.max_steps - step) * step_seconds
        if self.device.platform == "cpu" and seconds > LONG_RUN_SECONDS:
            self.report.note(
                f"at {step_seconds:.1f} s a step, as the first ones took, this run needs "
                f"{duration(seconds)} on this CPU; python train.py --preset speedrun is done in a minute or so\n"
            )

    def banner(self, state: trainer.TrainState) -> None:
        """What is about to run, and on what."""
        c, m = self.config, self.config.model
        size = sum(p.size for p in jax.tree.leaves(state.params))
        shape = f"{m.n_layer} layers, {m.n_head} heads, {m.n_embd} wide"
        train, val = self.sizes.values()
        self.report.banner(
            {
                "device": backend.describe(self.device),
                "dtype": f"{self.dtype}, {self.dtype_reason}",
                "model": f"{m.architecture}, {size:,} parameters: {shape}",
                "data": f"{c.data}: {train:,} tokens to train on, {val:,} to validate, {m.vocab_size} different ones",
                "step": f"{c.batch_size * m.block_size:,} tokens: {self.shares()}",
                "run": f"{self.path}, {c.max_steps:,} steps",
            }
        )

    def shares(self) -> str:
        """How the windows of a batch are worked through."""
        c, n = self.config, self.mesh.size
        at_a_time = c.batch_size // n // sharding.micro_batches(c, self.mesh)
        unit = "core" if self.device.platform == "cpu" else "device"
        where = f" on each of {n} {unit}s" if n > 1 else ""
        return f"{c.batch_size} windows of {c.model.block_size}, {at_a_time} at a time{where}"

    def farewell(self) -> None:
        """The result, and what to type next."""
        p = self.progress
        self.report.note(
            f"\n{self.config.max_steps} steps in {duration(p.seconds)}. "
            f"Best val loss {p.best_val_loss:.4f}, after step {p.best_step}.\n"
            f"Loss over the whole validation split, after the last step: {self.rows[-1]['final_val_loss']:.4f}.\n\n"
            f"    python sample.py --run {self.path} --tokens 500\n"
        )

    def interrupted(self, step: int, signal_number: int) -> None:
        raise Interrupted(
            f"stopped and saved after step {step}. To go on:\n\n    python train.py --resume --out {self.path}\n",
            signal_number,
        )


class Clock:
    """Mean seconds an update since it was started, after update `step`."""

    def __init__(self, step: int):
        self.step, self.began = step, time.monotonic()

    def step_seconds(self, step: int) -> float:
        return max(time.monotonic() - self.began, 1e-9) / (step - self.step)
