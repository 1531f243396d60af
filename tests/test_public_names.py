"""What `import fingerprint_accel` offers, and that it costs nothing until it is used."""

import inspect
import subprocess
import sys

import pytest

import fingerprint_accel


def test_importing_the_package_imports_nothing_large():
    """Nor does looking at its names."""
    code = (
        "import sys, fingerprint_accel; dir(fingerprint_accel); fingerprint_accel.__all__; "
        "large = {'torch', 'numpy', 'pyarrow', 'datasets', 'accelerate', 'PIL', 'tyro'}; "
        "print(sorted(large & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_datasets_are_opened_without_torch():
    code = (
        "import sys; from fingerprint_accel import decode_canvas, open_dataset; print('torch' in sys.modules); "
        "print(open_dataset.__module__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\nfingerprint_accel.data.shards\n"


def test_there_are_ten_names_and_each_is_documented():
    assert len(fingerprint_accel.__all__) == 10
    assert set(fingerprint_accel.__all__) < set(dir(fingerprint_accel))
    for name in fingerprint_accel.__all__:
        value = getattr(fingerprint_accel, name)
        assert value.__name__ == name
        assert value.__module__.startswith("fingerprint_accel.")
        assert inspect.getdoc(value)
    star = {}
    exec("from fingerprint_accel import *", star)
    assert set(fingerprint_accel.__all__) <= set(star)


def test_type_checkers_see_the_same_names():
    """The imports for type checkers and the table of modules name the same objects."""
    source = inspect.getsource(fingerprint_accel)
    for name, module in fingerprint_accel._MODULES.items():
        assert f"    from fingerprint_accel.{module} import {name}\n" in source
    assert sorted(fingerprint_accel._MODULES) == sorted(fingerprint_accel.__all__)


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="module 'fingerprint_accel' has no attribute 'extractor_of'"):
        _ = fingerprint_accel.extractor_of
