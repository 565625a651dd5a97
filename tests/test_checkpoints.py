"""What is saved comes back bit for bit, the newest two and the best stay, and what goes wrong is told by its cause."""

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxgpt.errors import UserError
from jaxgpt.runs import arrays
from jaxgpt.runs.checkpoints import Checkpoints, DamagedCheckpoint


class Moments(NamedTuple):
    mu: Any
    nu: Any


def items(step: int = 5) -> dict[str, Any]:
    """Trees of many kinds, in which every number is its own."""
    rng = np.random.default_rng(step)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.integers(1, 10_000, shape), dtype)

    params = {"wte": {"embedding": draw(13, 160)}, "h": {0: {"kernel": draw(16, 64), "bias": draw(64)}}}
    moments = Moments(jax.tree.map(lambda leaf: -leaf, params), draw(7, dtype=jnp.bfloat16))
    return {"params": params, "rest": {"step": jnp.int32(step), "moments": (moments, ()), "scale": jnp.float16(0.5)}}


def like(tree: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


LIKE = like(items())


def assert_same(one: Any, other: Any) -> None:
    """Two trees are built alike and hold the same numbers of the same types, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(folder: Path, val_losses: dict[int, float]) -> Path:
    """A folder with a checkpoint after each of some steps."""
    with Checkpoints(folder) as checkpoints:
        for step, val_loss in val_losses.items():
            checkpoints.save(step, items(step), {"note": f"after {step}"}, val_loss)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Runs `code` in a process of its own, with what this file defines."""
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


# There and back


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    progress = {"format": 2, "seconds": 1.5, "best_val_loss": float("inf"), "best_step": 0}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, items(), progress)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(5, LIKE), items())
        assert checkpoints.progress(5) == progress


def test_arrays_lie_where_like_says_whatever_device_wrote_them(tmp_path):
    mesh = jax.make_mesh((4,), ("data",))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    tree = {"split": jax.device_put(jnp.arange(64.0).reshape(8, 8), spread), "whole": jnp.arange(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"params": tree}, {})
        checkpoints.wait()
        wanted = {"split": like(tree["split"], one), "whole": like(tree["whole"])}
        on_one = checkpoints.restore(5, {"params": wanted})["params"]
        again = checkpoints.restore(5, {"params": {"split": tree["split"], "whole": wanted["whole"]}})["params"]
    assert_same(on_one, tree)
    assert on_one["split"].sharding == one
    assert type(on_one["whole"]) is np.ndarray
    assert_same(again, tree)
    assert again["split"].sharding == spread


def test_saving_is_not_disturbed_by_the_steps_that_follow(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = step(items())
    moment = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {})
        for _ in range(3):  # each uses up the memory of the state before
            state = step(state)
        checkpoints.wait()
        assert_same(checkpoints.restore(5, LIKE), moment)


def test_an_item_can_be_read_alone_and_one_without_arrays_is_given_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {**items(), "average": {}}, {})
        checkpoints.wait()
        assert_same(checkpoints.restore(5, {"params": LIKE["params"]}), {"params": items()["params"]})
        assert checkpoints.restore(5, {"average": {}}) == {"average": {}}


def test_every_layer_keeps_its_place_beyond_the_tenth(tmp_path):
    # By name, layer 10 comes before layer 2.
    layers = {"h": [jnp.full(2, float(i)) for i in range(12)]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"params": layers}, {})
        checkpoints.wait()
        assert_same(checkpoints.restore(5, {"params": like(layers)})["params"], layers)


def test_a_checkpoint_of_the_first_version_is_read_and_gone_on_from(tmp_path):
    # They were written by Orbax's manager, which took JAX's arrays, not NumPy's.
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["val_loss"], best_mode="min")
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step, val_loss in {2: 1.0, 4: 2.0}.items():
            trees = {name: ocp.args.StandardSave(tree) for name, tree in items(step).items()}
            args = ocp.args.Composite(**trees, progress=ocp.args.JsonSave({"best_step": 2}))
            manager.save(step, args=args, metrics={"val_loss": val_loss}, force=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.newest(), checkpoints.best()) == (4, 2)
        assert_same(checkpoints.restore(4, LIKE), items(4))
        assert checkpoints.progress(4) == {"best_step": 2}
        checkpoints.save(6, items(6), {}, 3.0)
        checkpoints.save(8, items(8), {}, 3.0)
    assert names_in(tmp_path) == ["2", "6", "8"]


@pytest.mark.parametrize(
    "name",
    [
        "[gpt] x",
        "[a-z]",
        "a*b?",
        "sp ace",
        "$x_$ ${y}",
        "50% %20",
        "'q'\"q\"",
        "-dash",
        "~x",
        "文字 é́ ы",
        "b\\n",
        "n\nn",
    ],
)
def test_any_name_will_do_for_a_folder(tmp_path, name):
    saved(tmp_path / name / "checkpoints", {5: 1.0})
    with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
        assert_same(checkpoints.restore(checkpoints.newest(), LIKE), items())
    assert names_in(tmp_path) == [name]
    assert names_in(tmp_path / name) == ["checkpoints"]


def test_a_relative_folder_stays_the_same_when_the_current_one_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Path("checkpoints")) as checkpoints:
        checkpoints.save(5, items(), {})
        monkeypatch.chdir("/")
        checkpoints.verify(items())
    assert names_in(tmp_path / "checkpoints") == ["5"]


def test_saving_works_where_an_event_loop_runs(tmp_path):
    code = """
        import asyncio, sys
        sys.modules["uvloop"] = sys.modules["nest_asyncio"] = None  # as where they are not installed
        from test_checkpoints import *

        async def main():
            saved(Path(sys.argv[1]), {5: 1.0})
            with Checkpoints(sys.argv[1]) as checkpoints:
                assert_same(checkpoints.restore(5, LIKE), items())

        asyncio.run(main())
    """
    done = python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# Which are kept


@pytest.mark.parametrize(
    "val_losses, kept",
    [
        ({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.7, 10: 2.6}, [4, 8, 10]),
        ({2: 3.0, 4: 2.0, 6: 1.0}, [4, 6]),
        ({2: 3.0, 4: 2.0, 6: 2.5}, [4, 6]),
        ({2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0}, [2, 6, 8]),
        ({2: 2.0, 4: float("nan"), 6: 3.0, 8: float("nan")}, [2, 6, 8]),
        ({2: 3.0, 4: float("inf"), 10: float("inf"), 12: float("inf")}, [2, 10, 12]),
        ({2: float("nan"), 4: float("inf"), 6: float("inf")}, [4, 6]),
        ({2: 1.0}, [2]),
    ],
    ids=[
        "best in the middle",
        "best is newest",
        "best is the one before",
        "best is first",
        "not a number",
        "without a loss",
        "never a loss",
        "one",
    ],
)
def test_the_newest_two_and_the_best_are_kept_and_nothing_else(tmp_path, val_losses, kept):
    saved(tmp_path, val_losses)
    assert names_in(tmp_path) == sorted(map(str, kept))
    best = min(reversed(kept), key=lambda step: np.nan_to_num(val_losses[step], nan=np.inf))
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best(), checkpoints.newest()) == (best, kept[-1])
        for step in kept:
            assert_same(checkpoints.restore(step, LIKE), items(step))
            assert checkpoints.progress(step) == {"note": f"after {step}"}


def test_the_best_is_remembered_when_a_run_goes_on(tmp_path):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    saved(tmp_path, {6: 3.0, 8: 1.5})
    assert names_in(tmp_path) == ["2", "6", "8"]


def test_one_whose_loss_cannot_be_read_may_be_the_best_and_stays(tmp_path):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    (tmp_path / "2" / "metrics" / "metrics").write_text("{")
    saved(tmp_path, {6: 3.0, 8: 1.5, 10: 4.0})
    assert names_in(tmp_path) == ["10", "2", "8"]
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.newest() == 10
    with pytest.raises(DamagedCheckpoint, match=r"2 cannot be read: its file metrics/metrics is not as it was written"):
        reader.best()


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, items(1), {}, 1.0)
        checkpoints.save(5, items(2), {}, 2.0)
        checkpoints.verify(items(2))
    assert names_in(tmp_path) == ["5"]


def test_what_else_lies_in_the_folder_is_neither_read_nor_removed(tmp_path):
    others = ["-1", "6 (1)", "007", "8.bak", "٩", ".DS_Store", "x.orbax-checkpoint-tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "99").write_text("a file")
    (tmp_path / "98").symlink_to(tmp_path / "nowhere")
    saved(tmp_path, {2: 1.0, 4: 0.5, 6: 0.25})
    assert names_in(tmp_path) == sorted([*others, "99", "98", "4", "6"])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() == 6


def test_what_a_killed_write_left_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    saved(tmp_path, {2: 1.0})
    shutil.copytree(tmp_path / "2" / "params", tmp_path / "4.orbax-checkpoint-tmp" / "params")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() == 2
        checkpoints.save(6, items(6), {}, 0.5)
    assert names_in(tmp_path) == ["2", "6"]


def test_a_checkpoint_that_was_moved_is_read_through_its_link_which_goes_in_its_turn(tmp_path):
    here, elsewhere = tmp_path / "checkpoints", tmp_path / "disk"
    saved(here, {2: 1.0})
    (here / "2").rename(elsewhere)
    (here / "2").symlink_to(elsewhere)
    with Checkpoints(here) as checkpoints:
        assert_same(checkpoints.restore(checkpoints.newest(), LIKE), items(2))
        checkpoints.save(4, items(4), {}, 0.5)
        checkpoints.save(6, items(6), {}, 0.25)
    assert names_in(here) == ["4", "6"]
    assert names_in(elsewhere) == names_in(here / "4")


# What cannot be written


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux tells which file is synced")
def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), names_in(tmp_path)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    saved(tmp_path, {5: 1.0})
    unfinished = {name for name, there in synced if there == ["5.orbax-checkpoint-tmp"]}
    whole = [tmp_path / "5", *(tmp_path / "5").rglob("*")]
    assert {str(path).replace(f"{tmp_path}/5", f"{tmp_path}/5.orbax-checkpoint-tmp") for path in whole} <= unfinished
    assert synced[-1] == (str(tmp_path), ["5"])


def test_what_was_saved_is_verified(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, items(), {})
        checkpoints.verify(items())
        other = items()
        other["rest"]["scale"] = -other["rest"]["scale"]
        with pytest.raises(OSError, match="does not hold what was saved"):
            checkpoints.verify(other)


def test_bits_are_verified_not_numbers(tmp_path):
    tree = {"params": {"k": jnp.array([jnp.nan, 0.0])}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, tree, {})
        checkpoints.verify(tree)
        with pytest.raises(OSError, match="does not hold"):
            checkpoints.verify({"params": {"k": jnp.array([jnp.nan, -0.0])}})


def test_nothing_is_verified_where_nothing_was_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(OSError, match="no checkpoint yet"):
        checkpoints.verify(items())


def fail(monkeypatch, error: Exception) -> None:
    def write(*_):
        raise error

    monkeypatch.setattr(arrays, "write", write)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("RESOURCE_EXHAUSTED: Error writing \"k/0\":\n No space left on device [os_error_code='28']"),
    ],
    ids=["from Python", "from TensorStore"],
)
def test_a_full_disk_is_told_once_in_one_line_and_the_last_checkpoint_is_kept(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "checkpoints", {5: 1.0})
    with Checkpoints("checkpoints") as checkpoints:
        with monkeypatch.context() as full:
            fail(full, error)
            checkpoints.save(8, items(8), {}, 0.5)
            with pytest.raises(OSError, match="could not be written") as caught:
                checkpoints.wait()
        checkpoints.wait()  # says it no more
        assert names_in(tmp_path / "checkpoints") == ["5"]
        checkpoints.save(9, items(9), {}, 0.5)  # there is space again
    told = str(caught.value)
    assert told.startswith("a checkpoint could not be written to checkpoints (No space left on device, ")
    assert told.endswith(" MiB free there): free some space; the one before it is kept")
    assert "\n" not in told
    assert names_in(tmp_path / "checkpoints") == ["5", "9"]


def test_none_is_said_to_be_kept_where_there_was_none(tmp_path, monkeypatch):
    fail(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(OSError, match=r"there\): free some space$"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, items(8), {})


def test_the_failure_of_one_write_is_told_by_the_next(tmp_path, monkeypatch):
    fail(monkeypatch, OSError(errno.EIO, os.strerror(errno.EIO)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, items(2), {})
        with pytest.raises(OSError, match="Input/output error"):
            checkpoints.save(4, items(4), {})


@pytest.mark.parametrize("instead", ["a file", "nothing"])
def test_a_folder_that_went_away_is_told_at_once_and_nothing_is_said_to_be_kept(tmp_path, instead):
    folder = tmp_path / "checkpoints"
    with pytest.raises(OSError, match=r"directory\): the folder is no longer there$"), Checkpoints(folder) as c:
        c.save(5, items(), {})
        c.wait()
        folder.rename(tmp_path / "away")
        if instead == "a file":
            folder.write_text("")
        c.save(8, items(8), {})
    assert not folder.is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_to_write_is_told(tmp_path):
    saved(tmp_path, {5: 1.0})
    tmp_path.chmod(0o555)
    match = r"\(Permission denied\): make the folder writable; the one before it is kept"
    with pytest.raises(OSError, match=match), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, items(8), {})


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made: Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_write_that_fails_halfway_prints_nothing(tmp_path):
    code = """
        import resource
        from test_checkpoints import *

        big = {"params": {i: np.random.default_rng(i).random(40_000) for i in range(20)}}
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.save(5, big, {})
            checkpoints.verify(big)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            checkpoints.save(8, big, {})
            try:
                checkpoints.wait()
            except OSError as error:
                print(error)
    """
    done = python(code, tmp_path)
    told = f"a checkpoint could not be written to {tmp_path} (File too large); the one before it is kept\n"
    assert (done.stdout, done.stderr) == (told, "")
    assert names_in(tmp_path) == ["5"]


def test_leaving_by_an_exception_finishes_the_write_and_hides_nothing(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, items(), {})
        raise KeyboardInterrupt
    assert names_in(tmp_path) == ["5"]
    fail(monkeypatch, OSError(errno.EIO, os.strerror(errno.EIO)))
    with pytest.raises(KeyboardInterrupt) as caught, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(8, items(8), {})
        raise KeyboardInterrupt
    (note,) = caught.value.__notes__
    assert "could not be written" in note


# What cannot be read


@pytest.mark.parametrize("which", ["newest", "best"])
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_checkpoint_is_said_to_have_none(tmp_path, which, there):
    folder = tmp_path if there else tmp_path / "missing"
    with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="no checkpoint yet"):
        getattr(checkpoints, which)()
    assert names_in(tmp_path) == []


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [garbage, truncate, empty, flip_a_bit, Path.unlink])
def test_whatever_file_is_damaged_no_wrong_number_is_read(tmp_path, damage):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    told = set()
    for path in files_of(tmp_path / "4"):
        whole = path.read_bytes()
        damage(path)
        with Checkpoints(tmp_path, read_only=True) as checkpoints:
            try:
                assert checkpoints.progress(4) == {"note": "after 4"}
                assert_same(checkpoints.restore(4, LIKE), items(4))  # a file that is not needed to restore
            except UserError as error:
                told.add(path.relative_to(tmp_path / "4").parts[0])
                message = str(error)
                assert path.name == "manifest.json" or path.relative_to(tmp_path / "4").as_posix() in message
                assert message.startswith(f"the checkpoint {tmp_path / '4'} cannot be read: ")
                assert message.endswith("; to take that of step 2, rename the damaged one")
                assert len(message) < 300 + len(str(tmp_path))
                assert "\n" not in message
        path.write_bytes(whole)
    # without the checksums it is a checkpoint of an older version; a flipped bit of theirs blames one of the files
    assert {"params", "progress", "rest"} <= told <= {"params", "progress", "rest", "manifest.json"}


def test_a_loss_that_is_damaged_does_not_make_the_best(tmp_path):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    path = tmp_path / "4" / "metrics" / "metrics"
    path.write_bytes(path.read_bytes().replace(b"2.0", b"0.0"))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(
            UserError, match=r"4 cannot be read: its file metrics/metrics .* step 2, rename the damaged"
        ):
            checkpoints.best()
        (tmp_path / "4").rename(tmp_path / "4 damaged")  # as it was told
        assert checkpoints.best() == 2


def test_checksums_of_the_first_kind_are_compared_too(tmp_path):
    saved(tmp_path, {2: 1.0})
    manifest, metadata = tmp_path / "2" / "manifest.json", tmp_path / "2" / "params" / "_METADATA"
    entries = {
        path.relative_to(tmp_path / "2").as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files_of(tmp_path / "2")
        if path != manifest
    }
    manifest.write_text(json.dumps(entries))
    reader = Checkpoints(tmp_path, read_only=True)
    assert_same(reader.restore(2, LIKE), items(2))
    metadata.write_bytes(metadata.read_bytes() + b" ")
    with pytest.raises(DamagedCheckpoint, match="its file params/_METADATA is not as it was written"):
        reader.restore(2, LIKE)


@pytest.mark.parametrize("entry", [None, 3, {}, {"bytes": 1}, {"bytes": 1, "md5": ""}, {"bytes": "1", "sha256": ""}])
def test_a_checksum_that_is_none_is_damage(tmp_path, entry):
    saved(tmp_path, {2: 1.0})
    manifest = tmp_path / "2" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"progress/metadata": entry}))
    with pytest.raises(DamagedCheckpoint, match="its file progress/metadata is not as it was written"):
        Checkpoints(tmp_path, read_only=True).progress(2)


# Going back to the one before


def go_back(folder: Path) -> tuple[int, list[str]]:
    """The step that is gone back to, and what is told."""
    notes = []

    def work(step: int) -> int:
        assert_same(checkpoints.restore(step, LIKE), items(step))
        return step

    with Checkpoints(folder) as checkpoints:
        return checkpoints.go_back(work, notes.append), notes


def test_damaged_checkpoints_are_gone_back_from_and_kept_under_another_name(tmp_path):
    saved(tmp_path, {2: 1.0, 4: 2.0, 5: 3.0})
    for step in ("4", "5"):
        flip_a_bit(files_of(tmp_path / step / "params" / "d")[0])
    evidence = files_of(tmp_path / "5" / "params")
    step, notes = go_back(tmp_path)
    assert step == 2
    assert [note.partition(": ")[0] for note in notes] == [
        f"the checkpoint {tmp_path / '5'} cannot be read",
        f"the checkpoint {tmp_path / '4'} cannot be read",
    ]
    assert notes[0].endswith("not as it was written; going back to step 2, and keeping the damaged one as 5.damaged")
    assert files_of(tmp_path / "5" / "params") == []
    saved(tmp_path, {4: 2.0, 6: 3.0})  # steps that it comes to again, and all that cleaning does
    assert names_in(tmp_path) == ["2", "4", "4.damaged", "5.damaged", "6"]
    assert len(files_of(tmp_path / "5.damaged" / "params")) == len(evidence)
    assert go_back(tmp_path) == (6, [])


def test_a_step_that_is_damaged_again_does_not_replace_the_evidence(tmp_path):
    for _ in range(2):
        saved(tmp_path, {2: 1.0, 4: 2.0})
        empty(tmp_path / "4" / "params" / "_METADATA")
        assert go_back(tmp_path)[0] == 2
    assert names_in(tmp_path) == ["2", "4.damaged", "4.damaged-2"]


@pytest.mark.parametrize("steps, told", [([2, 4], "no other is whole"), ([4], "there is no other")])
def test_where_none_is_whole_nothing_is_changed(tmp_path, steps, told):
    saved(tmp_path, dict.fromkeys(steps, 1.0))
    for step in steps:
        truncate(tmp_path / str(step) / "rest" / "_METADATA")
    match = f"4 cannot be read: its file rest/_METADATA is not as it was written; {told}$"
    with pytest.raises(UserError, match=match):
        go_back(tmp_path)
    assert names_in(tmp_path) == list(map(str, steps))


@pytest.mark.parametrize("error", [UserError("another text"), OSError(errno.ENOMEM, "no memory")])
def test_what_is_no_damage_is_not_gone_back_from(tmp_path, error):
    saved(tmp_path, {2: 1.0, 4: 2.0})

    def work(step: int) -> None:
        raise error

    with Checkpoints(tmp_path) as checkpoints, pytest.raises(type(error)):
        checkpoints.go_back(work, pytest.fail)
    assert names_in(tmp_path) == ["2", "4"]


def test_an_item_or_a_progress_that_is_missing_is_told(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {"params": items()["params"]}, {})
        checkpoints.wait()
        with pytest.raises(UserError, match=r"5 cannot be read: it has no rest$"):
            checkpoints.restore(5, LIKE)
        shutil.rmtree(tmp_path / "5" / "progress")
        with pytest.raises(UserError, match=r"5 cannot be read: its file progress/metadata is missing$"):
            checkpoints.progress(5)


@pytest.mark.parametrize(
    "change, told",
    [
        (
            lambda p: p["h"][0].update(kernel=jnp.zeros((16, 96))),
            r"h/0/kernel is \(16, 64\) there and \(16, 96\) here",
        ),
        (lambda p: p["h"].update({1: {"bias": jnp.zeros(64)}}), r"h/1/bias is missing there and \(64,\) here"),
        (lambda p: p.pop("wte"), r"wte/embedding is \(13, 160\) there and missing here"),
    ],
    ids=["other shape", "more", "less"],
)
def test_another_model_is_told_by_the_first_array_that_differs(tmp_path, change, told):
    saved(tmp_path, {5: 1.0})
    params = items()["params"]
    change(params)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=f"5 is of another model: params/{told}"):
        checkpoints.restore(5, {"params": like(params)})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("part", ["5/params/manifest.ocdbt", "5/progress/metadata", "5", "."])
def test_a_file_without_permission_to_read_is_told(tmp_path, part):
    folder = saved(tmp_path / "checkpoints", {5: 1.0})
    mode = (folder / part).stat().st_mode
    (folder / part).chmod(0)
    try:
        with Checkpoints(folder, read_only=True) as checkpoints, pytest.raises(UserError, match="Permission denied"):
            checkpoints.progress(checkpoints.newest())
            checkpoints.restore(5, LIKE)
    finally:
        (folder / part).chmod(mode)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")])
def test_too_little_memory_is_no_damage(tmp_path, monkeypatch, error):
    def restore(*_, **__):
        raise error

    saved(tmp_path, {5: 1.0})
    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(OSError, match="Cannot allocate memory"):
        checkpoints.restore(5, LIKE)


def test_the_cause_is_not_what_the_caller_was_busy_with(tmp_path):
    saved(tmp_path, {5: 1.0})
    (tmp_path / "5" / "manifest.json").unlink()
    (tmp_path / "5" / "progress" / "metadata").write_text("{")
    try:
        raise OSError(errno.ENOMEM, "something else")
    except OSError:
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="property name"):
            checkpoints.progress(5)


# Beside a run that trains


@pytest.mark.parametrize("which, first, then", [("newest", 4, 8), ("best", 2, 8)])
def test_a_reader_whose_checkpoint_is_replaced_takes_the_one_in_its_place(tmp_path, which, first, then):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    steps = []
    reader = Checkpoints(tmp_path, read_only=True)

    def work(step: int) -> Any:
        steps.append(step)
        if len(steps) == 1:
            saved(tmp_path, {6: 0.5, 8: 0.25})
        return reader.restore(step, LIKE)

    assert_same(reader.read(which, work), items(then))
    assert steps == [first, then]


def test_the_best_is_found_though_it_changes_while_losses_are_compared(tmp_path, monkeypatch):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    reader = Checkpoints(tmp_path, read_only=True)
    read_loss = reader._val_loss

    def read_loss_late(step: int) -> float | None:
        saved(tmp_path, {6: 0.5})
        return read_loss(step)

    monkeypatch.setattr(reader, "_val_loss", read_loss_late)
    assert reader.best() == 6


def test_a_reader_is_told_of_a_damaged_checkpoint_once_and_for_all(tmp_path):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    (tmp_path / "4" / "params" / "_METADATA").unlink()
    steps = []

    def work(step: int) -> Any:
        steps.append(step)
        return reader.restore(step, LIKE)

    with Checkpoints(tmp_path, read_only=True) as reader, pytest.raises(UserError, match="4 cannot be read"):
        reader.read("newest", work)
    assert steps == [4]


def test_reading_never_fails_while_a_run_saves(tmp_path):
    saved(tmp_path, {1: 2.0})
    writer = threading.Thread(target=saved, args=(tmp_path, {step: step % 3 for step in range(2, 12)}))
    writer.start()
    reader = Checkpoints(tmp_path, read_only=True)
    reads = 0
    while writer.is_alive() or reads < 2:
        which = ("newest", "best")[reads % 2]
        restored = reader.read(which, lambda step: (step, reader.progress(step), reader.restore(step, LIKE)))
        assert restored[1] == {"note": f"after {restored[0]}"}
        assert_same(restored[2], items(restored[0]))
        reads += 1
    writer.join()


def test_who_only_reads_changes_nothing(tmp_path):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    (tmp_path / "6.orbax-checkpoint-tmp").mkdir()

    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [tmp_path, *tmp_path.rglob("*")]}

    before = state()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(checkpoints.best(), LIKE), items(2))
        assert checkpoints.progress(checkpoints.newest()) == {"note": "after 4"}
        with pytest.raises(OSError, match="opened to be read"):
            checkpoints.save(8, items(8), {})
    assert state() == before


# A guest in the process


def process_state() -> list[Any]:
    loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio", "orbax")]
    return [sys.unraisablehook, sys.excepthook, threading.excepthook] + [
        (logger.level, logger.disabled, logger.propagate, list(logger.filters), list(logger.handlers))
        for logger in loggers
    ]


def test_the_process_is_left_as_it_was(tmp_path, monkeypatch):
    before = process_state()
    saved(tmp_path, {5: 1.0})
    assert process_state() == before
    garbage(tmp_path / "5" / "params" / "manifest.ocdbt")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError):
            checkpoints.restore(5, LIKE)
        assert process_state() == before
        shutil.rmtree(tmp_path)
        checkpoints.save(8, items(8), {})
        with pytest.raises(OSError, match="no longer there"):
            checkpoints.wait()
    assert process_state() == before


def test_errors_of_others_are_still_reported_meanwhile(monkeypatch):
    class Host:
        def __del__(self):
            raise ValueError("the host's own")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(str(unraisable.exc_value)))
    with arrays._quiet:
        Host()
    assert told == ["the host's own"]


def test_a_program_that_imports_this_and_meets_a_damaged_checkpoint_goes_on_undisturbed(tmp_path):
    big = {"params": {i: np.random.default_rng(i).random(2000) for i in range(40)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, big, {})
    for path in files_of(tmp_path / "5" / "params" / "ocdbt.process_0" / "d"):
        truncate(path)
    code = """
        import logging, sys, threading
        import jax, numpy as np

        def state():
            loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio")]
            return [sys.unraisablehook] + [(l.level, l.filters[:], l.handlers[:]) for l in loggers]

        before = state()
        from jaxgpt.errors import UserError
        from jaxgpt.runs.checkpoints import Checkpoints
        assert state() == before

        like = {"params": {i: jax.ShapeDtypeStruct((2000,), np.float64) for i in range(40)}}
        for _ in range(3):
            try:
                with Checkpoints(sys.argv[1], read_only=True) as checkpoints:
                    checkpoints.restore(5, like)
            except UserError as error:
                kept = error
        assert state() == before
        print("cannot be read" in str(kept))
    """
    done = python(code, tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)
