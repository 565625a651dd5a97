"""What a command does to its own process. A library call does none of it."""

import atexit
import contextlib
import ctypes
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache

from jaxgpt import threads
from jaxgpt.errors import UserError
from jaxgpt.home import home
from jaxgpt.training.signals import interrupt_main

# New objects before Python looks for garbage among them. To trace a program makes millions, nearly none of it garbage:
# with Python's 700 the search takes a tenth of the time until the first step.
COLLECT_AFTER = 50_000


def setup(distributed: str | None = None) -> None:
    """Makes this process one that trains and samples as fast as the commands do, and prints no noise.

    Call it before JAX makes its first array, once or more often. Afterwards every core of a CPU is a JAX device,
    compiled programs are kept in `$JAXGPT_HOME/xla` (by default `~/.cache/jaxgpt/xla`), glibc does not give freed
    memory back, Python looks for garbage less often, output never fails for a character that the terminal lacks, and
    the warnings of libraries that nobody can act on are silent. What the user chose by JAX's own variables stays.

    Args:
        distributed: who else trains the same run, as `processes.start` has it; None for nobody.

    Raises:
        UserError: for an XLA_FLAGS or JAX_PLATFORMS that JAX cannot start with.
    """
    prepare()
    gc.set_threshold(COLLECT_AFTER)
    _silence_matplotlib()
    _keep_freed_memory()
    _start_jax(distributed)


def prepare() -> None:
    """The part that takes no time and imports nothing: whatever comes next can be told, and stopped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # the process was started without, as by `>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):  # a notebook's has not, and takes all characters
            stream.reconfigure(errors="replace")
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _unraisable(unraisable) -> None:
    """Ctrl-C that comes up where Python cannot raise it, in a callback of JAX's most often, comes again."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def end_with(code: int) -> None:
    """Sees to it that this process, when it ends, ends with `code`, and at once."""
    atexit.register(_end, code)


def _end(code: int) -> None:
    """A thread that still compiles would have Python abort the process, as it unwinds the thread's stack through C++;
    and where others train the same run, JAX would wait for them, though this process has failed."""
    jax = sys.modules.get("jax")
    alone = jax is None or not jax.distributed.is_initialized()
    if threads.at_work() or (not alone and 0 < code < 128):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # nobody may be there to read it
                stream.flush()
        os._exit(code)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """For imports: in the middle of an extension module Ctrl-C may be a crash, so it comes after them. A second one
    comes at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = []

    def note(*_) -> None:
        pressed.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _silence_matplotlib() -> None:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its own cache,
    warnings.filterwarnings("ignore", "Glyph .* missing from")  # and of every letter of a Chinese title
    if not os.environ.get("MPLBACKEND", "module://").startswith("module://"):  # as a notebook sets it
        os.environ["MPLBACKEND"] = "agg"  # plots are files, and need no window; a name with a slip would be an error


def _keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next one, instead of giving it to the system and faulting it
    in again page by page. Elsewhere than under glibc this does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation by mmap, which is always given back
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap
        libc.mallopt(-2, 2**27)  # M_TOP_PAD: nor give back a thread's heap, which comes in pieces of 64 MiB


def _start_jax(distributed: str | None) -> None:
    """Configures JAX and finds its devices."""
    if refusal := _refusal_of_xla(os.environ.get("XLA_FLAGS", "")):
        raise UserError(f"XLA does not take what XLA_FLAGS says: {refusal}")
    try:
        import jax
    except ValueError as problem:  # of a variable, such as JAX_ENABLE_X64=maybe
        raise UserError(f"JAX cannot start: {problem}") from problem

    from jaxgpt.cli import programs
    from jaxgpt.device import backend, processes

    if backend.cuda_without_driver():
        # Otherwise the CUDA plugin logs a traceback before JAX falls back to the CPU by itself.
        jax.config.update("jax_platforms", "cpu")
    given = jax.config.values
    if given["jax_num_cpu_devices"] == -1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has begun already, and a CPU is one device
            jax.config.update("jax_num_cpu_devices", backend.cores())  # see sharding.py
    if given["jax_compilation_cache_dir"] is None and (folder := _cache_folder()):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        atexit.register(programs.seal, folder)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # it is only slower then
    if distributed is not None:
        processes.start(distributed)
        _end_clearly()
    try:
        jax.devices()
    except Exception as problem:  # what comes where a platform's plugin is missing depends on `python -O`
        reason = str(problem).partition(" (set ")[0] if isinstance(problem, RuntimeError) else "it is not installed"
        asked = os.environ.get("JAX_PLATFORMS")
        what = f"JAX_PLATFORMS asks for {asked}, which JAX cannot start here" if asked else "JAX cannot start here"
        raise UserError(f"{what}: {reason}") from problem


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """As soon as another process of the run is dead, JAX aborts this one, with a long report."""
    os.write(2, b"\nerror: another process of this run has ended: start all of them again, to go on with the run\n")
    os._exit(1)


def _end_clearly() -> None:
    """A handler of Python's would come too late: after it, the process aborts all the same."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


@cache
def _refusal_of_xla(flags: str) -> str:
    """What XLA says of XLA_FLAGS that it does not know, which would end this process: so a child tries them."""
    if not flags:
        return ""
    trial = "from jaxlib import xla_client; xla_client.CompileOptions()"
    said = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True).stderr
    return said.strip().rpartition("] ")[2] if "XLA_FLAGS" in said else ""


def _cache_folder() -> str:
    """Where compiled programs are kept; nothing where that cannot be."""
    folder = home() / "xla"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return str(folder)
    return ""
