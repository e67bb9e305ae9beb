"""Chats: how rows have them, and how a tokenizer's template writes them for a decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compressor.core.errors import StageError, first_line


def read_chat(value: Any) -> tuple[str, str]:
    """Read a list of messages: all but the last as JSON, and what the assistant says in the last.

    Raises ValueError for anything else.
    """
    fields = ("role", "content")
    if not (isinstance(value, list) and len(value) > 1 and all(map(_is_message, value))):
        raise ValueError("expected two or more messages, each with texts as role and content")
    *before, last = ({name: message[name] for name in fields} for message in value)
    if last["role"] != "assistant":
        raise ValueError(f"the last message is the {last['role']}'s; an assistant's is learned")
    return json.dumps(before, ensure_ascii=False), last["content"]


def _is_message(value: Any) -> bool:
    named = isinstance(value, Mapping) and {"role", "content"} <= value.keys()
    return named and all(isinstance(value[name], str) for name in ("role", "content"))


def write_prompt(text: str, tokenizer: Any) -> str:
    """Write by the template what an assistant answers: the messages of a JSON text, or a user's."""
    return _render(_parse(text), tokenizer, add_generation_prompt=True)


def write_answer(text: str, answer: str, tokenizer: Any) -> str:
    """Write by the template an assistant's answer after `write_prompt`, with what ends it."""
    messages = [*_parse(text), {"role": "assistant", "content": answer}]
    prompt, whole = write_prompt(text, tokenizer), _render(messages, tokenizer)
    if not whole.startswith(prompt):
        raise StageError(
            "the tokenizer's chat template writes the messages before an answer in another way "
            "where there is none yet, so that a model would not be asked as it was taught"
        )
    return whole[len(prompt) :].rstrip()


def _parse(text: str) -> list[dict[str, str]]:
    try:
        messages = json.loads(text)
    except ValueError:
        messages = None
    if isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return messages
    return [{"role": "user", "content": text}]


def _render(messages: list[dict[str, str]], tokenizer: Any, **options: bool) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise StageError("data.messages: the tokenizer has no chat template to write them by")
    from jinja2 import TemplateError  # takes a while to import

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateError as error:
        reason = first_line(error)
        raise StageError(f"the tokenizer's chat template refuses a chat: {reason}") from error
