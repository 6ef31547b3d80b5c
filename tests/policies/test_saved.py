"""Is nothing believed that was not written by us?"""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import policies
from policies import saved
from policies.compiled import compile_loops
from policies.saved import Saved
from policies.thompson import Thompson
from tests.checks import SPACE, logged


def _rewritten(folder: Path, packed: bytes) -> None:
    """Put other arrays into a folder, with digests that match."""
    import hashlib

    (folder / "arrays.npz").write_bytes(packed)
    described = json.loads((folder / "policy.json").read_text())
    described.pop("digest")
    described["arrays"] = hashlib.sha256(packed).hexdigest()
    described["digest"] = saved._digest(described)
    (folder / "policy.json").write_text(json.dumps(described))


def _npz(**arrays: object) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]  # objects too, to see them refused
    return packed.getvalue()


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    """An array of objects would run code when read."""
    saved.write(tmp_path, Saved("hold", SPACE))
    _rewritten(tmp_path, _npz(evil=np.array([{}], dtype=object)))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        saved.read(tmp_path)


def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path) -> None:
    """Not NaN, not infinity."""
    with pytest.raises(ValueError, match="array 'x' is not finite"):
        saved.write(tmp_path, Saved("hold", SPACE, {}, {"x": np.array([np.nan])}))
    saved.write(tmp_path, Saved("hold", SPACE))
    _rewritten(tmp_path, _npz(x=np.array([1.0, np.inf])))
    with pytest.raises(ValueError, match="array 'x' holds numbers that are not finite"):
        saved.read(tmp_path)


def test_compressed_arrays_are_refused(tmp_path: Path) -> None:
    """They would unpack to any size."""
    saved.write(tmp_path, Saved("hold", SPACE))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("x.npy", b"0" * 1000)
    _rewritten(tmp_path, packed.getvalue())
    with pytest.raises(ValueError, match="is compressed"):
        saved.read(tmp_path)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    """By its size on disk."""
    saved.write(tmp_path, Saved("hold", SPACE))
    with (tmp_path / "arrays.npz").open("ab") as file:
        file.truncate(saved.LARGEST_FILE + 1)
    with pytest.raises(ValueError, match="more than the 268435456 that a policy may take"):
        saved.read(tmp_path)


def test_arrays_and_settings_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Whoever wrote them with matching digests."""
    policy = Thompson(SPACE)
    policy.learn(logged(50, seed=1))
    packed = policy.packed()
    for arrays, settings, message in (
        ({"drawn": packed.arrays["drawn"][:-1]}, {}, r"array 'drawn' is of shape \(55, 128\), expected"),
        ({"mean": np.zeros(3)}, {}, "array 'mean' is of shape"),
        ({}, {"members": True}, "members = True, expected int"),
        ({}, {"members": "many"}, "members = 'many', expected int"),
        ({}, {"model": {}}, "model is malformed"),
    ):
        changed = Saved("thompson", SPACE, {**packed.settings, **settings}, {**packed.arrays, **arrays})
        saved.write(tmp_path, changed)
        with pytest.raises(ValueError, match=message):
            policies.load(tmp_path, SPACE)


def test_an_unknown_kind_is_named_with_those_that_exist(tmp_path: Path) -> None:
    """A policy of a later version, say."""
    saved.write(tmp_path, Saved("oracle", SPACE))
    with pytest.raises(ValueError, match="no policy kind 'oracle': expected one of boosted, fixed, greedy"):
        policies.load(tmp_path, SPACE)


def test_loops_are_compiled_even_where_nothing_can_be_kept() -> None:
    """Code without a file stands for a package and a home that are read-only: numba finds no place for its cache."""
    names: dict[str, object] = {}
    exec(compile("def double(xs):\n    for i in range(len(xs)):\n        xs[i] *= 2\n", "<nowhere>", "exec"), names)
    double = names["double"]
    assert callable(double)
    xs = np.arange(3.0)
    compile_loops(double)(xs)
    assert xs.tolist() == [0, 2, 4]
