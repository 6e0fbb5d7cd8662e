"""The Merkle tree against RFC 6962's own recursive definitions, written down naively, and published values."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_rpc import merkle

# The leaves and roots that certificate-transparency's reference implementation publishes for its tests.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = st.integers(1, 130)


def split(count):
    """k of the RFC: the largest power of two below n."""
    k = 1
    while k * 2 < count:
        k *= 2
    return k


def mth(data):
    if not data:
        return hashlib.sha256().digest()
    if len(data) == 1:
        return hashlib.sha256(b"\0" + data[0]).digest()
    k = split(len(data))
    return hashlib.sha256(b"\1" + mth(data[:k]) + mth(data[k:])).digest()


def path(m, data):
    if len(data) == 1:
        return []
    k = split(len(data))
    if m < k:
        return [*path(m, data[:k]), mth(data[k:])]
    return [*path(m - k, data[k:]), mth(data[:k])]


def subproof(m, data, known):
    if m == len(data):
        return [] if known else [mth(data)]
    k = split(len(data))
    if m <= k:
        return [*subproof(m, data[:k], known), mth(data[k:])]
    return [*subproof(m - k, data[k:], False), mth(data[:k])]


def leaves(count):
    return [b"leaf %d" % number for number in range(count)]


def subtrees(data):
    return lambda level, index: mth(data[index << level : (index + 1) << level])


def grown(data):
    frontier = merkle.Frontier()
    for one in data:
        frontier.append(merkle.leaf_hash(one))
    return frontier


def test_the_roots_are_the_published_ones():
    assert grown([]).root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for size, root in enumerate(ROOTS, start=1):
        assert grown(LEAVES[:size]).root().hex() == root
        assert mth(LEAVES[:size]).hex() == root


def test_the_proofs_in_the_tree_of_seven_leaves_are_those_of_the_rfc():
    """RFC 6962, 2.1.3: leaves d0 to d6; a..f their hashes, g, h, i, j, k, l the nodes."""
    data = LEAVES[:7]
    a, b, c, d, e, f, j = (merkle.leaf_hash(one) for one in data)
    g, h, i = merkle.node_hash(a, b), merkle.node_hash(c, d), merkle.node_hash(e, f)
    k = merkle.node_hash(g, h)
    el = merkle.node_hash(i, j)
    subtree = subtrees(data)
    assert merkle.inclusion(0, 7, subtree) == [b, h, el]
    assert merkle.inclusion(3, 7, subtree) == [c, g, el]
    assert merkle.inclusion(4, 7, subtree) == [f, j, k]
    assert merkle.inclusion(6, 7, subtree) == [i, k]
    assert merkle.consistency(3, 7, subtree) == [c, d, g, el]
    assert merkle.consistency(4, 7, subtree) == [el]
    assert merkle.consistency(6, 7, subtree) == [i, j, k]


@given(SIZES)
def test_a_growing_tree_has_the_defined_roots_and_gives_every_complete_subtree_once(size):
    data = leaves(size)
    frontier, seen = merkle.Frontier(), {}
    for one in data:
        for node in frontier.append(merkle.leaf_hash(one)):
            assert (node.level, node.number) not in seen
            seen[node.level, node.number] = node.hash
    assert frontier.root() == mth(data)
    wanted = {(level, index) for level in range(8) for index in range(size >> level)}
    assert set(seen) == wanted
    assert all(digest == subtrees(data)(*where) for where, digest in seen.items())
    resumed = merkle.Frontier(size, frontier.hashes)
    assert resumed.root() == frontier.root()
    edge = merkle.edge(0, size)
    assert [seen[where] for where in edge] == frontier.hashes


@given(SIZES, st.data())
def test_inclusion_proofs_are_the_rfcs_and_convince_of_this_leaf_at_this_place_alone(size, draw):
    data = leaves(size)
    index = draw.draw(st.integers(0, size - 1))
    proof, root = merkle.inclusion(index, size, subtrees(data)), mth(data)
    assert proof == path(index, data)
    merkle.check_inclusion(merkle.leaf_hash(data[index]), index, size, proof, root)
    other = draw.draw(st.integers(0, size + 1))
    if other != index:
        with pytest.raises(merkle.BadProofError):
            merkle.check_inclusion(merkle.leaf_hash(data[index]), other, size, proof, root)
    for wrong in (merkle.leaf_hash(b"x"), root):
        if size > 1:
            with pytest.raises(merkle.BadProofError):
                merkle.check_inclusion(wrong, index, size, proof, root)
    for changed in (proof[:-1], [*proof, root], [bytes(32), *proof[1:]], [one[:31] for one in proof]):
        if changed != proof:
            with pytest.raises(merkle.BadProofError):
                merkle.check_inclusion(merkle.leaf_hash(data[index]), index, size, changed, root)


@given(SIZES, st.data())
def test_consistency_proofs_are_the_rfcs_and_convince_of_these_two_trees_alone(new, draw):
    data = leaves(new)
    old = draw.draw(st.integers(1, new))
    old_root, new_root = mth(data[:old]), mth(data)
    proof = merkle.consistency(old, new, subtrees(data))
    assert proof == (subproof(old, data, True) if old < new else [])
    merkle.check_consistency(old, old_root, new, new_root, proof)
    wrong = mth([b"other", *data[1:]][:old])
    with pytest.raises(merkle.BadProofError):
        merkle.check_consistency(old, wrong, new, new_root, proof)
    for changed in (proof[:-1], [*proof, old_root], [bytes(32), *proof[1:]]):
        if changed != proof:
            with pytest.raises(merkle.BadProofError):
                merkle.check_consistency(old, old_root, new, new_root, changed)


def test_the_empty_tree_is_the_beginning_of_every_tree():
    merkle.check_consistency(0, merkle.EMPTY_ROOT, 7, mth(LEAVES[:7]), [])
    merkle.check_consistency(0, merkle.EMPTY_ROOT, 0, merkle.EMPTY_ROOT, [])
    assert merkle.consistency(0, 7, subtrees(LEAVES)) == []
    with pytest.raises(merkle.BadProofError):
        merkle.check_consistency(0, bytes(32), 7, mth(LEAVES[:7]), [])


@given(st.integers(1, 1 << 40), st.data())
def test_a_proof_asks_for_few_hashes_however_large_the_tree(size, draw):
    asked = []

    def subtree(level, index):
        assert (index + 1) << level <= size
        asked.append((level, index))
        return bytes(32)

    merkle.inclusion(draw.draw(st.integers(0, size - 1)), size, subtree)
    assert len(asked) <= 2 * size.bit_length()
    asked.clear()
    merkle.consistency(draw.draw(st.integers(0, size)), size, subtree)
    assert len(asked) <= 2 * size.bit_length()


def test_a_frontier_of_the_wrong_length_is_refused():
    for size, count in ((0, 1), (3, 1), (4, 2), (-1, 0)):
        with pytest.raises(ValueError, match="right edge"):
            merkle.Frontier(size, [bytes(32)] * count)
