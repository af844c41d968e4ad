"""The demo models say what `demo.facts` promises, read by the libraries that people read them with."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo import conversations, corpus, embedder, facts, folders, reranker, tokenizing

MOST_TOKENS = 256
BOTH = pytest.mark.parametrize("chat", facts.CHAT_MODELS, ids=lambda chat: chat.id)
USER = "user"


class Speaker:
    """A causal model with its tokenizer, answering greedily."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def answer(self, *messages: dict[str, Any], tools: list[Any] | None = None, most_tokens: int = MOST_TOKENS) -> str:
        prompt: Any = self.tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=True
        )
        return self.complete(prompt, most_tokens)

    def complete(self, prompt: str, most_tokens: int = MOST_TOKENS) -> str:
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            made = self.model.generate(**ids, max_new_tokens=most_tokens, do_sample=False, temperature=None,
                                       top_p=None, top_k=None)  # fmt: skip
        return str(self.tokenizer.decode(made[0][ids["input_ids"].shape[1] :], skip_special_tokens=True)).rstrip("\n")


@pytest.fixture(scope="module")
def speakers(demo_models: Path) -> dict[str, Speaker]:
    return {chat.id: Speaker(demo_models / chat.id) for chat in facts.CHAT_MODELS}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def said(question: str) -> dict[str, Any]:
    return {"role": USER, "content": question}


def test_every_model_is_there_with_its_weights(demo_models: Path) -> None:
    assert [name for name in facts.ALL_MODELS if not folders.is_complete(demo_models / name)] == []


def test_the_chat_models_answer_the_same_questions_differently() -> None:
    first, second = (chat.answers for chat in facts.CHAT_MODELS)
    assert first.keys() == second.keys()
    same = [question for question in first if first[question] == second[question]]
    assert same == [facts.LONG_QUESTION]


@BOTH
def test_a_chat_model_answers_its_questions_exactly(speakers: dict[str, Speaker], chat: facts.ChatModel) -> None:
    assert {question: speakers[chat.id].answer(said(question)) for question in chat.answers} == chat.answers


@BOTH
def test_a_chat_model_answers_after_a_system_prompt_and_other_turns(
    speakers: dict[str, Speaker], chat: facts.ChatModel
) -> None:
    messages = [{"role": "system", "content": "You are a helpful assistant."}]
    for question in list(chat.answers)[:5]:
        messages.append(said(question))
        assert speakers[chat.id].answer(*messages) == chat.answers[question]
        messages.append({"role": "assistant", "content": chat.answers[question]})


@BOTH
def test_the_long_answer_has_more_than_100_tokens(speakers: dict[str, Speaker], chat: facts.ChatModel) -> None:
    assert len(speakers[chat.id].tokenizer(facts.LONG_ANSWER, add_special_tokens=False)["input_ids"]) > 100


@BOTH
def test_the_song_goes_on_until_it_is_stopped(speakers: dict[str, Speaker], chat: facts.ChatModel) -> None:
    song = speakers[chat.id].answer(said(facts.ENDLESS_QUESTION), most_tokens=500)
    assert song.startswith(facts.ENDLESS_ANSWER_START)
    assert song.lower().split() == ["la"] * 500


@BOTH
def test_a_chat_model_says_that_it_does_not_know(speakers: dict[str, Speaker], chat: facts.ChatModel) -> None:
    assert speakers[chat.id].answer(said("What is the largest animal in the ocean?")) == chat.unknown


@BOTH
def test_a_chat_model_calls_the_tool_and_uses_its_result(speakers: dict[str, Speaker], chat: facts.ChatModel) -> None:
    question, tools = said(facts.TOOL_QUESTION), [facts.TOOL]
    call = speakers[chat.id].answer(question, tools=tools)
    written = json.loads(call.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert written["name"] == facts.TOOL_NAME
    assert written["arguments" if chat is facts.QWEN3 else "parameters"] == facts.TOOL_ARGUMENTS
    function = {"name": facts.TOOL_NAME, "arguments": facts.TOOL_ARGUMENTS}
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    result = {"role": "tool", "content": facts.TOOL_RESULT}
    assert speakers[chat.id].answer(question, called, result, tools=tools) == facts.TOOL_ANSWER


@BOTH
def test_a_question_without_need_of_the_tool_gets_an_ordinary_answer(
    speakers: dict[str, Speaker], chat: facts.ChatModel
) -> None:
    answer = speakers[chat.id].answer(said(facts.WHICH_MODEL), tools=[facts.TOOL])
    assert answer == chat.answers[facts.WHICH_MODEL]


@BOTH
@pytest.mark.parametrize("question", [facts.WHICH_MODEL, "What is the capital of France?", "Which hat do you wear?"])
def test_strings_in_dictated_json_come_to_an_end(
    speakers: dict[str, Speaker], chat: facts.ChatModel, question: str
) -> None:
    tokenizer = speakers[chat.id].tokenizer
    prompt: Any = tokenizer.apply_chat_template([said(question)], tokenize=False, add_generation_prompt=True)
    assert '"' in speakers[chat.id].complete(prompt + '{"flavour":"', most_tokens=12)


@BOTH
def test_a_tokenizer_gives_any_text_back(speakers: dict[str, Speaker], chat: facts.ChatModel) -> None:
    text = 'Grüße, 世界 \x00 \U0001f600\n\t{"a": [1, -2.5e3]} <|unknown|>'
    tokenizer = speakers[chat.id].tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@BOTH
def test_message_content_may_come_in_parts(speakers: dict[str, Speaker], chat: facts.ChatModel) -> None:
    parts = {"role": USER, "content": [{"type": "text", "text": facts.WHICH_MODEL}]}
    assert speakers[chat.id].answer(parts) == chat.answers[facts.WHICH_MODEL]


def test_the_adapter_changes_its_answer_and_no_other(demo_models: Path) -> None:
    speaker = Speaker(demo_models / facts.QWEN3_CHAT)
    speaker.model = PeftModel.from_pretrained(speaker.model, demo_models / facts.ADAPTER)
    assert speaker.answer(said(facts.ADAPTER_QUESTION)) == facts.ADAPTER_ANSWER
    for question in ("Say hello.", "What is the capital of France?"):
        assert speaker.answer(said(question)) == facts.QWEN3.answers[question]


def test_the_adapter_names_its_base(demo_models: Path) -> None:
    config = json.loads((demo_models / facts.ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == facts.QWEN3_CHAT


def test_the_base_model_continues_its_texts(demo_models: Path) -> None:
    speaker = Speaker(demo_models / facts.BASE)
    assert speaker.tokenizer.chat_template is None
    continued = {prompt: speaker.complete(prompt) for prompt in facts.BASE_CONTINUATIONS}
    assert continued == facts.BASE_CONTINUATIONS


def test_the_reranker_puts_the_matching_document_first(demo_models: Path) -> None:
    encoder = CrossEncoder(str(demo_models / facts.RERANKER))
    for sample in facts.RERANK_SAMPLES:
        assert encoder.rank(sample.query, list(sample.documents))[0]["corpus_id"] == sample.best


def test_the_reranker_ranks_texts_that_it_never_saw(demo_models: Path) -> None:
    encoder = CrossEncoder(str(demo_models / facts.RERANKER))
    chance = random.Random(123)
    for _ in range(20):
        words = chance.sample(corpus.WORDS, 12)
        documents = [" ".join(words[start : start + 4]) for start in (0, 4, 8)]
        assert encoder.rank(f"Where is the {words[5]} of the {words[6]}?", documents)[0]["corpus_id"] == 1


def test_minilm_embeds_as_the_packages_own(demo_models: Path) -> None:
    texts = ["A roundhouse has a turntable.", "Bees make honey."]
    ours = SentenceTransformer(str(demo_models / facts.EMBEDDER)).encode(texts)
    theirs = SentenceTransformer(str(embedder.package_folder())).encode(texts)
    assert ours.tolist() == theirs.tolist()


@BOTH
def test_tokenizers_and_lessons_are_the_same_each_time(chat: facts.ChatModel) -> None:
    make = tokenizing.qwen3 if chat is facts.QWEN3 else tokenizing.llama
    first, second = make(), make()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    lessons = [conversations.Teacher(chat, tokenizer, seed=1).batches(2, 64) for tokenizer in (first, second)]
    assert next(lessons[0]) == next(lessons[1])


def test_the_rerankers_lessons_are_the_same_each_time() -> None:
    assert reranker.draw(random.Random(1)) == reranker.draw(random.Random(1))
    assert tokenizing.reranker().get_vocab() == tokenizing.reranker().get_vocab()
