"""The pool of KV blocks, and prefixes kept by content. Pure bookkeeping: no tensor is touched here.

A block holds the keys and values of `block_size` consecutive tokens. A full block can be told by a name that depends on
every token up to its end (and on whose request it was), so a later prompt with the same beginning takes the block
instead of computing it: automatic prefix caching as in Kwon et al., "Efficient Memory Management for Large Language
Model Serving with PagedAttention" (arXiv:2309.06180).

A block is always in one of three places: held (one or more sequences use it), kept (nobody uses it, its content has a
name; the least recently used is taken first when blocks run out) or free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

import numpy as np

BlockName: TypeAlias = bytes


class BlockPool:
    """Blocks by number, 0 to `num_blocks` - 1, counted by reference. Not thread-safe: the step loop owns it."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._names: dict[int, BlockName] = {}
        self._by_name: dict[BlockName, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free ones and kept ones."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Blocks that nobody uses, and whose content has a name."""
        return len(self._kept)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with undefined content, or None (and nothing is taken) if there are too few."""
        if count > self.num_available:
            return None
        blocks = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def match(self, names: Sequence[BlockName]) -> list[int]:
        """The blocks of the longest known beginning of `names`, each held once more for the caller."""
        blocks: list[int] = []
        for name in names:
            if (block := self._by_name.get(name)) is None:
                break
            self._references[block] += 1
            self._kept.pop(block, None)
            blocks.append(block)
        return blocks

    def publish(self, block: int, name: BlockName) -> None:
        """Tells that a held block now has this content. If another block already has it, that one stays the known."""
        assert self._references[block] > 0
        if name not in self._by_name and block not in self._names:
            self._by_name[name] = block
            self._names[block] = name

    def release(self, blocks: Sequence[int]) -> None:
        """Gives back what `allocate` or `match` gave."""
        # Backwards, so that of one sequence the end is evicted before the beginning, which more prompts can use.
        for block in reversed(blocks):
            if self._references[block] <= 0:
                raise AssertionError(f"block {block} was released twice")
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._kept.popitem(last=False)
        del self._by_name[self._names.pop(block)]
        return block


@dataclass(frozen=True, slots=True)
class PictureSpan:
    """Where a picture stands among a prompt's tokens."""

    begin: int
    end: int
    identity: bytes
    """What makes its tokens differ from another picture's, whose placeholder ids are the same: digest and size."""


class PrefixNames:
    """Names the full blocks of one growing sequence of tokens. Tenants never share a name."""

    def __init__(self, tenant: str, block_size: int, pictures: Sequence[PictureSpan]) -> None:
        self._block_size = block_size
        self._pictures = pictures
        self._root = blake2b(tenant.encode(), digest_size=32).digest()
        self._names: list[BlockName] = []

    def first(self, count: int, tokens: Sequence[int]) -> list[BlockName]:
        """Names of the first `count` blocks; `tokens` reaches at least to the end of the last of them."""
        while len(self._names) < count:
            self._names.append(self._name(len(self._names), tokens))
        return self._names[:count]

    def _name(self, index: int, tokens: Sequence[int]) -> BlockName:
        begin, end = index * self._block_size, (index + 1) * self._block_size
        assert end <= len(tokens)
        state = blake2b(self._names[-1] if self._names else self._root, digest_size=32)
        state.update(np.array(tokens[begin:end], np.int64).tobytes())
        for picture in self._pictures:
            if picture.begin < end and begin < picture.end:
                state.update(picture.begin.to_bytes(8, "little") + picture.identity)
        return state.digest()
