"""What `vlm_jax.data.check` prints: a table of the sources, the expected packing, and the bad records by reason."""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlm_jax.cli import plain
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.inspection.expected import Packing
from vlm_jax.data.inspection.survey import Survey

EXAMPLES = 3
"""Bad records that are shown of each reason."""

_PERCENTILES = (50, 90, 99, 100)
_WIDTH = 112  # columns where there is no terminal
_LONGEST = 300  # characters of an example


class Report:
    """Prints to standard output. Whatever a record wrote is printed as it stands, without control characters."""

    def __init__(self, survey: Survey, packing: Packing | None, *, lengths: str, deep: bool) -> None:
        """Takes what was found.

        Args:
          survey: of the data.
          packing: what is expected of it, if a record is good.
          lengths: in words, what tokens were counted with.
          deep: every image was decoded.
        """
        self._survey, self._packing, self._lengths, self._deep = survey, packing, lengths, deep
        terminal = sys.stdout.isatty()
        self._console = Console(width=None if terminal else _WIDTH, highlight=False, soft_wrap=False)

    def show(self) -> None:
        """Prints all of it."""
        self._console.print(self._table())
        self.say(f"Tokens were counted with {self._lengths}.")
        looked = "decoded whole" if self._deep else "looked at by their headers alone (--deep decodes them)"
        if self._survey.images.any():
            self.say(f"Images were {looked}.")
        self._show_packing()
        self._show_bad()

    def say(self, line: str, indent: int = 0) -> None:
        """Prints a line, however long, of plain text."""
        self._console.print(Text(" " * indent + plain(line)), soft_wrap=True)

    def _good(self) -> np.ndarray:
        good = np.ones(len(self._survey.images), bool)
        good[list(self._survey.index.bad)] = False
        return good

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("source", overflow="fold")
        for name in ("records", "bad", "images", "tiles", "tokens", "median", "90 %", "99 %", "longest"):
            table.add_column(name, justify="right", no_wrap=True)
        good = self._good()
        for number, name in enumerate(self._survey.groups):
            self._add_row(table, name, self._survey.group_ids == number, good)
        if len(self._survey.groups) > 1:
            table.add_section()
            self._add_row(table, "all", np.ones_like(good), good)
        return table

    def _add_row(self, table: Table, name: str, mine: np.ndarray, good: np.ndarray) -> None:
        bad, used = int((mine & ~good).sum()), mine & good
        tokens, tiles = self._survey.index.sizes[used].astype(np.int64).T
        lengths = np.percentile(tokens, _PERCENTILES, method="inverted_cdf").tolist() if len(tokens) else [0] * 4
        cells = [mine.sum(), bad, self._survey.images[used].sum(dtype=np.int64), tiles.sum(), tokens.sum(), *lengths]
        texts = [Text(f"{int(cell):,}") for cell in cells]
        if bad:
            texts[1].stylize("bold red")
        table.add_row(Text(plain(name)), *texts)

    def _show_packing(self) -> None:
        packing = self._packing
        if packing is None:
            return
        part = "" if packing.records == packing.whole else f" (the first {packing.records:,} of an epoch)"
        self.say("")
        self.say(
            f"Expected packing{part}: {packing.records:,} conversations in {len(packing.rows):,} rows of "
            f"{packing.tokens:,} tokens and {packing.tiles} tile slots (--tokens, --tiles)"
        )
        self.say(f"filled: {_percent(packing.token_fill)} of the tokens, {_percent(packing.tile_fill)} of the tiles", 2)

    def _show_bad(self) -> None:
        bad = self._survey.index.bad
        self.say("")
        if not bad:
            self.say(f"All {len(self._survey.images):,} records can be used.")
            return
        self.say(f"{len(bad):,} of {len(self._survey.images):,} records cannot be used:")
        by_reason: dict[str, list[RecordError]] = defaultdict(list)
        for number in sorted(bad):
            by_reason[bad[number].reason].append(bad[number])
        for reason, errors in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            self.say(f"{reason}: {len(errors):,}", 2)
            for error in errors[:EXAMPLES]:
                self.say(str(error)[:_LONGEST], 4)
            if len(errors) > EXAMPLES:
                self.say(f"and {len(errors) - EXAMPLES:,} more", 4)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
