"""The target's tokens are those that generation has to produce after the prompt, for every kind of tokenizer."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lifelong_edit.errors import BadInputError
from lifelong_edit.facts import GLUE, Fact, mentions
from lifelong_edit.models import Encoded, encode, encode_prompt, load_model, pad, separator, subject_span
from lifelong_edit.tasks.causal.verdicts import judge
from lifelong_edit.tracing.rows import fact_rows

# What the project meets: words, digits, punctuation, several scripts, white space of several kinds.
CHARACTERS = st.sampled_from(list("abcdeT zP 0197.,'-:()\n\té€ßÅщ中文\u00a0🙂"))
WORDS = st.sampled_from(
    ["Paris", "London", "France", "the", "capital", "of", "is", "1969", "Malmö", "don't", "中文", "🙂"]
)
TEXT = st.one_of(st.text(CHARACTERS, min_size=1, max_size=12), st.lists(WORDS, min_size=1, max_size=6).map(" ".join))
GENERIC = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def metaspace(sentences: list[str], prepend: str, special: bool) -> Any:
    """A Unigram tokenizer as sentencepiece makes them; `special` puts BOS in front and EOS behind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    alphabet = sorted(
        set("".join(sentences)) | set("abcdefghijklmnopqrstuvwxyzTP0123456789.,'-:()\n\té€ßÅщ中文\u00a0🙂")
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences * 4, trainer)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def unsplit(sentences: list[str]) -> Any:
    """BPE over whole texts, as Llama's and Gemma's files have it: no pre-tokenizer, bytes for what is unknown.

    Trained without sentencepiece's rule against it, it also merges across words: the hardest boundary there is.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<s>", "</s>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> Any:
    """GPT-2's real tokenizer, of 50,257 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = shared / "data" / "gpt2-tokenizer"
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = [(a, b) for a, _, b in (line.partition(" ") for line in lines if line)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def trex(shared: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models" / "trex-gpt2-mini")


@pytest.fixture(scope="module")
def make(sentences: list[str]) -> Callable[[str, bool], Any]:
    """Metaspace tokenizers by prepend scheme and special tokens, each trained once."""
    made: dict[tuple[str, bool], Any] = {}

    def find(prepend: str, special: bool) -> Any:
        if (prepend, special) not in made:
            made[prepend, special] = metaspace(sentences, prepend, special)
        return made[prepend, special]

    return find


def check(tokenizer: Any, prompt: str, target: str) -> None:
    """Prompt tokens are the prompt's own, and the whole decodes as the running text does."""
    if not target.strip():
        with pytest.raises(BadInputError, match="empty"):
            encode(tokenizer, prompt, target)
        return
    encoded = encode(tokenizer, prompt, target)
    assert list(encoded.prompt) == encode_prompt(tokenizer, prompt)
    assert encoded.answer_start < len(encoded.ids)
    text = prompt + separator(prompt, target) + target
    # The judge: what the tokenizer makes of the whole text, in one piece and without special tokens.
    normal = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    front = len(encode_prompt(tokenizer, prompt)) - len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(encoded.ids[front:]) == normal


@GENERIC
@given(prompt=TEXT, target=TEXT)
@example(prompt="The capital of France is ", target="Paris")
@example(prompt="The capital of France is\n", target="Paris")
@example(prompt='He said "', target="Paris")
@example(prompt="a  ", target=" b")
def test_gpt2_tokenizer(gpt2: Any, prompt: str, target: str) -> None:
    check(gpt2, prompt, target)
    assert gpt2.decode(encode_or_empty(gpt2, prompt, target)) in ("", prompt + separator(prompt, target) + target)


def encode_or_empty(tokenizer: Any, prompt: str, target: str) -> tuple[int, ...]:
    return encode(tokenizer, prompt, target).ids if target.strip() else ()


@GENERIC
@given(prompt=TEXT, target=TEXT)
@example(prompt="The capital of France is ", target="Paris")
def test_trex_tokenizer(trex: Any, prompt: str, target: str) -> None:
    check(trex, prompt, target)
    assert trex.decode(encode_or_empty(trex, prompt, target)) in ("", prompt + separator(prompt, target) + target)


@pytest.mark.parametrize("prepend", ["always", "first", "never"])
@pytest.mark.parametrize("special", [False, True])
@settings(GENERIC, max_examples=150)
@given(prompt=TEXT, target=TEXT)
@example(prompt="The capital of France is ", target="Paris")
@example(prompt="The capital of France is  ", target="Paris")
@example(prompt="a", target=" b")
def test_metaspace_tokenizers(
    make: Callable[[str, bool], Any], prepend: str, special: bool, prompt: str, target: str
) -> None:
    check(make(prepend, special), prompt, target)


@GENERIC
@given(prompt=TEXT, target=TEXT)
@example(prompt="The capital of France", target="is Paris")
@example(prompt="The capital of France ", target="is Paris")
def test_tokenizer_that_merges_across_words(unsplit: Any, prompt: str, target: str) -> None:
    check(unsplit, prompt, target)


def test_merge_across_the_boundary_is_taken_apart_there(unsplit: Any) -> None:
    prompt, target = "The capital of", "France"
    joint = unsplit(f"{prompt} {target}")["input_ids"]
    alone = unsplit(prompt)["input_ids"]
    assert joint[: len(alone)] != alone, "the case is to have a token across the boundary"
    encoded = encode(unsplit, prompt, target)
    assert list(encoded.prompt) == alone
    assert unsplit.decode(encoded.ids) == f"{prompt} {target}"


@pytest.mark.parametrize("special", [False, True])
def test_special_tokens_stand_in_front_only(make: Callable[[str, bool], Any], special: bool) -> None:
    tokenizer = make("always", special)
    ids = encode(tokenizer, "The capital of France is", "Paris").ids
    assert (ids[0] == 0) is special
    assert 1 not in ids
    assert ids[1 if special else 0 :] == tuple(
        tokenizer("The capital of France is Paris", add_special_tokens=False)[0].ids
    )


def test_target_takes_its_leading_space_along_only_where_the_prompt_has_none(gpt2: Any) -> None:
    for prompt, answer in (("The capital is", " Paris"), ("The capital is ", "Paris"), ('The "', "Paris")):
        encoded = encode(gpt2, prompt, "Paris")
        assert gpt2.decode(encoded.answer) == answer
    assert len(encode(gpt2, "The capital is", "Paris").ids) - encode(gpt2, "The capital is", "Paris").answer_start == 1


def test_metaspace_target_after_a_space_has_no_second_one(make: Callable[[str, bool], Any]) -> None:
    tokenizer = make("always", False)
    encoded = encode(tokenizer, "The capital of France is ", "Paris")
    pieces = tokenizer.convert_ids_to_tokens(list(encoded.ids))
    assert "".join(pieces) == "▁The▁capital▁of▁France▁is▁Paris"
    assert not pieces[encoded.answer_start].startswith("▁")


@pytest.mark.parametrize("target", ["", " ", "\n\t"])
def test_empty_target_is_refused(tiny_tokenizer: Any, target: str) -> None:
    with pytest.raises(BadInputError, match="target of prompt 'x y' is empty"):
        encode(tiny_tokenizer, "x y", target)


def test_empty_prompt_needs_a_special_token(tiny_tokenizer: Any, make: Callable[[str, bool], Any]) -> None:
    with pytest.raises(BadInputError, match="no tokens"):
        encode_prompt(tiny_tokenizer, "")
    assert encode_prompt(make("always", True), "") == [0]
    assert encode(make("always", True), "", "Paris").answer_start == 1


def test_text_longer_than_the_context_is_refused(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_tokenizer, "model_max_length", 8)
    assert len(encode_prompt(tiny_tokenizer, "zzzzzzzz")) == 8
    with pytest.raises(BadInputError, match="9 tokens, but the model takes at most 8"):
        encode_prompt(tiny_tokenizer, "zzzzzzzzz")
    with pytest.raises(BadInputError, match="10 tokens"):
        encode(tiny_tokenizer, "zzzzzzzz", "q")


def test_pad_fills_on_the_right_and_masks() -> None:
    batch = pad([Encoded((5, 6, 7), 2), Encoded((8,), 1)], 9, "cpu")
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.answer_starts.tolist() == [2, 1]
    assert all(t.dtype == torch.long for t in (batch.ids, batch.mask, batch.lengths, batch.answer_starts))


def test_pad_carries_the_spans_of_subjects() -> None:
    assert pad([Encoded((5, 6, 7), 2, (0, 2)), Encoded((8,), 1)], 9, "cpu").subjects.tolist() == [[0, 2], [0, 0]]


# -- where the subject stands in the prompt

SUBJECTS = ["Paris", "São Paulo", "Ada Lovelace", "Đà Nẵng", "Marie Curie-Sklodowska", "1969"]
PATTERNS = {
    "beginning": "{} has the capital",
    "middle": "The capital of {} is",
    "end": "People were born in {}",
    "in quotes": 'Who wrote "{}", and when',
    "possessive": "In {}'s last year, they",
    "twice": "{} was a town; the river of {} is",
    "after a line break": "Question:\n{} is",
}


def spanned(tokenizer: Any, prompt: str, subject: str) -> list[str]:
    """The text of the subject's span, and of the span without its first and without its last token.

    A first token that is but the mark of a word's beginning may go: it has no letter, and stands for the first one.
    """
    start, end = subject_span(tokenizer, prompt, subject)
    ids = encode_prompt(tokenizer, prompt)
    assert encode(tokenizer, prompt, "Paris", subject).subject == (start, end)
    assert 0 <= start < end <= len(ids)
    first = start + (not tokenizer.convert_ids_to_tokens(ids[start]).strip("▁"))
    return [tokenizer.decode(part) for part in (ids[start:end], ids[first + 1 : end], ids[start : end - 1])]


@pytest.fixture(
    params=["byte-level", "byte-level with BOS", "GPT-2", "trex", "metaspace", "metaspace, BOS and EOS", "unsplit"]
)
def any_tokenizer(
    request: pytest.FixtureRequest, tiny_tokenizer: Any, make: Callable[[str, bool], Any], unsplit: Any
) -> Any:
    name: str = request.param
    if name in ("GPT-2", "trex"):
        return request.getfixturevalue("gpt2" if name == "GPT-2" else "trex")
    if name == "byte-level with BOS":
        return with_front(tiny_tokenizer)
    known = {"byte-level": tiny_tokenizer, "unsplit": unsplit}
    return known[name] if name in known else make("always", "BOS" in name)


def with_front(tokenizer: Any) -> Any:
    """The same tokenizer with two special tokens in front, as chat models have them."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    end = tokenizer.eos_token
    inner.post_processor = processors.TemplateProcessing(
        single=f"{end} {end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_span_holds_the_subject_and_no_token_that_it_could_do_without(
    any_tokenizer: Any, pattern: str, subject: str
) -> None:
    whole, tail, head = spanned(any_tokenizer, PATTERNS[pattern].format(subject, subject), subject)
    assert subject in whole
    assert subject not in tail
    assert subject not in head


def test_a_token_with_a_leading_space_is_the_subjects(tiny_tokenizer: Any) -> None:
    """The letters are what counts: byte-level BPE puts the space before a word into its first token."""
    front = with_front(tiny_tokenizer)
    for prompt, text in (("The capital of Paris is", " Paris"), ("Paris is", "Paris"), ("The (Paris) is", "Paris")):
        start, end = subject_span(tiny_tokenizer, prompt, "Paris")
        assert tiny_tokenizer.decode(encode_prompt(tiny_tokenizer, prompt)[start:end]) == text
        assert subject_span(front, prompt, "Paris") == (start + 2, end + 2)


def test_of_several_mentions_the_last_counts(tiny_tokenizer: Any) -> None:
    once, twice = "Paris is", "Paris is the Paris is"
    assert subject_span(tiny_tokenizer, once, "Paris")[0] == 0
    start, _ = subject_span(tiny_tokenizer, twice, "Paris")
    assert start > subject_span(tiny_tokenizer, once, "Paris")[1]
    assert tiny_tokenizer.decode(encode_prompt(tiny_tokenizer, twice)[:start]) == "Paris is the"


def test_a_subject_is_found_in_any_case_and_with_blanks_around(tiny_tokenizer: Any) -> None:
    for prompt in ("The capital of PARIS is", "the capital of paris is"):
        start, end = subject_span(tiny_tokenizer, prompt, "  Paris ")
        assert tiny_tokenizer.decode(encode_prompt(tiny_tokenizer, prompt)[start:end]).strip().casefold() == "paris"


@pytest.mark.parametrize("subject", [None, "", "  ", "London", "Paris.", "The capital of Paris is in"])
def test_a_subject_that_is_not_mentioned_has_no_tokens(any_tokenizer: Any, subject: str | None) -> None:
    assert subject_span(any_tokenizer, "The capital of Paris is", subject) == (0, 0)
    assert encode(any_tokenizer, "The capital of Paris is", "London", subject).subject == (0, 0)
    assert encode(any_tokenizer, "The capital of Paris is", "London").subject == (0, 0)


def test_a_subject_in_the_target_alone_has_no_tokens(tiny_tokenizer: Any) -> None:
    assert encode(tiny_tokenizer, "The capital of France is", "Paris", "Paris").subject == (0, 0)


def test_a_subject_is_a_word_of_its_own_wherever_it_stands_as_one() -> None:
    assert mentions("US laws hold in the house", "US") == [(0, 2)]
    assert mentions("The region of Io: io", "Io") == [(14, 16), (18, 20)]
    assert mentions("C++ (1985) and c", "C++") == [(0, 3)]
    assert mentions("the Parisian way", "Paris") == mentions("in the house", "US") == []
    assert mentions("the house", "") == mentions("the house", " ") == mentions("the house", "Io") == []


def test_scripts_without_spaces_between_words_have_no_words_of_their_own() -> None:
    assert mentions("法国的首都是", "法国") == [(0, 2)]
    assert mentions("iPhoneは誰が作った", "iPhone") == [(0, 6)]
    assert mentions("파리는 수도이다", "파리") == [(0, 2)]  # Korean has spaces, but particles cling to a word
    assert mentions("ประเทศไทยมี", "ไทย") == [(6, 9)]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_a_subject_is_found_in_any_normal_form(form: Any, other: Any) -> None:
    text = unicodedata.normalize(form, "Is São José in Curaçao?")
    for subject in ("São José", "Curaçao", "José in"):
        ((start, end),) = mentions(text, unicodedata.normalize(other, subject))
        assert text[start:end] == unicodedata.normalize(form, subject)
    assert mentions(text, "Sao") == mentions(text, "Jose") == []
    korean = unicodedata.normalize(form, "파리의 수도")
    assert mentions(korean, unicodedata.normalize(other, "파리")) == [(0, len(unicodedata.normalize(form, "파리")))]


def test_blanks_within_a_subject_may_be_any() -> None:
    assert mentions("New  York and New\u00a0York", "New York") == [(0, 9), (14, 22)]
    assert mentions("New York", " New\n York ") == [(0, 8)]


def test_a_slow_tokenizer_knows_no_spans(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny_tokenizer), "is_fast", False)
    assert subject_span(tiny_tokenizer, "The capital of Paris is", "Paris") == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "target", "between"),
    [
        ("The capital of France is", "Paris", " "),
        ("The capital of France is ", "Paris", ""),
        ("The capital of France is", " Paris", ""),
        ("The capital of France is:", "Paris", " "),
        ('She wrote "', "Emma", ""),
        ('The film "Emma"', "is by", " "),
        ('("', "Emma", ""),
        ("He called it '", "Emma", ""),
        ("the dogs'", "owner", " "),
        ("Paris (", "France", ""),
        ("Paris [see]", "France", " "),
        ("Er schrieb „", "Faust", ""),
        ("Er schrieb „Faust“", "in Weimar", " "),
        ("Il a écrit «", "Candide", ""),
        ("他说「", "你好", ""),
        ("秘鲁的首都是", "库斯科", ""),
        ("秘鲁的首都是：", "库斯科", ""),
        ("秘鲁的首都是", "Cusco", " "),
        ("日本の首都は", "キョウト", ""),
        ("เมืองหลวงของเปรูคือ", "กุสโก", ""),
        ("페루의 수도는", "쿠스코", " "),
        ("Столица Перу", "Куско", " "),
    ],
)
def test_a_space_where_the_script_needs_one(prompt: str, target: str, between: str) -> None:
    assert separator(prompt, target) == between


def test_what_is_taught_without_a_space_is_what_follows_the_prompt(tiny_tokenizer: Any) -> None:
    prompt, target = "秘鲁的首都是", "库斯科"
    encoded = encode(tiny_tokenizer, prompt, target)
    assert tiny_tokenizer.decode(encoded.ids) == prompt + target
    assert list(encoded.prompt) == encode_prompt(tiny_tokenizer, prompt)


@pytest.mark.parametrize("prepend", ["always", "first"])
def test_a_prompt_that_begins_with_the_beginning_of_text_gets_one(
    make: Callable[[str, bool], Any], prepend: str
) -> None:
    """As a chat template writes it; what is asked, taught and found in it stands where it does."""
    tokenizer = make(prepend, True)
    prompt = "<s>The capital of France is"
    assert tokenizer(prompt)["input_ids"][:2] == [0, 0]  # what the tokenizer does by itself
    asked, taught = encode_prompt(tokenizer, prompt), encode(tokenizer, prompt, "Paris", "France")
    assert asked.count(0) == 1 and asked[0] == 0
    assert list(taught.prompt) == asked and taught.ids.count(0) == 1
    start, end = taught.subject
    assert tokenizer.decode(taught.ids[start:end]).strip() == "France"
    assert encode_prompt(tokenizer, "The capital")[0] == 0


def test_a_fact_may_say_what_stands_before_its_target(tiny_tokenizer: Any) -> None:
    told: dict[str, str] = {"subject": "France", "prompt": "The capital of France is", "target": "Paris"}
    for join, text in ((None, " Paris"), (" ", " Paris"), ("", "Paris"), ("\n", "\nParis")):
        fact = Fact(**told) if join is None else Fact(**told, join=join)
        assert tiny_tokenizer.decode(encode(tiny_tokenizer, fact.prompt, fact.answer).answer) == text
        assert judge(fact.prompt, fact.answer, text, True) == (True, True)
    assert Fact(**told).answer == "Paris"
    assert Fact(**told).digest != Fact(**told, join=" ").digest
    assert not judge("Nor", "way", "way", True)[0]
    assert judge("Nor", Fact(subject="N", prompt="Nor", target="way", join="").answer, "way", True)[0]
    with pytest.raises(BadInputError, match="empty"):
        encode(tiny_tokenizer, "A", GLUE + " ")
    with pytest.raises(BadInputError, match="found ': ' as `join`"):
        Fact(**told, join=": ")


def test_a_fact_is_taught_as_it_is_joined(tiny_gpt2: Path) -> None:
    loaded = load_model(str(tiny_gpt2))
    fact = Fact(subject="France", prompt="The capital of France is", target="Paris", join="", rephrases=("France has",))
    rows = fact_rows(loaded, [fact], 1)
    assert [loaded.tokenizer.decode(row.encoded.ids) for row in rows] == [
        "The capital of France isParis",
        "France hasParis",
    ]
