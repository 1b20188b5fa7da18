"""From the body of a request to the calls that answer it: a suggestion at a cursor, or a text that goes on."""

import os
import secrets
from collections.abc import Sequence
from dataclasses import replace

from mlxgpt.completion.jobs import Ask, Write
from mlxgpt.completion.suggest import BLOCK_TOKENS, MAX_TOKENS
from mlxgpt.generation.engine import Request
from mlxgpt.generation.sampling import Sampling
from mlxgpt.server import sentinels
from mlxgpt.server.bodies import Common, Fim, Infill, Llama, LlamaCompletion, TextCompletion
from mlxgpt.server.exchange import Call
from mlxgpt.server.refusals import Refused
from mlxgpt.server.state import State

MOST_EXTRA = 1 << 18  # bytes of other places' text that are looked at, the newest
NEARLY_GREEDY = 1e-4  # a temperature below this takes the likeliest: dividing by it would overflow


def infill(state: State, body: Infill) -> list[Call]:
    """The suggestions that /infill is answered with: `n_cmpl`, the likeliest first."""
    prefix = (body.input_prefix or "") + (body.prompt or "")
    extra = [item.text for item in body.input_extra or []]
    middle = sentinels.Middle(prefix, body.input_suffix or "", tuple(extra))
    return [_suggestion(state, body, middle, body.n_predict, body.n_cmpl)]


def fim(state: State, body: Fim) -> list[Call]:
    """The suggestions that /v1/fim/completions is answered with. Raises Refused."""
    middle = sentinels.Middle(body.prompt, body.suffix or "")
    return [_suggestion(state, body, middle, body.max_tokens, body.n)]


def llama_completion(state: State, body: LlamaCompletion, suffix: str | None = None) -> list[Call]:
    """The answers to /completion: `n_cmpl` for each prompt; a `suffix` makes it a cursor. Raises Refused."""
    request = replace(_request(state, body, llama_sampling(body), body.n_predict), logprobs=body.n_probs or 0)
    return _completions(state, body, body.prompt, suffix, request, body.n_predict, body.n_cmpl)


def text_completion(state: State, body: TextCompletion) -> list[Call]:
    """The answers to /v1/completions: `n` for each prompt. Raises Refused."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Refused(400, "best_of is not supported: leave it away, or give it n's value")
    most = 16 if body.max_tokens is None else body.max_tokens
    request = replace(_request(state, body, openai_sampling(body), most), logprobs=body.logprobs or 0)
    return _completions(state, body, body.prompt, body.suffix, request, body.max_tokens, body.n)


def _completions(
    state: State, body: Common, prompts: str | list[str], suffix: str | None, request: Request,
    max_tokens: int | None, several: int | None,
) -> list[Call]:  # fmt: skip
    """`several` suggestions for each prompt that has a suffix or a template for one, and where there is no model;
    `several` texts for each other."""
    calls: list[Call] = []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        middle = sentinels.parse(prompt)
        if middle is None and (suffix is not None or not state.ready().context):
            middle = sentinels.Middle(prompt, suffix or "")
        if middle is not None:
            calls.append(_suggestion(state, body, middle, max_tokens, several))
            continue
        for i in range(several or 1):
            seeded = replace(request, seed=request.seed + i & 0xFFFFFFFF)
            calls.append(Call(_writing(state, body, prompt, seeded)))
    if (wanted := sum(call.several for call in calls)) > state.settings.limits.texts:
        raise Refused(400, f"a request may ask for {state.settings.limits.texts} answers, not {wanted}")
    return calls


def _writing(state: State, body: Common, prompt: str, request: Request) -> Write:
    limit = body.t_max_predict_ms if isinstance(body, Llama) else None
    data = prompt.encode()
    require_context(state, len(data))
    return Write(
        lambda tokenizer: tokenizer.begin(data), request, state.settings.limits.write_seconds,
        limit / 1000 if limit and limit > 0 else None,
    )  # fmt: skip


def require_context(state: State, size: int) -> None:
    """Refuse so many bytes at once where they could not fit if every token were the longest: to tokenize them would
    hold others up."""
    served = state.ready()
    if size > served.context * served.longest:
        raise Refused(400, f"the prompt does not fit the model's context of {served.context} tokens: shorten it")


def _suggestion(
    state: State, body: Common, middle: sentinels.Middle, max_tokens: int | None, several: int | None
) -> Call:
    _require_supported(body)
    multiline = state.settings.multiline if body.multiline is None else body.multiline
    unlimited = BLOCK_TOKENS if multiline else MAX_TOKENS
    most = unlimited if max_tokens is None or max_tokens < 0 else min(max_tokens, unlimited)
    limit = body.t_max_predict_ms if isinstance(body, Llama) else None
    # A name, of which nothing is looked up but what is known of it already.
    document = None if body.document is None else os.path.normpath(os.path.join(state.settings.root, body.document))
    ask = Ask(
        middle.prefix.encode(), middle.suffix.encode(), document, multiline, most,
        state.threshold if body.threshold is None else body.threshold, _newest(middle.extra),
        state.settings.limits.suggest_seconds, limit / 1000 if limit and limit > 0 else None, several or 1,
    )  # fmt: skip
    return Call(ask, stops_of(body), (body.n_indent or 0) if isinstance(body, Llama) else 0)


def _newest(texts: Sequence[str]) -> list[bytes]:
    """The last of the texts, as many as there is room for."""
    kept: list[bytes] = []
    room = MOST_EXTRA
    for text in reversed(texts):
        data = text.encode()
        room -= len(data)
        if room < 0:
            break
        kept.append(data)
    return kept


def _request(state: State, body: Common, sampling: Sampling, max_tokens: int | None) -> Request:
    _require_supported(body)
    most = state.settings.limits.write_tokens
    tokens = most if max_tokens is None or max_tokens < 0 else min(max_tokens, most)
    seed = secrets.randbits(32) if body.seed in (None, -1) else int(body.seed or 0) & 0xFFFFFFFF
    return Request(tokens, sampling, stops_of(body), seed, closing=state.ready().closing)


def text_request(state: State, body: Common, max_tokens: int | None) -> Request:
    """What is to be written for an OpenAI body. Raises Refused."""
    return _request(state, body, openai_sampling(body), max_tokens)


def stops_of(body: Common) -> list[str]:
    """The texts at which an answer ends."""
    given = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return [stop for stop in given if stop]


def openai_sampling(body: Common) -> Sampling:
    """OpenAI's options, with OpenAI's defaults: temperature 1, and nothing is left out."""
    return _sampling(body, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, last=1 << 20)


def llama_sampling(body: Llama) -> Sampling:
    """llama.cpp's options, with its server's defaults: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05."""
    last = 64 if body.repeat_last_n is None else body.repeat_last_n
    sampling = _sampling(body, temperature=0.8, top_p=0.95, top_k=40, min_p=0.05, last=last if last >= 0 else 1 << 20)
    if body.repeat_penalty is not None and last:
        sampling = replace(sampling, repetition_penalty=body.repeat_penalty)
    threshold = 0.1 if body.xtc_threshold is None else body.xtc_threshold
    if threshold > 0.5 or body.xtc_probability is None:  # two tokens cannot both be above it
        return sampling
    return replace(sampling, xtc_probability=body.xtc_probability, xtc_threshold=threshold)


def _sampling(body: Common, temperature: float, top_p: float, top_k: int, min_p: float, last: int) -> Sampling:
    given = temperature if body.temperature is None else body.temperature
    return Sampling(
        given if given >= NEARLY_GREEDY else 0.0,
        max(1e-6, top_p if body.top_p is None else body.top_p),
        max(0, top_k if body.top_k is None else body.top_k),
        min_p if body.min_p is None else body.min_p,
        presence_penalty=(body.presence_penalty or 0.0) if last else 0.0,
        frequency_penalty=(body.frequency_penalty or 0.0) if last else 0.0,
        penalty_context=max(1, last),
    )


def _require_supported(body: Common) -> None:
    """Refuse what would change the answer and is not there: to leave it out in silence would be to answer another
    question."""
    for name in ("logit_bias", "grammar", "json_schema", "tools", "functions"):
        if getattr(body, name, None):
            raise Refused(400, f"{name} is not supported: leave it away")
