"""The bodies of requests, field by field: what msgspec checks is what /openapi.json says.

Every field may be missing or null, and then has the default of the protocol it belongs to. Fields that are not listed
are left alone. Beside a protocol's own, `document` names the buffer by its path in the project (what is saved there
gives way to it, and a newer request for it ends an older one), `multiline` asks for the whole block, and `threshold` is
the confidence below which nothing is shown.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

Fraction = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=100)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Most = Annotated[int, Meta(ge=0, le=1 << 20)]
Count = Annotated[int, Meta(ge=-1, le=1 << 20)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Stop = Annotated[str, Meta(max_length=1000)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=16)]
Prompts = str | Annotated[list[str], Meta(min_length=1, max_length=16)]
Several = Annotated[int, Meta(ge=1, le=8)]
Top = Annotated[int, Meta(ge=0, le=20)]
Document = Annotated[str, Meta(max_length=1000)]


class Common(Struct, kw_only=True):
    """What all endpoints have."""

    model: str | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Count | None = None
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    logit_bias: Any = None
    document: Document | None = None
    multiline: bool | None = None
    threshold: Fraction | None = None


class Extra(Struct):
    """Text of another place, as /infill sends it."""

    text: str
    filename: str | None = None
    time: Any = None


class Llama(Common, kw_only=True):
    """llama.cpp's options."""

    n_predict: Count | None = None
    n_cmpl: Several | None = None
    n_probs: Top | None = None
    n_indent: Most | None = None
    t_max_predict_ms: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    repeat_last_n: Count | None = None
    xtc_probability: Fraction | None = None
    xtc_threshold: Fraction | None = None
    response_fields: Annotated[list[str], Meta(max_length=100)] | None = None
    grammar: Any = None
    json_schema: Any = None


class Infill(Llama, kw_only=True):
    """POST /infill."""

    input_prefix: str | None = None
    input_suffix: str | None = None
    input_extra: Annotated[list[Extra], Meta(max_length=1000)] | None = None
    prompt: str | None = None


class LlamaCompletion(Llama, kw_only=True):
    """POST /completion."""

    prompt: Prompts


class StreamOptions(Struct):
    """OpenAI's stream_options."""

    include_usage: bool | None = None


class OpenAI(Common, kw_only=True):
    """OpenAI's options."""

    max_tokens: Most | None = None
    n: Several | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class TextCompletion(OpenAI, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompts
    suffix: str | None = None
    logprobs: Top | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None


class Fim(OpenAI, kw_only=True):
    """POST /v1/fim/completions, Mistral's."""

    prompt: str
    suffix: str | None = None
    random_seed: Seed | None = None


class Options(Struct, kw_only=True):
    """Ollama's options of a model."""

    num_predict: Annotated[int, Meta(ge=-2, le=1 << 20)] | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    top_k: Count | None = None
    min_p: Fraction | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    repeat_last_n: Count | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Stops | None = None


class Generate(Struct, kw_only=True):
    """POST /api/generate, Ollama's."""

    model: str
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    images: list[Any] | None = None
    format: Any = None
    stream: bool | None = None
    options: Options | None = None
    document: Document | None = None
    multiline: bool | None = None
    threshold: Fraction | None = None


class Show(Struct, kw_only=True):
    """POST /api/show, Ollama's; older clients say `name`."""

    model: str | None = None
    name: str | None = None


class Part(Struct):
    """A part of a message."""

    type: str
    text: str | None = None


class Message(Struct):
    """A message of a conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None


class ChatCompletion(OpenAI, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=10000)]
    max_completion_tokens: Most | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    tools: Any = None
    functions: Any = None
    response_format: Any = None
