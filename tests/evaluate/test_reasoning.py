from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steps.evaluate.measure import Texts, _answer
from steps.evaluate.scoring.reasoning import BLOCKS, after_thinking, opened_by
from steps.evaluate.scoring.scores import SCORES, score_answer
from steps.protocol.prepared import HeldOut
from steps.protocol.turn_end import end_of_turn

TEMPLATES = Path(__file__).resolve().parents[1] / "prepare" / "templates"
JSON = '{"item": "apple", "count": 0}'


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.opener)
def test_only_what_follows_the_thinking_is_the_answer(block: Any) -> None:
    assert after_thinking(f"{block.opener}\nWell {JSON}?\n{block.closer}\n\n{JSON}") == (JSON, False)
    assert after_thinking(f" {block.opener}\n\n{block.closer}{JSON}\n") == (JSON, False)
    assert after_thinking(f"{block.opener} and so on, {JSON}") == ("", True)
    if block.opens_in_prompt:
        assert after_thinking(f"well\n{block.closer}\n{JSON}") == (JSON, False)
        assert opened_by(f"<|assistant|>\n{block.opener}\n") == block.opener


@pytest.mark.parametrize(
    "text", ["plain", "", "the tag <think> opens", "it says <think>a</think> b", "Here is my response: 3"]
)
def test_an_answer_without_a_block_at_its_beginning_stays(text: str) -> None:
    assert after_thinking(text) == (text, False)


@pytest.mark.parametrize("prompt", ["<think>\n\n</think>\n\n", "user: what is <think>?\nassistant:", ""])
def test_a_prompt_that_has_closed_its_block_opens_none(prompt: str) -> None:
    assert opened_by(prompt) == ""


LATER = {
    "one after another": ("<think>a</think>\n<think>b</think> c", "c", False),
    "words between": ("<think>a</think>\nLet me see: 41?\n<think>b</think>\n42", "42", False),
    "three, of two kinds": ("a</think>x<think>b</think>y\n<reasoning>c</reasoning>z", "z", False),
    "nothing behind the last": ("<think>a</think>42<think>done</think>\n", "42", False),
    "the last never ends": ("<think>a</think>41?\n<think>b", "", True),
    "a tag that is talked about": ("<think>a</think>Use the <think> tag.", "Use the <think> tag.", False),
}


@pytest.mark.parametrize(("text", "answer", "is_thinking"), LATER.values(), ids=LATER)
def test_words_between_two_blocks_are_not_the_answer(text: str, answer: str, is_thinking: bool) -> None:
    assert after_thinking(text) == (answer, is_thinking)


@pytest.mark.parametrize("name", SCORES)
def test_the_labels_that_qwen3_learns_are_perfect_answers(name: str) -> None:
    assert score_answer(name, f"<think>\n\n</think>\n\n{JSON}", JSON).value == 1.0
    assert score_answer(name, f"<think>\nhm\n</think>\n\n{JSON}", f"<think>other</think>{JSON}").exact


def test_a_reference_that_is_nothing_but_thinking_is_compared_whole() -> None:
    assert score_answer("exact_match", "<think>other</think>", "<think>a</think>").value == 0.0
    assert score_answer("exact_match", "<think>a</think>", "<think>a</think>").value == 1.0


@pytest.fixture
def texts(loaded: tuple[Any, Any]) -> Texts:
    return Texts(loaded[1])


@pytest.mark.parametrize(
    ("prompt", "said", "score", "cut"),
    [
        pytest.param("assistant\n", f"<think>\nhm\n</think>\n{JSON}", 1.0, False, id="thinks"),
        pytest.param("assistant\n<think>\n", f"hm\n</think>\n{JSON}", 1.0, False, id="thinks, opened by the prompt"),
        pytest.param("assistant\n<think>\n", JSON, 0.0, True, id="never stops thinking"),
        pytest.param("assistant\n<think>\n\n</think>\n\n", JSON, 1.0, False, id="closed by the prompt"),
        pytest.param("assistant\n", JSON, 1.0, False, id="does not think"),
    ],
)
def test_the_prompts_own_opening_counts(
    texts: Texts, loaded: tuple[Any, Any], prompt: str, said: str, score: float, cut: bool
) -> None:
    sample = HeldOut((), prompt, (), JSON)
    tokens = loaded[1](said, add_special_tokens=False).input_ids
    found = _answer("json_fields", texts, sample, tokens, False)
    assert (found.score, found.cut) == (score, cut)


def test_marks_that_are_special_tokens_are_kept_and_other_special_tokens_are_not(tiny: Path) -> None:
    from steps.evaluate.measure import load_tokenizer

    tokenizer = load_tokenizer(tiny)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|channel|>"]})
    tokens = tokenizer("[THINK]hm[/THINK]so<|im_start|> 4<|channel|>", add_special_tokens=False).input_ids
    assert Texts(tokenizer).decode(tokens) == "[THINK]hm[/THINK]so 4<|channel|>"
    assert Texts(tokenizer).decode(tokens[-3:]) == "4"


@pytest.mark.parametrize("name", ["json_fields", "exact_match", "rouge_l"])
def test_case_28_what_qwen3_learns_scores_1(loaded: tuple[Any, Any], name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loaded[1].name_or_path)
    tokenizer.chat_template = (TEMPLATES / "qwen3-generation.jinja").read_text("utf-8")
    question = [{"role": "user", "content": "Order 0 apples as JSON"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": JSON}], tokenize=False)
    assert whole.startswith(prompt)
    learned = tokenizer(whole[len(prompt) :], add_special_tokens=False).input_ids
    (end,) = end_of_turn(tokenizer)
    found = _answer(name, Texts(tokenizer), HeldOut((), prompt, (), JSON), learned[: learned.index(end)], False)
    assert "<think>" in found.text
    assert (found.score, found.exact, found.cut) == (1.0, True, False)
