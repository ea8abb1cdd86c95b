import pytest

from openworldsam.annotate.prompts import parse_prompts, read_prompts


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "prompts.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_comments_marks_and_stuff_of_coco(written):
    lines = [
        "\ufeff# animals",
        "zebra",
        "",
        "  jersey\u00a0 #10 ",
        "Grass",
        "sky",
        "stuff: wet sand",
        "Thing:window blind",
    ]
    prompts = read_prompts(written("\r\n".join(lines)))
    assert prompts.texts == ("zebra", "jersey #10", "Grass", "sky", "wet sand", "window blind")
    assert prompts.is_thing == (True, True, False, False, False, True)


def test_equal_prompts_are_one(written):
    prompts = read_prompts(written("a  cat\n a\u00a0cat \nsky\nstuff: sky\nthing: a cat"))
    assert prompts.texts == ("a cat", "sky") and prompts.is_thing == (True, False)


def test_joiners_belong_to_a_word(written):
    words = ["\u06a9\u062a\u0627\u0628\u200c\u0647\u0627", "\U0001f468\u200d\U0001f467"]
    assert list(read_prompts(written("\n".join(words))).texts) == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n\n", "has no prompt"),
        ("cat\nstuff:\n", r"line 2: 'stuff:' has no prompt"),
        ("cat\nstuff: cat", r"line 2: 'cat' is both a thing and stuff; keep one of them"),
        (b"caf\xe9", "is not UTF-8 text"),
        ("cat\x07", "unprintable"),
        ("cat\u200b", "unprintable"),
    ],
)
def test_bad_files_are_named(written, content, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(written(content))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="one prompt per line"):
        read_prompts(tmp_path / "none.txt")


def test_a_file_and_texts_on_the_command_line(written):
    path = written("zebra\nsky")
    for words in ([f"@{path}"], [str(path)], ["zebra", "sky"], ["zebra", "stuff: sky"]):
        assert parse_prompts(words) == read_prompts(path)
    assert parse_prompts(["a cat", f"@{path}"]).texts == ("a cat", "zebra", "sky")
