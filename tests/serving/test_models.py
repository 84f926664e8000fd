"""What an entry of the catalogue says of itself."""

from __future__ import annotations

from serving.models import Model, Variant


def test_a_models_revision_is_a_commit_of_its_own_repo_alone() -> None:
    """A variant from another repo would be fetched at a commit that is not there."""
    variants = (
        Variant(name="own", memory_gb=1), Variant(name="pinned", memory_gb=1, revision="b" * 40),
        Variant(name="else", memory_gb=1, repo="x/fp8"),
        Variant(name="both", memory_gb=1, repo="x/fp8", revision="c" * 40),
    )  # fmt: skip
    model = Model(
        name="m", place="local", lanes=("private",), context=64, output=8, repo="x/m", revision="a" * 40,
        variants=variants,
    )  # fmt: skip
    assert model.source(None) == ("x/m", "a" * 40)
    found = [model.source(one) for one in variants]
    assert found == [("x/m", "a" * 40), ("x/m", "b" * 40), ("x/fp8", ""), ("x/fp8", "c" * 40)]
