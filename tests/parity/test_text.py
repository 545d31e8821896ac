"""Chat templates rendered here equal transformers' own rendering, on real models' templates and odd conversations."""

from pathlib import Path
from typing import Any

import pytest

from glass_core.text.chat_template import ChatTemplate
from glass_core.text.processor import TextProcessor
from tests.tiny_text import byte_tokenizer

TEMPLATES = sorted((Path(__file__).parent.parent / "data" / "chat_templates").glob("*.jinja"))
SPECIAL_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "What is the capital of France?"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    "several turns": [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": " Two \n"},
        {"role": "user", "content": "  Three\n\n"},
    ],
    "unicode": [{"role": "user", "content": "naïve 你好 😀 \u202e <b>&amp;</b> {{ 1 }} {% raw %}\t\\n"}],
    "empty content": [{"role": "user", "content": ""}],
    "none values": [
        {"role": "user", "content": "a", "name": None},
        {"role": "assistant", "content": "b", "tool_calls": None},
        {"role": "user", "content": "c"},
    ],
    "ends with the assistant": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}


def hf_tokenizer(source: str) -> Any:
    import transformers

    tokenizer_class: Any = transformers.PreTrainedTokenizerFast
    return tokenizer_class(tokenizer_object=byte_tokenizer(), chat_template=source, **SPECIAL_TOKENS)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_rendering_equals_transformers(
    path: Path, conversation: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    source = path.read_text()
    expected = hf_tokenizer(source).apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    ours = ChatTemplate(source, SPECIAL_TOKENS)
    assert ours.render(conversation, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_token_ids_equal_transformers(path: Path) -> None:
    source = path.read_text()
    ours = TextProcessor(byte_tokenizer(), ChatTemplate(source, SPECIAL_TOKENS))
    for conversation in CONVERSATIONS.values():
        expected = hf_tokenizer(source).apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
        assert ours.encode(ours.render_chat(conversation)) == expected


TOOLS = [{"type": "function", "function": {"name": "f", "description": "é <x>", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("name", ["qwen2_5_instruct", "mistral_instruct_v03"])
def test_template_variables_reach_the_template(name: str) -> None:
    source = next(path for path in TEMPLATES if path.stem == name).read_text()
    messages = CONVERSATIONS["system"]
    expected = hf_tokenizer(source).apply_chat_template(
        messages, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(source, SPECIAL_TOKENS).render(messages, tools=TOOLS) == expected
    assert '"name": "f"' in expected


@pytest.mark.model
def test_the_default_models_text_equals_transformers(default_model: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from glass_core.text import load_text_processor

    ours, theirs = load_text_processor(default_model), PreTrainedTokenizerFast.from_pretrained(default_model)
    for conversation in CONVERSATIONS.values():
        text = theirs.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert ours.render_chat(conversation) == text
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_prompt(str(conversation[-1]["content"])) == theirs(conversation[-1]["content"])["input_ids"]
