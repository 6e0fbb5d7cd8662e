"""The Merkle tree of RFC 6962, section 2.1, over SHA-256: roots, proofs of inclusion and consistency, and their checks.

What makes proofs asks for hashes of complete subtrees (`Subtree`), of which each proof needs O(log n): nothing here
holds a tree. What checks proofs needs nothing but the proof.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
MAX_PROOF = 64
"""Hashes in any proof over a tree of fewer than 2^63 leaves, at most."""

Subtree = Callable[[int, int], bytes]
"""The root of the complete subtree of 2^level leaves from leaf index * 2^level on, asked for as (level, index)."""


class BadProofError(Exception):
    """The proof does not lead from what it is for to the root."""


class Node(NamedTuple):
    """A complete subtree of 2^level leaves, the first of which is number * 2^level."""

    level: int
    number: int
    hash: bytes


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf's data."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node over its two children."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: one hash for each 1 in the binary form of its size.

    Args:
        size: of the tree so far.
        hashes: of its complete subtrees, the largest first.

    Raises:
        ValueError: the hashes are not as many as the size needs.
    """

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        if size < 0 or len(hashes) != size.bit_count():
            raise ValueError(f"the right edge of a tree of {size} leaves does not have {len(hashes)} hashes")
        self.size = size
        self.hashes = list(hashes)

    def append(self, leaf: bytes) -> list[Node]:
        """Adds a leaf by its hash; answers the complete subtrees that it ends, from the leaf itself upwards."""
        level, index, made = 0, self.size, leaf
        completed = [Node(0, index, made)]
        while index & 1:
            made = node_hash(self.hashes.pop(), made)
            level, index = level + 1, index >> 1
            completed.append(Node(level, index, made))
        self.hashes.append(made)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        return _fold(self.hashes)


def edge(begin: int, end: int) -> list[tuple[int, int]]:
    """The complete subtrees (level, index) that cover the leaves from begin to end - 1, the largest first.

    `begin` is a multiple of the largest power of two that is not above end - begin.
    """
    parts = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        parts.append((level, begin >> level))
        begin += 1 << level
    return parts


def root_of(begin: int, end: int, subtree: Subtree) -> bytes:
    """The root over the leaves from begin to end - 1; `begin` as in `edge`."""
    return _fold([subtree(level, index) for level, index in edge(begin, end)])


def inclusion(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """The proof that leaf `index` is in the tree of `size` leaves: PATH of RFC 6962, the leaf's sibling first."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    begin, end = 0, size
    path: list[bytes] = []
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(root_of(middle, end, subtree))
            end = middle
        else:
            path.append(root_of(begin, middle, subtree))
            begin = middle
    return path[::-1]


def consistency(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """The proof that the tree of `new` leaves begins with that of `old`: PROOF of the RFC; empty for 0 and equals."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves does not begin with {old}")
    if old in (0, new):
        return []
    begin, end = 0, new
    path: list[bytes] = []
    known = True  # whether the part looked at is one that the old tree's root already shows
    while old != end:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(root_of(middle, end, subtree))
            end = middle
        else:
            path.append(root_of(begin, middle, subtree))
            begin, known = middle, False
    if not known:
        path.append(root_of(begin, end, subtree))
    return path[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Returns when `proof` shows that the leaf with this hash stands at `index` in the tree of `size` with this root.

    Raises:
        BadProofError: it does not.
    """
    if not 0 <= index < size or len(proof) > MAX_PROOF:
        raise BadProofError(f"a tree of {size} leaves has no leaf {index}, or the proof is too long")
    made, number, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_BYTES:
            raise BadProofError("the inclusion proof has a hash too many, or one of the wrong length")
        if number & 1 or number == last:
            made = node_hash(sibling, made)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            made = node_hash(made, sibling)
        number, last = number >> 1, last >> 1
    if last != 0 or made != root:
        raise BadProofError("the inclusion proof does not lead to the root")


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Returns when `proof` shows that the tree of `new` leaves begins with that of `old`.

    Raises:
        BadProofError: it does not.
    """
    if not 0 <= old <= new or len(proof) > MAX_PROOF or any(len(one) != HASH_BYTES for one in proof):
        raise BadProofError("the consistency proof is malformed")
    if old in (0, new):
        if proof or old_root != (new_root if old else EMPTY_ROOT) or (new == 0 and new_root != EMPTY_ROOT):
            raise BadProofError("the roots are not those of the same tree, or of the empty one")
        return
    number, last = old - 1, new - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    rest = list(proof)
    if number:
        if not rest:
            raise BadProofError("the consistency proof is too short")
        made_old = made_new = rest.pop(0)
    else:
        made_old = made_new = old_root
    for sibling in rest:
        if last == 0:
            raise BadProofError("the consistency proof is too long")
        if number & 1 or number == last:
            made_old, made_new = node_hash(sibling, made_old), node_hash(sibling, made_new)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            made_new = node_hash(made_new, sibling)
        number, last = number >> 1, last >> 1
    if last != 0 or made_old != old_root or made_new != new_root:
        raise BadProofError("the consistency proof does not lead from the one root to the other")


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _fold(hashes: Sequence[bytes]) -> bytes:
    """The root over complete subtrees, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    made = hashes[-1]
    for left in reversed(hashes[:-1]):
        made = node_hash(left, made)
    return made
