"""Where a conversation is led: messages and commands from a terminal or a pipe, answers to stdout."""

import sys
from collections.abc import Callable
from contextlib import suppress

from mlxgpt import interrupts
from mlxgpt.chat.conversation import Conversation, Turn
from mlxgpt.errors import Error
from mlxgpt.prompt_bar import PromptBar

INTERRUPTED = 130  # exit status
QUOTES = '"""'
HELP = f"""/reset  forget the conversation   /exit or Ctrl-D  end   /help  this
A line that ends in \\ goes on with the next one; {QUOTES} begins a message of several lines and {QUOTES} ends it.
Ctrl-C stops an answer; what was said of it stays in the conversation."""


def talk(
    conversation: Conversation, first: str | None, show: Callable[[str], object], limit: int
) -> tuple[list[Turn], int]:
    """Lead a conversation: `first` is the user's first message, the others come from stdin, unless it is no terminal
    and there is a first. `show` gets the answers, each with a newline at its end.

    Returns the turns and the exit status: 1 where a message from a pipe could not be answered, INTERRUPTED where
    Ctrl-C ended it.
    """
    terminal = sys.stdin.isatty()
    lines = Terminal() if terminal else Pipe()
    turns: list[Turn] = []
    status = 0
    if terminal:
        say("/help says what can be typed besides messages")
    waiting = [first] if first is not None else []
    while terminal or waiting or first is None:
        try:
            literal = bool(waiting)
            message = waiting.pop() if waiting else read_message(lines)
            if message is None or (message.strip() == "/exit" and not literal):
                break
            if not literal and (not message.strip() or message.startswith("/")):
                command(message, conversation)
                continue
            with interrupts.deferred() as interrupted, PromptBar() as bar:
                turn = conversation.ask(message, show, interrupted, bar)
                show("\n")
        except KeyboardInterrupt:
            if lines.interrupted():
                return turns, INTERRUPTED
            continue
        except Error as error:
            print(f"mlxgpt: error: {' '.join(str(error).split())}", file=sys.stderr)
            status = 0 if terminal else 1
            continue
        turns.append(turn)
        if turn.answer.cancelled and not terminal:
            return turns, INTERRUPTED
        if terminal:
            comment(turn, limit)
    return turns, status


def comment(turn: Turn, limit: int) -> None:
    """Say on stderr why an answer ended, where that is not the model's own end."""
    done = turn.answer.generation
    if turn.answer.cancelled:
        say("stopped" if turn.text else "stopped before its first word: the message is forgotten")
    elif done.finish_reason == "length":
        full = len(done.token_ids) < limit
        say("the context is full: /reset begins anew" if full else f"cut off after {limit} tokens: see --max-tokens")


def command(line: str, conversation: Conversation) -> None:
    """Do what a line that begins with a slash says; an empty one says nothing."""
    name = line.strip().partition(" ")[0]
    if not name:
        return
    if name == "/reset":
        conversation.reset()
        say("the conversation is forgotten")
    elif name == "/help":
        print(HELP, file=sys.stderr)
    else:
        say(f"there is no {name}: /reset, /exit and /help there are; put a space before it to send it to the model")


def say(text: str) -> None:
    """A remark that is no part of the conversation."""
    print(f"mlxgpt: {text}", file=sys.stderr)


class Pipe:
    """Lines of stdin, whatever their bytes; None at its end."""

    def __call__(self, more: bool) -> str | None:
        """The next line; `more`: it goes on with a message."""
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8", "surrogateescape").rstrip("\r\n") if line else None

    def interrupted(self) -> bool:
        """Ctrl-C ends the program."""
        return True


class Terminal:
    """Lines typed at a prompt, with editing and a history where there is a readline; None for Ctrl-D."""

    def __init__(self) -> None:
        with suppress(ImportError):
            import readline  # noqa: F401  `input` uses it
        self._warned = False

    def __call__(self, more: bool) -> str | None:
        """The next line; `more`: it goes on with a message, and the prompt says so."""
        prompt = "… " if more else "> "
        try:
            if not sys.stdout.isatty():  # `input` would write the prompt among the answers
                sys.stderr.write(prompt)
                sys.stderr.flush()
                prompt = ""
            line = input(prompt)
        except EOFError:
            print(file=sys.stderr)
            return None
        self._warned = False
        return line

    def interrupted(self) -> bool:
        """Ctrl-C at the prompt: whether it is the second in a row."""
        if not self._warned:
            print(file=sys.stderr)
            say("Ctrl-C again, Ctrl-D or /exit ends")
            self._warned = True
            return False
        return True


def read_message(lines: Pipe | Terminal) -> str | None:
    """The next message or command, put together from its lines; None at the end."""
    line = lines(False)
    if line is None:
        return None
    if line.startswith(QUOTES):
        return _quoted(line.removeprefix(QUOTES), lines)
    parts = []
    while line is not None and line.endswith("\\"):
        parts.append(line[:-1])
        line = lines(True)
    return "\n".join([*parts, line or ""])


def _quoted(line: str | None, lines: Pipe | Terminal) -> str:
    parts = []
    while line is not None and not line.rstrip().endswith(QUOTES):
        parts.append(line)
        line = lines(True)
    return "\n".join([*parts, (line or "").rstrip().removesuffix(QUOTES)]).removeprefix("\n").removesuffix("\n")
