"""What packing makes: the parameters of a graph, and the checkpoint tensors they are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """A parameter of the graph, and the checkpoint tensors that it is made of.

    Attributes:
        name: as the graph names it.
        shape: of a matrix (K, N) as in y = x W; otherwise the row-major shape.
        layout: `plain`: one source as it is. `matrix`: sources of shape [N_i, K], stacked along
            N and transposed. `vector`: one-dimensional sources one after the other. `rope`: a
            table of rotary cosines and sines, made of `made` and perhaps a source of factors.
        sources: names of checkpoint tensors.
        heads: for each source how many heads its rows are, where the rows of a head stand in
            rotary pairs (2 i, 2 i + 1) and are to stand in halves (i, i + dim / 2); 0 for a source
            whose rows stay. Empty: all stay.
        made: canonical JSON of what a computed parameter is made from.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    sources: tuple[str, ...]
    heads: tuple[int, ...] = ()
    made: str = ""
