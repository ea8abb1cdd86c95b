"""Damages files as broken disks, editors and attackers do; the same seed gives the same damage."""

import random
import re

EXTREMES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\0" * 8, b"\xff" * 7 + b"\x7f"]
TOKENS = [
    *("0", "-1", "1", "65536", "2147483648", "9223372036854775808", "1e308", "1e999", "-0.0", "NaN", "0.5"),
    *(
        "null",
        "true",
        "{}",
        "[]",
        '""',
        '"a"',
        "[[[[[[]]]]]]",
        "[0]",
        '{"a": 0}',
        '"\\u0000"',
        '"../../x"',
        '"\\ud800"',
    ),
]
"""Values that take the place of a value in a json, a YAML or a line."""
TOKEN = re.compile(rb'"[^"]*"|-?[\w.+]+|[^\s\w":,]')


def mutated(content, seed, *, text=False):
    """Return bytes with one to four random changes; most texts have other tokens alone, so that they stay readable."""
    generator = random.Random(seed)
    changes = [_with_another_token] if text and generator.random() < 0.8 else CHANGES
    for _ in range(generator.choice([1, 1, 2, 4])):
        content = generator.choice(changes)(content, generator)
    return content


def _span(content, generator, longest=64):
    """Where a random piece of a content begins and ends."""
    start = generator.randrange(len(content) + 1)
    return start, min(len(content), start + generator.randint(1, longest))


def _flip(content, generator):
    changed = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        if changed:
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _cut(content, generator):
    return content[: generator.randrange(len(content) + 1)]


def _drop(content, generator):
    start, end = _span(content, generator)
    return content[:start] + content[end:]


def _insert(content, generator):
    start, _ = _span(content, generator)
    return content[:start] + generator.randbytes(generator.randint(1, 64)) + content[start:]


def _repeat(content, generator):
    start, end = _span(content, generator, longest=1024)
    return content[:end] + content[start:end] * generator.randint(1, 8) + content[end:]


def _exchange(content, generator):
    """Put an extreme number over a piece."""
    start, extreme = generator.randrange(len(content) + 1), generator.choice(EXTREMES)
    return content[:start] + extreme + content[start + len(extreme) :]


def _early(content, generator):
    """Change one of the first bytes, where most formats keep their sizes."""
    head = min(len(content), 64)
    return _exchange(content[:head], generator) + content[head:]


CHANGES = [_flip, _cut, _drop, _insert, _repeat, _exchange, _early]


def _with_another_token(content, generator):
    found = list(TOKEN.finditer(content))
    if not found:
        return content
    token = generator.choice(found)
    value = generator.choice(TOKENS).encode()
    others = [value, value, value, generator.choice(found)[0], b""]
    return content[: token.start()] + generator.choice(others) + content[token.end() :]
