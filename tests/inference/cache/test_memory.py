"""What is kept in memory never takes more room than it may, and the least recently used leaves first."""

from hypothesis import given, strategies as st

from headrace_server.inference.cache.memory import OVERHEAD_BYTES, MemoryTier


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 900), st.booleans()), max_size=60),
    st.integers(0, 4000),
)
def test_the_bound_holds_and_what_is_found_is_what_was_put_last(
    acts: list[tuple[str, int, bool]], max_bytes: int
) -> None:
    memory, put = MemoryTier(max_bytes, 800), dict[str, bytes]()
    for key, size, is_read in acts:
        if is_read:
            assert memory.get(key) in (None, put.get(key))
        else:
            put[key] = bytes(size)
            memory.put(key, put[key])
        assert memory.num_bytes <= max_bytes
        assert memory.num_bytes == sum(
            len(content) + OVERHEAD_BYTES for key in "abcdef" if (content := memory.get(key)) is not None
        )


def test_the_least_recently_used_leaves_first() -> None:
    memory = MemoryTier(3 * (OVERHEAD_BYTES + 10), 100)
    for key in "abc":
        memory.put(key, bytes(10))
    memory.get("a")

    memory.put("d", bytes(10))

    assert [key for key in "abcd" if memory.get(key) is not None] == ["a", "c", "d"]


def test_an_entry_that_grew_too_large_is_gone_rather_than_old() -> None:
    memory = MemoryTier(10_000, 100)
    memory.put("a", bytes(10))

    memory.put("a", bytes(101))

    assert memory.get("a") is None
    assert (memory.num_bytes, len(memory)) == (0, 0)
