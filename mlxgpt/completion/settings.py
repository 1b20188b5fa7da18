"""What a model's completions were calibrated to, kept beside it as `completion.json`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mlxgpt import files
from mlxgpt.completion.gate import Gate, Point
from mlxgpt.completion.mixture import CAUTIOUS, Mixture
from mlxgpt.errors import Error

Fim = Literal["", "psm", "spm"]
NAME = "completion.json"
FORMAT = 1
# The n-grams alone need no model, and so no run that could have calibrated them: fitted to 1,494 suggestions in files
# of Python's standard library and of the Zig compiler that they did not know.
NGRAMS_ALONE = Gate(
    (0.854, 0.412, 0.011, 0.026, 0.215, 0.023, -1.134, -0.059),
    [
        Point(*point)
        for point in (
            (0.0, 1.0, 0.623), (0.1, 0.675, 0.456), (0.2, 0.56, 0.378), (0.3, 0.472, 0.322), (0.4, 0.408, 0.27),
            (0.5, 0.355, 0.224), (0.6, 0.295, 0.166), (0.7, 0.237, 0.107), (0.8, 0.192, 0.087), (0.9, 0.116, 0.052),
            (0.95, 0.06, 0.011),
        )
    ],
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How model and n-grams are mixed, a gate for each `--using`, and how the model was trained to fill in the middle:
    "" is not at all, None as its tokenizer's control tokens suggest."""

    mixture: Mixture = field(default_factory=Mixture)
    gates: dict[str, Gate] = field(default_factory=dict)
    fim: Fim | None = None

    def gate(self, using: str) -> Gate:
        """The gate for suggestions made `using` this."""
        return self.gates.get(using) or (NGRAMS_ALONE if using == "ngrams" else Gate())

    def save(self, folder: Path) -> None:
        """Write them into a model folder. Raises Error."""
        table: dict[str, Any] = {"format": FORMAT, "mixture": list(self.mixture.weights), "fim": self.fim}
        files.write_json(folder / NAME, table | {"gates": {name: g.as_json() for name, g in self.gates.items()}})

    @classmethod
    def load(cls, folder: Path) -> "Settings":
        """Those of a model folder, the cautious ones where it has none. Raises Error for a damaged file."""
        if not (folder / NAME).is_file():
            return cls()
        table = files.read_json(folder / NAME)
        try:
            weights = tuple(float(w) for w in table["mixture"])
            if table["format"] != FORMAT or len(weights) != len(CAUTIOUS):
                raise ValueError("another format")
            if table.get("fim") not in (None, *get_args(Fim)):
                raise ValueError(f"fim {table['fim']!r}")
            gates = {name: Gate.from_json(g) for name, g in table["gates"].items()}
            return cls(Mixture(weights), gates, table.get("fim"))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Error(f"{folder / NAME} is damaged ({error}): delete it, or train again") from None
