"""YAML: what plain files may hold, and what is refused; tests/test_config.py has whole configs."""

import time

import pytest

from openworldsam.utils.safe_yaml import read_yaml


def read(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    return read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"", None),
        (b"a: &x [1, yes, 2.5]\nb: *x\n", {"a": [1, True, 2.5], "b": [1, True, 2.5]}),
        (b"a: &x {c: 1}\nb: {<<: *x, d: 2}\n", {"a": {"c": 1}, "b": {"c": 1, "d": 2}}),
        (b"a: {b: 1}\nc: {b: 1}\n1: x\n'1': y\n", {"a": {"b": 1}, "c": {"b": 1}, 1: "x", "1": "y"}),
        ("a: \u00e9".encode("utf-16"), {"a": "\u00e9"}),
        (b"\xef\xbb\xbfa: 1", {"a": 1}),
    ],
)
def test_plain_files(tmp_path, content, value):
    assert read(tmp_path, content) == value


REFUSED = {
    "tag": (b"a: !!python/name:os.system", "line 1: .*python/name"),
    "twice": (b"a: 1\nb: 2\na: 3", "line 3: the key 'a' twice"),
    "twice below": (b"a: {b: 1, b: 2}", "the key 'b' twice"),
    "part of itself": (b"a: &x [1, *x]", "an alias of what it is part of"),
    "many values": (b"[" + b"1," * 120_000 + b"]", "100,000 values"),
    "merged": (
        b"a0: &a0 {x: 1}\n"
        + b"".join(b"a%d: &a%d {<<: [%s]}\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 20)),
        "100,000 values",
    ),
    "base 60": (b"a: " + b"1:" * 400_000 + b"1", "a number of 800,001 digits"),
    "brackets": (b"[" * 1_000_000, "nested too deeply"),
    "dashes": (b"- " * 100_000, "nested too deeply"),
    "large": (b"#" * 2_000_000, "2,000,000 bytes"),
    "no such day": (b"a: 2020-13-45", "month"),
    "key": (b"[a]: 1", "unhashable"),
    "large keys": (b"- &a [" + b"x," * 40_000 + b"]\n- " + b"? *a\n  : 1\n  " * 500, "100,000 values"),
    "documents": (b"a: 1\n---\nb: 2\n", "another document"),
    "control character": (b"a: \x01", "special characters"),
    "alias of nothing": (b"a: *" + b"x" * 10_000, "undefined alias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_at_once_in_a_short_line(tmp_path, name):
    content, message = REFUSED[name]
    begun = time.process_time()
    with pytest.raises(ValueError, match=message) as raised:
        read(tmp_path, content)
    assert time.process_time() - begun < 10  # 0.1 s but for many values
    assert "a.yaml" in str(raised.value) and len(str(raised.value)) < 600 and "\n" not in str(raised.value)
