"""Chats: the last assistant's message is learned, as transformers' own template writes it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import compressor
from compressor.core.errors import RecipeError, StageError
from compressor.data.examples import tokenize_rows
from compressor.data.tokenizers import train_tokenizer
from tests.data.test_language_modeling import TEXTS, read_data
from tests.engine.test_plan import plan_recipe
from tests.harness.command import compressor as run_command
from tests.harness.models import build_case
from tests.harness.runs import find_stage

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RECIPE = """
defaults: [/base, _self_]
pipeline: [load, finetune, evaluate]
model: {source: model, head: causal_lm}
data: {source: files, task: language_modeling, messages: chat, max_source_length: 60,
       files: {train: rows.jsonl, validation: rows.jsonl, test: rows.jsonl}}
training: {batch_size: 2, max_steps: 2, warmup_steps: 0, learning_rate: 0.01}
stages:
  load: {}
  finetune: {}
  evaluate: {max_length: 6}
"""


def say(*contents: str, roles: tuple[str, ...] = ("user", "assistant")) -> list[dict[str, str]]:
    return [
        {"role": roles[index % len(roles)], "content": content}
        for index, content in enumerate(contents)
    ]


CHATS = [
    say("An act?", "It funds parks."),
    say("Hi.", "Hello!", "What is in it?", "Money."),
    [{"role": "system", "content": "Be brief."}, *say("[{", "Brackets.")],
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    trained = train_tokenizer(TEXTS, vocab_size=300)
    trained.chat_template = TEMPLATE
    return trained


def read_chats(folder: Path, chats: list[Any], **settings: Any) -> Any:
    return read_data(folder, [{"chat": chat} for chat in chats], messages="chat", **settings)


def test_the_answer_alone_is_learned_after_what_the_template_has_before_it(
    tmp_path, tokenizer
) -> None:
    """The ids are those of the whole chat as transformers writes it, up to the answer's end."""
    data = read_chats(tmp_path, CHATS)
    rows = data.load("train")
    assert rows.summaries == [chat[-1]["content"] for chat in CHATS]
    examples = tokenize_rows(rows, tokenizer, data, joined=True)
    for chat, source, target in zip(CHATS, examples.sources, examples.targets, strict=True):
        before = tokenizer.apply_chat_template(
            chat[:-1], add_generation_prompt=True, tokenize=False
        )
        whole = tokenizer.apply_chat_template(chat, tokenize=False)
        given: dict[str, Any] = {"add_special_tokens": False}
        assert source == tokenizer(before, **given).input_ids
        assert tokenizer.decode([*source, *target]) + "\n" == whole
        assert target == [*tokenizer(chat[-1]["content"], **given).input_ids, 1]


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("Hello", "row 1, column 'chat': expected two or more messages, each with texts as role"),
        (say("Hello"), "expected two or more messages"),
        ([*say("Hi"), {"role": "assistant", "content": None}], "expected two or more messages"),
        (say("Hi", "Hello", "Bye"), "the last message is the user's; an assistant's is learned"),
        (say("Hi", " "), "1 row has no messages \\(row 1, column 'chat'\\)"),
    ],
)
def test_a_row_that_is_no_chat_is_told(tmp_path, chat, message) -> None:
    with pytest.raises(StageError, match=message):
        read_chats(tmp_path, [CHATS[0], chat]).load("train")


@pytest.mark.parametrize(
    ("chat", "template", "message"),
    [
        (CHATS[0], None, "data.messages: the tokenizer has no chat template"),
        (say("Add.", "2", roles=("tool", "assistant")), TEMPLATE, "refuses a chat: no tools here"),
        (CHATS[1], TEMPLATE, "the chat of row 0 has 53 tokens before the answer, more than data"),
        (CHATS[0], TEMPLATE + "{{ messages|length }}", "in another way where there is none yet"),
    ],
)
def test_a_chat_that_cannot_be_written_is_told(tmp_path, chat, template, message) -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.chat_template = template
    limit = 20 if "row 0" in message else 60
    data = read_chats(tmp_path, [chat], max_source_length=limit)
    with pytest.raises(StageError, match=message):
        tokenize_rows(data.load("train"), tokenizer, data, joined=True)


def test_settings_without_a_place_in_a_chat_are_refused(tmp_path) -> None:
    with pytest.raises(ValidationError, match="`messages` have no `prefix`"):
        read_chats(tmp_path, CHATS, prefix="summarize: ")
    with pytest.raises(ValidationError, match="`messages` are for the task language_modeling"):
        read_chats(tmp_path, CHATS, completion="answer")


def test_a_recipe_of_chats_trains_and_answers(tmp_path, tokenizer) -> None:
    """With what `generate` gives after the template; from Python a text is what a user says."""
    checkpoint = build_case("llama", {"vocab_size": 300}, "causal_lm")
    checkpoint.model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = "".join(json.dumps({"chat": chat}) + "\n" for chat in CHATS)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    done = run_command("run", "mine.yaml", cwd=tmp_path)
    assert done.code == 0, done.err
    model = AutoModelForCausalLM.from_pretrained(find_stage(done.run_folder, "finetune"))
    expected = []
    for chat in CHATS:
        ids = tokenizer.apply_chat_template(
            chat[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**ids, do_sample=False, max_new_tokens=6)
        new = output[0, ids["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    with (done.run_folder / "predictions.csv").open() as stream:
        assert [row["prediction"] for row in csv.DictReader(stream)] == expected
    predictor = compressor.load(find_stage(done.run_folder, "finetune"))
    assert predictor.write(["An act?"], max_length=6) == expected[:1]
    trained = f"{{tokenizer: {{vocab_size: 300}}, source: {tmp_path}/model,"
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("{source: model,", trained))
    with pytest.raises(RecipeError, match="one that is trained has no chat template"):
        plan_recipe(tmp_path / "mine.yaml")
