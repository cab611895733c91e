"""Who owns which page of KV memory, and which pages are known by their contents. Integers and hashes only.

Page 0 is scratch: padding writes there, nobody owns it. A page without an owner stays in `free`, still known, until it
is handed out again: the one that was released first goes first, and of one sequence the tail before the head, so that
a known page's prefix is known too.
"""
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple


class Prefix(NamedTuple):
    """One full page's tokens after everything before them: a node of the tree of prefixes."""

    parent: "Prefix | None"
    root: bytes
    tokens: tuple[int, ...]
    key: bytes

    def same(self, other: "Prefix") -> bool:
        """Equality by contents, whatever the hashes say; equal parents are nearly always one object."""
        a: Prefix | None = self
        b: Prefix | None = other
        while a is not None and b is not None and a is not b:
            if a.tokens != b.tokens or a.root != b.root:
                return False
            a, b = a.parent, b.parent
        return a is b

    def extends(self, parent: "Prefix | None", other: "Prefix") -> bool:
        """Whether it is the same as `other`, whose parent is the same as `parent`: mostly a single comparison."""
        if self.tokens != other.tokens or self.root != other.root:
            return False
        mine = self.parent
        return mine is parent or (mine is not None and parent is not None and mine.same(parent))


def prefix_key(root: bytes, parent: bytes, tokens: tuple[int, ...]) -> bytes:
    return blake2b(b"%d:%b%b%b" % (len(root), root, parent, repr(tokens).encode()), digest_size=16).digest()


def extend_prefixes(prefixes: list[Prefix], root: bytes, tokens: Sequence[int], page_size: int, length: int) -> None:
    """Add the nodes of the full pages of tokens[:length] that are not there yet."""
    for i in range(len(prefixes), length // page_size):
        parent = prefixes[-1] if prefixes else None
        part = tuple(tokens[i * page_size : (i + 1) * page_size])
        prefixes.append(Prefix(parent, root, part, prefix_key(root, parent.key if parent else b"", part)))


class PagePool:
    """Reference-counted pages with a prefix cache."""

    def __init__(self, pages: int, page_size: int):
        if pages < 2 or page_size < 1:
            raise ValueError(f"a pool needs a scratch page and one more, of at least 1 token: {pages}, {page_size}")
        self.page_size = page_size
        self.size = pages - 1  # pages that can be owned
        self._refs = [0] * pages
        self._known: list[Prefix | None] = [None] * pages
        self._by_key: dict[bytes, int] = {}
        self._free = OrderedDict.fromkeys(range(1, pages))

    @property
    def available(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.size - len(self._free)

    @property
    def cached(self) -> int:
        """Pages whose contents another sequence could use, owned or not."""
        return len(self._by_key)

    def match(self, prefixes: Sequence[Prefix]) -> list[int]:
        """The known pages of the longest known prefix. They are not held yet."""
        pages: list[int] = []
        last: Prefix | None = None
        for prefix in prefixes:
            page = self._by_key.get(prefix.key)
            known = None if page is None else self._known[page]
            if page is None or known is None or not known.extends(last, prefix):
                break
            pages.append(page)
            last = known
        return pages

    def known(self, pages: Iterable[int]) -> list[Prefix]:
        """What these pages are known as; none of them may be unknown."""
        prefixes = [self._known[p] for p in pages]
        assert None not in prefixes
        return [p for p in prefixes if p is not None]

    def unowned(self, pages: Iterable[int]) -> int:
        """How many of these pages would leave `free` if they were held."""
        return sum(self._refs[p] == 0 for p in pages)

    def shared(self, page: int) -> bool:
        return self._refs[page] > 1

    def hold(self, pages: Iterable[int]) -> None:
        for p in pages:
            self._refs[p] += 1
            self._free.pop(p, None)

    def take(self, count: int) -> list[int]:
        """Hand out pages; what they held is forgotten. Raises IndexError when there are not enough."""
        if count > len(self._free):
            raise IndexError(f"{count} pages wanted, {len(self._free)} free")
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for p in pages:
            if (prefix := self._known[p]) is not None:
                del self._by_key[prefix.key]
                self._known[p] = None
            self._refs[p] = 1
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give up one hold on each; given head first. Raises ValueError for a page that nobody holds."""
        for p in reversed(pages):
            if p == 0 or self._refs[p] == 0:
                raise ValueError(f"page {p} is not held: released twice")
            self._refs[p] -= 1
            if self._refs[p] == 0:
                self._free[p] = None

    def publish(self, page: int, prefix: Prefix) -> None:
        """Make a full, held page known. A prefix or a page that is known already stays as it is."""
        if self._refs[page] == 0:
            raise ValueError(f"page {page} is not held, it cannot be published")
        if prefix.key not in self._by_key and self._known[page] is None:
            self._by_key[prefix.key], self._known[page] = page, prefix

    def check_integrity(self) -> None:
        """Raise AssertionError unless counts, the free list and the index agree."""
        assert 0 not in self._free and self._refs[0] == 0, "the scratch page was handed out"
        for p in range(1, len(self._refs)):
            assert (self._refs[p] == 0) == (p in self._free), f"page {p} has {self._refs[p]} owners"
        for key, p in self._by_key.items():
            known = self._known[p]
            assert known is not None and known.key == key, f"page {p} is indexed under another key"
        assert len(self._by_key) == sum(k is not None for k in self._known)
