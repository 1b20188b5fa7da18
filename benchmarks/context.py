"""Whether a model completes better when it is shown other files: the same cursors, with a context and without.

    python benchmarks/context.py RUN [--cursors 300] [--early 1800] [--using model] [--reserved 0 0.25] [--json FILE]

RUN is a folder that `mlxgpt train` wrote, whose context is longer than most prompts. "early" cursors are in the first
1,800 bytes of held-out files, which leave room in the context; "all" are anywhere. What is shown are the files that the
run was trained on, chosen as `--context` does; `reserved` is the share of a prompt that a long file gives up for them.
Last: the tokens computed while the last lines of a long file are typed, a character at a time, with what is shown kept
from keystroke to keystroke, and chosen anew at each.
"""

import argparse
import json
from pathlib import Path

from mlxgpt import backend, weights
from mlxgpt.completion import evaluation, session
from mlxgpt.completion.context import Library
from mlxgpt.completion.cursors import pick_cursors
from mlxgpt.completion.settings import Settings
from mlxgpt.completion.suggest import Suggester

TYPED = 300  # characters


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--cursors", type=int, default=300)
    parser.add_argument("--early", type=int, default=1800)
    parser.add_argument("--using", choices=["model", "both"], default="model")
    parser.add_argument("--reserved", type=float, nargs="+", default=[0.0, 0.25])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    backend.start()
    model, tokenizer = weights.load_with_tokenizer(options.run, backend.compute_dtype(), compact=True)
    held_out = session.from_run(options.run, tokenizer)
    index = session.index_of(options.run, tokenizer, None, held_out)
    if index is None:
        parser.error(f"{options.run} does not say what it was trained on")
    library, settings = Library.of_index(index), Settings.load(options.run)
    known = index if options.using == "both" else None

    def suggester(shown: Library | None, reserved: float = 0.0) -> Suggester:
        found = Suggester(model, tokenizer, known, options.using, settings, library=shown)
        found.views.reserved = reserved
        return found

    early = [(name, data[: options.early]) for name, data in held_out.documents]
    places = {
        "early": pick_cursors(early, options.cursors, 1),
        "all": pick_cursors(held_out.documents, options.cursors, 2),
    }
    evaluation.WARM = 0  # the latency with a warm prefix is not measured here
    rows = []
    print(f"{'cursors':8} {'shown':14} {'exact':>7} {'edit':>7} {'completed':>10} {'p50 cold':>9}")
    for where, cursors in places.items():
        shares = options.reserved if where == "all" else [0.0]
        ways = [("nothing", None, 0.0), *((f"reserved {share:g}", library, share) for share in shares)]
        for name, shown, share in ways:
            s = evaluation.evaluate(suggester(shown, share), cursors, paths=held_out.paths if shown else {})
            rows.append({"cursors": where, "shown": name, "exact_match": s.exact_match, "p50": s.p50,
                         "edit_similarity": s.edit_similarity, "completed_ratio": s.completed_ratio})  # fmt: skip
            print(
                f"{where:8} {name:14} {s.exact_match:7.1%} {s.edit_similarity:7.1%} {s.completed_ratio:10.1%} "
                f"{s.p50:6.0f} ms", flush=True,
            )  # fmt: skip
    name, data = max(held_out.documents, key=lambda d: len(d[1]))
    for kept in (True, False):
        typing, computed = suggester(library), 0
        for end in range(len(data) - TYPED, len(data)):
            work = typing.suggest(data[:end], max_tokens=0, document=name).work
            computed += work.prompt_tokens - work.cached_tokens
            if not kept:
                typing.forget(name)
        rows.append({"typed": TYPED, "kept": kept, "computed_tokens": computed})
        print(
            f"{TYPED} characters typed, what is shown {'kept' if kept else 'chosen anew'}: {computed:,} tokens computed"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
