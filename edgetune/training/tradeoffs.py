"""What a plan may trade for memory, and how a person reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tradeoffs:
    """The tradeoffs for memory. max_tokens: in a micro-batch; kept: blocks whose activations are kept; streamed: blocks
    whose weights are streamed; optimizer_state: AdamW's moments in "float" or "8bit"; prefix: most tokens of a prefix
    that is computed apart from the rows after it; live: answers in progress at a time, if a run learns from its own;
    prefix_inputs: whether a prefix's block inputs are kept.
    """

    max_tokens: int
    kept: int
    streamed: int
    optimizer_state: str = "float"
    prefix: int = 0
    live: int = 0
    prefix_inputs: bool = False

    def texts(self, unlimited: Tradeoffs, blocks: int, read: str) -> dict[tuple[str, ...], str]:
        """What is given up against the tradeoffs of a plan in any memory, by the names of fields; the cheapest first.
        blocks: of the model; read: what is read at every use besides streamed blocks.
        """
        at_a_time = f"{self.max_tokens} tokens are computed at a time"
        if self.max_tokens != unlimited.max_tokens:
            at_a_time += f", not {unlimited.max_tokens}, for the same batch"
        at_a_time += f", up to {self.prefix} that rows begin with alike before them" if self.prefix else ""
        kept = f"activations are kept of {self.kept} of {unlimited.kept} blocks"
        return {
            ("kept",): f"{kept}, the others are computed again",
            ("max_tokens", "prefix", "prefix_inputs"): at_a_time,
            ("streamed",): f"{self.streamed} of {blocks} blocks, {read} are read at every use",
            ("live",): f"{self.live} answers are in progress at a time, not {unlimited.live}",
            ("optimizer_state",): "AdamW's moments are stored in 8 bits, which changes the adapter a little",
        }
