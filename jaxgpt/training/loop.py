"""The loop around the step: evaluate, sample, log, save, stop when asked to."""

import contextlib
import functools
import time
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgpt import config as configs
from jaxgpt.config import TrainConfig
from jaxgpt.data import batches, corpus
from jaxgpt.data.dataset import Dataset, Tokens
from jaxgpt.device import memory, precision, processes, sharding
from jaxgpt.errors import UserError
from jaxgpt.evaluation import make_evaluate
from jaxgpt.files import reason
from jaxgpt.model import build
from jaxgpt.runs import report as reports
from jaxgpt.runs.checkpoints import Checkpoints
from jaxgpt.runs.folder import SAMPLE, RunFolder
from jaxgpt.runs.plot import plot
from jaxgpt.runs.run import FORMAT, Run, check_unchanged
from jaxgpt.threads import in_thread
from jaxgpt.training import feed, items, step
from jaxgpt.training.pacer import Pacer
from jaxgpt.training.signals import Interrupted, StopRequest
from jaxgpt.training.step import Metrics, TrainState

MAX_SKIPPED = 25  # updates in a row with a gradient that is not finite, before a run gives up


class Diverged(RuntimeError):
    """The gradients stopped being finite numbers; a checkpoint from before that, if there is one, is kept."""


class Progress(NamedTuple):
    """What a checkpoint tells of its run, beside the arrays."""

    data_sha256: str
    seconds: float = 0.0
    best_val_loss: float = float("inf")
    best_step: int = 0
    # From here on with defaults that checkpoints of format 1 have, which tell nothing of it.
    format: int = 1
    eval_item: str = "params"
    config: dict[str, Any] | None = None
    devices: int = 0
    micro_batches: int = 0
    files: dict[str, Any] | None = None


def text_changed(config: TrainConfig, folder: RunFolder) -> str:
    """What to say when a run is resumed on another text."""
    return f"{corpus.describe(config.data)} is no longer the text that {folder} was trained on"


class Loop:
    """One run in the making."""

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        data: Dataset,
        quiet: bool,
        stop: StopRequest | None,
    ):
        self.folder, self.config, self.data, self.tokenizer = folder, config, data, data.tokenizer
        self.placement = step.placement(config)
        self.dtype, self.dtype_reason = precision.choose(config.dtype, self.placement.mesh.devices.flat[0])
        self.state = step.abstract_state(config, self.dtype, self.placement)
        self.check(memory.of_arrays((self.state, self.state.params), self.placement))
        self.evaluate = make_evaluate(config, self.dtype, self.placement)
        self.report = reports.Report(quiet or not processes.is_first())
        self.stop = StopRequest(quiet=quiet) if stop is None else stop
        self.pacer = Pacer(config.max_steps, config.log_interval, config.eval_interval)
        self.final_val_loss = float("nan")
        self.began, self.warned = time.monotonic(), False
        self.progress = Progress(
            data.sha256,
            format=FORMAT,
            eval_item="ema_params" if config.ema_decay else "params",
            config=configs.to_dict(config),
            devices=self.placement.mesh.size,
            micro_batches=self.placement.micro_batches,
        )

    def from_scratch(self, params: Any = None) -> Run:
        """From fresh weights, or from `params`."""
        with self.report, self.stop, self.checkpoints() as checkpoints:
            train_steps = self.compile()
            self.banner()
            if self.data.remark:
                self.report.note(f"{self.data.remark}\n")
            # It runs once: to be compiled quickly is worth more than to run quickly.
            options = {"xla_backend_optimization_level": 0}
            shardings = step.shardings(self.config, self.dtype, self.placement)
            init = jax.jit(self.init_state, out_shardings=shardings, compiler_options=options)
            params = params and jax.tree.map(sharding.put, params, shardings.params)
            return self.run(init(params), 0, train_steps, checkpoints)

    def from_checkpoint(self) -> Run:
        with self.report, self.stop, self.checkpoints() as checkpoints:
            read = functools.partial(self.read, checkpoints)
            at, saved, train_steps, state = checkpoints.go_back(read, self.report.note)
            if not processes.all_have(at):
                raise UserError(
                    f"not all processes see the same checkpoints in {self.folder}: it must be on a shared disk"
                )
            if train_steps is None:
                done = reports.count(at, "step")
                raise UserError(f"{self.folder} has done its {done}; to go on, give a larger `max_steps`")
            self.began -= saved.seconds
            self.progress = self.progress._replace(best_val_loss=saved.best_val_loss, best_step=saved.best_step)
            rows = [row for row in self.folder.rows() if row["step"] <= at]
            if not self.folder.unchanged(self.folder.metrics, saved.files):
                self.report.note(reports.damaged_metrics(self.folder.metrics))
            if processes.is_first():
                self.folder.write_rows(rows)
                self.folder.write_config(self.config)  # max_steps or data may be new
            self.banner()
            self.report.note(reports.going_on(at, self.config.max_steps, saved.config))
            self.note_other_devices(saved)
            return self.run(state, at, train_steps, checkpoints)

    def read(
        self, checkpoints: Checkpoints, at: int
    ) -> tuple[int, Progress, Future[feed.TrainSteps] | None, TrainState]:
        """What the checkpoint after step `at` holds, and the step that is compiled meanwhile, if there is one to do."""
        progress = checkpoints.progress(at)
        check_unchanged(self.folder, self.config, progress)
        try:
            saved = Progress(**progress)
        except TypeError as problem:
            raise UserError(
                f"the checkpoint of step {at} tells what this version does not know: {problem}"
            ) from problem
        if saved.data_sha256 != self.progress.data_sha256:
            raise UserError(text_changed(self.config, self.folder))
        train_steps = self.compile() if at < self.config.max_steps else None
        like = items.of_state(self.state, saved.format)
        return at, saved, train_steps, items.to_state(checkpoints.restore(at, like), saved.format)

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder.checkpoints, read_only=not processes.is_first())

    def init_state(self, params: Any = None) -> TrainState:
        return step.init_state(self.config, self.dtype, params)

    def compile(self) -> Future[feed.TrainSteps]:
        """Begins to, while weights are drawn or read and the first evaluation is compiled and run."""
        return in_thread(feed.compile_train_steps, self.config, self.dtype, self.placement, self.data.train)

    def compiled(self, train_steps: Future[feed.TrainSteps]) -> feed.TrainSteps:
        """Waits for the compilation, or for a request to stop."""
        while processes.several() or not self.stop.signal_number:
            with contextlib.suppress(TimeoutError):
                compiled = train_steps.result(timeout=0.1)
                self.check(compiled.need)
                self.report.note(reports.memory(compiled.need))
                return compiled
        raise Interrupted(f"stopped before a step was done, in {self.folder}", self.stop.signal_number)

    def check(self, need: memory.Need) -> None:
        """Raises `UserError` where there is too little memory: of its state and gradients before anything is written,
        of all that a step needs before the first one."""
        if need.too_much:
            raise UserError(reports.too_large(need, self.placement.mesh.size))

    def asked_to_stop(self) -> int:
        """The signal that has come to this process, or to another of the run's; 0 for none."""
        return processes.agree_on_numbers(0, self.stop.signal_number)[1]

    def run(self, state: TrainState, at: int, train_steps: Future[feed.TrainSteps], checkpoints: Checkpoints) -> Run:
        """From step `at` to the end."""
        # Fresh weights know nothing, and the first update tells their loss: they are not evaluated.
        if at == 0 and self.config.init_from and not self.asked_to_stop():
            self.add_row({"step": 0} | self.evaluation(state, 0))
        state = self.train(state, at, self.compiled(train_steps), checkpoints)
        self.verify(checkpoints, state)
        p = self.progress
        self.report.note(reports.result(self.config, p.seconds, p.best_val_loss, p.best_step, self.final_val_loss))
        return self.trained(processes.on_host(state.eval_params), self.config.max_steps)

    def train(self, state: TrainState, at: int, train_steps: feed.TrainSteps, checkpoints: Checkpoints) -> TrainState:
        last = self.config.max_steps
        fresh, pending = True, None
        n = self.pacer.steps_to_go(at)
        while at < last:
            evaluate = (at + n) % self.config.eval_interval == 0 or at + n == last
            if evaluate and pending is not None:  # its time ends here: the next call is the last before a pause
                self.add_row(self.row(*pending))
                pending = None
            state, metrics = train_steps(state, at, n)
            if fresh:  # the first call after a pause is slower, and its time is no step's
                self.pacer.restart(at)
                fresh = False
            if pending is not None:  # a call late, so that the device never waits for Python
                self.add_row(self.row(*pending))
            at, pending = at + n, (at + n, metrics)
            n, signal = processes.agree_on_numbers(self.pacer.steps_to_go(at), self.stop.signal_number)
            if not (evaluate or signal):
                continue
            row = self.row(*pending)
            losses = self.evaluation(state, at) if evaluate else {}
            self.add_row(row | losses)
            self.save(checkpoints, state, at, losses.get("val_loss", float("inf")))
            fresh, pending = True, None
            if at < last and (signal := self.asked_to_stop()):
                self.verify(checkpoints, state)
                raise Interrupted(f"stopped and saved after step {at}, in {self.folder}", signal)
        return state

    def row(self, at: int, metrics: Metrics) -> dict[str, Any]:
        """The row of metrics.jsonl for update `at`; waits until the device has done it."""
        loss, grad_norm, learning_rate, loss_scale, skipped, total_skipped = (x.item() for x in jax.device_get(metrics))
        if skipped >= MAX_SKIPPED:
            raise Diverged(self.diverged(at, skipped))
        step_seconds = self.pacer.step_seconds(at)
        self.warn_if_long(at, step_seconds)
        row = {
            "step": at,
            "train_loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "step_seconds": step_seconds,
            "tokens_per_second": self.config.batch_size * self.config.model.block_size / step_seconds,
            "skipped": total_skipped,
        }
        return row | ({"loss_scale": loss_scale} if self.dtype == jnp.float16 else {})

    def add_row(self, row: dict[str, Any]) -> None:
        """To metrics.jsonl, if it is the first, has losses, or it is this step's turn; otherwise to the progress line
        alone."""
        evaluated = "val_loss" in row
        if evaluated or row["step"] == 1 or row["step"] % self.config.log_interval == 0:
            if processes.is_first():
                self.folder.append_row(row)
            self.pacer.restart(row["step"])
        if not evaluated:
            self.report.step(row, self.config.max_steps)

    def evaluation(self, state: TrainState, at: int) -> dict[str, Any]:
        """For a row: both losses on the fixed windows, that of the whole validation split after the last step, and what
        the model writes."""
        some = self.config.eval_windows
        losses: dict[str, Any] = {
            "eval_train_loss": self.loss(state, self.data.train, some),
            "val_loss": self.loss(state, self.data.val, some),
        }
        if at == self.config.max_steps:
            losses["final_val_loss"] = self.final_val_loss = self.loss(state, self.data.val, None)
        best = losses["val_loss"] < self.progress.best_val_loss
        if best:
            self.progress = self.progress._replace(best_val_loss=losses["val_loss"], best_step=at)
        sample = self.sample(state, at) if at > 0 else ""  # before the first update it is noise
        self.report.evaluation(at, losses["eval_train_loss"], losses["val_loss"], best, sample)
        return losses | ({SAMPLE: sample} if sample else {})

    def loss(self, state: TrainState, tokens: Tokens, count: int | None) -> float:
        windows = batches.fixed_windows(len(tokens), self.config.model.block_size, count)
        return self.evaluate(state.eval_params, tokens, *windows)

    def sample(self, state: TrainState, at: int) -> str:
        tokens = self.config.sample_tokens
        if not tokens:
            return ""
        params = processes.on_host(state.eval_params, keep=processes.is_first())
        return self.trained(params, at).generate(tokens=tokens) if processes.is_first() else ""

    def trained(self, params: Any, at: int) -> Run:
        """The run as it is after step `at`, with its model on one device."""
        one = sharding.place(jax.local_devices()[:1])
        model = build.merge(self.config.model, jax.device_put(params, one.replicated))
        return Run(self.folder.path, self.config, self.tokenizer, model, at)

    def save(self, checkpoints: Checkpoints, state: TrainState, at: int, val_loss: float) -> None:
        seconds, files = time.monotonic() - self.began, self.folder.checksums()
        self.progress = self.progress._replace(seconds=seconds, files=files)
        saved = processes.on_host(items.of_state(state), keep=processes.is_first())
        if not processes.is_first():
            return
        checkpoints.save(at, saved, self.progress._asdict(), val_loss)
        try:
            title = f"{self.folder.path.name}: {corpus.describe(self.config.data)}"
            plot(self.folder.rows(), title, self.folder.plot, self.tokenizer.unit)
        except Exception as problem:  # of matplotlib's many: no picture is worth a run
            self.report.note(f"no picture of the losses: {reason(problem)}")

    def verify(self, checkpoints: Checkpoints, state: TrainState) -> None:
        saved = processes.on_host(items.of_state(state), keep=processes.is_first())
        if processes.is_first():
            checkpoints.verify(saved)

    # What a person is told

    def banner(self) -> None:
        dtype, sizes = f"{self.dtype}, {self.dtype_reason}", (len(self.data.train), len(self.data.val))
        unit, split = self.tokenizer.unit, self.data.split
        facts = reports.facts(self.config, self.folder.path, self.placement, dtype, unit, sizes, split)
        self.report.banner(facts)

    def warn_if_long(self, at: int, step_seconds: float) -> None:
        """Once, where a CPU would take long."""
        if self.warned or not self.pacer.can_tell(at):
            return
        self.warned = True
        seconds = (self.config.max_steps - at) * step_seconds
        if self.placement.platform == "cpu" and seconds > reports.LONG_RUN_SECONDS:
            self.report.note(reports.long_run(seconds, step_seconds))

    def note_other_devices(self, saved: Progress) -> None:
        """Dropout's random numbers belong to a device and a micro-batch."""
        before, now = ((p.devices, p.micro_batches) for p in (saved, self.progress))
        m = self.config.model
        if saved.devices and before != now and (m.dropout or m.embd_dropout):
            self.report.note(reports.other_dropout(before, now))

    def diverged(self, at: int, skipped: int) -> str:
        kept = f"; the last good checkpoint is in {self.folder}" if self.folder.has_checkpoint() else ""
        return (
            f"the gradient was not finite {skipped} times in a row, up to step {at}{kept}: "
            "try a lower `learning_rate`, a `grad_clip`, or `dtype` float32"
        )
