"""The cached singular value decompositions."""

from __future__ import annotations

from pathlib import Path

import torch

from leantune.svd import cached_svd, decompose


def test_svd_is_cached_by_the_weights_hash(tmp_path: Path) -> None:
    W = torch.randn(6, 4)
    first = cached_svd(W, tmp_path)
    (file,) = (tmp_path / "svd").iterdir()
    stamp = file.stat().st_mtime_ns
    assert all(
        torch.equal(a, b) for a, b in zip(first, cached_svd(W.clone(), tmp_path), strict=True)
    )
    assert file.stat().st_mtime_ns == stamp
    cached_svd(W.reshape(4, 6), tmp_path)  # the same bytes
    cached_svd(W + 1, tmp_path)
    assert len(list((tmp_path / "svd").iterdir())) == 3
    assert {f.suffix for f in (tmp_path / "svd").iterdir()} == {".safetensors"}


def test_signs_are_canonical() -> None:
    U, S, Vh = decompose(
        torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    assert (Vh.gather(1, Vh.abs().argmax(1, keepdim=True)) > 0).all()
    flipped = decompose(-(U * S) @ Vh)
    torch.testing.assert_close(flipped.Vh, Vh)
    torch.testing.assert_close(flipped.U, -U)
