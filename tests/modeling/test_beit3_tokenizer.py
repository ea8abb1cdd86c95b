"""The tokenizer on small sentencepiece models trained here: ids worked out by hand, padding, cutting, bad input."""

import logging

import pytest
import sentencepiece
import torch

from openworldsam.modeling.prompt_encoders import check_prompts
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import BEiT3Tokenizer

START, PAD, END, UNKNOWN = 0, 1, 2, 3
# In the model "letters" pieces follow <unk> <s> </s> by frequency: a 3, space 4, b 5, c 6, d 7; ids are one more.
A, SPACE, B, C, D = 4, 5, 6, 7, 8


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Train a sentencepiece model and return its file."""

    def make(texts, model_type="char", **options):
        prefix = tmp_path_factory.mktemp("spm") / "model"
        options = {"vocab_size": 64, "hard_vocab_limit": model_type == "bpe", "minloglevel": 2, **options}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=str(prefix), model_type=model_type, **options
        )
        return prefix.with_suffix(".model")

    return make


@pytest.fixture(scope="module")
def letters(train):
    return train(["aaaaaa bbb cc d"])


def test_ids_by_hand(letters):
    tokenizer = BEiT3Tokenizer(letters)
    assert tokenizer.encode("ab") == [START, SPACE, A, B, END]
    assert tokenizer.encode("d c") == [START, SPACE, D, SPACE, C, END]
    assert tokenizer.encode("a") == [START, SPACE, A, END]


def test_semantic_is_one_token_where_a_prompt_starts_with_it(letters):
    tokenizer = BEiT3Tokenizer(letters)
    assert tokenizer.encode("[semantic] ab") == [START, 64002, SPACE, A, B, END]
    assert tokenizer.encode(" [semantic]ab") == [START, 64002, SPACE, A, B, END]
    assert tokenizer.encode("[semantic] [semantic]").count(64002) == tokenizer.encode("[semantic]").count(64002) == 1
    for text in ("a [semantic] b", "[Semantic] ab", "semantic ab"):
        assert 64002 not in tokenizer.encode(text)
    assert tokenizer(["[semantic] ab", "abcd"]).tolist() == [
        [START, 64002, SPACE, A, B, END, PAD],
        [START, SPACE, A, B, C, D, END],
    ]
    assert BEiT3Tokenizer(letters, max_tokens=4).encode("[semantic] ab") == [START, 64002, SPACE, END]


def test_a_vocabulary_without_semantic_reads_it_as_text(letters, build):
    small, text = BEiT3Tokenizer(letters, vocab_size=64002), "[semantic] ab"
    assert max(small.encode(text)) < 64002
    encoder = build(weights=False).prompt_encoder
    assert int(encoder.tokenizer([text]).max()) < encoder.beit3.text_embed.num_embeddings


def test_unknown_characters_get_the_unknown_id(letters):
    assert BEiT3Tokenizer(letters).encode("azb") == [START, SPACE, A, UNKNOWN, B, END]


def test_the_models_own_id_of_unknown_does_not_matter(train):
    file = train(["aaaaaa bbb cc d"], unk_id=1, bos_id=0, eos_id=2)
    assert BEiT3Tokenizer(file).encode("azb") == [START, SPACE, A, UNKNOWN, B, END]


def test_pieces_of_several_letters_are_one_token(train):
    file = train(["dog dog dog dog a"], model_type="bpe", vocab_size=11)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    dog = pieces.piece_to_id("\u2581dog")
    assert pieces.id_to_piece(dog) == "\u2581dog"
    assert BEiT3Tokenizer(file).encode("dog dog") == [START, dog + 1, dog + 1, END]


def test_prompts_are_padded_on_the_right_to_the_longest(letters):
    ids = BEiT3Tokenizer(letters)(["a", "abc", "ab"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [
        [START, SPACE, A, END, PAD, PAD],
        [START, SPACE, A, B, C, END],
        [START, SPACE, A, B, END, PAD],
    ]


def test_a_prompts_ids_do_not_depend_on_its_neighbours(letters):
    tokenizer = BEiT3Tokenizer(letters)
    assert tokenizer(["ab"]).tolist() == [[START, SPACE, A, B, END]]
    assert tokenizer(["ab", "abcdabcd"])[0, :5].tolist() == [START, SPACE, A, B, END]


def test_case_and_surrounding_spaces(letters):
    tokenizer = BEiT3Tokenizer(letters)
    assert tokenizer.encode("  a   b ") == tokenizer.encode("a b") == [START, SPACE, A, SPACE, B, END]
    assert tokenizer.encode("A") == [START, SPACE, UNKNOWN, END]


def test_long_prompts_are_cut_before_the_end_token_with_a_warning(letters, caplog):
    with caplog.at_level(logging.WARNING):
        ids = BEiT3Tokenizer(letters, max_tokens=5)(["abcd", "a"])
    assert ids.tolist() == [[START, SPACE, A, B, END], [START, SPACE, A, END, PAD]]
    (record,) = caplog.records
    assert "'abcd' has 5 tokens" in record.getMessage().replace("...", "")
    assert "only the first 3 count" in record.getMessage()


def test_a_prompt_of_exactly_the_longest_length_is_whole_and_silent(letters, caplog):
    assert BEiT3Tokenizer(letters, max_tokens=5).encode("ab") == [START, SPACE, A, B, END]
    assert BEiT3Tokenizer(letters, max_tokens=3).encode("ab") == [START, SPACE, END]
    assert len(caplog.records) == 1


def test_the_default_bound_is_512_tokens(letters):
    assert BEiT3Tokenizer(letters)(["a" * 2000]).shape == (1, 512)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t ", "\u3000", "\u00a0"])
def test_empty_prompts_are_refused_by_index(letters, prompt):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        BEiT3Tokenizer(letters)(["a", prompt, "b"])


@pytest.mark.parametrize("prompt", [None, 3, b"dog", ["dog"], 1.5])
def test_prompts_that_are_no_text_are_refused_by_index(letters, prompt):
    with pytest.raises(ValueError, match=f"prompt 2 is {type(prompt).__name__}.*a prompt is a text"):
        BEiT3Tokenizer(letters)(["a", "b", prompt])


def test_check_prompts_accepts_texts_and_no_prompts():
    check_prompts(["a dog", " x ", "\u72ac"])
    check_prompts([])


@pytest.mark.parametrize("prompt", ["\u200b", "\ufeff", "\x01", "\x7f", "\u2581"])
def test_prompts_of_which_nothing_remains_are_refused(letters, prompt):
    with pytest.raises(ValueError, match="prompt 0"):
        BEiT3Tokenizer(letters)([prompt])


def test_texts_that_are_not_unicode_are_refused_by_index(letters):
    with pytest.raises(ValueError, match="prompt 1"):
        BEiT3Tokenizer(letters)(["a", "caf\udce9"])


def test_a_bare_text_instead_of_a_list_is_refused(letters):
    with pytest.raises(ValueError):
        BEiT3Tokenizer(letters)("abc")


@pytest.mark.parametrize("model_type", ["char", "bpe", "unigram"])
@pytest.mark.parametrize("name", ["<s>", "</s>", "<pad>", "<unk>", "<mask>"])
def test_names_of_special_tokens_in_a_prompt_are_ordinary_letters(train, model_type, name):
    alphabet = " ".join("<>/abdgkmnopsu")
    file = train([f"dog pad unk mask s {alphabet}"] * 3, model_type, vocab_size=24)
    tokenizer = BEiT3Tokenizer(file)
    ids = tokenizer.encode(f"dog {name} dog")
    assert (ids[0], ids[-1]) == (START, END)
    assert min(ids[1:-1]) > UNKNOWN
    assert len(ids) > len(tokenizer.encode("dog dog"))


def test_unicode(train):
    tokenizer = BEiT3Tokenizer(train(["\u72ac\u72ac\u72ac \u00e9\u00e9\u00e9\u00e9 \U0001f600"]))
    dog, e_acute, smile = (tokenizer.encode(text)[2] for text in ("\u72ac", "\u00e9", "\U0001f600"))
    assert len({dog, e_acute, smile}) == 3
    assert min(dog, e_acute, smile) > UNKNOWN
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")  # composed and decomposed
    assert tokenizer.encode("\u72ac\U0001f600\u72ac")[2:-1] == [dog, smile, dog]


def test_full_width_letters_are_the_plain_ones(letters):
    assert BEiT3Tokenizer(letters).encode("\uff41\uff42") == [START, SPACE, A, B, END]


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"beit3\.spm not found.*openworldsam download.*TOKENIZER"):
        BEiT3Tokenizer(tmp_path / "beit3.spm")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        BEiT3Tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 50, b"\x89PNG\r\n\x1a\n", bytes(range(256))])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, content):
    file = tmp_path / "other.spm"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.spm is not a sentencepiece model"):
        BEiT3Tokenizer(file)


def test_a_truncated_model_is_refused(letters, tmp_path):
    file, content = tmp_path / "half.spm", letters.read_bytes()
    for length in (10, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a sentencepiece model"):
            BEiT3Tokenizer(file)


def test_a_path_with_spaces_and_accents(letters, tmp_path):
    file = tmp_path / "mod\u00e8le \u72ac.spm"
    file.write_bytes(letters.read_bytes())
    assert BEiT3Tokenizer(str(file)).encode("a") == [START, SPACE, A, END]
