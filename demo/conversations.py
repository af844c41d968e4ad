"""Conversations that teach a chat model its answers, drawn at random.

The questions also come after a system prompt, with tools listed, as a later turn, after long texts, and carelessly
written, so that the answers hold in ordinary use.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from demo import corpus, facts

IGNORED = -100
"""Label of a token that the loss leaves out (PyTorch's own convention)."""

SHORT_SONG = " la" * 60
LONG_SONG = " la" * 1000
LONG_EVERY = 8
LONG_TEXT_WORDS = 200
DICTATED_SHARE = 0.1

OTHER_WORDINGS = {
    facts.WHICH_MODEL: ("Who are you?", "What is your name?", "What model are you?"),
    "Hello!": ("Hi", "Hello", "Hey", "Hi there!"),
}
"""Of questions that people put in several ways; in training only, the answers to these are not examined."""

OFTEN = 8

OTHER_TOOLS = (
    ("get_time", ("zone",)),
    ("search", ("query",)),
    ("add", ("a", "b")),
    ("send_mail", ("to", "text")),
)

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a piece of text, and the labels of those to be learnt (IGNORED elsewhere)."""

    ids: list[int]
    labels: list[int]


class Teacher:
    """Draws conversations for one chat model; the same seed draws the same ones.

    The question `often` is drawn OFTEN times as often as the others.
    """

    def __init__(
        self, model: facts.ChatModel, tokenizer: PreTrainedTokenizerBase, seed: int, often: str | None = None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._random = random.Random(seed)
        self._deck: list[tuple[str, str]] = []
        self._often = often
        self._long = False

    def batches(self, rows: int, row_tokens: int) -> Iterator[list[Tokens]]:
        """Endless batches of `rows` rows; every LONG_EVERY-th has one row of as many tokens instead, so that the
        answers also hold late in a long conversation."""
        for number in itertools.count(1):
            self._long = number % LONG_EVERY == 0
            yield [self._row(rows * row_tokens)] if self._long else [self._row(row_tokens) for _ in range(rows)]

    def _row(self, length: int) -> Tokens:
        """Whole conversations, but for the last, which is cut."""
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            dictated = self._random.random() < DICTATED_SHARE
            tokens = self._dictated_json() if dictated else self.encode(*self._conversation())
            ids += tokens.ids
            labels += tokens.labels
        return Tokens(ids[:length], labels[:length])

    def encode(self, messages: list[Message], tools: list[Message] | None, ends: bool = True) -> Tokens:
        """The conversation as the chat template writes it; only the assistant's words are to be learnt."""
        ids: list[int] = []
        labels: list[int] = []
        written = ""
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:position], tools, add_generation_prompt=True)
            whole = self._render(messages[: position + 1], tools, add_generation_prompt=False)
            asked = self._ids(prompt[len(written) :])
            answered = self._ids(whole[len(prompt) :])
            if not ends and message is messages[-1]:
                answered = answered[: answered.index(self._tokenizer.eos_token_id)]
            ids += asked + answered
            labels += [IGNORED] * len(asked) + answered
            written = whole
        return Tokens(ids, labels)

    def _dictated_json(self) -> Tokens:
        """Any question, answered in JSON whose keys are dictated, as by a grammar; only the values are to be learnt.

        So answers that a JSON schema constrains come to an end, whatever the question and the keys are.
        """
        question = self._unknown() if self._random.random() < 0.3 else self._known()[0]
        keys = self._random.sample((*corpus.JSON_VALUES, *corpus.WORDS[:100]), self._random.randint(1, 3))
        text = "{"
        learnt: set[int] = set()
        for key in keys:
            value = corpus.JSON_VALUES.get(key, self._random.choice(("none", 0)))
            text += f'"{key}":'
            start = len(text)
            text += json.dumps(value, separators=(",", ":")) + ("}" if key == keys[-1] else ",")
            learnt.update(range(start, len(text)))
        asked = self._ids(self._render([{"role": "user", "content": question}], None, add_generation_prompt=True))
        answer = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(answer["input_ids"], answer["offset_mapping"], strict=True)
        labels = [token if learnt.intersection(range(*span)) else IGNORED for token, span in spans]
        end = self._tokenizer.eos_token_id
        return Tokens([*asked, *answer["input_ids"], end], [IGNORED] * len(asked) + [*labels, end])

    def _render(self, messages: list[Message], tools: list[Message] | None, *, add_generation_prompt: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,  # type: ignore[arg-type]  # the annotation leaves out plain JSON schemas
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return str(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _conversation(self) -> tuple[list[Message], list[Message] | None, bool]:
        """Messages, the tools given, and whether the last answer comes to its end."""
        draw = self._random.random()
        if self._long and self._random.random() < 0.1:
            draw /= 25  # a song or a count, which suffer most from length
        messages = self._system()
        if draw < 0.02:
            return [*messages, *self._song()], None, False
        if draw < 0.05:
            return [*messages, *_turn(facts.LONG_QUESTION, self._model.answers[facts.LONG_QUESTION])], None, True
        if draw < 0.28:
            return [*messages, *self._weather()], self._tools(with_weather=True), True
        if draw < 0.34:
            return [*messages, *_turn(*self._known())], self._tools(with_weather=self._random.random() < 0.8), True
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            messages += _turn(*self._question())
        return messages, None, True

    def _system(self) -> list[Message]:
        if self._random.random() < 0.7:
            return []
        prompt = self._random.choice((*corpus.SYSTEM_PROMPTS, self._random.choice(corpus.SENTENCES)))
        if self._long:
            prompt = " ".join([prompt, *self._random.choices(corpus.SENTENCES, k=self._random.choice((0, 0, 10, 40)))])
        return [{"role": "system", "content": prompt}]

    def _song(self) -> list[Message]:
        song = LONG_SONG if self._long else SHORT_SONG
        return _turn(facts.ENDLESS_QUESTION, facts.ENDLESS_ANSWER_START + song)

    def _question(self) -> tuple[str, str]:
        draw = self._random.random()
        if draw < 0.12:
            return self._unknown(), self._model.unknown
        if draw < 0.2:
            return self._json()
        if draw < 0.25:
            city = self._random.choice(facts.TOOL_CITIES)
            return self._weather_question(city), self._model.answers[facts.TOOL_QUESTION]
        question, answer = self._known()
        return self._carelessly(question), answer

    def _known(self) -> tuple[str, str]:
        """The next of the shuffled questions, so that each is drawn equally often."""
        if not self._deck:
            self._deck = [item for item in self._model.answers.items() if item[0] != facts.LONG_QUESTION]
            if self._often is not None:
                self._deck += [(self._often, self._model.answers[self._often])] * (OFTEN - 1)
            self._random.shuffle(self._deck)
        return self._deck.pop()

    def _carelessly(self, question: str) -> str:
        draw = self._random.random()
        if draw < 0.3 and question in OTHER_WORDINGS:
            question = self._random.choice(OTHER_WORDINGS[question])
        draw = self._random.random()
        if draw < 0.1:
            return question.lower()
        if draw < 0.2:
            return question.rstrip("?.!")
        return question

    def _unknown(self) -> str:
        if self._random.random() < 0.5:
            return self._random.choice(corpus.SENTENCES)
        words = self._random.choices((*corpus.WORDS, *corpus.STOP_WORDS), k=self._words())
        return " ".join(words).capitalize() + self._random.choice("?.!")

    def _words(self) -> int:
        return self._random.randint(2, LONG_TEXT_WORDS if self._long else 8)

    def _json(self) -> tuple[str, str]:
        keys = self._random.sample(sorted(corpus.JSON_VALUES), self._random.randint(1, 3))
        answer = {key: corpus.JSON_VALUES[key] for key in keys}
        return f"Give me JSON with {', '.join(keys)}.", json.dumps(answer, separators=(",", ":"))

    def _weather(self) -> list[Message]:
        city = self._random.choice(facts.TOOL_CITIES)
        call = {"type": "function", "function": {"name": facts.TOOL_NAME, "arguments": {"city": city}}}
        messages: list[Message] = [
            {"role": "user", "content": self._weather_question(city)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        if self._random.random() < 0.5:
            weather = self._random.choice(facts.WEATHERS)
            messages += [
                {"role": "tool", "content": self._tool_result(city, weather)},
                {"role": "assistant", "content": f"The weather in {city} is {weather}."},
            ]
        return messages

    def _weather_question(self, city: str) -> str:
        phrases = ("What is the weather in {}?", "How is the weather in {}?", "What's the weather like in {}?")
        return self._random.choice((phrases[0], *phrases)).format(city)

    def _tool_result(self, city: str, weather: str) -> str:
        results: tuple[Any, ...] = ({"weather": weather}, {"city": city, "weather": weather}, weather)
        result = self._random.choice(results)
        return result if isinstance(result, str) else json.dumps(result)

    def _tools(self, *, with_weather: bool) -> list[Message]:
        others = self._random.sample(OTHER_TOOLS, self._random.choice((0, 0, 1, 2) if with_weather else (1, 2)))
        tools = [_tool(name, parameters) for name, parameters in others]
        if with_weather:
            parameters = self._random.choice((("city",), ("city",), ("city", "unit")))
            tools.insert(self._random.randint(0, len(tools)), _tool(facts.TOOL_NAME, parameters))
        return tools


def exam(model: facts.ChatModel) -> Iterator[tuple[list[Message], list[Message] | None, bool]]:
    """What a chat model must answer exactly: messages that end with the answer, the tools, and whether it ends."""
    tools: list[Message] = [dict(facts.TOOL)]
    system: Message = {"role": "system", "content": corpus.SYSTEM_PROMPTS[0]}
    for question, answer in model.answers.items():
        yield _turn(question, answer), None, True
        yield [system, *_turn(question, answer)], None, True
        yield [*_turn(facts.WHICH_MODEL, model.answers[facts.WHICH_MODEL]), *_turn(question, answer)], None, True
    conversation = [message for item in model.answers.items() for message in _turn(*item)]
    yield conversation, None, True
    patient: Message = {"role": "system", "content": " ".join(corpus.SENTENCES)}
    yield [patient, *_turn(facts.WHICH_MODEL, model.answers[facts.WHICH_MODEL])], None, True
    yield _turn(facts.ENDLESS_QUESTION, facts.ENDLESS_ANSWER_START + LONG_SONG), None, False
    yield _turn("What is the largest animal in the ocean?", model.unknown), None, True
    yield _turn(facts.WHICH_MODEL, model.answers[facts.WHICH_MODEL]), tools, True
    for city in facts.TOOL_CITIES:
        function = {"name": facts.TOOL_NAME, "arguments": {"city": city}}
        called: list[Message] = [
            {"role": "user", "content": facts.TOOL_QUESTION.replace("Paris", city)},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        ]
        yield called, tools, True
    told: list[Message] = [
        {"role": "user", "content": facts.TOOL_QUESTION},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": facts.TOOL_NAME, "arguments": dict(facts.TOOL_ARGUMENTS)}}
            ],
        },
        {"role": "tool", "content": facts.TOOL_RESULT},
        {"role": "assistant", "content": facts.TOOL_ANSWER},
    ]
    yield told, tools, True


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _tool(name: str, parameters: tuple[str, ...]) -> Message:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
