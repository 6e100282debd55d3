"""What fits on which card: the bytes that CUDA really offers, not the number in the name."""

import re
from collections.abc import Mapping

from leantune.errors import BadInput

GIB = 2**30
# The "total capacity" that PyTorch's out-of-memory messages give for the card, in the GitHub issue
# named beside it.
USABLE_GIB = {
    "8GB": 7.75,  # RTX 4060: ESRSchao/EdgeRegNet#2
    "12GB": 11.60,  # RTX 4080 of 12 GB: index-tts/index-tts#301
    "T4": 14.56,  # Zheng-Chong/CatVTON#133
    "16GB": 15.61,  # RTX A4000: DengKaiCQ/VGGT-Long#6
    "L4": 22.03,  # ArcInstitute/evo2#190
    "RTX 4090": 23.52,  # Soul-AILab/SoulX-FlashTalk#5
    "A100-40GB": 39.50,  # TianheWu/CoSeR#10
    "L40S": 44.42,  # stepfun-ai/Step-Video-T2V#8
    "A100-80GB": 79.25,  # wbfwonderful/Vad-R1#11
}
# Dense peak in TFLOPS, on tensor cores in bf16 and outside them in fp32, as NVIDIA states it;
# halved where the datasheet gives bf16 with sparsity only.
PEAK_TFLOPS = {
    "L4": {"bf16": 121.0, "fp32": 30.3},  # L4 datasheet: 242 with sparsity
    # Ada architecture whitepaper, appendix A: fp32 accumulate
    "RTX 4090": {"bf16": 165.2, "fp32": 82.6},
    "A100-40GB": {"bf16": 312.0, "fp32": 19.5},  # A100 datasheet
    "L40S": {"bf16": 362.0, "fp32": 91.6},  # L40S datasheet
    "A100-80GB": {"bf16": 312.0, "fp32": 19.5},
}
# An assumed share of the peak: published runs of large models reached 0.21 to 0.46 (arXiv
# 2204.02311, table 3); small models at small batches reach less.
EFFICIENCY = 0.35
# Allowed for the CUDA context and library workspaces, which torch does not count.
CONTEXT_BYTES = GIB


def usable_bytes(card: str) -> int:
    """What CUDA offers on a card by name, the context's share among it."""
    return int(USABLE_GIB[card] * GIB)


def fits(reserved_bytes: int) -> dict[str, bool]:
    """Card to whether the allocator's reserved bytes and the context fit on it."""
    return {card: reserved_bytes + CONTEXT_BYTES <= size * GIB for card, size in USABLE_GIB.items()}


def smallest(fitting: Mapping[str, bool]) -> str:
    """The smallest card of an answer of `fits`, whose order a file may have lost; `none` where
    nothing fits."""
    return next((card for card in USABLE_GIB if fitting[card]), "none")


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `512MiB`, `8GB` (10^9) or a card's name (what is left beside the context).

    Raises BadInput where it is none of these or not above 0.
    """
    if text in USABLE_GIB:
        return usable_bytes(text) - CONTEXT_BYTES
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i)?)?B?", text)
    number, letter, binary = match.groups() if match else (0, None, None)
    power = " KMGT".index(letter or " ")
    size = int(float(number) * (1024 if binary else 1000) ** power)
    if size <= 0:
        raise BadInput(
            f"'{text}' is no amount of memory; write 8GiB, 512MiB or a card: "
            + ", ".join(USABLE_GIB)
        )
    return size
