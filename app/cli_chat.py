"""`roundhouse chat`: streams answers of one model, and says what happens while it loads."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from app.cli_client import LOAD_TIMEOUT_S, Client, CliError, ExitCode, error_of, model_path
from app.cli_output import printable, progress

Message = dict[str, str]


@dataclass(slots=True)
class Answer:
    """What a stream brought so far."""

    model: str
    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.model,
            "content": self.content,
            "reasoning": self.reasoning or None,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of a stream: a text to show (of the answer or of the model's reasoning), or news of the load."""

    text: str = ""
    reasoning: bool = False
    comment: str = ""


@dataclass(slots=True)
class Chat:
    """One conversation with one model."""

    client: Client
    model: str
    options: dict[str, Any] = field(default_factory=dict)  # sampling options of the request
    messages: list[Message] = field(default_factory=list)

    def ask(self, prompt: str, *, show: bool = True) -> Answer:
        """Sends `prompt` after what was said before, prints the answer as it comes if `show`, and keeps both."""
        question = {"role": "user", "content": prompt}
        answer = Answer(self.model)
        # closing: a Ctrl-C in the middle ends the request now, not when the generator happens to be collected
        with closing(self._stream([*self.messages, question], answer)) as pieces:
            first = self._wait_for_text(pieces, quiet=not (show and sys.stderr.isatty()))
            if show:
                self._print(first, pieces)
            else:
                for _ in pieces:
                    pass
        self.messages += [question, {"role": "assistant", "content": answer.content}]
        return answer

    def _stream(self, messages: Sequence[Message], answer: Answer) -> Generator[Piece, None, None]:
        body = {"model": self.model, "messages": list(messages), "stream": True, **self.options}
        body["stream_options"] = {"include_usage": True}
        with self.client.stream("/v1/chat/completions", body, timeout_s=LOAD_TIMEOUT_S) as lines:
            for line in lines:
                if line.startswith(":"):
                    yield Piece(comment=line[1:].strip())
                elif line.startswith("data:"):
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    yield from _take(data, answer)
        if answer.finish_reason is None:
            raise CliError("The answer broke off before its end.", ExitCode.SERVER_ERROR)

    def _wait_for_text(self, pieces: Iterator[Piece], *, quiet: bool) -> Piece | None:
        with progress("" if quiet else self._news(), quiet=quiet) as shown:
            for piece in pieces:
                if piece.text:
                    return piece
                if piece.comment:
                    shown.say(f"{piece.comment} …")
        return None

    def _news(self) -> str:
        """What there is to wait for; only to be shown, so that it does no harm when it is out of date."""
        try:
            state = self.client.get(model_path(self.model)).get("state")
        except CliError:
            state = None  # the request itself will say what is wrong
        return f"{'waiting for' if state in (None, 'ready') else 'loading'} {self.model} …"

    def _print(self, first: Piece | None, rest: Iterator[Piece]) -> None:
        reasoning = False
        styled = sys.stdout.isatty()
        for piece in chain([first] if first else [], rest):
            reasoning = _write(piece, reasoning, styled)
        sys.stdout.write("\x1b[0m\n" if reasoning and styled else "\n")
        sys.stdout.flush()


def _take(data: str, answer: Answer) -> Iterator[Piece]:
    """Adds one event's data to the answer. Raises CliError where it is an error event."""
    try:
        event = json.loads(data)
    except ValueError as error:
        raise CliError(f"The server sent an event that is not JSON: {data[:200]}", ExitCode.SERVER_ERROR) from error
    if event.get("error"):
        raise error_of(event)
    answer.usage = event.get("usage") or answer.usage
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if thought := delta.get("reasoning") or delta.get("reasoning_content"):
            answer.reasoning += thought
            yield Piece(thought, reasoning=True)
        if content := delta.get("content"):
            answer.content += content
            yield Piece(content)


def _write(piece: Piece, was_reasoning: bool, styled: bool) -> bool:
    """Writes one piece, reasoning dimmed on a terminal and left out of a pipe; returns whether it was reasoning."""
    if piece.comment or (piece.reasoning and not styled):
        return was_reasoning
    if styled and piece.reasoning != was_reasoning:
        sys.stdout.write("\x1b[2m" if piece.reasoning else "\x1b[0m\n")
    sys.stdout.write(printable(piece.text) if styled else piece.text)
    sys.stdout.flush()
    return piece.reasoning


def converse(chat: Chat) -> None:
    """Asks for prompts until the end of input. Ctrl-C ends an answer; at the prompt it ends the conversation."""
    import readline  # noqa: F401 - line editing and history for input()

    sys.stderr.write(f"{printable(chat.model)}: an empty line or Ctrl-D ends the conversation, Ctrl-C an answer.\n")
    while True:
        try:
            prompt = input(">>> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        if not prompt.strip():
            return
        try:
            chat.ask(prompt)
        except KeyboardInterrupt:
            sys.stdout.write("\x1b[0m\n")
        except CliError as error:
            if error.exit_code not in (ExitCode.SERVER_ERROR, ExitCode.OVERLOADED):
                raise
            sys.stderr.write(f"{printable(error.message)}\n")
